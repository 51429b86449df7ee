"""Acceptance rate and skipped prefix per layer and query head (the paper's Figure 5, by head)."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from macbench.errors import MacbenchError
from macbench.measure.budget import acceptance
from macbench.store import Results

PANELS = (("acceptance", "acceptance rate"), ("skip", "skipped prefix (a miss counts 0)"))


def draw(results: Results) -> Figure:
    """A row per MAC cell label, all tasks together; x: layer, y: query head."""
    layers = results.layers.merge(results.cells[["label"]], left_on="cell", right_index=True)
    rates = acceptance(layers, by=("label", "layer", "head"))
    if rates.empty:
        raise MacbenchError("no cell here counted matches; run one with method=mac first.")
    labels = list(dict.fromkeys(results.cells["label"]))
    labels = [label for label in labels if label in rates.index.get_level_values("label")]
    figure, axes = plt.subplots(
        len(labels), 2, figsize=(9, 1.1 + 1.6 * len(labels)), squeeze=False, layout="constrained"
    )
    for row, label in zip(axes, labels, strict=True):
        for axis, (column, title) in zip(row, PANELS, strict=True):
            grid = rates.loc[label][column].unstack("layer")
            image = axis.imshow(grid, aspect="auto", vmin=0, vmax=1, cmap="viridis")
            axis.set_title(
                f"{label}: {title}, mean {rates.loc[label][column].mean():.0%}", fontsize=9
            )
            axis.set(xlabel="layer", ylabel="query head")
            figure.colorbar(image, ax=axis, format=PercentFormatter(1, decimals=0))
    return figure
