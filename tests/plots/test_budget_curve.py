"""The paper's Figure 1 from stored samples: panels, points and what paper=true adds."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
from cells import write

from macbench import plots, store
from macbench.cli import main
from macbench.errors import MacbenchError
from macbench.plots import budget_curve

FULL = [1] * 6 + [0] * 2
TASKS = {"longbench_v2": 4096, "longgenbench/diary": 256, "ruler/fwe": 2048}


@pytest.fixture
def out(tmp_path, monkeypatch):
    """All three benchmarks, without what each says of its own details."""
    monkeypatch.setattr("macbench.tasks.FAMILIES", {})
    for task, length in TASKS.items():
        write(tmp_path, "full", {"passes": 1}, FULL, task, length=length)
        for share in (0.1, 0.3):
            label = f"quest budget={share}"
            knobs = {"budget": share}
            write(
                tmp_path, "quest", knobs, FULL[::-1], task, label=label, share=share, length=length
            )
        write(tmp_path, "random", {"tokens": 0.2}, [0] * 8, task, length=length, control=True)
    return tmp_path


@pytest.fixture
def figure(out):
    yield lambda **options: budget_curve.draw(store.read(out), **options)
    plt.close("all")


def place(figure, axis):
    """Row and column of a panel."""
    box = axis.get_window_extent()
    return round(-box.y0), round(box.x0)


def lines(axis):
    found = {}
    for line in axis.get_lines():
        found.setdefault(line.get_label(), line)
    return found, axis.get_legend_handles_labels()[1]


def test_the_layout_is_the_papers(figure):
    drawn = figure()
    drawn.canvas.draw()
    panels = sorted(drawn.axes, key=lambda axis: place(drawn, axis))
    told = ["LongBench v2", "LongGenBench", "RULER"]
    for axis, name in zip(panels, told, strict=True):
        assert name in axis.get_title().replace("\n", " ")
    assert place(drawn, panels[0])[0] < place(drawn, panels[1])[0]  # above
    assert panels[0].get_position().width > 1.5 * panels[1].get_position().width


def test_points_are_what_was_read_and_scored(figure):
    """10 and 30 % of the tokens, and 20480 bytes of 400 x 512."""
    axis = figure().axes[-1]
    (points,) = [c for c in axis.containers if c.get_label() == "quest"]
    x, y = points.lines[0].get_data()
    assert list(x) == pytest.approx([20.0, 40.0]) and list(y) == pytest.approx([75.0, 75.0])
    hollow = {c.get_label(): c.lines[0].get_markerfacecolor() for c in axis.containers}
    assert hollow["random (control)"] == "none" != hollow["quest"]


def test_a_curve_runs_along_the_budget_and_joins_no_other_options(tmp_path):
    """MAC at two taus, its control without amendment, one calibrated per layer; a cut-off cell."""
    write(tmp_path, "full", {"passes": 1}, FULL)
    told = {0.45: "mac tau=0.45", 0.6: "mac tau=0.6", 0.5: "mac tau=[30 values a1b2]"}
    for tau, label in told.items():
        write(tmp_path, "mac", {"tau": tau}, FULL, label=label, share=tau)
    knobs = {"tau": 0.45, "amend": False}
    write(tmp_path, "mac", knobs, FULL[:3], label="mac tau=0.45 amend=false", share=0.2)
    write(tmp_path, "mac", {"tau": 0.7}, FULL, label="mac/authors tau=0.7", share=0.4)
    write(tmp_path, "quest", {"budget": 0.2}, FULL, label="quest budget=0.2", share=0.2)
    axis = budget_curve.draw(store.read(tmp_path)).axes[0]
    curves = {c.get_label(): c.lines[0] for c in axis.containers}
    assert {name: len(line.get_xdata()) for name, line in curves.items()} == {
        "mac": 3,
        "mac amend=false": 1,
        "mac/authors": 1,
        "quest": 1,
    }
    macs = [curves[name] for name in ("mac", "mac amend=false", "mac/authors")]
    assert len({line.get_color() for line in macs}) == 1
    assert len({line.get_marker() for line in macs}) == 3
    assert curves["quest"].get_color() != curves["mac"].get_color()
    assert [text.get_text() for text in axis.texts] == ["3 of 8"]
    plt.close("all")


def test_the_papers_points_are_hollow_and_only_there_when_asked_for(figure):
    assert not any("paper" in label for axis in figure().axes for label in lines(axis)[1])
    long, writing, ruler = figure(paper=True).axes
    found, labels = lines(ruler)
    assert {"quest (paper, % of tokens)", "mac (paper, % of tokens)"} < {*labels}
    quest = found["quest (paper, % of tokens)"]
    assert quest.get_markerfacecolor() == "none"
    assert list(quest.get_xdata()) == pytest.approx([1, 2, 3, 7])
    assert list(quest.get_ydata()) == [72.4, 73.4, 75.5, 77]
    (ours,) = [c for c in ruler.containers if c.get_label() == "quest"]
    assert quest.get_color() == ours.lines[0].get_color()
    assert list(lines(long)[0]["mac (paper, % of tokens)"].get_ydata()) == [30.2, 30.4, 30.2, 29.6]
    assert list(lines(writing)[0]["mac (paper, % of tokens)"].get_xdata()) == [20]


def test_the_command_and_its_bytes(out, tmp_path, capsys):
    for folder in ("one", "two"):
        words = ["plot", "budget_curve", "--from", str(out), "--out", str(tmp_path / folder)]
        assert main([*words, "paper=true"]) == 0
    one, two = (tmp_path / folder / "budget_curve.png" for folder in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("word", ["paper", "paper=yes", "papr=true"])
def test_other_words_are_refused(out, word):
    with pytest.raises(MacbenchError, match="budget_curve takes paper=true"):
        plots.draw("budget_curve", out, words=[word])
    with pytest.raises(MacbenchError, match="accuracy_budget takes no options"):
        plots.draw("accuracy_budget", out, words=[word])
