"""The paged cache against a plain list of tokens per sequence."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from macbench.attention import Geometry
from macbench.engine.cache import PagedCache, pages_for
from macbench.engine.view import View

GEOMETRY = Geometry(2, 4, 2, 3, 1.0, torch.device("cpu"), torch.float64, lambda x, positions: x)


def tokens(draw, count):
    return torch.randn(2, 2, count, 2, 3, generator=draw, dtype=torch.float64)  # [K/V, layer, …]


def read(cache, layer, row, length):
    """Keys and values [length, Hkv, d] of a row, token by token through its page table."""
    found = [
        [pool[cache.table[row, j // 16], :, j % 16] for j in range(length)]
        for pool in (cache.k[layer], cache.v[layer])
    ]
    return torch.stack([torch.stack(x) for x in found])


@settings(max_examples=25)
@given(
    seed=st.integers(0, 999),
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=3),
    forks=st.integers(1, 3),
    new=st.integers(0, 40),
    chunk=st.integers(1, 60),
)
def test_forks_share_a_prompt_and_nothing_else(seed, lengths, forks, new, chunk):
    draw = torch.Generator().manual_seed(seed)
    slots, rows = len(lengths), len(lengths) * forks
    cache = PagedCache(GEOMETRY, slots, rows, max(lengths), new)
    prompts = [tokens(draw, n) for n in lengths]
    for slot, (length, prompt) in enumerate(zip(lengths, prompts, strict=True)):
        for layer in range(2):
            for at in range(0, length, chunk):
                part = prompt[:, layer, at : at + chunk]
                cache.write_prompt(layer, slot, at, *part)
            for got, want in zip(cache.prompt(layer, slot, length), prompt[:, layer], strict=True):
                assert torch.equal(got, want.transpose(0, 1))
    for row in range(rows):
        cache.fork(row, row % slots, lengths[row % slots])
    before = [pool[: cache.first_tail].clone() for pool in (*cache.k, *cache.v)]
    own = [tokens(draw, new) for _ in range(rows)]
    for at in range(new):  # all rows write their own token, as a decode step does
        position = torch.tensor([lengths[row % slots] + at for row in range(rows)])
        page = cache.table[torch.arange(rows), position // 16]
        for layer in range(2):
            now = torch.stack([x[:, layer, at] for x in own], 1)
            cache.write(layer, page, position % 16, *now)
    for row in range(rows):
        length = lengths[row % slots]
        want = torch.cat((prompts[row % slots], own[row]), 2)
        for layer in range(2):
            assert torch.equal(read(cache, layer, row, length + new), want[:, layer])
    after = [pool[: cache.first_tail] for pool in (*cache.k, *cache.v)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_bytes_are_those_of_the_pools():
    cache = PagedCache(GEOMETRY, slots=3, rows=6, max_prompt=33, max_new=17)
    assert cache.pages == 3 * 3 + 6 * (2 + 1)
    assert cache.bytes == cache.pages * 2 * 16 * 2 * 3 * 8 * 2
    assert [pages_for(n) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_a_view_shows_the_newest_key_and_the_logits_of_every_cached_key():
    draw = torch.Generator().manual_seed(0)
    lengths = (33, 16)
    cache = PagedCache(GEOMETRY, 2, 2, 33, 4)
    data = [tokens(draw, n) for n in lengths]
    for slot, (n, x) in enumerate(zip(lengths, data, strict=True)):
        for layer in range(2):
            cache.write_prompt(layer, slot, 0, *x[:, layer])
        cache.fork(slot, slot, n)
    zero = torch.zeros(2, dtype=torch.int64)
    view = View(cache, cache.table, torch.tensor(lengths), zero, zero == 0, 33)
    newest = torch.stack([x[0, 1, -1] for x in data])
    assert torch.equal(view.newest_key(1), newest)
    q = torch.randn(2, 4, 3, generator=draw, dtype=torch.float64)
    logits = view.logits(1, q)
    for row, n in enumerate(lengths):
        for head in range(4):
            want = data[row][0, 1, :, head // 2] @ q[row, head]
            torch.testing.assert_close(logits[row, head, :n], want)
            assert logits[row, head, n:].isneginf().all()
