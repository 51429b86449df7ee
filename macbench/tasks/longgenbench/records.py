"""A record of the benchmark, and the official files where they are.

Looked for in the folder asked for, else by `macbench.fetch.find`: Dataset_short.json (16K) and
Dataset_long.json (32K), each a list of 400 records.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macbench import fetch
from macbench.errors import MacbenchError

KINDS = ("once", "range", "periodic")  # of instructions
FILES = {"short": "Dataset_short.json", "long": "Dataset_long.json"}
FETCH = "macbench fetch longgenbench"
SCENARIO = {  # of the type of section that a record asks for
    "Week": "diary",
    "Day": "diary",
    "Menu Week": "menu",
    "Menu Day": "menu",
    "Floor": "skyscraper",
    "Block": "urban",
}


@dataclass(frozen=True)
class Record:
    """A prompt and what its text must hold, section by section."""

    prompt: str  # ends with the prefix
    type: str  # of a section, such as "Menu Week"
    number: int  # of sections
    prefix: str  # the head of section 1
    checks: dict[str, dict[int, str]]  # kind of instruction -> section -> event


def find(variant: str, data: str | None) -> tuple[list[Record], str] | None:
    """All records of a variant in the order of the file, and "official", or "local" for a file
    that is not the published one; None where there is no file.

    data: a folder, "official" (refused where it is not), "embedded" (None in any case) or None.
    """
    path = fetch.locate("longgenbench", FILES[variant], data)
    if path is None:
        return None
    content = path.read_bytes()
    published = {remote.sha256 for remote in fetch.SOURCES["longgenbench"]}
    known = hashlib.sha256(content).hexdigest() in published
    return [*_read(path, content)], "official" if known else "local"


def plain(record: Record) -> dict[str, Any]:
    """All but the prompt, for a sample's row: enough to score its text again."""
    checks = {k: {str(at): event for at, event in own.items()} for k, own in record.checks.items()}
    about = {"type": record.type, "number": record.number, "prefix": record.prefix}
    return {**about, "checks": checks}


def parse(value: Any, prompt: str = "") -> Record:
    """The inverse of `plain`."""
    checks = {kind: _events(value["checks"][kind]) for kind in KINDS}
    return Record(prompt, value["type"], value["number"], value["prefix"], checks)


def _read(path: Path, content: bytes) -> Iterator[Record]:
    try:
        values = json.loads(content.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MacbenchError(
            f"{path} is not whole JSON ({error}); get the file again, `{FETCH}`, or leave it out."
        ) from error
    if not isinstance(values, list):
        raise MacbenchError(f"{path} is not a list of records; get the file again.")
    for number, value in enumerate(values, 1):
        try:
            yield _record(value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MacbenchError(
                f"{path}, record {number}, is not one of the benchmark's ({error!r}); get the file "
                "again or leave it out."
            ) from error


def _record(value: Any) -> Record:
    checks = {kind: value[f"checks_{kind}"] for kind in KINDS}
    record = parse({**value, "checks": checks}, value["prompt"])
    if record.type not in SCENARIO or type(record.number) is not int or record.number < 1:
        raise ValueError(f"type {record.type!r}, number {record.number!r}")
    if not record.prefix or not record.prompt.endswith(record.prefix):
        raise ValueError("the prompt does not end with the prefix")
    if not any(record.checks.values()):
        raise ValueError("nothing to check")
    return record


def _events(checks: dict[str, str]) -> dict[int, str]:
    """By section as a number: the files write some ids as "061"."""
    events = {int(at): event for at, event in checks.items()}
    if len(events) < len(checks) or not all(isinstance(e, str) for e in events.values()):
        raise ValueError("a section's check is no text, or is there twice")
    return events
