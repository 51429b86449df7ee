"""Drives a method over random keys, values and queries, without a model.

A `Problem` holds, per layer and sequence, everything that happens at every position of the prompt
and of the decode. `drive` feeds it to a method through the real cache and view; the oracles of
`naive` index the same arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import naive
import numpy as np
import torch
from torch import Tensor

from macbench.attention import Geometry, Method, Prompt
from macbench.engine.cache import PagedCache
from macbench.engine.view import View
from macbench.kernels.paged import PAGE
from macbench.measure.trace import Trace


def exact(given: Problem) -> Tensor:
    """Full attention of every decode step, [steps, layers, B, Hq, d], in torch, in one piece."""
    group, outs = given.geometry.group, []
    for at in range(given.steps):
        rows = []
        for s in given.sequences:
            t = s.length + at
            k, v = (x[:, : t + 1].repeat_interleave(group, 2) for x in (s.k, s.v))
            logits = torch.einsum("lhd,lthd->lht", s.q[:, t], k) * given.geometry.scale
            rows.append(torch.einsum("lht,lthd->lhd", logits.softmax(-1), v))
        outs.append(torch.stack(rows, 1))
    return torch.stack(outs)


BASE = torch.tensor([100.0, 30.0], dtype=torch.float64)  # of frequencies, by regime
SCALE = torch.tensor([1.0, 1.25], dtype=torch.float64)  # of cos and sin


def rope(x: Tensor, positions: Tensor, regimes: Tensor | None = None) -> Tensor:
    """Rotary embedding in halves: x [T, H, d], positions and regimes [T]."""
    half = x.shape[-1] // 2
    regime = torch.zeros_like(positions) if regimes is None else regimes
    frequency = BASE[regime, None] ** (-torch.arange(half, dtype=torch.float64) / half)
    angle, scale = (positions[:, None] * frequency)[:, None], SCALE[regime, None, None]
    cos, sin = (scale * angle.cos()).to(x.dtype), (scale * angle.sin()).to(x.dtype)
    left, right = x[..., :half], x[..., half:]
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)


@dataclass
class Tokens:
    """One sequence: prompt of `length` tokens, then decoded ones. Arrays are [layers, T, H, d]."""

    length: int
    q_pre: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    key: int = 0
    regime: int = 0
    decoded: int = 0  # of the prompt, by an answer that goes on


@dataclass
class Problem:
    geometry: Geometry
    sequences: list[Tokens]
    steps: int

    def only(self, *slots: int) -> Problem:
        return replace(self, sequences=[self.sequences[i] for i in slots])

    def to(self, dtype: torch.dtype) -> Problem:
        """The same data, rounded once to `dtype`."""
        cast = [
            replace(s, **{n: getattr(s, n).to(dtype) for n in ("q_pre", "q", "k", "v")})
            for s in self.sequences
        ]
        return replace(self, geometry=replace(self.geometry, dtype=dtype), sequences=cast)


def problem(
    seed: int = 0,
    lengths: Sequence[int] = (37, 22),
    steps: int = 6,
    layers: int = 2,
    kv_heads: int = 2,
    group: int = 2,
    d: int = 8,
    centres: int = 3,
    noise: float = 0.25,
    stray: float = 0.2,
    regime: int = 0,
) -> Problem:
    """Random fp64 data. Queries scatter by `noise` around `centres` points per layer and head; a
    share `stray` of them is unlike any other."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    heads = kv_heads * group
    sequences = []
    for slot, length in enumerate(lengths):
        total = length + steps
        middle = normal(layers, centres, heads, d)
        which = torch.randint(centres, (layers, total, heads), generator=draw)
        index = which[..., None].expand(-1, -1, -1, d)
        strays = torch.rand(layers, total, heads, 1, generator=draw) < stray
        q_pre = middle.gather(1, index) + noise * normal(layers, total, heads, d)
        q_pre = torch.where(strays, 1.5 * normal(layers, total, heads, d), q_pre)
        position, regimes = torch.arange(total), torch.full((total,), regime)
        keys = normal(layers, total, kv_heads, d)
        sequences.append(
            Tokens(
                length,
                q_pre,
                torch.stack([rope(x, position, regimes) for x in q_pre]),
                torch.stack([rope(x, position, regimes) for x in keys]),
                normal(layers, total, kv_heads, d),
                key=1000 * seed + slot,
                regime=regime,
            )
        )
    geometry = Geometry(
        layers, heads, kv_heads, d, d**-0.5, torch.device("cpu"), torch.float64, rope
    )
    return Problem(geometry, sequences, steps)


