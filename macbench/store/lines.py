"""Files of JSON lines that one process appends to: what a kill tears is cut off and done again."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from macbench.errors import MacbenchError

Row = dict[str, Any]


def whole(
    path: Path, mend: str = "delete that line", key: str | None = None
) -> Iterator[tuple[Row, int]]:
    """Each row, which has `key`, with the offset where its line ends.

    A torn last line is left out; any other that is not JSON raises MacbenchError. mend: what helps.
    """
    end = 0
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, text in enumerate(lines, 1):
        end += len(text)
        try:
            row = json.loads(text)
            if key is not None:
                row[key]
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                return
            raise MacbenchError(
                f"{path}, line {number}, is damaged; {mend} and run the same command again."
            ) from error
        if text.endswith(b"\n"):
            yield row, end


def line(row: Row) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def append(file: FileIO, content: bytes) -> None:
    """On the disk when this returns. An almost full one takes a part and refuses the rest."""
    while content:
        content = content[file.write(content) :]
    os.fsync(file.fileno())


def replace(path: Path, content: bytes) -> None:
    """A file in one step: a reader or a kill finds the old content or the new."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


class Lines:
    """The file open for appending and locked; `rows` holds what was there and what was added."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = FileIO(path, "a")
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = [*whole(path)]
            self._file.truncate(found[-1][1] if found else 0)
        except BlockingIOError:
            self._file.close()
            raise MacbenchError(
                f"another process is writing {path}; wait until it has finished."
            ) from None
        except BaseException:
            self._file.close()
            raise
        self.rows = [row for row, _ in found]

    def append(self, row: Row) -> None:
        """One more row, on the disk when this returns; if that fails, as if it had not begun."""
        end = os.fstat(self._file.fileno()).st_size
        try:
            append(self._file, line(row))
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(end)
            raise _unwritable(self.path, error) from error
        self.rows.append(row)

    def close(self) -> None:
        """Give up the lock."""
        self._file.close()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write(path: Path, value: Any) -> None:
    """A JSON file, replaced in one step."""
    try:
        replace(path, json.dumps(value, indent=2, allow_nan=False).encode() + b"\n")
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> MacbenchError:
    return MacbenchError(
        f"cannot write {path} ({error.strerror}); make room or permit it, and run the same command "
        "again: what is there is kept."
    )
