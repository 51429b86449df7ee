"""The benchmarks. `ruler` is a family of 13 tasks; a task's name is family/task."""

from __future__ import annotations

from typing import Any

from macbench.errors import MacbenchError, nearest
from macbench.tasks import ruler
from macbench.tasks.base import LengthUnfit, Sample, Score, Task

__all__ = ["LengthUnfit", "Sample", "Score", "Task", "expand", "get", "names"]

FAMILIES = {"ruler": ruler}


def names() -> list[str]:
    """Every task."""
    return [f"{family}/{task}" for family, module in FAMILIES.items() for task in module.TASKS]


def expand(name: str) -> list[str]:
    """A task by name, or all tasks of a family."""
    if name in FAMILIES:
        return [f"{name}/{task}" for task in FAMILIES[name].TASKS]
    if name not in names():
        raise MacbenchError(f"unknown task '{name}': {nearest(name, [*FAMILIES, *names()])}")
    return [name]


def get(name: str, **knobs: Any) -> Task:
    """A task by its full name, with the options of its family."""
    (name,) = expand(name)
    family, _, task = name.partition("/")
    return FAMILIES[family].make(task, **knobs)
