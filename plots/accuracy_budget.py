"""Accuracy against KV budget (the paper's Figure 1): what quality a share of the KV reads keeps."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from textwrap import fill

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from macbench import presets
from macbench.errors import MacbenchError
from macbench.store import Results
from macbench.tables.blocks import Block, fewer, summarise
from macbench.tables.line import Line

MARKS = "osD^vP*X<>hp"
COLOURS = [f"C{i}" for i in (*range(7), 8, 7, 9)] + ["navy", "maroon", "gold", "black"]
STROKES = ("-", "--", ":", "-.")
ALONG = re.compile(r" (budget|tokens|tau|p)=(\[[^\]]*\]|\S+)")  # knobs that a curve runs along
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)  # %


def draw(results: Results) -> Figure:
    """A panel per model, benchmark and length.

    x: achieved byte budget (log); y: accuracy over tasks. Bars are 95 % intervals. Full attention
    is the dashed line with its interval as a band; controls are hollow. A method looks the same in
    every figure. Where no one scored anything there is no panel beside others.
    """
    blocks = [block for block in summarise(results) if any(line.n for line in block.lines)]
    if not blocks:
        raise MacbenchError("there are no finished samples to draw; run the cells first.")
    methods = families(blocks)
    scored = [b for b in blocks if any(line.accuracy and line.accuracy.mean for line in b.lines)]
    blocks = scored or blocks
    figure, axes = plt.subplots(
        1, len(blocks), figsize=(2 + 4.4 * len(blocks), 4.4), squeeze=False, layout="constrained"
    )
    for axis, block in zip(axes[0], blocks, strict=True):
        panel(axis, block, methods)
    return figure


def family(line: Line) -> str:
    """What one curve holds: a method, and its knobs but those that say how much it reads. What
    calibration chose is a curve of its own."""
    name = ALONG.sub("", line.label)
    return f"{name} calibrated" if line.plan.calibration else name


def families(blocks: Iterable[Block]) -> set[str]:
    """The curves of these blocks; full attention is none."""
    return {family(line) for block in blocks for line in block.lines} - {"full"}


def look(name: str, names: Collection[str]) -> tuple[str, str, str]:
    """Marker, colour and line of a family among all that the results hold.

    Methods have colours and variants marks by their order in `conf/`, so that they look the same
    whatever else is drawn. Other methods, and a variant's further options, come after them.
    """
    known, method = presets.methods(), _method(name)
    methods = [each for each in known if each != "full"]
    methods += sorted({_method(each) for each in (*names, name)} - {*methods})
    i = methods.index(method)
    kin = sorted(each for each in names if _method(each) == method)
    first = {_variant(each): each for each in reversed(kin)}  # stands for its variant

    def place(each: str) -> str:
        return _variant(each) if each == first.get(_variant(each)) else each

    variants = [method, *(f"{method}/{variant}" for variant in known.get(method, ()))]
    variants += sorted({place(each) for each in (*kin, name)} - {*variants})
    j = variants.index(place(name))
    stroke = STROKES[(j + j // len(MARKS)) % len(STROKES)]  # another one where marks come again
    return MARKS[(i + 5 * j) % len(MARKS)], COLOURS[i % len(COLOURS)], stroke


def _method(name: str) -> str:
    return re.split("[ /]", name)[0]


def _variant(name: str) -> str:
    return name.partition(" ")[0]


def budget_axis(axis: plt.Axes) -> None:
    """Few ticks, which do not collide, on a log axis that holds every point drawn so far."""
    axis.set_xscale("log")
    axis.set_xticks(TICKS)
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}%"))
    axis.set_xlim(min(axis.dataLim.minposx, 50) / 1.25, max(axis.dataLim.x1, 100) * 1.1)


def panel(axis: plt.Axes, block: Block, methods: Collection[str]) -> None:
    """One block. methods: the families of all results. Points of fewer tasks or samples than
    others say of how many."""
    curves: dict[str, list[Line]] = {}
    for line in block.lines:
        if line.accuracy and line.budgets and line.budgets.byte is not None:
            curves.setdefault(family(line), []).append(line)
    full = curves.pop("full", [])
    for line in full:
        assert line.accuracy
        axis.axhspan(100 * line.accuracy.low, 100 * line.accuracy.high, color="0.5", alpha=0.12)
        axis.axhline(100 * line.accuracy.mean, color="0.35", ls="--", lw=1, label="full attention")
    for name, lines in curves.items():
        (marker, color, stroke), points = look(name, methods), []
        for line in lines:
            assert line.accuracy and line.budgets and line.budgets.byte is not None
            a = line.accuracy
            points.append([100 * x for x in (line.budgets.byte, a.mean, a.low, a.high)])
            if told := fewer(line, block):
                at = (points[-1][0], points[-1][1])
                axis.annotate(told, at, (4, -9), textcoords="offset points", fontsize=6)
        points.sort()
        x, y = [p[0] for p in points], [p[1] for p in points]
        control = lines[0].control
        axis.errorbar(
            x,
            y,
            yerr=[[p[1] - p[2] for p in points], [p[3] - p[1] for p in points]],
            marker=marker,
            color=color,
            mfc="white" if control else None,
            ls=stroke if len(points) > 1 else "none",
            lw=2 if _method(name) == "mac" else 1,
            elinewidth=1,
            capsize=2,
            label=f"{name} (control)" if control else name,
        )
    budget_axis(axis)
    axis.tick_params(axis="x", labelsize=7)
    axis.set_xlabel("bytes read per decode step, % of full attention's\n(metadata included)")
    axis.set_ylabel("accuracy, %")
    axis.set_ylim(-3, 103)
    axis.set_title(fill(block.title, 64), fontsize=8)
    axis.grid(alpha=0.2)
    axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
