"""What a trace adds up: live rows only, once per step, per layer and head."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from macbench.measure.trace import Trace


@dataclass
class Rows:
    """The part of a view that a trace looks at."""

    lens: torch.Tensor
    live: torch.Tensor
    step: torch.Tensor = field(default_factory=lambda: torch.zeros(2))


def rows(lens, live=None):
    return Rows(torch.tensor(lens), torch.tensor([True] * len(lens) if live is None else live))


def trace(layers=2, count=2):
    return Trace(layers, count, q_heads=4, kv_heads=2, device=torch.device("cpu"))


def test_a_hand_counted_decode():
    """Two rows, two layers; row 1 ends after its first step."""
    t = trace()
    for lens, live in (([10, 20], [True, True]), ([11, 20], [True, False])):
        view = rows(lens, live)
        for layer in range(2):
            heads = view.lens[:, None] - torch.arange(4)
            t.read(layer, view, heads, view.lens[:, None].expand(2, 2) / 2, 100 * (layer + 1))
        t.commit(view)
    assert t.fetch(0) == {
        "steps": 2.0,
        "context": 21.0,
        "head_tokens": [[21.0, 19.0, 17.0, 15.0]] * 2,
        "kv_tokens": [[10.5, 10.5]] * 2,
        "meta_bytes": [[200.0, 200.0], [400.0, 400.0]],
    }
    assert t.fetch(1) == {
        "steps": 1.0,
        "context": 20.0,
        "head_tokens": [[20.0, 19.0, 18.0, 17.0]] * 2,
        "kv_tokens": [[10.0, 10.0]] * 2,
        "meta_bytes": [[100.0, 100.0], [200.0, 200.0]],
    }


def test_further_statistics_of_query_heads_and_kv_heads():
    t, view = trace(layers=1), rows([3, 3])
    for hit in (True, False, True):
        t.add(0, "hit", torch.tensor([[hit, True, False, hit]]).expand(2, 4))
        t.add(0, "group_hit", torch.tensor([[hit, False]]), heads="kv")
        t.commit(view)
    assert t.fetch(1)["hit"] == [[2.0, 3.0, 0.0, 2.0]]
    assert t.fetch(1)["group_hit"] == [[2.0, 0.0]]


def test_whatever_a_finished_row_reports_is_left_out():
    t = trace(layers=1)
    t.add(0, "distance", torch.tensor([[1.5], [float("nan")]]))
    t.commit(rows([5, 7], [True, False]))
    t.add(0, "distance", torch.tensor([[2.0], [float("inf")]]))
    t.commit(rows([6, 7], [True, False]))
    assert t.fetch(0)["distance"] == [[3.5] * 4]
    assert t.fetch(1) == {"steps": 0.0, "context": 0.0, "distance": [[0.0] * 4]}


def test_nothing_counts_before_the_step_is_over():
    t, view = trace(layers=1), rows([5, 7])
    t.read(0, view, 3, 3)
    t.read(0, view, 4, 4)  # a step's figures are set, not added
    assert t.fetch(0)["head_tokens"] == [[0.0] * 4]
    t.commit(view)
    assert t.fetch(0)["head_tokens"] == [[4.0] * 4]


def test_sums_stay_exact_over_long_contexts():
    """A million steps of a million tokens are beyond fp32."""
    t = trace(layers=1)
    t.read(0, rows([1, 1]), 2**20 + 1, 2**20 + 1)
    for _ in range(2**10):
        t.commit(rows([2**20 + 1, 1]))
    assert t.fetch(0)["kv_tokens"] == [[2.0**30 + 2**10] * 2]
    assert t.fetch(0)["context"] == 2.0**30 + 2**10


def test_what_is_tallied_goes_by_bin_and_by_step():
    t = Trace(2, 2, q_heads=4, kv_heads=2, device=torch.device("cpu"), span=64)
    assert t.width == 2
    view = rows([10, 20])
    view.step = torch.tensor([0, 0])
    near = torch.tensor([[True, True, False, True], [True, False, False, False]])
    bins = torch.tensor([[0, 1, 1, 9], [2, 0, 0, 0]])
    for step in range(3):
        view.live = torch.tensor([True, step < 2])
        t.tally(0, view, "gap", bins, 3, near)  # 9 is beyond the last bin
        t.tally(slice(None), view, "all", bins.expand(2, 2, 4), 3, near.expand(2, 2, 4))
        t.over_steps(1, view, "hits", near)
        t.commit(view)
        view.step = view.step + view.live
    first, second = t.fetch(0), t.fetch(1)
    assert first["histograms"]["gap"] == [[3, 3, 3], [0, 0, 0]]
    assert second["histograms"]["gap"] == [[0, 0, 2], [0, 0, 0]]
    assert first["histograms"]["all"] == [[3, 3, 3]] * 2
    assert first["histograms"]["hits"][1][:3] == [6, 3, 0]  # two steps, then the third
    assert second["histograms"]["hits"][1][:2] == [2, 0] and second["width"] == 2
    assert sum(map(sum, first["histograms"]["hits"])) == 9
