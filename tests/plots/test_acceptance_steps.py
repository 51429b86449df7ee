"""Acceptance over the generation, drawn from a run."""

from __future__ import annotations

import json
from collections import Counter

import matplotlib.pyplot as plt
import pytest

from macbench.cli import main
from macbench.plots import acceptance_steps, draw
from macbench.store import read


def test_the_points_are_the_hits_of_the_steps_they_stand_for(tmp_path, tiny):
    out = tmp_path / "out"
    words = ["task=ruler/niah_single_1", "length=1k", "limit=2", "max_new=70", f"out={out}"]
    assert main(["run", *tiny, *words, "method=[full,mac]", "mac.tau=0.2", "mac.K=32"]) == 0
    results = read(out)
    counts = results.histograms
    hits = counts[counts["name"] == "hits"]
    layers = results.layers("hit")
    assert hits["count"].sum() == layers["hit"].sum() > 0
    for name in ("gap", "distance"):
        assert counts.loc[counts["name"] == name, "count"].sum() == hits["count"].sum()
    assert hits["width"].unique().tolist() == [3]  # 70 steps in 32 buckets
    (path,) = draw("acceptance_steps", out, tmp_path)
    first = path.read_bytes()
    assert draw("acceptance_steps", out, tmp_path)[0].read_bytes() == first
    assert first.startswith(b"\x89PNG")


def test_a_panel_per_length_and_a_line_per_method_over_tasks(tmp_path, tiny):
    """Tasks whose answers are cut at 30 and 128 tokens are counted in buckets of 1 and 4 steps."""
    out = tmp_path / "out"
    mac = ["method=mac", "mac.tau=[0.2,0.3]", "mac.K=32", f"out={out}"]
    tasks = ["task=[ruler/niah_single_1,ruler/vt]", "length=1k", "limit=2"]
    assert main(["run", *tiny, *tasks, *mac]) == 0
    assert main(["run", *tiny, "task=ruler/vt", "length=1200", "limit=1", *mac]) == 0
    results = read(out)
    figure = acceptance_steps.draw(results)
    both, vt = figure.axes
    assert [len(axis.lines) for axis in figure.axes] == [2, 2]
    assert both.get_title().endswith("niah_single_1, vt") and "1024 tokens" in both.get_title()
    assert vt.get_title().endswith("\nvt") and "1200 tokens" in vt.get_title()
    assert "(4 steps a point" in both.get_xlabel() and "(1 step a point" in vt.get_xlabel()
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["mac tau=0.2 K=32", "mac tau=0.3 K=32"]
    colours = [[line.get_color() for line in axis.lines] for axis in figure.axes]
    assert all((one == other).all() for one, other in zip(*colours, strict=True))

    hits, seen = Counter(), Counter()  # by bucket of 4 steps: over tasks, layers and heads
    for cell, about in results.cells.iterrows():
        if about["length"] == 1024 and about["label"] == labels[0]:
            for text in (out / cell / "layers.jsonl").read_text().splitlines():
                row = json.loads(text)
                for layer in row["histograms"]["hits"]:
                    for at, count in enumerate(layer):
                        hits[at * row["width"] // 4] += count
                for step in range(int(row["steps"])):
                    seen[step // 4] += len(row["hit"]) * len(row["hit"][0])
    x, y = both.lines[0].get_data()
    assert max(seen) > 30 // 4  # a task went further than the other
    assert list(x) == [4 * at + 2 for at in sorted(seen)]
    assert list(y) == pytest.approx([hits[at] / seen[at] for at in sorted(seen)])
    plt.close("all")
