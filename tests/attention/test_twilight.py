"""Twilight against a naive one, and what top-p must keep."""

from __future__ import annotations

import math
from dataclasses import replace

import naive
import numpy as np
import pytest
import torch
from harness import allocate, assert_equals_naive, drive, exact, problem
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from macbench.attention import create
from macbench.errors import MacbenchError


def naive_twilight(data, t, p, pages, base, shared):
    heads, group = data.q.shape[1], data.group
    if base == "quest":
        first = naive.quest(data, t, pages, shared)
        candidates, meta = first.fresh, first.meta_bytes
    else:
        candidates, meta = [set(range(t + 1))] * heads, [0] * (heads // group)
    mass = []
    for head in range(heads):
        k = data.k[:, head // group]
        logits = {
            j: data.scale * float(data.q[t, head] @ naive.restored(k[j], 4))
            for j in candidates[head]
        }
        total = sum(math.exp(x) for x in logits.values())
        mass.append({j: math.exp(x) / total for j, x in logits.items()})
    if shared:
        for g in range(0, heads, group):
            mean = {j: sum(m[j] for m in mass[g : g + group]) / group for j in mass[g]}
            mass[g : g + group] = [mean] * group
    chosen = []
    for m in mass:
        kept, held = set(), 0.0
        for j in sorted(m, key=lambda j: -m[j]):
            if p < 1 and held >= p:
                break
            kept.add(j)
            held += m[j]
        chosen.append(kept)
    step = naive.selected(data, t, chosen)
    read = [len(x) for x in naive.unions(candidates, group)]
    step.meta_bytes = [m + n * (data.d / 2 + 4) for m, n in zip(meta, read, strict=True)]
    return step


@settings(max_examples=20)
@given(
    st.integers(0, 99),
    st.lists(st.integers(1, 130), min_size=1, max_size=2),
    st.integers(1, 3),
    st.sampled_from([1, 3, 4]),
    st.sampled_from([0.2, 0.6, 0.85, 1.0]),
    st.sampled_from(["quest", "all"]),
    st.booleans(),
)
def test_twilight_equals_the_naive_one(seed, lengths, steps, group, p, base, shared):
    case = problem(seed, lengths, steps, layers=1, group=group)
    knobs = {"p": p, "candidates": 50, "base": base, "shared": shared, "dense_layers": 0}
    record = drive(create("twilight", knobs), case)
    assert_equals_naive(
        record, case, lambda number, data, t: naive_twilight(data, t, p, 3, base, shared)
    )


def test_dense_layers_are_read_in_full_and_pages_grow_while_it_decodes():
    case = problem(lengths=(90, 64), steps=40, d=4)
    record = drive(create("twilight", {"p": 0.6, "candidates": 48, "dense_layers": 1}), case)

    def expected(number, data, t):
        return naive_twilight(data, t, 0.6, 3, "quest", False) if number else naive.full(data, t)

    assert_equals_naive(record, case, expected)


@pytest.mark.parametrize(
    "p, kept", [(0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.94, 3), (0.96, 4), (1.0, 4)]
)
def test_the_fewest_that_hold_the_mass_by_hand(p, kept):
    """Weights .5, .3, .15 and .05, in another order, and one that is no candidate."""
    method = create("twilight", {"p": p})
    logits = torch.tensor([0.15, 0.5, 0.05, 7.0, 0.3]).log()[None, None, None]
    tokens = torch.tensor([[[40, 10, 50, 60, 20]]])
    listed = torch.tensor([[[True, True, True, False, True]]])
    chosen, counts = method._prune(logits, tokens, listed)
    assert counts.item() == kept
    assert chosen[0, 0, :kept].tolist() == [10, 20, 40, 50][:kept]


def test_candidates_without_any_mass_come_before_what_is_no_candidate():
    """exp underflows; what fills up a page (here 60) stands for the newest token once more."""
    method = create("twilight", {"p": 1.0})
    logits = torch.tensor([0.0, 7.0, -9e3])[None, None, None]
    tokens, listed = torch.tensor([[[10, 60, 20]]]), torch.tensor([[[True, False, True]]])
    chosen, counts = method._prune(logits, tokens, listed)
    assert chosen[0, 0, : counts.item()].tolist() == [10, 20]


@pytest.mark.parametrize("p", [0.3, 0.85, 0.99])
def test_exact_estimates_keep_a_true_share_and_no_token_more(p):
    """Keys on a grid of 16 levels are stored as they are; one-hot values show the set."""
    case = problem(lengths=(50,), steps=4, layers=1, d=64)
    draw = torch.Generator().manual_seed(1)
    for s in case.sequences:
        s.k = torch.randint(-7, 9, s.k.shape, generator=draw).double() / 4
        s.k[..., 0], s.k[..., 1] = -7 / 4, 8 / 4
        s.v = torch.eye(54, 64, dtype=torch.float64)[None, :, None].expand(s.v.shape)
    knobs = {"p": p, "base": "all", "dense_layers": 0}
    out = drive(create("twilight", knobs), case).tensor()
    truth = exact(case)
    kept = truth.masked_fill(out == 0, 0)
    assert (kept.sum(-1) >= p - 1e-9).all()
    least = truth.masked_fill(out == 0, torch.inf).amin(-1)
    assert (kept.sum(-1) - least < p).all()


@pytest.mark.parametrize("shared", [False, True])
def test_p_of_1_is_the_base_selector(shared):
    case = problem(lengths=(150, 70), steps=3)
    knobs = {"dense_layers": 0, "shared": shared}
    ours = drive(create("twilight", {"p": 1.0, "candidates": 48, **knobs}), case)
    quest = drive(create("quest", {"budget": 0.01, **knobs}), case)  # 3 pages
    assert_close(ours.tensor(), quest.tensor(), rtol=0, atol=1e-12)
    for a, b in zip(ours.counts, quest.counts, strict=True):
        assert torch.equal(a["kv_tokens"], b["kv_tokens"])


@pytest.mark.parametrize("strength", [10, 30])
@pytest.mark.parametrize("seed", range(3))
def test_a_needle_is_found_where_every_token_is_a_candidate(seed, strength):
    case = problem(seed=seed, lengths=(2048,), steps=1, layers=1, kv_heads=1, group=1, d=128)
    s = case.sequences[0]
    q = s.q[0, 2048, 0] = 11.3 * torch.nn.functional.normalize(s.q[0, 2048, 0], dim=0)
    s.k[0, 777, 0] = strength * q / q.norm()
    s.v[0] *= 0
    s.v[0, 777, 0] = 1.0
    record = drive(create("twilight", {"base": "all", "dense_layers": 0}), case)
    assert (record.tensor() > 0.8).all()
    if strength == 30:
        assert record.counts[0]["kv_tokens"].item() == 1


def test_zero_keys_give_the_mean_of_the_values_that_are_kept():
    case = problem(lengths=(40,), steps=1, layers=1, group=1)
    case = replace(case, sequences=[replace(s, k=0 * s.k) for s in case.sequences])
    record = drive(create("twilight", {"p": 1.0, "base": "all", "dense_layers": 0}), case)
    assert_close(record.tensor(), exact(case), rtol=0, atol=1e-12)
    half = drive(create("twilight", {"p": 0.5, "base": "all", "dense_layers": 0}), case)
    assert (half.counts[0]["kv_tokens"] - 20.5).abs().max() <= 0.5


def test_resident_bytes_are_4_bits_and_bounds():
    case = problem(lengths=(40,), steps=8).to(torch.bfloat16)
    keys = 48 * (8 // 2 + 4) * 2 * 2  # tokens, KV heads, layers
    assert allocate(create("twilight", {"base": "all"}), case) == keys
    assert allocate(create("twilight", {}), case) == keys + 3 * 2 * 8 * 2 * 2 * 2


@pytest.mark.parametrize(
    "knobs, said",
    [({"p": 0}, r"twilight\.p"), ({"base": "x"}, "base=x"), ({"candidates": 8}, "candidates=8")],
)
def test_what_cannot_work_is_refused(knobs, said):
    with pytest.raises(MacbenchError, match=said):
        create("twilight", knobs)


def test_the_mean_set_of_a_group_is_no_smaller_than_one_by_hand():
    """Two heads that each want another token: .9 on one is .45 on both in the mean."""
    method = create("twilight", {"p": 0.8, "shared": True})
    logits = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]]).log()[None, None]
    tokens, listed = torch.arange(3)[None, None], torch.ones(1, 1, 3, dtype=torch.bool)
    chosen, counts = method._prune(logits, tokens, listed)
    assert counts.item() == 2 and np.array_equal(sorted(chosen[0, 0, :2].tolist()), [0, 1])
