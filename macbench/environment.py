"""What a run's numbers may depend on beside its configuration."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "macbench",
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "triton",
    "flashinfer-python",
)


@cache
def environment() -> dict[str, Any]:
    """Versions, machine and commit."""
    import torch

    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    versions["torch"] = torch.__version__  # with the build, which a wheel's metadata may not name
    gpus = range(torch.cuda.device_count())
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in gpus],
        "cuda": torch.version.cuda,
        "versions": versions,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The checkout this package runs from, "+" where it is edited; None for an installed one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):  # no git here, or not our repository to read
        return None
    return answer.stdout.strip()
