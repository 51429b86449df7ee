"""Values against the annotations of a dataclass, for values that people typed."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from macbench.errors import MacbenchError

WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}


def check_types(prefix: str, schema: type, values: Mapping[str, Any]) -> None:
    """Refuse (MacbenchError) a value that does not fit its field of `schema`, a dataclass.

    `prefix` stands before the field's name in the sentence. Values without a field are left alone,
    as are fields of other types than numbers, text, true/false, null, lists and choices of these.
    """
    hints = get_type_hints(schema)
    for key, value in values.items():
        if key in hints and not _fits(value, hints[key]):
            raise MacbenchError(f"{prefix}{key}={show(value)} must be {_wanted(hints[key])}.")


def show(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(show, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def brief(value: Any) -> str:
    """A knob's value in a label; long lists (one value per layer) by their checksum."""
    if isinstance(value, list) and len(value) > 3:
        return f"[{len(value)} values {sha256(show(value).encode()).hexdigest()[:4]}]"
    return show(value)


def _fits(value: Any, hint: Any) -> bool:
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in options)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in options)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, options[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return hint not in WORDS or isinstance(value, hint)


def _wanted(hint: Any) -> str:
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_wanted, options))
    if origin is Literal:
        return f"one of {', '.join(map(str, options))}"
    if origin is list:
        return f"a list with {_wanted(options[0])} in each place"
    return WORDS[hint]


def check_least(values: Mapping[str, Any], least: Mapping[str, float]) -> None:
    """Refuse (MacbenchError) a value that is below the least of its name."""
    for key, bound in least.items():
        if values.get(key) is not None and values[key] < bound:
            raise MacbenchError(f"{key}={values[key]} must be at least {bound}.")
