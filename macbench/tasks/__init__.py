"""The benchmarks. A module is a family of tasks, named family/task, or one task of its own name.

Each module has TASKS (the tasks' names within it; ("",) for a single one) and make(task, **knobs),
and where it needs them
* LENGTH: what `length` counts, "row" (prompt and answer; without it), "prompt" or "answer";
* published_length(**knobs): the length where none is given; length_text(length, **knobs): what a
  table's title says of it;
* LATER: options that change neither samples nor answers;
* breakdown(rows) -> (label, value, of how many): the family's own figures over rows of samples. A
  float is a share, an int a count, None nothing to count;
* title(rows) and notes(rows): what a table's title and notes say of the family, beside the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from macbench.errors import MacbenchError, nearest
from macbench.tasks import longbench_v2, longgenbench, ruler
from macbench.tasks.base import LengthUnfit, Sample, Score, Task

__all__ = [
    "LengthUnfit",
    "Sample",
    "Score",
    "Task",
    "breakdown",
    "counts",
    "determining",
    "expand",
    "get",
    "length_text",
    "names",
    "notes",
    "published_length",
    "title",
]

FAMILIES = {"longbench_v2": longbench_v2, "longgenbench": longgenbench, "ruler": ruler}


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


def counts(name: str) -> str:
    """What `length` counts for a task: "row", "prompt" or "answer"."""
    return _of(name, "LENGTH", "row")


def published_length(name: str, knobs: dict[str, Any]) -> int | None:
    """A task's length where none is given; None where the common default is as good."""
    return _of(name, "published_length", lambda **_: None)(**knobs)


def length_text(name: str, length: int, knobs: dict[str, Any]) -> str:
    """What a length is, for the title of a table."""
    return _of(name, "length_text", lambda length, **_: f"{length} tokens")(length, **knobs)


def determining(name: str, knobs: dict[str, Any]) -> dict[str, Any]:
    """The options that determine samples and answers."""
    later = _of(name, "LATER", ())
    return {knob: value for knob, value in knobs.items() if knob not in later}


def breakdown(name: str, rows: Sequence[dict[str, Any]]) -> list[tuple[str, Any, int]]:
    """A family's own figures over rows of its samples; none where it has no such figures."""
    return _of(name, "breakdown", lambda rows: [])(rows)


def title(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """What the title of a table over these rows adds; empty where there is nothing to add."""
    return _of(name, "title", lambda rows: "")(rows)


def notes(name: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader of the family's figures over these rows must know."""
    return _of(name, "notes", lambda rows: [])(rows)


def _of(name: str, attribute: str, otherwise: Any) -> Any:
    """Something of a task's module, also for results of a family that is there no more."""
    return getattr(FAMILIES.get(name.partition("/")[0]), attribute, otherwise)
