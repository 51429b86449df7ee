"""Multipole Attention against a naive one with its own k-means, and examples by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import naive
import numpy as np
import pytest
import torch
from harness import (
    SCALE,
    Problem,
    Tokens,
    allocate,
    assert_equals_naive,
    cached,
    drive,
    exact,
    problem,
    rope,
    start,
    step,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from macbench.attention import Prompt, create
from macbench.attention.kmeans import cluster, means
from macbench.attention.rng import uniform
from macbench.attention.unrotate import Unrotate
from macbench.errors import MacbenchError


def number(*keys):
    """The draw for these whole numbers."""
    return uniform(*(torch.tensor(key) for key in keys)).item()


class NaiveMultipole:
    """One layer of one sequence: clusters are lists of positions, made when their time comes."""

    def __init__(self, case, slot, layer, per_cluster, interval, sink, iterations, block=8192):
        self.data, self.layer = naive.layer(case, slot, layer), layer
        self.key, self.length = case.sequences[slot].key, case.sequences[slot].length
        self.per, self.interval, self.sink = per_cluster, interval, sink
        back = -torch.arange(self.data.k.shape[0])
        self.regime = torch.full_like(back, case.sequences[slot].regime)
        turned = rope(torch.tensor(self.data.k), back, self.regime)  # has the scale twice
        self.k_0 = (turned / SCALE[self.regime[0]]).numpy()  # as at position 0
        self.clusters = [[] for _ in range(self.data.k.shape[1])]
        self.intervals = max((self.length - sink) // interval - 1, 0)
        whole, size = self.intervals * interval, block // interval * interval
        starts = [at for at in range(0, whole, size) if at == 0 or whole - at >= size / 2]
        for at, end in pairwise([*starts, whole]):
            self.make(range(sink + at, sink + end), iterations)

    def make(self, positions, iterations):
        for head, clusters in enumerate(self.clusters):
            clusters += self.lloyd(positions, head, iterations)

    def lloyd(self, positions, head, iterations):
        """Clusters of these positions, k of them, empty ones too."""
        k = len(positions) // self.per
        draws = [number(self.key, self.layer, head, p) for p in positions]
        seeds = sorted(range(len(positions)), key=lambda i: draws[i])[:k]
        centres = [self.k_0[positions[i], head] for i in seeds]
        for i in range(iterations):
            clusters = [[] for _ in range(k)]
            for p in positions:
                away = [np.square(self.k_0[p, head] - c).sum() for c in centres]
                clusters[int(np.argmin(away))].append(p)
            for c, members in enumerate(clusters):
                if members:
                    centres[c] = self.k_0[members, head].mean(0)
                else:
                    draw = number(self.key, self.layer, head, positions[0], i, c)
                    centres[c] = self.k_0[positions[int(draw * len(positions))], head]
        return clusters

    def step(self, t, limit, replacement=True):
        """t tokens came before this one; new clusters are made of what they left behind."""
        d, group = self.data, self.data.group
        while (t - self.sink) // self.interval - 1 > self.intervals:
            at = self.sink + self.intervals * self.interval
            self.make(range(at, at + self.interval), 4)
            self.intervals += 1
        out, chosen = [], []
        turned = torch.tensor(d.q_pre[t])[None]
        turned = rope(turned, torch.tensor([min(2048, self.length)]), self.regime[:1])[0].numpy()
        near = [*range(min(self.sink, t + 1))]
        near += range(self.sink + self.intervals * self.interval, t + 1)
        for head in range(len(turned)):
            kv = head // group
            clusters = [c for c in self.clusters[kv] if c]
            heads = range(kv * group, (kv + 1) * group)
            logits = {
                h: [d.scale * float(turned[h] @ self.k_0[c, kv].mean(0)) for c in clusters]
                for h in heads
            }
            scores = np.zeros(len(clusters))
            for h in heads:
                total = sum(len(c) * math.exp(x) for c, x in zip(clusters, logits[h], strict=True))
                scores += np.exp(logits[h]) / total
            refused, held = -1.0, 0
            for i in sorted(range(len(clusters)), key=lambda i: -scores[i]):
                held += len(clusters[i])
                if held > limit:
                    refused = scores[i]
                    break
            taken = [i for i in range(len(clusters)) if scores[i] > refused]
            listed = near + [p for i in taken for p in clusters[i]]
            summary = d.attend(t, head, listed)
            for i, c in enumerate(clusters):
                if replacement and i not in taken:
                    entry = (d.v[c, kv].mean(0), logits[head][i] + math.log(len(c)))
                    summary = naive.merge(summary, entry)
            out.append(summary[0])
            chosen.append(set(listed))
        loaded = naive.unions(chosen, group)
        each = d.d * d.itemsize * (1 + replacement) + 4
        meta = [self.intervals * self.interval // self.per * each] * len(loaded)
        return naive.Step(out, chosen, [len(x) for x in loaded], meta)


SMALL = {"per_cluster": 4, "interval": 8, "sink": 2, "iterations": 3}


def limit_of(case, slot, budget, replacement):
    """T by the formula of the docstring; everything at 1."""
    n, d, size = case.sequences[slot].length, case.geometry.head_dim, case.geometry.dtype.itemsize
    if budget >= 1:
        return 10**9
    clusters = max((n - 2) // 8 - 1, 0) * 2
    meta = clusters * (d * size * (1 + replacement) + 4) / (2 * d * size)
    near = n - clusters // 2 * 8  # what is in no cluster
    return max(int(budget * n - near - meta + 4 / 2), 0)


def assert_equals(case, budget, replacement=True):
    method = create("multipole", {"budget": budget, "replacement": replacement, **SMALL})
    record = drive(method, case)
    for slot in range(len(case.sequences)):
        alone = drive(create("multipole", vars_of(method)), case.only(slot))
        assert_close(alone.tensor()[:, :, 0], record.tensor()[:, :, slot], rtol=0, atol=1e-12)
        layers = case.geometry.layers
        naives = [NaiveMultipole(case, slot, layer, **SMALL) for layer in range(layers)]
        limit = limit_of(case, slot, budget, replacement)
        assert_equals_naive(
            alone,
            case.only(slot),
            lambda layer, data, t, naives=naives, limit=limit: naives[layer].step(
                t, limit, replacement
            ),
        )


def vars_of(method):
    return {k: getattr(method, k) for k in ("budget", "replacement", *SMALL)}


@settings(max_examples=20)
@given(
    st.integers(0, 99),
    st.lists(st.integers(1, 60), min_size=1, max_size=2),
    st.sampled_from([1, 3, 4]),
    st.sampled_from([0.3, 0.6, 0.8, 1.0]),
    st.booleans(),
    st.integers(0, 1),
)
def test_multipole_equals_the_naive_one(seed, lengths, group, budget, replacement, regime):
    case = problem(seed, lengths, steps=3, layers=1, group=group, regime=regime)
    assert_equals(case, budget, replacement)


def test_the_buffer_becomes_clusters_while_it_decodes():
    """3 intervals and more, from prompts with and without clusters of their own."""
    assert_equals(problem(lengths=(40, 5), steps=30, layers=2, kv_heads=1, regime=1), 0.7)


def test_a_prompt_is_clustered_in_blocks_of_its_own(monkeypatch):
    """A last block of less than half joins the one before, of half or more it stands alone."""
    monkeypatch.setattr("macbench.attention.multipole.BLOCK", 32)
    for length in (90, 107):
        case = problem(lengths=(length,), steps=1, layers=1, kv_heads=1)
        method = create("multipole", {"budget": 0.5, **SMALL})
        allocate(method, case)
        start(method, case, cached(case))
        clusters = NaiveMultipole(case, 0, 0, **SMALL, block=32).clusters[0]
        assert method.counts[0, 0, 0, : len(clusters)].tolist() == [len(c) for c in clusters]
        listed = [p for c in clusters for p in c]
        assert method.members[0, 0, 0, : len(listed)].tolist() == listed


def test_clusters_are_made_once_for_what_they_depend_on():
    """Of methods that begin together, those that differ in budget alone share; each has what it
    has alone."""
    case = problem(lengths=(90,), layers=2)
    knobs = [{**SMALL, "budget": budget} for budget in (0.5, 0.7)]
    others = {"per_cluster": 2, "interval": 16, "sink": 3, "iterations": 1, "replacement": False}
    knobs += [{**SMALL, name: value} for name, value in others.items()]
    methods, alone = ([create("multipole", own) for own in knobs] for _ in range(2))
    view, s = cached(case), case.sequences[0]
    prompt = Prompt(s.length, case.steps, s.length, s.key)
    borrowed = []
    for method in methods:
        allocate(method, case)
    for layer in range(2):
        for method in methods:
            prompt.borrowed = []
            method.begin(layer, 0, prompt, view)
            borrowed.append(len(prompt.borrowed))
        prompt.shared.clear()
    assert borrowed == 2 * [0, 1, 0, 0, 0, 0, 0]
    for method, other in zip(methods, alone, strict=True):
        allocate(other, case)
        start(other, case, view)
        assert all(map(torch.equal, method._kept(), other._kept()))
        assert method.counts.any()
        assert torch.equal(method.limit, other.limit)


def clustered(keys, members, counts, q, limit, **knobs):
    """One step by a method whose clusters are given: keys [clusters, d] and so on, no rotation."""
    tokens, d = sum(counts), keys.shape[-1]
    rows = keys.repeat_interleave(torch.tensor(counts), 0) if members is None else members
    total = tokens + 2
    k = torch.cat((rows, torch.zeros(2, d).double()))[None, :, None]
    v = torch.arange(total).double()[None, :, None, None].expand(1, -1, 1, d).clone()
    queries = torch.tensor(q, dtype=torch.float64).expand(1, total, 1, -1)
    shape = problem(layers=1, kv_heads=1, group=1, d=d).geometry
    shape = replace(shape, scale=1.0, rotate=lambda x, *_: x)
    case = Problem(shape, [Tokens(total - 1, queries, queries, k, v)], 1)
    knobs = {"per_cluster": 1, "interval": 1, "sink": 0, **knobs}
    method = create("multipole", knobs)
    allocate(method, case)
    record = start(method, case, cached(case))
    n = len(counts)
    method.limit[:] = limit
    method.most = [limit]
    method.keys[0, 0, 0, :n] = keys
    method.counts[0, 0, 0] = 0
    method.counts[0, 0, 0, :n] = torch.tensor(counts)
    method.members[0, 0, 0, :tokens] = torch.arange(tokens)
    means = v[0, :tokens, 0].split(counts)
    if method.replacement:
        method.values[0, 0, 0, :n] = torch.stack([x.mean(0) for x in means])
    return method, case, record


@pytest.mark.parametrize("limit, tokens", [(1, 0), (2, 2), (3, 2), (4, 2), (5, 5)])
def test_clusters_are_chosen_whole_by_hand(limit, tokens):
    """Keys {1, 1} and {0, 0, 0}, q = 1: scores .322 and .119. T = 1 chooses none of them."""
    keys = torch.tensor([[1.0], [0.0]]).double()
    method, case, record = clustered(keys, None, [2, 3], [1.0], limit)
    counts = method.counts[0].long()
    logits = method._logits(0, torch.ones(1, 1, 1).double(), counts)
    held = logits.exp()[0, 0, 0, :2] / logits.exp().sum()
    assert (held / torch.tensor([2, 3])).tolist() == pytest.approx([0.322, 0.119], abs=5e-4)
    step(record, case, 0)
    assert record.counts[0]["kv_tokens"].item() == tokens + 2  # and the buffer
    assert_close(record.tensor(), exact(case), rtol=0, atol=1e-12)  # equal keys: nothing is lost


def test_what_ties_with_the_refused_cluster_is_refused():
    keys = torch.tensor([[2.0], [1.0], [1.0]]).double()
    _, case, record = clustered(keys, None, [1, 2, 2], [1.0], limit=4)
    step(record, case, 0)
    assert record.counts[0]["kv_tokens"].item() == 1 + 2


@given(st.integers(0, 99), st.integers(0, 12))
@settings(max_examples=20)
def test_equal_keys_in_a_cluster_make_it_exact_and_jensen_holds_else(seed, limit):
    draw = torch.Generator().manual_seed(seed)
    counts = [3, 1, 4, 2]
    keys = torch.randn(4, 4, generator=draw, dtype=torch.float64)
    q = torch.randn(4, generator=draw, dtype=torch.float64).tolist()
    _, case, record = clustered(keys, None, counts, q, limit)
    step(record, case, 0)
    assert_close(record.tensor(), exact(case), rtol=0, atol=1e-10)
    members = torch.randn(10, 4, generator=draw, dtype=torch.float64)
    centres = torch.stack([x.mean(0) for x in members.split(counts)])
    method, _, _ = clustered(centres, members, counts, q, limit)
    logits = method._logits(0, torch.tensor([[q]], dtype=torch.float64), method.counts[0].long())
    truth = members @ torch.tensor(q, dtype=torch.float64)
    truth = torch.stack([x.logsumexp(0) for x in truth.split(counts)])
    assert (logits[0, 0, 0, :4] <= truth + 1e-12).all()


def test_without_replacement_and_room_for_clusters_only_sinks_and_buffer_are_left():
    case = problem(lengths=(90,), steps=1, layers=1)
    method = create("multipole", {"budget": 0.01, "replacement": False, **SMALL})
    record = drive(method, case)
    near = 91 - method._far(90) * 8
    assert 2 + 8 < near <= 2 + 16
    assert_equals_naive(
        record,
        case,
        lambda number, data, t: replace(
            naive.streaming(data, t, near, 2), meta_bytes=[20 * (8 * 8 + 4)] * 2
        ),
    )


def test_zero_keys_give_the_exact_mean():
    case = problem(lengths=(90,), steps=4)
    case = replace(case, sequences=[replace(s, k=0 * s.k) for s in case.sequences])
    record = drive(create("multipole", {"budget": 0.6, **SMALL}), case)
    assert_close(record.tensor(), exact(case), rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_multipole_finds_a_strong_needle(seed):
    """One key along the query, 30 long among N(0, 1), d = 128, T = 128 and more."""
    case = problem(seed=seed, lengths=(2048,), steps=1, layers=1, kv_heads=1, group=1, d=128)
    case = replace(case, geometry=replace(case.geometry, rotate=lambda x, *_: x))
    s = case.sequences[0]
    s.q[:] = s.q_pre
    q = s.q[0, 2048, 0]
    s.k[0, 777, 0] = 30 * q / q.norm()
    s.v[0, 777, 0] = 100.0
    record = drive(create("multipole", {"budget": 0.24}), case)
    assert record.counts[0]["kv_tokens"].item() < 0.25 * 2048
    assert_close(record.tensor(), exact(case), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "knobs, floor, budget, tokens",
    [
        ({}, 0.0645, 0.10, 4649),
        ({"replacement": False}, 0.0333, 0.0001, 0),
        ({"per_cluster": 32}, 0.0330, 0.05, 2223),
        ({"per_cluster": 32, "replacement": False}, 0.0174, 0.0001, 0),
        ({"per_cluster": 128}, 0.0094, 0.01, 76),
        ({"per_cluster": 128, "replacement": False}, 0.0055, 0.0001, 0),
    ],
)
def test_sizes_at_128k(knobs, floor, budget, tokens):
    """What is least read and T, for d = 128 in bf16, with all tokens clustered and a buffer of 1.5
    intervals; of this prompt's it holds 54 tokens more."""
    geometry = replace(problem(d=128).geometry, dtype=torch.bfloat16)
    method = create("multipole", {"budget": budget, **knobs})
    assert method.floor(geometry, 131072) == pytest.approx(floor + 54 / 131072, abs=1e-4)
    tokens = tokens and tokens - 54 + method.per_cluster / 2
    assert method.tokens(geometry, 131072) == pytest.approx(tokens, abs=16)
    assert method.floor(geometry, 131072 - 54) == pytest.approx(floor, abs=1e-4)


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("length", [1546, 1604, 1672])
def test_multipole_achieves_the_byte_budget_it_was_asked_for(group, length):
    """But for clusters being whole: whether its buffer holds one interval or nearly two."""
    case = problem(lengths=(length,), steps=1, layers=4, kv_heads=4, group=group, d=16)
    record = drive(create("multipole", {"budget": 0.4, "iterations": 2}), case)
    counts = record.counts[0]
    read = counts["kv_tokens"] + counts["meta_bytes"] / case.geometry.token_bytes
    assert read.mean().item() == pytest.approx(0.4 * length, abs=8)


