"""Prefill once, fork, decode all methods in one batch: nobody sees or disturbs anybody."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from macbench.attention import Method, Needs, create
from macbench.attention.full import Full
from macbench.attention.pages import PageBounds
from macbench.attention.quantise import Packed
from macbench.engine import Decoding, Engine
from macbench.engine.cache import PagedCache
from macbench.engine.clock import Clock
from macbench.engine.decode import Rows, build, decode
from macbench.engine.prefill import prefill
from macbench.measure.trace import Trace

SAVING = [
    ("full", {}),
    ("mac", {"tau": 0.3, "K": 16, "r": 6}),
    ("mac", {"tau": 0.3, "K": 16, "r": 6, "match": "random_lag", "sink": 2}),
    ("quest", {"budget": 0.6, "dense_layers": 1}),
    ("streaming_llm", {"budget": 0.3}),
    ("snapkv", {"budget": 0.3, "window": 4}),
    ("snapkv", {"budget": 0.3, "window": 4, "ada": True}),
    ("snapkv", {"budget": 0.3, "window": 4, "recompress": 5}),
    ("pyramidkv", {"budget": 0.4, "window": 4}),
    ("h2o", {"budget": 0.3}),
    ("tova", {"budget": 0.3}),
    ("tova", {"budget": 0.3, "per_kv_head": True}),
    ("kivi", {"bits": 4, "group_size": 4, "residual": 8}),
    ("multipole", {"budget": 0.7, "interval": 8, "per_cluster": 4, "sink": 2}),
    ("twilight", {"candidates": 32, "dense_layers": 1}),
    ("double_sparsity", {"budget": 0.6, "bits": 4, "dense_layers": 0}),
    ("oracle_topk", {"tokens": 0.2}),
    ("random", {"tokens": 0.4, "sink": 2, "recent": 8}),
]
WHOLE = [
    ("full", {}),
    ("full", {"passes": 2}),
    ("mac", {"tau": 1.0}),
    ("mac", {"tau": 1.0, "K": 8, "r": 3, "sink": 2}),
    ("quest", {"budget": 1.0, "dense_layers": 0}),
    ("streaming_llm", {"budget": 1.0}),
    ("snapkv", {"budget": 1.0, "ada": True}),
    ("snapkv", {"budget": 1.0, "recompress": 3}),
    ("pyramidkv", {"budget": 1.0}),
    ("h2o", {"budget": 1.0}),
    ("tova", {"budget": 1.0}),
    ("oracle_topk", {"tokens": 1.0}),
    ("random", {"tokens": 1.0}),
]


def engine_for(model, methods, requests, **options):
    """An engine of the right size for these requests."""
    return Engine(
        model,
        [create(name, knobs) for name, knobs in methods],
        len(requests),
        max(len(r.tokens) for r in requests),
        max(r.max_new for r in requests),
        max_hold=max(r.hold for r in requests),
        **options,
    )


def answer(model, methods, requests, **options):
    return engine_for(model, methods, requests, **options).run(requests)


def assert_same(a, b):
    """Two answers: the same tokens and ending, and the same reads."""
    assert a.tokens == b.tokens
    assert a.stopped == b.stopped
    assert a.reads.keys() == b.reads.keys()
    for name in ("steps", "context", "head_tokens", "kv_tokens", "meta_bytes"):
        assert a.reads[name] == b.reads[name], name


@pytest.mark.parametrize("chunk", [4096, 16, 7])
def test_full_says_what_transformers_says(model, greedy, ask, chunk):
    """Two lengths in one block, 20 tokens each, prompts in one or many chunks."""
    requests = ask(50, 33, max_new=20)
    answers = answer(model, [("full", {})], requests, chunk=chunk)[0]
    for request, said in zip(requests, answers, strict=True):
        assert said.tokens == greedy(request.tokens, 20)
        assert len(set(said.tokens)) > 5  # a model that repeats itself would prove little


def test_every_method_says_the_same_at_its_whole_budget(model, ask):
    answers = answer(model, WHOLE, ask(50, 32, max_new=30))
    for said in answers[1:]:
        for a, b in zip(answers[0], said, strict=True):
            assert a.tokens == b.tokens
            assert a.reads["kv_tokens"] == b.reads["kv_tokens"]


def test_the_first_token_is_not_a_scored_step(model, ask):
    said = answer(model, [("full", {})], ask(50, 33, max_new=12))[0]
    for n, a in zip((50, 33), said, strict=True):
        seen = sum(range(n + 1, n + 12))
        assert len(a.tokens) == 12 and a.reads["steps"] == 11 and a.reads["context"] == seen
        assert a.reads["kv_tokens"] == [[seen, seen]] * 3
        assert a.reads["head_tokens"] == [[seen] * 6] * 3


@pytest.mark.parametrize("hold", [1, 2, 17])
def test_held_tokens_are_decoded_and_counted(model, ask, hold):
    requests = ask(50, 33, max_new=12)
    held = [replace(r, hold=hold) for r in requests]
    plain = answer(model, [("full", {})], requests)[0]
    said = answer(model, WHOLE, held)
    for n, slot in ((50, 0), (33, 1)):
        for method in said:
            assert method[slot].tokens == plain[slot].tokens
            assert method[slot].reads["steps"] == hold + 11
            assert method[slot].reads["context"] == sum(range(n - hold + 1, n + 12))


def test_one_block_may_hold_different_numbers_of_tokens(model, ask):
    requests = ask(50, 33, 40, max_new=10)
    mixed = [replace(r, hold=h) for r, h in zip(requests, (0, 5, 99), strict=True)]
    plain, said = (answer(model, [("full", {})], x)[0] for x in (requests, mixed))
    assert [a.tokens for a in said] == [a.tokens for a in plain]
    assert [a.reads["steps"] for a in said] == [9, 5 + 9, 39 + 9]  # one token must be prefilled


def test_requests_of_one_block_may_want_different_numbers_of_tokens(model, ask):
    requests = ask(50, 33, 40, max_new=15)
    fewer = [replace(r, max_new=n) for r, n in zip(requests, (1, 15, 4), strict=True)]
    plain, said = (answer(model, SAVING, x) for x in (requests, fewer))
    for p, s in zip(plain, said, strict=True):
        assert [a.tokens for a in s] == [a.tokens[:n] for a, n in zip(p, (1, 15, 4), strict=True)]
        assert [a.reads["steps"] for a in s] == [0, 14, 3]


def test_a_stop_token_ends_its_row_alone(make_model, ask):
    requests = ask(50, 33, max_new=20)
    free = answer(make_model(), [("full", {}), ("full", {"passes": 2})], requests)[0]
    texts = [a.tokens for a in free]
    stop = next(t for t in texts[0][3:] if t not in texts[1])
    end = texts[0].index(stop)
    said = answer(make_model((stop, 200)), [("full", {}), ("full", {"passes": 2})], requests)
    for one, two in said:
        assert one.tokens == texts[0][:end] and one.stopped == "stop"
        assert one.reads["steps"] == end and one.reads["context"] == sum(range(51, 51 + end))
        assert two.tokens == texts[1] and two.stopped == "length" and two.reads["steps"] == 19


def test_a_stop_token_may_be_the_first(make_model, greedy, ask):
    requests = ask(50, 33, max_new=10)
    first = greedy(requests[0].tokens, 1)[0]
    said = answer(make_model((first,)), SAVING, requests)
    for one, two in said:
        assert one.tokens == [] and one.stopped == "stop" and one.reads["steps"] == 0
        assert two.reads["steps"] > 0 or two.tokens == []


@pytest.mark.parametrize("hold", [0, 6])
def test_rows_do_not_depend_on_the_rows_beside_them(model, ask, hold):
    """All methods and samples together, every method alone, every sample alone.

    MAC matches rotated queries here. Before RoPE, a query of layer 0 is its token's alone: all rows
    of a repeated token are equally near, and which is nearest is a matter of how a projection
    rounds, which depends on the size of the batch.
    """
    methods = [(n, x | {"match_on": "post_rope"} if n == "mac" else x) for n, x in SAVING]
    methods.append(("rocketkv", {"budget": 0.5, "window": 4}))
    requests = ask(90, 33, 64, max_new=20, hold=hold)
    together = answer(model, methods, requests)
    assert all(any(map(any, a.reads["hit"])) for m in (1, 2) for a in together[m])
    for m, method in enumerate(methods):
        for a, b in zip(answer(model, [method], requests)[0], together[m], strict=True):
            assert_same(a, b)
    for slot, request in enumerate(requests):
        for m, said in enumerate(answer(model, methods, [request])):
            assert_same(said[0], together[m][slot])


def test_an_engine_serves_block_after_block(model, ask):
    first, second = ask(90, 64, max_new=30), ask(20, 70, max_new=20, seed=1)
    engine = engine_for(model, SAVING, first)
    before = engine.run(first)
    for used, new in zip(engine.run(second), answer(model, SAVING, second), strict=True):
        for a, b in zip(used, new, strict=True):
            assert_same(a, b)
    for again, once in zip(engine.run(first), before, strict=True):
        for a, b in zip(again, once, strict=True):
            assert_same(a, b)


def prompt_pages(engine):
    pages = slice(0, engine.cache.first_tail)
    return torch.stack([pool[pages] for pool in (*engine.cache.k, *engine.cache.v)])


@pytest.mark.parametrize("hold", [0, 3])
@pytest.mark.parametrize("wanted", [(40, 40, 40), (1, 40, 7)])
def test_prompt_pages_are_never_written_after_the_fork(model, ask, hold, wanted):
    """48 and 32 tokens fill their pages: the first decoded token needs a page of its own."""
    requests = ask(48 + hold, 37 + hold, 32 + hold, hold=hold)
    requests = [replace(r, max_new=n) for r, n in zip(requests, wanted, strict=True)]
    untouched = engine_for(model, [("full", {})], requests)
    cut = [replace(r, tokens=r.tokens[: len(r.tokens) - hold], hold=0) for r in requests]
    untouched.run([replace(r, max_new=1) for r in cut])  # no decode step
    used = engine_for(model, SAVING, requests)
    used.run(requests)
    assert torch.equal(prompt_pages(used), prompt_pages(untouched))


@torch.inference_mode()
def test_a_fork_after_another_forks_100_tokens_is_a_fresh_prefill(model, ask, monkeypatch):
    tokens = torch.tensor(ask(45)[0].tokens)
    model.prepare(200)
    heard = []
    logits = type(model).logits
    monkeypatch.setattr(model, "logits", lambda h: heard.append(logits(model, h)) or heard[-1])

    def fork(cache, row, method, steps, first):
        """Decode `steps` tokens on a fork; the tokens and the logits."""
        cache.fork(row, 0, 45)
        one = torch.ones(1, dtype=torch.int64)
        rows = Rows(
            cache.table[row : row + 1], 45 * one, 0 * one, one.bool(), first * one[None], one,
            one, 500 * one, 0 * one, 0 * one,
        )  # fmt: skip
        g = model.geometry
        trace = Trace(g.layers, 1, g.q_heads, g.kv_heads, g.device)
        heard.clear()
        said = decode(build(model, cache, rows, [method], [trace], Decoding(), 45, 200, steps))
        return said, torch.stack(heard)

    def prefilled():
        cache = PagedCache(model.geometry, 1, 2, 45, 100)
        prefill(model, cache, 0, tokens, 0, 4096, 0)
        return cache

    shared, fresh = prefilled(), prefilled()
    other, _ = fork(shared, 0, Probe(), 100, first=3)
    late = fork(shared, 1, Probe(), 30, first=7)
    alone = fork(fresh, 1, Probe(), 30, first=7)
    assert other.shape == (1, 100)
    assert torch.equal(late[0], alone[0]) and torch.equal(late[1], alone[1])
    assert not torch.equal(late[0], other[:, :30])


def tensors(method):
    """What it holds, packed or in bounds of pages; the lists that emulate eviction do not count."""
    for value in vars(method).values():
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, Packed | PageBounds):
            yield from tensors(value)


def test_bytes_held_are_the_pools_and_what_methods_took(model, ask):
    requests = ask(50, 33, max_new=20, hold=5)
    engine = engine_for(model, SAVING, requests)
    rows = 2 * len(SAVING)
    pages = 2 * 4 + rows * 3  # 50 tokens; 25 of a fork's own, which may begin within a page
    pools = pages * 2 * 16 * 2 * 8 * 4 * 3
    held = sum(x.untyped_storage().nbytes() for x in (*engine.cache.k, *engine.cache.v))
    assert held == pools
    assert engine.bytes == pools + 2 * sum(engine.resident)
    for method, resident in zip(engine.methods, engine.resident, strict=True):
        state = [x for x in tensors(method) if x.dim() > 1]  # beside a number or two per row
        assert sum(x.untyped_storage().nbytes() for x in state) == 2 * resident


class Probe(Method):
    """Keeps what the engine shows it; attends as full attention does."""

    name = "probe"
    needs = Needs(prompt_queries=5, observe=True)

    def __init__(self):
        self.seen, self.begun, self.ended = {}, {}, []

    def observe(self, layer, slot, q_pre, q, keys, start):
        self.seen.setdefault((layer, slot), []).append((start, q_pre, q, keys))

    def begin(self, layer, slot, prompt, view):
        self.begun[layer, slot] = (prompt, list(prompt.q_pre), list(prompt.q), view.lens.tolist())

    def attend(self, layer, q_pre, q, view, trace):
        lens = view.lens[:, None]
        trace.read(layer, view, lens, lens)
        return view.exact(layer, q)[0]

    def end(self, slot):
        self.ended.append(slot)


@pytest.mark.parametrize("chunk", [4096, 16, 9])
def test_a_method_is_shown_every_prompt_query_and_the_keys_up_to_it(model, ask, chunk):
    requests = ask(50, 33, 3, max_new=4)
    probe = Probe()
    engine = Engine(model, [create("mac", {"K": 2}), probe], 3, 50, 4, chunk=chunk)
    engine.run(requests)
    assert set(probe.seen) == {(layer, slot) for layer in range(3) for slot in range(3)}
    for (layer, slot), chunks in probe.seen.items():
        length = len(requests[slot].tokens)
        assert [start for start, *_ in chunks] == list(range(0, length, chunk))
        q_pre, q = (torch.cat([c[i] for c in chunks]) for i in (1, 2))
        assert q_pre.shape == q.shape == (length, 6, 8)
        assert_close(model.geometry.rotate(q_pre, torch.arange(length)), q)
        cached, _ = engine.cache.prompt(layer, slot, length)
        for start, _, new, keys in chunks:
            assert torch.equal(keys, cached[:, : start + len(new)])


@pytest.mark.parametrize("chunk", [4096, 16, 3])
def test_a_method_begins_with_its_last_prompt_queries(model, ask, chunk):
    requests = [replace(r, question=20) for r in ask(50, 33, 3, max_new=4)]
    requests[1] = replace(requests[1], question=None, hold=2)
    probe = Probe()
    Engine(model, [probe], 3, 50, 4, max_hold=2, chunk=chunk).run(requests)
    for (layer, slot), (prompt, q_pre, q, lens) in probe.begun.items():
        length = (50, 31, 3)[slot]
        assert lens == [50, 31, 3] and prompt.length == length
        assert prompt.max_new == (4, 6, 4)[slot] and prompt.question == (20, 31, 3)[slot]
        assert prompt.key == 100 + slot
        seen_pre, seen = (torch.cat([c[i] for c in probe.seen[layer, slot]]) for i in (1, 2))
        assert torch.equal(q_pre[layer], seen_pre[-5:]) and torch.equal(q[layer], seen[-5:])
    assert sorted(probe.ended) == [0, 1, 2]


def test_chunks_change_neither_the_cache_nor_the_kept_queries(model, ask):
    tokens = torch.tensor(ask(75)[0].tokens)
    model.prepare(80)
    whole = PagedCache(model.geometry, 1, 1, 80, 1)
    hidden, q_pre, q = prefill(model, whole, 0, tokens, 0, 4096, 20)
    for chunk in (1, 16, 30, 74):
        cache = PagedCache(model.geometry, 1, 1, 80, 1)
        got = prefill(model, cache, 0, tokens, 0, chunk, 20)
        assert_close(got[0], hidden, rtol=1e-4, atol=1e-5)
        for layer in range(3):
            assert_close(got[1][layer], q_pre[layer], rtol=1e-4, atol=1e-5)
            assert_close(got[2][layer], q[layer], rtol=1e-4, atol=1e-5)
            for a, b in zip(cache.prompt(layer, 0, 75), whole.prompt(layer, 0, 75), strict=True):
                assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_sampling_is_the_same_for_all_methods_of_a_sample(model, ask):
    """At their whole budget the logits agree, so the draws must, too."""
    requests = ask(50, 50, max_new=20)
    requests[1] = replace(requests[0], key=7)  # the same prompt, another sample
    answers = answer(model, WHOLE, requests, decoding=Decoding(temperature=1.0))
    for said in answers:
        assert [a.tokens for a in said] == [a.tokens for a in answers[0]]
    one, other = (a.tokens for a in answers[0])
    greedy = answer(model, [("full", {})], requests)[0][0].tokens
    assert one != other and one != greedy
    rekeyed = [replace(r, key=k) for r, k in zip(requests, (7, 100), strict=True)]
    swapped = answer(model, [("full", {})], rekeyed, decoding=Decoding(temperature=1.0))[0]
    assert [a.tokens for a in swapped] == [other, one]


def test_sharing_times_one_batch_against_methods_alone(model, ask):
    requests = ask(50, 33, max_new=8)
    engine = engine_for(model, SAVING[:3], requests)
    engine.run(requests)
    seconds = engine.sharing(requests)
    assert seconds.keys() == {"shared", "alone"} and min(seconds.values()) > 0


def test_shared_work_on_a_prompt_is_charged_to_every_method_that_uses_it(model, ask, monkeypatch):
    """Nine seconds of common work per layer, of which the first method alone pays the time, and
    one of each method's own."""
    now = [0]
    monkeypatch.setattr(Clock, "mark", lambda clock: now[0])

    def spend(seconds):
        now[0] += seconds

    class Working(Full):
        def begin(self, layer, slot, prompt, view):
            prompt.once("common", lambda: spend(9))
            spend(1)

    methods = [Working(), Full(), Working()]
    said = Engine(model, methods, 2, 40, 3).run(ask(40, 30, max_new=3))
    assert [[a.begin_s for a in answers] for answers in said] == [[30, 30], [0, 0], [30, 30]]


def test_methods_of_a_class_watch_the_prefill_once_and_decide_alone(model, ask):
    requests = ask(60, 47, max_new=4)
    cells = [("h2o", {"budget": 0.3}), ("full", {}), ("h2o", {"budget": 0.6})]
    together = [[a.tokens for a in row] for row in engine_for(model, cells, requests).run(requests)]
    alone = [engine_for(model, [cell], requests).run(requests)[0] for cell in cells]
    assert together == [[a.tokens for a in row] for row in alone]


def test_what_a_method_does_while_it_watches_the_prefill_is_charged(model, ask, monkeypatch):
    now = [0]
    monkeypatch.setattr(Clock, "mark", lambda clock: now[0])

    class Watching(Full):
        needs = Needs(observe=True)

        def observe(self, layer, slot, q_pre, q, lse, start):
            now[0] += 2

    methods = [Watching(), Full(), Watching()]  # of two alike one watches, and both pay
    said = Engine(model, methods, 1, 40, 2, chunk=16).run(ask(40, max_new=2))
    assert [answers[0].begin_s for answers in said] == [18, 0, 18]  # 2 x 3 chunks x 3 layers
