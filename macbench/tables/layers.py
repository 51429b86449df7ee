"""MAC's reuse layer by layer, as numbers: macbench show DIR --layers."""

from __future__ import annotations

import pandas as pd

from macbench.errors import MacbenchError
from macbench.measure.budget import acceptance
from macbench.store import Results
from macbench.tables.blocks import Block
from macbench.tables.report import percent, render

BLOCK = ["model", "benchmark", "length"]
SHOWN = {
    "acceptance": "heads that hit, %",
    "group_hit": "groups that hit whole, %",
    "skip": "skipped prefix, %",
}
NOTE = (
    "means over tasks. skipped prefix: of all tokens, a miss counts 0. Distances, gaps and chain "
    "depths: --format csv."
)


def by_layer(results: Results) -> pd.DataFrame:
    """Columns of `acceptance`, by model, benchmark, length, method and layer: means over tasks."""
    cells = results.cells[["model", "task", "length", "label"]].rename(columns={"label": "method"})
    cells["benchmark"] = cells["task"].str.partition("/")[0]
    layers = results.layers.merge(cells, left_on="cell", right_index=True)
    keys = [*BLOCK, "method", "layer"]
    each = acceptance(layers, by=[*keys, "task"])
    if each.empty:
        raise MacbenchError(
            "no cell here counted matches; run one with method=mac first (an archive without "
            "layers.* has nothing by layer)."
        )
    return each.groupby(keys).mean().rename(index=int, level="layer")


def table(results: Results, format: str = "text") -> str:
    """A block per model, benchmark and length, a column per method; text, md, latex or csv."""
    found = by_layer(results)
    if format == "csv":
        return found.round(4).to_csv(lineterminator="\n")
    blocks = []
    for about, part in found.groupby(BLOCK, sort=False):
        rates = part.reset_index(BLOCK, drop=True)
        title = f"{', '.join(map(str, about))} tokens: MAC's reuse by layer"
        grids = [_grid(title, rates[name].unstack("method")) for name, title in SHOWN.items()]
        blocks.append(Block({}, str(about[1]), title, set(), [], None, [NOTE], grids))
    return render(blocks, format)


def _grid(title: str, shares: pd.DataFrame) -> list[list[str]]:
    grid = [[title, *shares.columns]]
    grid += [[str(layer), *map(percent, row)] for layer, row in shares.iterrows()]
    return [*grid, ["mean", *map(percent, shares.mean())]]
