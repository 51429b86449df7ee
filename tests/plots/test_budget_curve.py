"""The paper's Figure 1 from stored samples: panels, points and what paper=true adds."""

from __future__ import annotations

from itertools import pairwise

import matplotlib.pyplot as plt
import pytest
from cells import write

from macbench import plots, presets, store
from macbench.cli import main
from macbench.errors import MacbenchError
from macbench.plots import accuracy_budget, budget_curve

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
    assert hollow["random (control)"] == "white" != hollow["quest"]


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


@pytest.mark.parametrize("figure", [accuracy_budget, budget_curve])
@pytest.mark.parametrize("shares", [(0.004, 0.3), (0.82, 0.97), (0.3, 2.4, 7.9)])
def test_the_axis_holds_every_point_with_labels_apart(tmp_path, figure, shares):
    """Also far above full attention's bytes, and where all points lie close together."""
    write(tmp_path, "full", {"passes": 1}, FULL)
    for share in shares:
        knobs = {"budget": share}
        write(tmp_path, "quest", knobs, FULL, label=f"quest budget={share}", share=share - 0.001)
    drawn = figure.draw(store.read(tmp_path))
    drawn.canvas.draw()
    (axis,) = drawn.axes
    (curve,) = [c for c in axis.containers if c.get_label() == "quest"]
    x = curve.lines[0].get_xdata()
    low, high = axis.get_xlim()
    assert len(x) == len(shares) and low < min(x) and max(x) < high
    ticks = [*axis.xaxis.get_major_ticks(), *axis.xaxis.get_minor_ticks()]
    seen = [tick for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_text()]
    boxes = [tick.label1.get_window_extent() for tick in sorted(seen, key=lambda t: t.get_loc())]
    assert len(boxes) >= 2
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    plt.close("all")


def test_a_method_looks_the_same_whatever_else_is_drawn():
    known = presets.methods()
    every = {name for name in known if name != "full"}
    every |= {f"{name}/{variant}" for name in every for variant in known[name]}
    looks = {name: accuracy_budget.look(name, every) for name in every}
    assert len({(marker, colour) for marker, colour, _ in looks.values()}) == len(every)
    for name in every:
        method = name.partition("/")[0]
        assert accuracy_budget.look(name, {name, "novel"}) == looks[name]
        assert looks[name][1] == looks[method][1]
    assert len({looks[name][1] for name in known if name != "full"}) == len(known) - 1
    options = {f"mac match={i}" for i in range(40)}
    assert len({accuracy_budget.look(name, options) for name in options}) == len(options)


def test_other_options_and_methods_come_after_the_known():
    def look(name, *beside):
        return accuracy_budget.look(name, {name, *beside})

    mac = look("mac")
    assert look("mac K=128") == mac  # nothing else stands for MAC
    assert look("mac K=128", "mac", "quest")[:2] != mac[:2] == look("mac", "mac K=128")[:2]
    assert look("mac K=128", "mac")[1] == mac[1]
    assert look("mac/authors K=128", "mac") == look("mac/authors")
    known = [look(name)[:2] for name in presets.methods() if name != "full"]
    assert look("novel", "mac")[:2] not in known


def test_methods_look_the_same_in_both_figures(out):
    """Also where one leaves out a benchmark without a score, or starts with another."""
    write(out, "abacus", {}, [0] * 8, "longgenbench/menu", length=900)
    write(out, "brainwave", {}, FULL, "longbench_v2", length=4096)
    write(out, "h2o", {}, FULL, "longbench_v2", length=4096)
    looks = []
    for figure in (accuracy_budget, budget_curve):
        curves = [c for axis in figure.draw(store.read(out)).axes for c in axis.containers]
        looks.append(
            {c.get_label(): (c.lines[0].get_marker(), c.lines[0].get_color()) for c in curves}
        )
    assert {*looks[0].items()} < {*looks[1].items()}
    plt.close("all")


def test_the_papers_points_are_hollow_and_only_there_when_asked_for(figure):
    assert not any("paper" in label for axis in figure().axes for label in lines(axis)[1])
    long, writing, ruler = figure(paper=True).axes
    found, labels = lines(ruler)
    assert {"quest (paper, % of tokens)", "mac (paper, % of tokens)"} < {*labels}
    quest = found["quest (paper, % of tokens)"]
    assert quest.get_markerfacecolor() == "none"
    assert "the paper's points: % of tokens" in ruler.get_xlabel()
    assert not any("paper" in axis.get_xlabel() for axis in figure().axes)
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
