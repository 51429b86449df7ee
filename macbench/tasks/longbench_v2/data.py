"""The 503 published records: where they are looked for, how they are read and checked.

Looked for in the file or folder asked for, then `$MACBENCH_DATA/longbench_v2`, then the cache that
`macbench fetch longbench_v2` fills. A folder holds data.json (a list, as published), data.jsonl or
data.parquet, each with the twelve published text fields.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from macbench import fetch
from macbench.cache import cache_folder
from macbench.errors import MacbenchError

IDS = "54d0ef01d8ab582d4a8a05d7c9f8e6ca99f862be7e8f2ca9cffc06b2341d020f"  # of the sorted ids
FETCH = "macbench fetch longbench_v2"

FIELDS: tuple[str, ...] = ("_id", "domain", "sub_domain", "difficulty", "length", "question")
CHOICES = ("choice_A", "choice_B", "choice_C", "choice_D")
FIELDS += (*CHOICES, "answer", "context")
VALUES = {
    "answer": ("A", "B", "C", "D"),
    "difficulty": ("easy", "hard"),
    "length": ("short", "medium", "long"),
}
LOADERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Record:
    """A question over a text."""

    id: str
    domain: str
    sub_domain: str
    difficulty: str  # easy, hard
    length: str  # short, medium, long: words of the text, as published and never counted again
    question: str
    choices: tuple[str, str, str, str]
    answer: str  # A to D
    context: str


@dataclass(frozen=True)
class File:
    """A file of records, read one by one."""

    path: Path
    table: Any  # datasets.Dataset
    source: str  # "official", or "local": a file that does not hold the 503 published records

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Record]:
        for number in range(len(self)):
            row = self.table[number]
            if not (row["context"] or "").strip():
                raise _bad(self.path, number, row, "no text in 'context'")
            yield to_record(row)


def to_record(row: Mapping[str, str]) -> Record:
    """A record from its published fields."""
    a, b, c, d = (row[name] for name in CHOICES)
    return Record(
        id=row["_id"],
        domain=row["domain"],
        sub_domain=row["sub_domain"],
        difficulty=row["difficulty"],
        length=row["length"],
        question=row["question"],
        choices=(a, b, c, d),
        answer=row["answer"],
        context=row["context"],
    )


def find(data: str | None) -> File | None:
    """The records that `data` means; None where nothing was asked for and nothing is there."""
    if data not in (None, "official"):
        path = Path(data).expanduser()
        found = _in(path) if path.is_dir() else path if path.is_file() else None
        if found is None:
            raise MacbenchError(
                f"{path} holds no LongBench v2 records (data.json, .jsonl or .parquet); put them "
                f"there, or leave longbench_v2.data out and run `{FETCH}`."
            )
        return _open(found)
    places = fetch.places("longbench_v2")
    found = next(filter(None, map(_in, places)), None)
    if found is not None:
        return _open(found)
    if data == "official":
        raise MacbenchError(
            f"the LongBench v2 records are not in {' or '.join(map(str, places))}; run `{FETCH}` "
            "where there is network."
        )
    return None


def _in(place: Path) -> Path | None:
    return next((p for suffix in LOADERS if (p := place / f"data{suffix}").is_file()), None)


def _open(path: Path) -> File:
    state = path.stat()
    return _read(path.absolute(), state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1)
def _read(path: Path, modified: int, size: int) -> File:
    """Read and check a file; read again only where it has changed."""
    table = _load(path)
    missing = [name for name in FIELDS if name not in table.column_names]
    if missing:
        raise MacbenchError(
            f"{path} has no field '{missing[0]}', so it is not LongBench v2; run `{FETCH}`."
        )
    columns = {name: table[name][:] for name in FIELDS if name != "context"}
    for number, values in enumerate(zip(*columns.values(), strict=True)):
        row = dict(zip(columns, values, strict=True))
        for name, value in row.items():
            if not isinstance(value, str) or (name in VALUES and value not in VALUES[name]):
                wanted = f" ({', '.join(VALUES[name])})" if name in VALUES else ""
                raise _bad(path, number, row, f"no {name}{wanted}")
    (common, times), *_ = Counter(columns["_id"]).most_common(1)
    if times > 1:
        raise MacbenchError(f"{path} holds record {common} {times} times; run `{FETCH}` again.")
    return File(path, table, "official" if _digest(columns["_id"]) == IDS else "local")


def _load(path: Path) -> Any:
    """The file through `datasets`, which keeps it in its memory-mapped form in our cache."""
    import datasets
    from datasets.utils.logging import get_verbosity, set_verbosity

    loader = LOADERS.get(path.suffix)
    if loader is None:
        raise MacbenchError(f"{path} is none of {', '.join(LOADERS)}; give one of these.")
    before, bars = get_verbosity(), datasets.utils.are_progress_bars_disabled()
    set_verbosity(60)  # what it has to say about a bad file is said once, by us
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(
            loader,
            data_files=str(path),
            split="train",
            cache_dir=str(cache_folder() / "datasets"),
        )
    except (datasets.exceptions.DatasetGenerationError, ValueError, StopIteration) as error:
        cause = str(error.__cause__ or error).split("\n")[0].rstrip(".") or "it is empty"
        raise MacbenchError(
            f"{path} is cut off or damaged ({cause}); delete it and run `{FETCH}`."
        ) from error
    except OSError as error:
        raise MacbenchError(
            f"cannot read {path} ({error.strerror or error}); make it readable, and make room for "
            f"a copy in {cache_folder()}."
        ) from error
    finally:
        set_verbosity(before)
        if not bars:
            datasets.enable_progress_bars()


def _bad(path: Path, number: int, row: Mapping[str, Any], what: str) -> MacbenchError:
    return MacbenchError(
        f"{path}, record {number + 1} ({row['_id']}): {what}; mend it or run `{FETCH}` again."
    )


def _digest(ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()
