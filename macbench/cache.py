"""Where fetched models and data are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$MACBENCH_CACHE, else ~/.cache/macbench."""
    return Path(os.environ.get("MACBENCH_CACHE") or Path.home() / ".cache" / "macbench")
