"""Time of a MAC step against its hit rate: what reuse has to reach before it pays."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from macbench.errors import MacbenchError
from macbench.measure.latency.curve import crossing, curves
from macbench.measure.latency.record import collect

COLOURS = {"contiguous": "C0", "independent": "C3"}
MARKS = {"far": "v", "typical": "o", "worst": "^"}


def read(folder: Path) -> pd.DataFrame:
    rows = collect(folder, "hit_curve")
    return rows[rows["tiling"] == ""]


def draw(rows: pd.DataFrame) -> Figure:
    """A panel per layout and context (down) and batch (across). x: hit rate; y: us (log).

    Bars are 10th to 90th percentiles; bands reach from the floor to the time of a plain cold read
    of as many bytes; the dashed line is FlashInfer's tensor-core decode, the ring on it the
    break-even hit rate. Hollow marks: other rings, at their hit rates.
    """
    found = [c for c in curves(rows) if len(c[2]) > 2]
    if not found:
        raise MacbenchError("there is no hit curve to draw: it needs three hit rates of a case.")
    down = list(dict.fromkeys((f["layout"], f["context"]) for f, _, _ in found))
    across = sorted({f["batch"] for f, _, _ in found})
    figure, axes = plt.subplots(
        len(down),
        len(across),
        figsize=(1 + 3.6 * len(across), 0.6 + 3.1 * len(down)),
        squeeze=False,
        layout="constrained",
    )
    for line, (layout, context) in zip(axes, down, strict=True):
        for axis, batch in zip(line, across, strict=True):
            same = (rows["layout"] == layout) & (rows["context"] == context)
            drawn = [
                (fixed, pattern, curve)
                for fixed, pattern, curve in found
                if (fixed["layout"], fixed["context"], fixed["batch"]) == (layout, context, batch)
            ]
            panel(axis, drawn, rows[same & (rows["batch"] == batch)])
            axis.set_title(f"{layout} heads, {context} tokens, batch {batch}", fontsize=9)
        line[0].set_ylabel("us per step and layer")
    for axis in axes[-1]:
        axis.set_xlabel("hit rate (share of heads that reuse)")
    axes[0][0].legend(fontsize=6, frameon=False)
    device = ", ".join(sorted(rows["device"].unique()))
    figure.suptitle(f"One decode step of attention on {device}, cold L2 cache", fontsize=10)
    return figure


def panel(axis: plt.Axes, found: list[tuple[dict, str, pd.DataFrame]], rows: pd.DataFrame) -> None:
    line = rows[rows["method"] == "flashinfer_tc"]["us_median"]
    if len(line):
        axis.axhline(line.iloc[-1], color="0.3", ls="--", lw=1, label="FlashInfer, tensor cores")
    shown: set[int] = set()
    for fixed, pattern, curve in found:
        colour = COLOURS[pattern]
        shown |= set(curve.index)
        band(axis, curve, colour, pattern)
        name = f"MAC, {pattern} misses, K {fixed['K']}, {fixed['ring']} ring"
        bars(axis, curve, color=colour, marker=MARKS[fixed["ring"]], lw=1.2, label=name)
        at = crossing(curve[curve["vs_flashinfer_tc"].notna()])
        if at is not None and len(line):
            axis.plot(at, line.iloc[-1], "o", ms=10, mfc="none", color=colour)
            axis.annotate(
                f"{at:.2f}",
                (at, line.iloc[-1]),
                xytext=(0, 9 if pattern == "contiguous" else -15),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                color=colour,
            )
    rest = rows[(rows["method"] == "mac") & ~rows.index.isin(shown)]
    for i, (key, group) in enumerate(rest.groupby(["K", "ring"])):
        K, ring = key
        style = {"marker": MARKS[str(ring)], "mfc": "none", "ls": "none"}
        bars(axis, group, color=f"C{4 + i}", label=f"MAC, K {K}, {ring} ring", **style)
    axis.set_yscale("log")
    axis.grid(alpha=0.2, which="both")
    axis.tick_params(labelsize=7)


def band(axis: plt.Axes, curve: pd.DataFrame, colour: str, pattern: str) -> None:
    floor, cold = curve["floor_us"], curve["cold_us"]
    axis.fill_between(
        curve["hit"], floor, cold.clip(lower=floor), color=colour, alpha=0.15, lw=0
    ).set_label(f"floor to plain cold read, {pattern}")


def bars(axis: plt.Axes, curve: pd.DataFrame, **style) -> None:
    middle = curve["us_median"]
    spread = [middle - curve["us_p10"], curve["us_p90"] - middle]
    axis.errorbar(curve["hit"], middle, yerr=spread, ms=4, capsize=2, elinewidth=0.8, **style)
