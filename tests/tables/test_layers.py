"""What MAC reuses layer by layer, against the counts it comes from."""

from __future__ import annotations

import csv
import io

import pytest
from cells import TASKS, write

from macbench import cli, store
from macbench.plots import layer_heatmaps
from macbench.tables import layers


def tidy(out) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(layers.table(store.read(out), "csv"))))


def test_tasks_weigh_the_same_however_many_samples_they_have(tmp_path):
    """One sample that hits one time of four, three that hit always."""
    write(tmp_path, "full", {}, [1], TASKS[0])
    write(tmp_path, "mac", {"tau": 0.45}, [1], TASKS[0], hits=1)
    write(tmp_path, "mac", {"tau": 0.45}, [1, 1, 1], TASKS[1], hits=4)
    (row,) = tidy(tmp_path)
    assert (row["model"], row["benchmark"], row["length"]) == ("tiny", "ruler", "2048")
    assert (row["method"], row["layer"]) == ("mac", "0")
    assert float(row["acceptance"]) == pytest.approx((1 / 4 + 1) / 2)


def test_runs_under_other_conditions_are_not_pooled(tmp_path, tiny, capsys):
    """The question held back, or not."""
    words = ["task=ruler/niah_single_1", "length=512", "max_new=8", "limit=1", "method=mac"]
    words += ["mac.tau=0.96", "mac.K=32", "mac.r=16"]
    for hold in ("0", "question"):
        assert cli.main(["run", *tiny, *words, f"hold={hold}", f"out={tmp_path}"]) == 0
    found = tidy(tmp_path)
    assert [(row["hold"], row["layer"]) for row in found] == [
        ("0", "0"),
        ("0", "1"),
        ("question", "0"),
        ("question", "1"),
    ]
    figure = layer_heatmaps.draw(store.read(tmp_path))
    drawn = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert len(drawn) == 4 and all(grid.shape[1] == 2 for grid in drawn)  # two panels a block
    means = [grid.mean() for grid in drawn[::2]]
    for layer, mean in zip((found[:2], found[2:]), means, strict=True):
        assert sum(float(row["acceptance"]) for row in layer) / 2 == pytest.approx(mean, abs=1e-4)


def test_a_run_layer_by_layer(tiny, tmp_path, capsys):
    """Over layers the means of the run's own table, where there is one task."""
    words = ["task=ruler/niah_single_1", "length=512", "max_new=8", "limit=2"]
    words += ["method=[full,mac]", "mac.tau=[0.6,0.96]", "mac.K=32", "mac.r=16"]
    assert cli.main(["run", *tiny, *words, f"out={tmp_path}"]) == 0
    capsys.readouterr()
    assert cli.main(["show", str(tmp_path), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    whole = {r["method"]: float(r["acceptance"]) for r in rows if r["acceptance"]}
    assert len(whole) == 2 and min(whole.values()) < max(whole.values())
    found = tidy(tmp_path)
    for method, acceptance in whole.items():
        mine = [row for row in found if row["method"] == method]
        assert [row["layer"] for row in mine] == ["0", "1"]
        mean = sum(float(row["acceptance"]) for row in mine) / 2
        assert mean == pytest.approx(acceptance, abs=1e-4)
        assert all(float(row["group_hit"]) <= float(row["acceptance"]) for row in mine)
    assert cli.main(["show", str(tmp_path), "--layers"]) == 0
    text = capsys.readouterr().out
    assert all(method in text for method in whole) and "skipped prefix, %" in text


def test_without_mac_one_sentence_says_so(tmp_path, capsys):
    write(tmp_path, "full", {}, [1])
    assert cli.main(["show", str(tmp_path), "--layers"]) == 2
    assert "run one with method=mac first" in capsys.readouterr().err
