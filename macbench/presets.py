"""What `conf/` holds: the names that `model=`, `method=` and the task families take."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import Any, cast

import yaml

from macbench.errors import MacbenchError


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
    from omegaconf import OmegaConf

    path = f"conf/{group}/{name}.yaml"
    try:
        values = OmegaConf.to_container(OmegaConf.create(text(group, name)))
    except yaml.YAMLError as error:
        mark, problem = (getattr(error, key, None) for key in ("problem_mark", "problem"))
        at = f" line {mark.line + 1}" if mark else ""
        raise MacbenchError(
            f"{path}{at} is not valid YAML ({problem or error}); mend it."
        ) from error
    if not isinstance(values, dict):
        raise MacbenchError(f"{path} must hold lines `key: value`.")
    return cast(dict[str, Any], values)


def defaults(group: str) -> dict[str, dict[str, Any]]:
    """The values of every file of a folder that can be read: one that cannot stops only what asks
    for it."""
    found = {}
    for name in names(group):
        with suppress(MacbenchError):
            found[name] = read(group, name)
    return found


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
