"""What `conf/` holds: the names that `model=`, `method=` and the task families take."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@cache
def models() -> list[str]:
    """The names that `model=` takes."""
    return _stems("model")


@cache
def families() -> list[str]:
    """Task families with options: the part of a task's name before the slash."""
    return _stems("task")


@cache
def methods() -> dict[str, list[str]]:
    """Every method with its variants: {"mac": ["authors"]} are `mac` and `mac/authors`."""
    return {name: _stems("method", name) for name in _stems("method")}


def read(group: str, name: str) -> dict[str, Any]:
    """The values of one file, such as read("method", "mac/authors")."""
    return yaml.safe_load(_folder(group).joinpath(f"{name}.yaml").read_text("utf-8")) or {}


def _folder(*parts: str) -> Any:
    return files("macbench.conf").joinpath(*parts)


def _stems(*parts: str) -> list[str]:
    folder = _folder(*parts)
    if not folder.is_dir():
        return []
    found = (file.name for file in folder.iterdir())
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))
