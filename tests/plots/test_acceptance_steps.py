"""Acceptance over the generation, drawn from a run."""

from __future__ import annotations

from macbench.cli import main
from macbench.plots import draw
from macbench.store import read


def test_the_points_are_the_hits_of_the_steps_they_stand_for(tmp_path, tiny):
    out = tmp_path / "out"
    words = ["task=ruler/niah_single_1", "length=1k", "limit=2", "max_new=70", f"out={out}"]
    assert main(["run", *tiny, *words, "method=[full,mac]", "mac.tau=0.2", "mac.K=32"]) == 0
    results = read(out)
    counts = results.histograms
    hits = counts[counts["name"] == "hits"]
    layers = results.layers
    assert hits["count"].sum() == layers["hit"].sum() > 0
    for name in ("gap", "distance"):
        assert counts.loc[counts["name"] == name, "count"].sum() == hits["count"].sum()
    assert hits["width"].unique().tolist() == [3]  # 70 steps in 32 buckets
    (path,) = draw("acceptance_steps", out, tmp_path)
    first = path.read_bytes()
    assert draw("acceptance_steps", out, tmp_path)[0].read_bytes() == first
    assert first.startswith(b"\x89PNG")
