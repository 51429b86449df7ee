"""Budgets and MAC's reuse figures from rows, by hand-computed examples."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from macbench.measure.budget import (
    Budgets,
    acceptance,
    budgets,
    match_radius,
    mean_over_tasks,
)

GOOD = {"steps": 10, "resident": 1.5, "head_tokens": 30, "kv_tokens": 40, "meta_bytes": 160}
GOOD |= {"context_head": 400, "context_kv": 100}


def test_budgets_by_hand():
    small = {**GOOD, "steps": 1, "resident": 0.5, "kv_tokens": 10, "context_kv": 10}
    none = dict.fromkeys(GOOD, 0) | {"resident": 1.0}
    found = budgets(pd.DataFrame([GOOD, small, none]), token_bytes=8)
    assert found.head == pytest.approx(60 / 800)
    assert found.token == pytest.approx(50 / 110)
    assert found.byte == pytest.approx((50 * 8 + 320) / (110 * 8))
    assert found.resident == pytest.approx(1)


def test_no_scored_step_has_no_budget():
    found = budgets(pd.DataFrame([dict.fromkeys(GOOD, 0) | {"resident": 1.25}]), token_bytes=8)
    assert (found.head, found.token, found.byte, found.resident) == (None, None, None, 1.25)


def long_form() -> pd.DataFrame:
    """One sample, 10 steps, 2 layers, 2 query heads, 1 KV head; layer 1, head 1 never hit."""
    q = {"index": 0, "kind": "q", "steps": 10, "cell": "c"}
    kv = {**q, "kind": "kv", "head": 0}
    nan = np.nan
    return pd.DataFrame(
        [
            {
                **q,
                "layer": 0,
                "head": 0,
                "hit": 10,
                "distance": 20,
                "gap": 50,
                "depth": 30,
                "skip": 8,
            },
            {
                **q,
                "layer": 0,
                "head": 1,
                "hit": 5,
                "distance": 30,
                "gap": 20,
                "depth": 5,
                "skip": 4,
            },
            {
                **q,
                "layer": 1,
                "head": 0,
                "hit": 1,
                "distance": 4,
                "gap": 2,
                "depth": 1,
                "skip": 0.5,
            },
            {**q, "layer": 1, "head": 1, "hit": 0, "distance": 0, "gap": 0, "depth": 0, "skip": 0},
            {**kv, "layer": 0, "group_hit": 5},
            {**kv, "layer": 1, "group_hit": 0},
            {**q, "cell": "full", "layer": 0, "head": 0, "hit": nan, "skip": nan},
        ]
    )


def test_tasks_weigh_equally_whatever_their_steps():
    """One that reads a fifth beside one that reads all, and one without a scored step."""
    tasks = [Budgets(0.2, 0.2, 0.3, 1.0), Budgets(1.0, 1.0, 1.1, 1.0)]
    tasks.append(Budgets(None, None, None, 4.0))
    assert mean_over_tasks(tasks) == Budgets(0.6, 0.6, pytest.approx(0.7), 2.0)
    assert mean_over_tasks(tasks[2:]) == tasks[2]


def test_acceptance_by_hand():
    found = acceptance(long_form()).iloc[0]
    assert found["acceptance"] == pytest.approx(16 / 40)
    assert found["distance"] == pytest.approx(54 / 16)
    assert found["gap"] == pytest.approx(72 / 16)
    assert found["depth"] == pytest.approx(36 / 16)
    assert found["skip"] == pytest.approx(12.5 / 40)
    assert found["group_hit"] == pytest.approx(5 / 20)


def test_acceptance_by_layer_and_head():
    by_cell = acceptance(long_form(), by=["cell"])
    assert list(by_cell.index) == ["c"]  # full counted no hits and has no row
    heads = acceptance(long_form(), by=["cell", "layer", "head"])
    assert heads.loc[("c", 0, 1), "acceptance"] == pytest.approx(0.5)
    assert np.isnan(heads.loc[("c", 1, 1), "distance"])  # no hit: no distance, not zero
    assert heads.loc[("c", 1, 1), "skip"] == 0
    assert "group_hit" not in heads
    assert acceptance(long_form(), by=["layer"]).loc[0, "group_hit"] == pytest.approx(0.5)


def test_acceptance_without_hits_counted_is_empty():
    assert acceptance(pd.DataFrame({"index": [], "kind": []})).empty


def test_match_radius_of_the_paper():
    # squared radii at d = 128 of the two default thresholds
    assert match_radius(0.45, 128) ** 2 == pytest.approx(77.44)
    assert match_radius(0.75, 128) ** 2 == pytest.approx(16)
