"""Score against the byte budget that was achieved, in the layout of the paper's Figure 1.

LongBench v2 on top, LongGenBench and RULER below it, side by side where there are several models or
lengths. paper=true adds what the paper reports: hollow, for another model and context, and at its
own budget, a share of tokens that charges neither metadata nor groups whose heads disagree
(LongGenBench: its finish-weighted accuracy, where ours is the share of checks fulfilled).
"""

from __future__ import annotations

from collections.abc import Collection

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from macbench.errors import MacbenchError
from macbench.plots import paper as reported
from macbench.plots.accuracy_budget import budget_axis, families, look, panel
from macbench.store import Results
from macbench.tables.blocks import summarise

OPTIONS = {"paper": False}
ROWS = (("longbench_v2",), ("longgenbench", "ruler"))
TABLES = {"longbench_v2": "table_2", "longgenbench": "table_1", "ruler": "table_1"}
MODEL = "llama-3.1-8b"


def draw(results: Results, paper: bool = False) -> Figure:
    """A panel per model, benchmark and length. x: bytes read (log); y: score with 95 % interval."""
    blocks = [block for block in summarise(results) if any(line.n for line in block.lines)]
    if not blocks:
        raise MacbenchError("there are no finished samples to draw; run the cells first.")
    rows = [[b for name in names for b in blocks if b.family == name] for names in ROWS]
    rows = [row for row in rows if row]
    points = {b.family: _reported(b.family) for row in rows for b in row} if paper else {}
    methods = families(blocks)
    width = max(len(row) for row in rows)
    figure = plt.figure(figsize=(2 + 4.4 * max(width, 2), 4.4 * len(rows)), layout="constrained")
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for part, row in zip(parts, rows, strict=True):
        for axis, block in zip(part.subplots(1, len(row), squeeze=False)[0], row, strict=True):
            panel(axis, block, methods)
            if block.family in points:
                _hollow(axis, points[block.family], methods)
    return figure


def _reported(benchmark: str) -> pd.DataFrame:
    table = reported(TABLES[benchmark])
    if table.empty:
        raise MacbenchError("paper=true reads results/paper of a checkout and there is none here.")
    return table[(table["benchmark"] == benchmark) & (table["model"] == MODEL)]


def _hollow(axis: plt.Axes, table: pd.DataFrame, methods: Collection[str]) -> None:
    for method, own in table.groupby("method", sort=False):
        if method == "full":
            level = float(own["score"].iloc[0])
            axis.axhline(level, color="0.6", ls=":", lw=1, label=f"full ({MODEL}, paper)")
            continue
        (marker, color, _), own = look(str(method), methods), own.sort_values("access")
        axis.plot(
            100 * own["access"],
            own["score"],
            marker=marker,
            color=color,
            mfc="none",
            ls=":",
            lw=1,
            label=f"{method} (paper, % of tokens)",
        )
    budget_axis(axis)
    axis.set_xlabel(f"{axis.get_xlabel()}\n(the paper's points: % of tokens, without metadata)")
    axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
