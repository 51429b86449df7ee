"""Writing a cell of the results store (`macbench.store` says what its folder holds).

What a kill or a full disk leaves behind the last whole line is cut off when the cell is opened
again. A cell being written is locked (flock on samples.jsonl, which is never replaced).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from macbench.environment import environment
from macbench.errors import MacbenchError
from macbench.measure.budget import acceptance, budgets
from macbench.measure.stats import interval
from macbench.store import Row, long_form, read_config, read_failure, read_lines, read_partial
from macbench.store.lines import append, line, replace

FILES = {"config.yaml", "samples.jsonl", "layers.jsonl", "environment.json"}
FILES |= {"failed.json", "partial.jsonl", "layers.parquet", "summary.json"}


def cell_name(parts: Iterable[str], identity: Mapping[str, Any]) -> str:
    """A folder name: the readable parts, then 10 hex digits that only `identity` determines."""
    readable = "_".join(re.sub(r"[^A-Za-z0-9.=]+", "-", str(part)).strip("-.") for part in parts)
    return f"{readable[:120]}-{hashlib.sha256(_canonical(identity).encode()).hexdigest()[:10]}"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def check_writable(out: Path | str) -> None:
    """Create the results folder and refuse (MacbenchError) one that cannot be written."""
    if Path(out).is_file():
        raise MacbenchError(f"{out} is a file; name a folder, which need not be there yet.")
    probe = Path(out, f".writable-{os.getpid()}")
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _unwritable(Path(out), error) from error


def _unwritable(path: Path, error: OSError) -> MacbenchError:
    return MacbenchError(
        f"cannot write {path} ({error.strerror}); make room or choose another out=, and run the "
        "same command again: what was measured so far is kept."
    )


def open_cell(out: Path | str, name: str, identity: Row, config: Row) -> Cell:
    """Open a cell for appending: a new folder OUT/name, or the one that holds this identity.

    name: from `cell_name`; a folder whose readable part differs but whose hash is the same is the
    same cell. config: how the cell is presented (labels, notes, geometry); the latest is kept.
    Refuses (MacbenchError) a folder with foreign files, another identity, damaged lines, or one
    that another process is writing.
    """
    known = sorted(Path(out).glob(f"*-{name.rpartition('-')[2]}"))
    path = known[0] if known else Path(out, name)
    config = json.loads(json.dumps({"identity": identity, **config}, allow_nan=False))
    try:
        path.mkdir(parents=True, exist_ok=True)
        foreign = {p.name.removesuffix(".tmp") for p in path.iterdir()} - FILES
        foreign = {name for name in foreign if not name.startswith("scores-")}
        if foreign:
            raise MacbenchError(
                f"{path} holds files that are not macbench's ({', '.join(sorted(foreign))}); "
                "move them away or choose another out=."
            )
        cell = Cell(path, config)
        try:
            cell._check_identity()
            cell._recover()
            _replace(path / "config.yaml", yaml.safe_dump(config, sort_keys=False).encode())
            if not (path / "environment.json").exists():
                _replace(path / "environment.json", _pretty(environment()))
        except BaseException:
            cell.close()
            raise
    except OSError as error:
        raise _unwritable(path, error) from error
    return cell


class Cell:
    """One cell's folder, locked and open for appending; made by `open_cell`.

    rows: sample index -> its row as stored, for every sample that is complete.
    partial: the same for answers that were still growing when they were last saved.
    archived: a finished cell that was kept without its layers.jsonl; it can be read, not added to.
    """

    def __init__(self, path: Path, config: Row):
        self.path = path
        self.config = config
        self.rows: dict[int, Row] = {}
        self.archived = False
        self._samples = FileIO(path / "samples.jsonl", "a")
        try:
            fcntl.flock(self._samples, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._samples.close()
            raise MacbenchError(
                f"another process is writing {path}; wait until it has finished, or give this run "
                "its own out=."
            ) from None
        self._layers = FileIO(path / "layers.jsonl", "a")
        self.partial = read_partial(path / "partial.jsonl")

    def _check_identity(self) -> None:
        file = self.path / "config.yaml"
        if not file.exists():
            if os.fstat(self._samples.fileno()).st_size:
                raise MacbenchError(
                    f"{self.path} holds samples but no config.yaml; put it back or move the folder "
                    "away."
                )
            return
        old, new = read_config(self.path)["identity"], self.config["identity"]
        changed = [k for k in {**old, **new} if old.get(k) != new.get(k)]
        if changed:
            raise MacbenchError(
                f"{self.path} holds another configuration (it differs in {', '.join(changed)}); "
                "choose another out= or move that folder away."
            )

    def _recover(self) -> None:
        """Read the complete rows; cut off whatever a kill left behind them."""
        samples = read_lines(self.path / "samples.jsonl")
        layers = read_lines(self.path / "layers.jsonl")
        gone = os.fstat(self._layers.fileno()).st_size == 0  # opening it has made it
        self.archived = bool(samples) and gone and (self.path / "summary.json").exists()
        held = [row["index"] for row, _ in samples]
        if not self.archived and held != [row["index"] for row, _ in layers][: len(held)]:
            raise MacbenchError(
                f"{self.path}/layers.jsonl does not belong to the samples.jsonl beside it; restore "
                "both files or move the folder away."
            )
        for file, lines in ((self._samples, samples), (self._layers, layers[: len(held)])):
            file.truncate(lines[-1][1] if lines else 0)
        self.rows = {row["index"]: row for row, _ in samples}

    def expect(self, indices: Iterable[int]) -> None:
        """Refuse (MacbenchError) samples that an archived cell does not hold."""
        if self.archived and not self.rows.keys() >= {*indices}:
            raise MacbenchError(
                f"{self.path} has no layers.jsonl, so no samples can be added to the "
                f"{len(self.rows)} that it holds; restore that file or choose another out=."
            )

    def append(self, sample: Row, layers: Row) -> None:
        """Keep a finished sample: its layers line, then its own, each synced to the disk.

        If that fails, both files are cut back to their last whole line (MacbenchError).
        """
        self.expect([sample["index"]])
        if sample["index"] in self.rows:
            raise ValueError(f"sample {sample['index']} is already in {self.path}")
        lines = ((self._layers, line(layers)), (self._samples, line(sample)))
        ends = [os.fstat(file.fileno()).st_size for file, _ in lines]
        try:
            for file, content in lines:
                append(file, content)
        except OSError as error:
            for (file, _), end in zip(lines, ends, strict=True):
                with suppress(OSError):  # then the next open_cell does it
                    file.truncate(end)
            raise _unwritable(self.path, error) from error
        self.rows[sample["index"]] = sample

    def save_partial(self, rows: Iterable[Row] = ()) -> None:
        """Keep unfinished answers (each with its sample's "index") in place of their older states;
        those of samples that are complete by now are dropped."""
        self.partial |= {row["index"]: row for row in rows}
        self.partial = {i: row for i, row in self.partial.items() if i not in self.rows}
        file = self.path / "partial.jsonl"
        if self.partial:
            _replace(file, b"".join(map(line, self.partial.values())))
        else:
            file.unlink(missing_ok=True)

    @property
    def failed(self) -> str | None:
        """Why the cell stopped, or None."""
        return read_failure(self.path)

    def fail(self, reason: str) -> None:
        """Record why the cell cannot go on; its complete rows stay, and a later run may finish."""
        _replace(self.path / "failed.json", _pretty({"reason": reason}))

    def finish(self) -> None:
        """Rebuild the derived files from the lines, by index: same rows in, same bytes out.
        An archived cell keeps those it has."""
        (self.path / "failed.json").unlink(missing_ok=True)
        if self.archived:
            return
        layers = long_form([row for row, _ in read_lines(self.path / "layers.jsonl")])
        summary: Row = {"samples": len(self.rows)}
        if self.rows:
            rows = pd.DataFrame([self.rows[i] for i in sorted(self.rows)])
            reuse = acceptance(layers).to_dict("records")
            summary |= {
                "accuracy": asdict(interval(rows["score"], [""] * len(rows), rows["cluster"])),
                "budgets": asdict(budgets(rows, self.config["geometry"]["token_bytes"])),
                "reuse": {k: None if np.isnan(v) else v for k, v in reuse[0].items()}
                if reuse
                else None,
                "acted": int(rows["acted"].sum()),
            }
            _replace(self.path / "layers.parquet", layers.to_parquet(None, index=False))
        _replace(self.path / "summary.json", _pretty(summary))

    def close(self) -> None:
        """Give up the lock."""
        self._samples.close()
        self._layers.close()

    def __enter__(self) -> Cell:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pretty(value: Row) -> bytes:
    return json.dumps(value, indent=2, allow_nan=False).encode() + b"\n"


def _replace(path: Path, content: bytes) -> None:
    try:
        replace(path, content)
    except OSError as error:
        raise _unwritable(path, error) from error
