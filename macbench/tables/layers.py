"""MAC's reuse layer by layer, as numbers: macbench show DIR --layers."""

from __future__ import annotations

import pandas as pd

from macbench.errors import MacbenchError
from macbench.store import Results
from macbench.tables.blocks import Block, Grid, reuse, summarise
from macbench.tables.report import percent, render

SHOWN = {
    "acceptance": "heads that hit, %",
    "group_hit": "groups that hit whole, %",
    "skip": "skipped prefix, %",
}
NOTE = (
    "means over tasks. skipped prefix: of all tokens, a miss counts 0. Distances, gaps and chain "
    "depths: --format csv."
)


def table(results: Results, format: str = "text") -> str:
    """The blocks of `macbench show` in which MAC ran: a column per method; text, md, latex, csv."""
    blocks = found(results, "layer")
    if format == "csv":
        parts = []
        for block, rates in blocks:
            about = pd.DataFrame([{**block.about, "benchmark": block.family}])
            parts.append(about.merge(rates.rename(index=int, level="layer").reset_index(), "cross"))
        return pd.concat(parts).round(4).to_csv(index=False, lineterminator="\n")
    for block, rates in blocks:
        block.notes = [NOTE]
        block.grids = [_grid(title, rates[name]) for name, title in SHOWN.items()]
    return render([block for block, _ in blocks], format)


def found(results: Results, *by: str) -> list[tuple[Block, pd.DataFrame]]:
    """Every block in which MAC ran, and `reuse` of it; MacbenchError where there is none."""
    blocks = [(block, reuse(block, *by)) for block in summarise(results)]
    blocks = [(block, rates) for block, rates in blocks if not rates.empty]
    if not blocks:
        raise MacbenchError(
            "no cell here counted matches; run one with method=mac first (an archive without "
            "layers.* has nothing by layer)."
        )
    return blocks


def _grid(title: str, rates: pd.Series) -> Grid:
    shares = rates.unstack("method")
    grid = [[title, *shares.columns]]
    grid += [[f"{layer:.0f}", *map(percent, row)] for layer, row in shares.iterrows()]
    return [*grid, ["mean", *map(percent, shares.mean())]]
