"""Attention speed-up over contexts, batches and skipped shares (the paper's Figure 6)."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from macbench.errors import MacbenchError
from macbench.measure.latency.record import collect
from macbench.plots import paper

AGAINST = {
    "vs_flashinfer_tc": "FlashInfer, tensor cores",
    "vs_flashinfer_cc": "FlashInfer, CUDA cores (the paper's baseline)",
}


def read(folder: Path) -> pd.DataFrame:
    rows = collect(folder, "speedup_grid")
    rows = rows[(rows["method"] == "mac") & rows["access"].notna() & (rows["tiling"] == "")]
    if rows.empty:
        raise MacbenchError(f"no row of {folder} asks for a share of the context (access=).")
    return rows


def draw(rows: pd.DataFrame) -> Figure:
    """A column per context, a row per baseline. x: batch; y: speed-up (log); a line per share that
    is skipped. Crosses: what the paper reports for 99 %, on an H100, against the second baseline.
    """
    reported = paper("figure_6")
    contexts = sorted(rows["context"].unique())
    figure, axes = plt.subplots(
        len(AGAINST),
        len(contexts),
        figsize=(1 + 2.8 * len(contexts), 3 * len(AGAINST)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for line, (column, name) in zip(axes, AGAINST.items(), strict=True):
        for axis, context in zip(line, contexts, strict=True):
            here = rows[rows["context"] == context]
            for i, (access, group) in enumerate(here.groupby("access")):
                group = group.sort_values("batch")
                label = f"MAC, {1 - access:.0%} skipped"
                axis.plot(
                    group["batch"], group[column], "o-", ms=3, lw=1, color=f"C{i}", label=label
                )
            if len(reported):
                told = reported[reported["context"] == context]
                axis.plot(told["batch"], told["speedup"], "kx", ms=5, label="paper, 99 % skipped")
            axis.axhline(1, color="0.3", ls="--", lw=1)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            for ticks in (axis.xaxis, axis.yaxis):
                ticks.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_title(f"{context // 1024}K tokens", fontsize=9)
            axis.grid(alpha=0.2, which="both")
            axis.tick_params(labelsize=7)
        line[0].set_ylabel(f"x as fast as\n{name}", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("batch")
    axes[0][0].legend(fontsize=6, frameon=False)
    first = rows.iloc[0]
    figure.suptitle(
        f"{first['layout']} heads, K {first['K']}, every head hits; measured on {first['device']}, "
        "the paper's numbers on an H100",
        fontsize=10,
    )
    return figure
