"""Acceptance over the generation, drawn from a run."""

from __future__ import annotations

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

    words[1:3] = ["length=1200", "limit=1"]  # another length: a line of its own
    assert main(["run", *tiny, *words, "method=mac", "mac.tau=0.2", "mac.K=32"]) == 0
    (axis,) = acceptance_steps.draw(read(out)).axes
    texts = [text.get_text() for text in axis.get_legend().get_texts()]
    assert [text.partition(":")[0] for text in texts] == ["ruler, 1024", "ruler, 1200"]
    assert len(axis.lines) == 2