@dataclass
class Record:
    """What came out: out[step][layer] [B, Hq, d]; counts[step][name] [layers, B, heads]."""

    method: Method
    trace: Trace
    view: View
    out: list[list[Tensor]] = field(default_factory=list)
    counts: list[dict[str, Tensor]] = field(default_factory=list)

    def tensor(self) -> Tensor:
        """[steps, layers, B, Hq, d]"""
        return torch.stack([torch.stack(step) for step in self.out])

    def sums(self) -> dict[str, float]:
        """Totals over rows, layers and heads, as `Method.witness` gets them."""
        totals = {name: value.sum().item() for name, value in self.trace.sums.items()}
        context = self.trace.context.sum().item() * self.trace.shape[0]
        totals["context_head"] = context * self.trace.heads["q"]
        totals["context_kv"] = context * self.trace.heads["kv"]
        return totals


def cached(given: Problem, fill: float = 0.0) -> View:
    """The view on a cache that holds the prompts, each forked once, and `fill` elsewhere."""
    lengths = [s.length for s in given.sequences]
    slots = len(lengths)
    cache = PagedCache(given.geometry, slots, slots, max(lengths), given.steps)
    for pool in (*cache.k, *cache.v):
        pool.fill_(fill)
    for slot, s in enumerate(given.sequences):
        for layer in range(given.geometry.layers):
            cache.write_prompt(layer, slot, 0, s.k[layer, : s.length], s.v[layer, : s.length])
        cache.fork(slot, slot, s.length)
    zero = torch.zeros(slots, dtype=torch.int64)
    live = torch.ones(slots, dtype=torch.bool)
    return View(cache, cache.table, torch.tensor(lengths), zero, live, max(lengths))


def allocate(method: Method, given: Problem) -> int:
    longest = max(s.length for s in given.sequences)
    method.check(given.geometry, longest)
    return method.allocate(given.geometry, len(given.sequences), longest + given.steps)


def observe(method: Method, layer: int, slot: int, s: Tokens, chunk: int = 13) -> None:
    """Show the prompt's queries and the keys up to them, a chunk at a time, as the prefill does."""
    for at in range(0, s.length, chunk):
        end = min(at + chunk, s.length)
        q_pre, q = s.q_pre[layer, at:end], s.q[layer, at:end]
        method.observe(layer, slot, q_pre, q, s.k[layer, :end].transpose(0, 1), at)


def start(method: Method, given: Problem, view: View) -> Record:
    """Begin every slot and layer, as the engine does after the prefill."""
    geometry = given.geometry
    kept = method.needs.prompt_queries
    for slot, s in enumerate(given.sequences):
        last = slice(max(s.length - kept, 0), s.length)
        prompt = Prompt(
            s.length, given.steps, s.length, s.key, list(s.q_pre[:, last]), list(s.q[:, last])
        )
        prompt.regime, prompt.decoded = s.regime, s.decoded
        for layer in range(geometry.layers):
            if method.needs.observe:
                observe(method, layer, slot, s)
            method.begin(layer, slot, prompt, view)
    trace = Trace(
        geometry.layers, len(given.sequences), geometry.q_heads, geometry.kv_heads, geometry.device
    )
    return Record(method, trace, view)


def step(record: Record, given: Problem, at: int) -> None:
    """Decode step number `at`: write every row's own token, attend in every layer, commit."""
    view, cache = record.view, record.view.cache
    record.method.between(view, at)
    view.lens += 1
    view.reach(at + 1, view.longest + given.steps)
    position = view.lens - 1
    page = view.table.gather(1, (position // PAGE)[:, None]).squeeze(1)
    outs = []
    for layer in range(given.geometry.layers):
        now = {
            name: torch.stack([getattr(s, name)[layer, s.length + at] for s in given.sequences])
            for name in ("q_pre", "q", "k", "v")
        }
        cache.write(layer, page, position % PAGE, now["k"], now["v"])
        outs.append(record.method.attend(layer, now["q_pre"], now["q"], view, record.trace))
    record.method.settle(view, record.trace)
    record.out.append(outs)
    record.counts.append({name: value.clone() for name, value in record.trace.now.items()})
    record.trace.commit(view)
    view.step += 1


def drive(method: Method, given: Problem, allocated: bool = False) -> Record:
    """Every decode step of the problem through `method`."""
    if not allocated:
        allocate(method, given)
    record = start(method, given, cached(given))
    for at in range(given.steps):
        step(record, given, at)
    return record


def assert_equals_naive(record, case, expected):
    """expected(layer number, data, t) -> naive.Step, asked for in the order of t."""
    for slot, sequence in enumerate(case.sequences):
        for number in range(case.geometry.layers):
            data = naive.layer(case, slot, number)
            for at in range(case.steps):
                want = expected(number, data, sequence.length + at)
                got = record.out[at][number][slot].numpy()
                np.testing.assert_allclose(got, np.array(want.out), atol=1e-10)
                for name in ("head_tokens", "kv_tokens", "meta_bytes"):
                    counts = record.counts[at][name][number, slot].numpy()
                    np.testing.assert_array_equal(counts, getattr(want, name), name)
