"""MAC's acceptance rate over the generation: does reuse hold up as the answer grows?"""

from __future__ import annotations

from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from macbench.errors import MacbenchError
from macbench.plots.accuracy_budget import families, family, look
from macbench.store import Results
from macbench.tables.blocks import Block, summarise


def draw(results: Results) -> Figure:
    """A panel per model, benchmark and length, a line per row of MAC in it.

    Mean over layers and heads; band: layers' middle half. Colours go along all lines of the figure;
    marks and strokes are those of the other figures.
    """
    counts, blocks = results.histograms, summarise(results)
    panels = [(b, part) for b in blocks if len(part := _of(b, counts))] if len(counts) else []
    if not panels:
        raise MacbenchError(
            "no cell here counted matches (layers.jsonl has them); run one with method=mac first."
        )
    labels = [*dict.fromkeys(label for _, part in panels for label in sorted({*part["method"]}))]
    shades = plt.get_cmap("viridis")([0.9 * i / len(labels) for i in range(len(labels))])
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(3 + 4.4 * len(panels), 4),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    handles = {}
    methods = families(blocks)
    for axis, (block, part) in zip(axes[0], panels, strict=True):
        named = {line.label: family(line) for line in block.lines}
        width = part["width"].iloc[0]
        for label, own in part.groupby("method"):
            marker, _, stroke = look(named[str(label)], methods)
            colour = shades[labels.index(label)]
            rates = _rates(results, own)
            x, low, high = (rates.index + 0.5) * width, *rates.quantile([0.25, 0.75], axis=1).values
            (handles[label],) = axis.plot(
                x,
                rates.mean(axis=1),
                marker=marker,
                ms=4,
                color=colour,
                ls=stroke,
                lw=1.2,
                label=label,
            )
            axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        tasks = ", ".join(
            sorted({t.partition("/")[2] for t in results.cells["task"][part["cell"]]})
        )
        axis.set_title(f"{fill(block.title, 64)}\n{fill(tasks, 64)}".strip(), fontsize=8)
        steps = "1 step" if width == 1 else f"{width} steps"
        axis.set_xlabel(f"decode step\n({steps} a point, of the samples that got there)")
        axis.set(xlim=(0, None), ylim=(0, 1.03))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.yaxis.set_major_formatter(PercentFormatter(1))
        axis.grid(alpha=0.2)
    axes[0][0].set_ylabel("acceptance rate")
    figure.legend(
        handles=[*handles.values()], loc="outside right center", fontsize=7, frameon=False
    )
    return figure


def _of(block: Block, counts: pd.DataFrame) -> pd.DataFrame:
    """The block's hits with their method, in buckets as wide as the widest, which a task's longest
    answer decides. A bucket that lies across two of these is shared out by its steps."""
    cells = block.layers[["cell", "method"]].drop_duplicates()
    part = counts[counts["name"] == "hits"].merge(cells, on="cell")
    width = part["width"].max()
    first, beyond = part["bin"] * part["width"], (part["bin"] + 1) * part["width"]
    low, high = first // width, (beyond - 1) // width
    over = ((beyond - high * width) / part["width"]).where(high > low, 0)
    whole = part.assign(bin=low, count=part["count"] * (1 - over), width=width)
    rest = part.assign(bin=high, count=part["count"] * over, width=width)
    return pd.concat([whole, rest[over > 0]], ignore_index=True)


def _rates(results: Results, part: pd.DataFrame) -> pd.DataFrame:
    """Acceptance by bucket and layer, of all samples of a method that reached the bucket."""
    width, cells = part["width"].iloc[0], part["cell"].unique()
    steps = results.samples.loc[results.samples["cell"].isin(cells), "steps"]
    hits = part.pivot_table(index="bin", columns="layer", values="count", aggfunc="sum")
    seen = hits.index.to_series().map(lambda at: (steps - at * width).clip(0, width).sum())
    heads = results.cells["config"][cells[0]]["geometry"]["q_heads"]
    return hits[seen > 0].div(seen[seen > 0] * heads, axis=0)
