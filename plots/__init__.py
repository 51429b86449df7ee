"""One file per figure or table, each a deterministic function of the results store.

A module's `draw` makes a figure, or Markdown, of what its `read` finds in a folder (without one:
what `macbench.store.read` finds). OPTIONS: its switches with their defaults, for the command line.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from macbench.errors import MacbenchError, nearest

if TYPE_CHECKING:
    import pandas as pd

PNG = {"dpi": 150, "metadata": {"Software": None}}  # the same bytes from the same results


def names() -> list[str]:
    """Figures that can be drawn: the modules of this package that are not private."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def draw(
    name: str, results: Path, out: Path | None = None, words: Sequence[str] = ()
) -> list[Path]:
    """Draw a figure from a results folder into `out` (default: the folder itself).

    words: the figure's switches, such as "paper=true".
    """
    if name not in names():
        raise MacbenchError(f"unknown figure '{name}': {nearest(name, names())}")
    import matplotlib.pyplot as plt

    from macbench.store import read

    plt.switch_backend("Agg")
    module = importlib.import_module(f"{__name__}.{name}")
    switches = _switches(name, getattr(module, "OPTIONS", {}), words)
    drawn = module.draw(getattr(module, "read", read)(results), **switches)
    target = (out or results) / name
    if isinstance(drawn, str):
        target.with_suffix(".md").write_text(drawn, "utf-8")
        return [target.with_suffix(".md")]
    drawn.savefig(target.with_suffix(".png"), **PNG)
    plt.close(drawn)
    return [target.with_suffix(".png")]


def _switches(name: str, known: dict[str, bool], words: Sequence[str]) -> dict[str, bool]:
    found = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in known or value not in ("true", "false"):
            takes = ", ".join(f"{option}=true" for option in known) or "no options"
            raise MacbenchError(f"'{word}': the figure {name} takes {takes}.")
        found[key] = value == "true"
    return found


def paper(name: str) -> pd.DataFrame:
    """Numbers that the paper reports (results/paper); no rows where there is no checkout."""
    import pandas as pd

    path = Path(__file__).resolve().parents[1] / "results" / "paper" / f"{name}.csv"
    return pd.read_csv(path, comment="#") if path.exists() else pd.DataFrame()
