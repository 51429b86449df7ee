"""One row per point and method, in a parquet file that holds everything measured at any moment.

    OUT/<name>.parquet   replaced as a whole after every row: a kill loses the row in flight
    OUT/<name>.json      the commands, environments and card speeds of the runs that made it

A row's identity are the columns of KEY. The same command again measures what is missing, what was
red, and what another version of the kernels or another card gave.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pandas as pd

from macbench.errors import MacbenchError
from macbench.measure.latency.cases import Point

# column: its type; all but `method` and the shape may be missing
COLUMNS = {
    "layout": "string",  # "query heads/KV heads"
    "d": "Int64",
    "context": "Int64",  # tokens, this step's own included
    "batch": "Int64",
    "dtype": "string",
    "method": "string",
    "hit": "float64",  # from here to `access` only of MAC; at 0 and 1 either pattern is the same
    "pattern": "string",
    "ring": "string",
    "lag": "Int64",  # 0: drawn for each head from 1 to K - 1
    "K": "Int64",
    "r": "Int64",
    "tau": "float64",
    "access": "float64",  # share of the context from which r was made
    "tiling": "string",  # what was asked for beside the kernels' own choice
    "seed": "Int64",
    "us_median": "float64",
    "us_p10": "float64",
    "us_p90": "float64",
    "n": "Int64",  # replays
    "floor_us": "float64",  # bytes / bandwidth + launches
    "cold_us": "float64",  # the same with the bytes as a plain read kernel reads so many, cold
    "over_floor": "float64",  # time / floor
    "over_cold": "float64",
    "vs_flashinfer_tc": "float64",  # its time / this time, same process and pages; above 1: faster
    "vs_flashinfer_cc": "float64",
    "flashinfer_tc_us": "float64",
    "flashinfer_cc_us": "float64",
    "bytes": "Int64",
    "kernels": "Int64",
    "group_hit": "float64",  # share of KV-head groups in which every head hits
    "sets": "Int64",  # buffers in rotation
    "cold": "boolean",  # whether a rotation touches several L2 caches' worth
    "tiles": "string",  # what the kernels ran with
    "bandwidth_gbs": "float64",  # of the best plain read in this run
    "launch_us": "float64",  # of an empty kernel's graph in this run
    "sm_mhz": "float64",
    "mem_mhz": "float64",
    "power_w": "float64",
    "device": "string",
    "ok": "boolean",  # outputs and matches were right before and after the timing
    "error": "float64",  # largest relative L2 error of a head
    "note": "string",  # what was wrong
    "run": "string",  # when the process began
    "code": "string",  # of the kernels and of this measurement
}
TIME = "us_median"  # the first column that is measured


def key_of(columns: Iterable[str]) -> list[str]:
    """The columns before the first measured one are a row's identity."""
    return list(takewhile(lambda name: name != TIME, columns))


KEY = key_of(COLUMNS)

Row = dict[str, Any]


def identity(point: Point, seed: int, method: str | None = None) -> Row:
    """The KEY columns of a point; method: where a point gives rows of several."""
    shape, reuse = point.shape, point.reuse
    tiling = dict(point.tiling) | ({"chunk": point.chunk} if point.chunk else {})
    row: Row = dict.fromkeys(KEY)
    row |= {"layout": shape.layout, "d": shape.d, "context": shape.context}
    row |= {"batch": shape.batch, "dtype": shape.dtype, "method": method or point.method}
    if reuse:
        row |= {name: getattr(reuse, name) for name in ("hit", "pattern", "ring", "lag", "K", "r")}
        row |= {"tau": reuse.tau, "access": reuse.access}
    row |= {"tiling": " ".join(f"{k}={v}" for k, v in sorted(tiling.items())), "seed": seed}
    return row


def code() -> str:
    """A checksum of the kernels and of what feeds and times them."""
    here = Path(__file__).parent
    from macbench.kernels import paged

    kernels = Path(paged.__file__).parent
    files = [kernels / name for name in ("attend.py", "mac.py")]
    files += [here / name for name in ("cases.py", "data.py", "steps.py", "clock.py")]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:10]


class Record:
    """The rows of one file. columns: its own ones and their types, `TIME` after the identity."""

    def __init__(self, out: Path, name: str, columns: dict[str, str] = COLUMNS):
        self.columns, self.key = columns, key_of(columns)
        self.path = out / f"{name}.parquet"
        self.about = out / f"{name}.json"
        self.rows: dict[tuple, Row] = {}
        if self.path.exists():
            for found in read(self.path, columns).astype(object).to_dict("records"):
                row = {str(k): None if pd.isna(value) else value for k, value in found.items()}
                self.rows[self._key(row)] = row

    def has(self, key: Row, device: str, code: str) -> bool:
        """Whether this card and version gave a good row of this identity."""
        row = self.rows.get(self._key(key))
        return bool(row and row["ok"] and row["device"] == device and row["code"] == code)

    def add(self, row: Row) -> None:
        """Keep a row, in place of an older one of its identity, and write the file."""
        row = dict.fromkeys(self.columns) | row
        self.rows[self._key(row)] = row
        temporary = self.path.with_suffix(".tmp")
        frame(self.rows.values(), self.columns).to_parquet(temporary, index=False)
        os.replace(temporary, self.path)

    def find(self, keys: Iterable[Row]) -> pd.DataFrame:
        """The rows of these identities, as far as there are any."""
        found = (self.rows.get(self._key(key)) for key in keys)
        return frame((row for row in found if row), self.columns)

    def describe(self, run: Row) -> None:
        """Add how a run was made: command, environment, card."""
        runs = json.loads(self.about.read_text("utf-8")) if self.about.exists() else []
        temporary = self.about.with_suffix(".json.tmp")
        temporary.write_text(json.dumps([*runs, run], indent=1) + "\n", "utf-8")
        os.replace(temporary, self.about)

    def _key(self, row: Row) -> tuple:
        return tuple(row[name] for name in self.key)


def frame(rows: Iterable[Row], columns: dict[str, str] = COLUMNS) -> pd.DataFrame:
    """Rows as a table with every column and its type."""
    return pd.DataFrame(list(rows), columns=list(columns)).astype(columns)


def read(path: Path, columns: dict[str, str] = COLUMNS) -> pd.DataFrame:
    """A file of rows; MacbenchError where it is not one."""
    try:
        found = pd.read_parquet(path)
        found[[*key_of(columns), TIME, "ok", "run"]]  # without these it is something else
        return found.reindex(columns=list(columns)).astype(columns)
    except (OSError, ValueError, KeyError) as error:
        raise MacbenchError(
            f"{path} is not a file of latency rows; move it away or choose another out=."
        ) from error


def collect(folder: Path, name: str) -> pd.DataFrame:
    """The good rows of every file `<name>*.parquet` of a folder; of equal points the newest."""
    files = sorted(folder.glob(f"{name}*.parquet"))
    if not files:
        raise MacbenchError(
            f"there is no {name}*.parquet in {folder}; measure it on a GPU with "
            f"`macbench bench attention preset={name} out={folder}`."
        )
    rows = pd.concat([read(file) for file in files], ignore_index=True).sort_values("run")
    newest = rows.drop_duplicates(KEY, keep="last")
    return newest[newest["ok"]].reset_index(drop=True)
