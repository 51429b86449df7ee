"""What a MAC step consists of (the paper's Figure 8, of which it prints no values)."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from macbench.measure.latency.cases import LAUNCHES
from macbench.measure.latency.record import collect

CASE = ["layout", "batch", "context", "access"]


def read(folder: Path) -> pd.DataFrame:
    rows = collect(folder, "breakdown")
    rows = rows[rows["tiling"] == ""]
    # each launch was timed in a graph of its own, which an empty launch would also have cost
    return rows.assign(net=rows["us_median"] - rows["launch_us"])


def draw(rows: pd.DataFrame) -> Figure:
    """Left: the match over K ring rows against attention over as many tokens. Then, per layout, the
    launches stacked, by context and skipped share; the dot is the whole step, in which launches
    overlap; in words FlashInfer's tensor-core decode. All without the time of an empty graph.
    """
    stacks = rows[rows["access"].notna()]
    layouts = list(dict.fromkeys(stacks["layout"]))
    figure, axes = plt.subplots(
        1,
        1 + len(layouts),
        figsize=(4.6 * (1 + len(layouts)), 3.8),
        squeeze=False,
        layout="constrained",
    )
    match_against_attention(axes[0][0], rows[rows["access"].isna()])
    for axis, layout in zip(axes[0][1:], layouts, strict=True):
        stack(axis, stacks[stacks["layout"] == layout], rows[rows["layout"] == layout])
        axis.set_title(f"{layout} heads, batch {stacks['batch'].iloc[0]}", fontsize=9)
    device = ", ".join(sorted(rows["device"].unique()))
    figure.suptitle(f"Launches of one step on {device}", fontsize=10)
    return figure


def match_against_attention(axis: plt.Axes, rows: pd.DataFrame) -> None:
    """Bars by layout and length: match over K rows, attention over K tokens."""
    match = rows[rows["method"] == "mac_match"].sort_values(["layout", "K"])
    places, names = [], []
    for i, row in enumerate(match.to_dict("records")):
        same = (rows["layout"] == row["layout"]) & (rows["context"] == row["K"])
        heights = {"match": row["net"]}
        for method, name in (("flashinfer_tc", "FlashInfer"), ("triton_full", "own attention")):
            other = rows[same & (rows["method"] == method)]["net"]
            if len(other):
                heights[name] = other.iloc[-1]
        for j, (name, height) in enumerate(heights.items()):
            axis.bar(i + 0.26 * j, height, 0.26, color=f"C{j}", label=name if i == 0 else None)
        places.append(i + 0.26)
        names.append(f"{row['layout']}\n{row['K']}")
    axis.set_xticks(places, names, fontsize=6)
    axis.set_ylabel("us")
    axis.set_title("match over K rows, attention over K tokens", fontsize=9)
    if places:
        axis.legend(fontsize=7, frameon=False)


def stack(axis: plt.Axes, rows: pd.DataFrame, every: pd.DataFrame) -> None:
    cases = rows[CASE].drop_duplicates().sort_values(["context", "access"]).to_dict("records")
    for i, case in enumerate(cases):
        here = rows
        for key, value in case.items():
            here = here[here[key] == value]
        net = here.set_index("method")["net"]
        base = 0.0
        for j, name in enumerate(LAUNCHES):
            if name in net:
                label = name.removeprefix("mac_") if i == 0 else None
                axis.bar(i, net[name], 0.7, bottom=base, color=f"C{j}", label=label)
                base += net[name]
        if "mac" in net:
            axis.plot(i, net["mac"], "ko", ms=4, label="whole step" if i == 0 else None)
        full = every[(every["method"] == "flashinfer_tc") & (every["batch"] == case["batch"])]
        full = full[full["context"] == case["context"]]["net"]
        if len(full):
            note = f"FlashInfer\n{full.iloc[-1]:.0f} us"
            axis.annotate(
                note, (i, base), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=6
            )
    names = [f"{case['context'] // 1024}K\n{1 - case['access']:.0%}" for case in cases]
    axis.set_xticks(range(len(cases)), names, fontsize=6)
    axis.margins(y=0.15)
    axis.set_xlabel("context, share skipped")
    axis.set_ylabel("us")
    axis.legend(fontsize=7, frameon=False)
