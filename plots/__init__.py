"""One file per figure, each a deterministic function of the results store."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from macbench.errors import MacbenchError, nearest

PNG = {"dpi": 150, "metadata": {"Software": None}}  # the same bytes from the same results


def names() -> list[str]:
    """Figures that can be drawn: the modules of this package that are not private."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def draw(name: str, results: Path, out: Path | None = None) -> list[Path]:
    """Draw a figure from a results folder into `out` (default: the folder itself)."""
    if name not in names():
        raise MacbenchError(f"unknown figure '{name}': {nearest(name, names())}")
    import matplotlib.pyplot as plt

    from macbench.store import read

    plt.switch_backend("Agg")
    target = (out or results) / f"{name}.png"
    figure = importlib.import_module(f"{__name__}.{name}").draw(read(results))
    figure.savefig(target, **PNG)
    plt.close(figure)
    return [target]