@given(st.integers(0, 99))
@settings(max_examples=20)
def test_lloyds_iterations_never_raise_the_distances(seed):
    draw = torch.Generator().manual_seed(seed)
    points = torch.randn(2, 3, 40, 4, generator=draw, dtype=torch.float64)
    seeds = torch.stack([torch.randperm(40, generator=draw)[:5] for _ in range(6)]).view(2, 3, 5)

    def spread(iterations):
        labels = cluster(points, seeds, iterations, lambda i: seeds)
        centres, counts = means(points, labels, 5)
        assert (counts.sum(-1) == 40).all()
        own = centres.gather(2, labels[..., None].expand(-1, -1, -1, 4))
        return (points - own).square().sum((-1, -2))

    before = spread(1)
    for iterations in (2, 3, 6):
        after = spread(iterations)
        assert (after <= before + 1e-9).all()
        before = after


def test_clear_clusters_are_found():
    draw = torch.Generator().manual_seed(0)
    centres = 50 * torch.randn(4, 8, generator=draw, dtype=torch.float64)
    points = centres.repeat(10, 1) + torch.randn(40, 8, generator=draw, dtype=torch.float64)
    labels = cluster(points, torch.tensor([0, 1, 2, 3]), 4, lambda i: torch.arange(4))
    assert torch.equal(labels, torch.arange(4).repeat(10))


