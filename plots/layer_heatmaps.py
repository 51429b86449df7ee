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
    """A row per benchmark and MAC cell label, the mean over its tasks; x: layer, y: query head."""
    benchmark = results.cells["task"].map(lambda task: task.partition("/")[0])
    cells = results.cells[["label", "task"]].assign(benchmark=benchmark)
    layers = results.layers.merge(cells, left_on="cell", right_index=True)
    each = acceptance(layers, by=("benchmark", "label", "task", "layer", "head"))
    if each.empty:
        raise MacbenchError(
            "no cell here counted matches; run one with method=mac first (of an archive without "
            "layers.* no heads can be drawn)."
        )
    rates = each.groupby(["benchmark", "label", "layer", "head"]).mean()
    groups = [*rates.groupby(["benchmark", "label"])]
    figure, axes = plt.subplots(
        len(groups), 2, figsize=(9, 1.1 + 1.6 * len(groups)), squeeze=False, layout="constrained"
    )
    for row, ((name, label), rate) in zip(axes, groups, strict=True):
        for axis, (column, title) in zip(row, PANELS, strict=True):
            grid = rate[column].droplevel(["benchmark", "label"]).unstack("layer")
            image = axis.imshow(grid, aspect="auto", vmin=0, vmax=1, cmap="viridis")
            axis.set_title(f"{label}: {title}, mean {rate[column].mean():.0%}", fontsize=8)
            axis.set(xlabel="layer", ylabel=f"{name}\nquery head", yticks=range(0, len(grid), 2))
            figure.colorbar(image, ax=axis, format=PercentFormatter(1, decimals=0))
    return figure
