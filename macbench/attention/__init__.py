"""The methods: every module here with a `Method` subclass that has a name is one."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import fields
from typing import Any

from macbench.attention.base import Geometry, Method, Needs, Prompt
from macbench.errors import MacbenchError, nearest

__all__ = ["METHODS", "Geometry", "Method", "Needs", "Prompt", "create"]


def _discover() -> dict[str, type[Method]]:
    found = {}
    for module in pkgutil.iter_modules(__path__):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        for value in vars(loaded).values():
            if isinstance(value, type) and issubclass(value, Method) and "name" in vars(value):
                found[value.name] = value
    return dict(sorted(found.items()))


METHODS: dict[str, type[Method]] = _discover()


def create(name: str, knobs: dict[str, Any]) -> Method:
    """A method by name with its knobs; MacbenchError for an unknown name, knob or bad value."""
    if name not in METHODS:
        raise MacbenchError(f"unknown method '{name}': {nearest(name, list(METHODS))}")
    known = [f.name for f in fields(METHODS[name]) if f.init]  # type: ignore[arg-type]
    for knob in knobs:
        if knob not in known:
            raise MacbenchError(f"{name} has no option '{knob}': {nearest(knob, known)}")
    return METHODS[name](**knobs)