def interleaved(x, positions, regimes=None):
    """Pairs of neighbours, the last two channels left alone, cos and sin scaled by 1.25."""
    angle = positions[:, None, None].to(x.dtype) * 0.3 ** torch.arange(3, dtype=x.dtype)
    cos, sin = 1.25 * angle.cos(), 1.25 * angle.sin()
    even, odd = x[..., 0:6:2], x[..., 1:6:2]
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)
    return torch.cat((turned, x[..., 6:]), -1)


@pytest.mark.parametrize("rotate", [rope, interleaved, lambda x, *_: x])
def test_keys_of_any_rotary_layout_are_turned_back(rotate):
    geometry = replace(problem().geometry, rotate=rotate)
    x = torch.randn(20, 2, 8, dtype=torch.float64)
    position, regime = torch.arange(20) * 7, torch.arange(20) % 2
    back = Unrotate(geometry)(rotate(x, position, regime).transpose(0, 1), position, regime)
    first = rotate(x, torch.zeros_like(position), regime)
    assert_close(back, first.transpose(0, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "knobs", [{"interval": 100}, {"per_cluster": 0}, {"sink": -1}, {"iterations": 0}]
)
def test_what_cannot_work_is_refused(knobs):
    with pytest.raises(MacbenchError, match=r"multipole\."):
        create("multipole", knobs)
