"""MAC's acceptance rate over the generation: does reuse hold up as the answer grows?"""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from macbench.errors import MacbenchError
from macbench.store import Results
from macbench.tables.blocks import summarise


def draw(results: Results) -> Figure:
    """A line per block of `macbench show`, MAC's row in it and answer length: mean over layers and
    heads; band: layers' middle half.

    x: decode step at the middle of a bucket; a bucket counts only the samples that reached it.
    """
    counts = results.histograms
    if counts.empty or "hits" not in set(counts["name"]):
        raise MacbenchError("no cell here counted matches; run one with method=mac first.")
    hits = counts[counts["name"] == "hits"]
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for block in summarise(results):
        cells = block.layers[["cell", "method"]].drop_duplicates()
        for (method, width), part in hits.merge(cells, on="cell").groupby(["method", "width"]):
            config = results.cells["config"][part["cell"].iloc[0]]
            seen = _steps(results, part) * config["geometry"]["q_heads"]
            grid = part.pivot_table(index="bin", columns="layer", values="count", aggfunc="sum")
            grid = grid.div(seen, axis=0)[seen > 0]
            x = (grid.index + 0.5) * width
            name = f"{block.family}, {block.about['length']}: {method}, {width} steps a point"
            (line,) = axis.plot(x, grid.mean(axis=1), marker=".", label=name)
            low, high = grid.quantile(0.25, axis=1), grid.quantile(0.75, axis=1)
            axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axis.set(xlabel="decode step", ylabel="acceptance rate", ylim=(0, 1))
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.grid(alpha=0.2)
    axis.legend(fontsize=8)
    return figure


def _steps(results: Results, part):
    """Decode steps of all samples of these cells that fell into each bucket."""
    width, samples = part["width"].iloc[0], results.samples
    steps = samples.loc[samples["cell"].isin(part["cell"]), "steps"]
    buckets = part["bin"].drop_duplicates().sort_values()
    return buckets.set_axis(buckets).map(lambda at: (steps - at * width).clip(0, width).sum())
