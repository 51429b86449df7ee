"""What `conf/` holds: the names that `model=`, `method=` and the task families take."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@cache
def models() -> list[str]:
    """The names that `model=` takes."""
    return names("model")


@cache
def families() -> list[str]:
    """Task families with options: the part of a task's name before the slash."""
    return names("task")


@cache
def methods() -> dict[str, list[str]]:
    """Every method with its variants: {"mac": ["authors"]} are `mac` and `mac/authors`."""
    return {name: names("method", name) for name in names("method")}


def read(group: str, name: str) -> dict[str, Any]:
    """The values of one file, such as read("method", "mac/authors")."""
    return yaml.safe_load(text(group, name)) or {}


def text(group: str, name: str) -> str:
    """The same file as it is written, comments and all."""
    return _folder(group).joinpath(f"{name}.yaml").read_text("utf-8")


def _folder(*parts: str) -> Any:
    return files("macbench.conf").joinpath(*parts)


def names(*parts: str) -> list[str]:
    """The files of a folder, such as names("bench", "decode")."""
    folder = _folder(*parts)
    if not folder.is_dir():
        return []
    found = (file.name for file in folder.iterdir())
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))
