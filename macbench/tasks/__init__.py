"""The benchmarks. A module is a family of tasks, named family/task, or one task of its own name.

Each module has TASKS (the tasks' names within it; ("",) for a single one) and make(task, **knobs).
"""

from __future__ import annotations

from typing import Any

from macbench.errors import MacbenchError, nearest
from macbench.tasks import ruler
from macbench.tasks.base import LengthUnfit, Sample, Score, Task

__all__ = ["LengthUnfit", "Sample", "Score", "Task", "expand", "get", "names"]

FAMILIES = {"ruler": ruler}


def names() -> list[str]:
    """Every task."""
    return [name for family in FAMILIES for name in _members(family)]


def _members(family: str) -> list[str]:
    return [f"{family}/{task}" if task else family for task in FAMILIES[family].TASKS]


def expand(name: str) -> list[str]:
    """A task by name, or all tasks of a family."""
    if name in FAMILIES:
        return _members(name)
    if name not in names():
        raise MacbenchError(f"unknown task '{name}': {nearest(name, [*FAMILIES, *names()])}")
    return [name]


def get(name: str, **knobs: Any) -> Task:
    """A task by its full name, with the options of its family."""
    (name,) = expand(name)
    family, _, task = name.partition("/")
    return FAMILIES[family].make(task, **knobs)
