"""Accuracy against KV budget (the paper's Figure 1): what quality a share of the KV reads keeps."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from macbench.errors import MacbenchError
from macbench.report import summarize
from macbench.store import Results

MARKS = "osD^vP*X<>hp"


def draw(results: Results) -> Figure:
    """x: achieved byte budget (log); y: accuracy over tasks with its 95 % interval; a panel per
    model and length. Full attention is the dashed line with its interval; controls are hollow."""
    frame = summarize(results)
    panels = list(frame.groupby(["model", "length"], sort=False))
    if not panels:
        raise MacbenchError("there are no finished samples to draw; run the cells first.")
    figure, axes = plt.subplots(
        1, len(panels), figsize=(6.4 * len(panels), 4.2), squeeze=False, layout="constrained"
    )
    methods = [m for m in frame["method"].drop_duplicates() if m != "full"]
    for axis, ((model, length), rows) in zip(axes[0], panels, strict=True):
        full = rows[rows["label"] == "full"]
        for _, row in full.iterrows():
            axis.axhline(100 * row["accuracy"], color="0.35", ls="--", lw=1, label="full attention")
            axis.axhspan(100 * row["low"], 100 * row["high"], color="0.5", alpha=0.12, lw=0)
        for i, method in enumerate(methods):
            points = rows[(rows["method"] == method)].sort_values("byte_budget")
            if points.empty:
                continue
            error = 100 * (points[["accuracy", "high"]].diff(axis=1)["high"]), 100 * (
                points["accuracy"] - points["low"]
            )
            hollow = bool(points["control"].any())
            axis.errorbar(
                100 * points["byte_budget"],
                100 * points["accuracy"],
                yerr=[error[1], error[0]],
                marker=MARKS[i % len(MARKS)],
                color=f"C{i}",
                mfc="none" if hollow else None,
                ls="-" if len(points) > 1 else "none",
                lw=1,
                capsize=2,
                label=f"{method} (control)" if hollow else method,
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(PercentFormatter(decimals=0))
        axis.xaxis.set_minor_formatter(PercentFormatter(decimals=0))
        axis.tick_params(axis="x", which="minor", labelsize=7)
        axis.set(xlabel="KV bytes read, share of full attention (metadata included)", ylabel="accuracy, %")
        axis.set_ylim(-3, 103)
        axis.set_title(f"{model}, {length} tokens, {rows['tasks'].iloc[0]}", fontsize=9)
        axis.grid(alpha=0.2)
    axes[0][-1].legend(fontsize=7, frameon=False)
    return figure
