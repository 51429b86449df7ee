"""Asked budget -> integers -> what a step reads: for every method that can say it beforehand."""

from __future__ import annotations

import pytest
import torch
from harness import drive, problem
from hypothesis import given, settings
from hypothesis import strategies as st

from macbench.attention import METHODS, Geometry, create

# else a union of lists, or keys that fill no byte
GROUPED = {
    "quest": {"shared": True},
    "oracle_topk": {"shared": True},
    "double_sparsity": {"shared": True, "bits": 16},
}


def asked(name, share):
    """Knobs that ask for a byte budget, and that budget."""
    knob = "budget" if "budget" in METHODS[name].__dataclass_fields__ else "tokens"
    aim = (1 + share) / 2 if name == "oracle_topk" else share  # it scores every key
    return {knob: share, **GROUPED.get(name, {})}, aim


def solved():
    """Methods whose byte budget follows from their integers."""
    shape = problem().geometry
    found = []
    for name, method in METHODS.items():
        known = {"budget", "tokens"} & {*method.__dataclass_fields__}
        if known and create(name, asked(name, 0.9)[0]).predicted(shape, 64, 64) is not None:
            found.append(name)
    return found


def geometry(layers, kv_heads, group, d):
    device = torch.device("cpu")
    heads = kv_heads * group
    return Geometry(layers, heads, kv_heads, d, d**-0.5, device, torch.bfloat16, lambda x, _: x)


def test_the_selection_methods_are_solved():
    assert {"quest", "streaming_llm", "random", "oracle_topk"} <= {*solved()}


@settings(max_examples=300)
@given(
    st.sampled_from(solved()),
    st.floats(0.005, 0.999),
    st.integers(1, 200_000),
    st.integers(1, 64),
    st.integers(1, 8),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([64, 128]),
)
def test_the_integers_give_what_was_asked_or_the_floor(
    name, share, length, layers, kv_heads, group, d
):
    shape = geometry(layers, kv_heads, group, d)
    knobs, aim = asked(name, share)
    method = create(name, knobs)
    predicted = method.predicted(shape, length, length)
    floor = method.floor(shape, length)
    if floor is not None and aim < floor:
        slack = method.granule(shape, length)
        assert min(predicted, 1) == pytest.approx(floor, abs=slack)  # bounds may exceed all
    else:
        slack = max(0.02 * aim, method.granule(shape, length))
        assert predicted == pytest.approx(aim, abs=slack * (1 + 1e-9))


@settings(max_examples=60)
@given(
    st.sampled_from(solved()),
    st.sampled_from([0.03, 0.11, 0.3, 0.57, 0.8, 0.97, 1.0]),
    st.integers(1, 400),
    st.integers(1, 5),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 20),
)
def test_what_is_read_is_exactly_the_formula(name, share, length, layers, kv_heads, group, steps):
    """At the prompt and as the row grows."""
    case = problem(
        lengths=(length,), steps=steps, layers=layers, kv_heads=kv_heads, group=group, d=4
    )
    method = create(name, asked(name, share)[0])
    record = drive(method, case)
    for at, counts in enumerate(record.counts):
        bytes_ = counts["kv_tokens"] * case.geometry.token_bytes + counts["meta_bytes"]
        whole = layers * kv_heads * (length + at + 1) * case.geometry.token_bytes
        formula = method.predicted(case.geometry, length, length + at + 1)
        assert bytes_.sum().item() / whole == pytest.approx(formula, rel=1e-12)


def test_the_remainder_of_pages_goes_to_the_first_sparse_layers():
    """10 layers of 1600 tokens, 2 of them dense: 0.31 of 16 000 tokens are 4960; 3200 are read in
    dense layers and 8 x 100 as bounds; 960 are 60 pages, 7 for every layer and 4 over."""
    method = create("quest", {"budget": 0.31, "shared": True})
    shape = geometry(10, 2, 4, 64)
    assert method.pages(shape, 1600)[2:] == [8] * 4 + [7] * 4
    assert method.predicted(shape, 1600, 1600) == pytest.approx(0.31, abs=1e-12)
    assert sum(create("quest", {"budget": 0.3101}).pages(shape, 1600)[2:]) == 60


def test_an_uneven_budget_gives_no_plan_and_an_even_one_does():
    case = problem(lengths=(160,), steps=1, layers=3)
    for budget, planned in ((0.642, True), (0.61, False)):
        method = create("quest", {"budget": budget, "dense_layers": 1, "shared": True})
        drive(method, case)
        counts = {*method.pages(case.geometry, 160)[1:]}
        assert (len(counts) == 1) == planned == (method.lists([161]) is not None), counts


def test_drift_of_a_growing_row_is_what_the_formula_says():
    """A window frozen at a prompt of 100 tokens is half as much of 200."""
    method = create("streaming_llm", {"budget": 0.5})
    shape = geometry(2, 1, 1, 64)
    assert method.predicted(shape, 100, 100) == 0.5
    assert method.predicted(shape, 100, 200) == 0.25


@pytest.mark.parametrize("knobs, percent", [({}, 21.9), ({"K": 64}, 4.3), ({"amend": False}, 18.8)])
def test_the_floor_of_mac_is_its_ring_and_band(knobs, percent):
    """SmolLM2 at 8K, bf16: 3 heads x (K x 128 + 132) bytes of ring, 257 fresh tokens of 256 bytes
    each (without a band, 1)."""
    method = create("mac", knobs)
    by_hand = 3 * (method.K * 128 + 132) + 256 * (257 if method.amend else 1)
    found = method.floor(geometry(30, 3, 3, 64), 8192)
    assert found == pytest.approx(by_hand / (8192 * 256))
    assert 100 * found == pytest.approx(percent, abs=0.05)


@pytest.mark.parametrize("tokens", [1, 8, 9, 40, 57])
@pytest.mark.parametrize("bits", [2, 4])
def test_kivi_reads_what_its_bits_say(tokens, bits):
    """It has no budget: bytes follow from the bits, at any length."""
    case = problem(lengths=(tokens,), steps=12)
    method = create("kivi", {"bits": bits, "group_size": 4, "residual": 8})
    for at, counts in enumerate(drive(method, case).counts):
        read = counts["kv_tokens"] * case.geometry.token_bytes + counts["meta_bytes"]
        whole = 2 * 2 * (tokens + at + 1) * case.geometry.token_bytes
        formula = method.predicted(case.geometry, tokens, tokens + at + 1)
        assert read.sum().item() / whole == pytest.approx(formula, rel=1e-12)


def test_the_pyramid_s_sizes_are_the_published_example():
    """C = 1311, window 8, 32 layers: from 2549 tokens in the first to 100, 1324.5 on average."""
    sizes = create("pyramidkv", {}).pyramid(32, 131072, 1311)
    assert (sizes[0], sizes[-1], sum(sizes) / 32) == (2549, 100, 1324.5)


@pytest.mark.parametrize("length", [2048, 4096, 8192, 32768])
@pytest.mark.parametrize("budget", [0.015, 0.02, 0.05, 0.1])
def test_the_pyramid_gets_no_more_than_snapkv(length, budget):
    """Its whole steps would add as much as a seventh."""
    for layers in (30, 32):
        shape = geometry(layers, 8, 4, 128)
        flat, steep = (
            create(name, {"budget": budget, "window": 8}).predicted(shape, length, length + 1)
            for name in ("snapkv", "pyramidkv")
        )
        assert flat - 2 / length <= steep <= flat
