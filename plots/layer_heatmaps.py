"""Acceptance rate and skipped prefix per layer and query head (the paper's Figure 5, by head)."""

from __future__ import annotations

from textwrap import fill

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from macbench.store import Results
from macbench.tables import layers

PANELS = (("acceptance", "acceptance rate"), ("skip", "skipped prefix (a miss counts 0)"))


def draw(results: Results) -> Figure:
    """A row per block and MAC's cells in it, the mean over tasks; x: layer, y: query head."""
    rows = [
        (f"{block.family}, {block.about['length']}", str(method), rates)
        for block, found in layers.found(results, "layer", "head")
        for method, rates in found.groupby("method")
    ]
    figure, axes = plt.subplots(
        len(rows), 2, figsize=(9, 1.1 + 1.6 * len(rows)), squeeze=False, layout="constrained"
    )
    for row, (name, method, rates) in zip(axes, rows, strict=True):
        for axis, (column, title) in zip(row, PANELS, strict=True):
            grid = rates[column].droplevel("method").unstack("layer")
            image = axis.imshow(grid, aspect="auto", vmin=0, vmax=1, cmap="viridis")
            told = f"{method}: {title}, mean {rates[column].mean():.0%}"
            axis.set_title(fill(told, 68), fontsize=8)
            axis.set(xlabel="layer", yticks=range(0, len(grid), 2))
            axis.set_ylabel(f"{name}\nquery head", fontsize=7)
            figure.colorbar(image, ax=axis, format=PercentFormatter(1, decimals=0))
    return figure
