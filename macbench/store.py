"""The results store: one folder per cell, append-only lines, resumable, readable without macbench.

    OUT/<readable name>-<10 hex of the identity>/
        config.yaml        {identity: what determines the numbers, ...: how they are presented}
        samples.jsonl      one line per sample; times only under its key "time"
        layers.jsonl       the sample's sums per layer and head; written before its samples line
        environment.json   versions and machine of the first run
        failed.json        why the cell stopped, until it finishes after all
        partial.jsonl      long answers that are being written, one line each, until they are whole
        layers.parquet     derived from the lines by `Cell.finish`: the sums in long form
        summary.json       derived: accuracy, budgets, acceptance
        scores-JUDGE.*     what another judge says of the same answers (`macbench.score`)

A sample counts once both of its lines are whole. What a kill or a full disk leaves behind the last
whole line is cut off when the cell is opened again. A cell being written is locked (flock on
samples.jsonl, which is never replaced).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from macbench.errors import MacbenchError
from macbench.lines import whole
from macbench.measure.budget import KV_STATS, acceptance, budgets
from macbench.measure.stats import interval

FILES = {"config.yaml", "samples.jsonl", "layers.jsonl", "environment.json"}
FILES |= {"failed.json", "partial.jsonl", "layers.parquet", "summary.json"}
PACKAGES = (
    "macbench",
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "triton",
    "flashinfer-python",
)

COLUMNS = [  # of a line of samples.jsonl
    "index",  # of the sample in its task
    "id",
    "cluster",  # samples that share a text: the unit of resampling
    "source",  # "official", "embedded" or "synthetic"
    "prompt_tokens",
    "prompt_sha",  # of the prompt's token ids
    "hold",  # prompt tokens decoded through the method
    "references",
    "output",
    "new_tokens",  # decoded: `output` ends before a stop string, which comes a little earlier
    "stopped",  # "stop" (the model's own token), "stop_string" (the task's) or "length"
    "score",  # 0 to 1
    "details",
    "steps",  # scored decode steps
    "context",  # cached tokens, summed over them
    "head_tokens",  # this and the next four: sums over steps, layers and (KV) heads
    "kv_tokens",
    "meta_bytes",
    "context_head",
    "context_kv",
    "resident",  # bytes held / full attention's
    "acted",  # whether the method did anything that full attention does not
    "extra",
    "resumed",  # tokens there were when another process went on with it; absent where none did
    "audit",  # `macbench.engine.audit.summary`; absent without one
    "time",  # {"prefill_s", "decode_s"}: the only key that differs between equal runs
]

SCORED = ("index", "judge", "score", "details")  # of a line of scores-JUDGE.jsonl

Row = dict[str, Any]


# -- names and identities ------------------------------------------------------------------------


def cell_name(parts: Iterable[str], identity: Mapping[str, Any]) -> str:
    """A folder name: the readable parts, then 10 hex digits that only `identity` determines."""
    readable = "_".join(re.sub(r"[^A-Za-z0-9.=]+", "-", str(part)).strip("-.") for part in parts)
    return f"{readable[:120]}-{hashlib.sha256(_canonical(identity).encode()).hexdigest()[:10]}"


def text_sha(text: str) -> str:
    """Identity of an answer's text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


# -- writing -------------------------------------------------------------------------------------


def check_writable(out: Path | str) -> None:
    """Create the results folder and refuse (MacbenchError) one that cannot be written."""
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
    """

    def __init__(self, path: Path, config: Row):
        self.path = path
        self.config = config
        self.rows: dict[int, Row] = {}
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
        self.partial = _read_partial(path / "partial.jsonl")

    def _check_identity(self) -> None:
        file = self.path / "config.yaml"
        if not file.exists():
            if os.fstat(self._samples.fileno()).st_size:
                raise MacbenchError(
                    f"{self.path} holds samples but no config.yaml; put it back or move the folder "
                    "away."
                )
            return
        old, new = _read_config(self.path)["identity"], self.config["identity"]
        changed = [k for k in {**old, **new} if old.get(k) != new.get(k)]
        if changed:
            raise MacbenchError(
                f"{self.path} holds another configuration (it differs in {', '.join(changed)}); "
                "choose another out= or move that folder away."
            )

    def _recover(self) -> None:
        """Read the complete rows; cut off whatever a kill left behind them."""
        samples = _read_lines(self.path / "samples.jsonl")
        layers = _read_lines(self.path / "layers.jsonl")
        if [row["index"] for row, _ in samples] != [row["index"] for row, _ in layers][
            : len(samples)
        ]:
            raise MacbenchError(
                f"{self.path}/layers.jsonl does not belong to the samples.jsonl beside it; restore "
                "both files or move the folder away."
            )
        for file, lines in ((self._samples, samples), (self._layers, layers[: len(samples)])):
            file.truncate(lines[-1][1] if lines else 0)
        self.rows = {row["index"]: row for row, _ in samples}

    def append(self, sample: Row, layers: Row) -> None:
        """Keep a finished sample: its layers line, then its own, each synced to the disk.

        If that fails, both files are cut back to their last whole line (MacbenchError).
        """
        if sample["index"] in self.rows:
            raise ValueError(f"sample {sample['index']} is already in {self.path}")
        lines = ((self._layers, _line(layers)), (self._samples, _line(sample)))
        ends = [os.fstat(file.fileno()).st_size for file, _ in lines]
        try:
            for file, line in lines:
                while line:  # an almost full disk takes a part and refuses the rest
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
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
            _replace(file, b"".join(map(_line, self.partial.values())))
        else:
            file.unlink(missing_ok=True)

    @property
    def failed(self) -> str | None:
        """Why the cell stopped, or None."""
        return _read_failure(self.path)

    def fail(self, reason: str) -> None:
        """Record why the cell cannot go on; its complete rows stay, and a later run may finish."""
        _replace(self.path / "failed.json", _pretty({"reason": reason}))

    def finish(self) -> None:
        """Rebuild the derived files from the lines, by index: same rows in, same bytes out."""
        layers = _long([row for row, _ in _read_lines(self.path / "layers.jsonl")])
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
        (self.path / "failed.json").unlink(missing_ok=True)

    def close(self) -> None:
        """Give up the lock."""
        self._samples.close()
        self._layers.close()

    def __enter__(self) -> Cell:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _line(row: Row) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _pretty(value: Row) -> bytes:
    return json.dumps(value, indent=2, allow_nan=False).encode() + b"\n"


def _replace(path: Path, content: bytes) -> None:
    """Write a file in one step: a reader or a kill finds the old content or the new."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


@cache
def environment() -> Row:
    """What a run's numbers may depend on beside its configuration: versions, machine, commit."""
    import torch

    versions = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    versions["torch"] = torch.__version__  # with the build, which a wheel's metadata may not name
    gpus = range(torch.cuda.device_count())
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in gpus],
        "cuda": torch.version.cuda,
        "versions": versions,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The checkout this package runs from, "+" where it is edited; None for an installed one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):  # no git here, or not our repository to read
        return None
    return answer.stdout.strip()


# -- reading -------------------------------------------------------------------------------------


def _read_lines(path: Path) -> list[tuple[Row, int]]:
    """The rows of a file of JSON lines, each with the offset where its line ends.

    A last line that is torn is left out; any other line that is not JSON raises MacbenchError.
    """
    rows: list[tuple[Row, int]] = []
    end = 0
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, 1):
        end += len(line)
        try:
            row = json.loads(line)
            row["index"]
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise MacbenchError(
                f"{path}, line {number}, is damaged; delete that line's sample from samples.jsonl "
                "and layers.jsonl and run the same command again."
            ) from error
        if line.endswith(b"\n"):
            rows.append((row, end))
    return rows


def _read_partial(path: Path) -> dict[int, Row]:
    """Unfinished answers by sample; a torn or damaged line counts as none."""
    rows: dict[int, Row] = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(ValueError, TypeError, KeyError):
            row = json.loads(line)
            rows[row["index"]] = row
    return rows


def _read_config(path: Path) -> Row:
    try:
        config = yaml.safe_load((path / "config.yaml").read_text())
    except yaml.YAMLError as error:
        raise MacbenchError(
            f"{path}/config.yaml is damaged; restore it or move the folder away."
        ) from error
    if not isinstance(config, dict) or "identity" not in config:
        raise MacbenchError(f"{path}/config.yaml is not a macbench cell's; move the folder away.")
    return config


def _read_failure(path: Path) -> str | None:
    file = path / "failed.json"
    return json.loads(file.read_bytes())["reason"] if file.exists() else None


def _long(rows: list[Row]) -> pd.DataFrame:
    """layers.jsonl as a table: index, kind ("q" or "kv"), layer, head, steps, context, sums.

    Where there was an audit also the steps it compared, `audited`, over which `error` is a sum.
    """
    parts = []
    for row in sorted(rows, key=lambda row: row["index"]):
        sums = {name: value for name, value in row.items() if isinstance(value, list)}
        for kind in ("q", "kv"):
            own = {
                n: np.array(v, float) for n, v in sums.items() if (n in KV_STATS) == (kind == "kv")
            }
            if not own:
                continue
            layer, head = np.indices(next(iter(own.values())).shape)
            fixed = {
                "index": row["index"],
                "kind": kind,
                "layer": layer.ravel(),
                "head": head.ravel(),
            }
            fixed |= {k: row[k] for k in ("steps", "context", "audited") if k in row}
            parts.append(pd.DataFrame(fixed | {n: v.ravel() for n, v in own.items()}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["index", "kind"])


class Results:
    """A folder of cells as tables; `read` makes it.

    cells: one row per cell (index = folder name): model, weights, dtype, task, length, seed, hold,
    method, label, control, failed, identity, config. samples: the rows of samples.jsonl with the
    column `cell`, by cell and index. layers: the sums of layers.jsonl in long form (cell, index,
    kind, layer, head, steps, context, one column per statistic, missing where not counted).
    """

    def __init__(self, cells: pd.DataFrame, samples: pd.DataFrame, paths: dict[str, Path]):
        self.cells = cells
        self.samples = samples
        self._paths = paths

    @cached_property
    def scores(self) -> pd.DataFrame:
        """What other judges say of stored answers: cell, index, slug, judge, score, details."""
        output = self.samples.set_index(["cell", "index"])["output"]
        parts = []
        for cell, path in self._paths.items():
            for file in sorted(path.glob("scores-*.jsonl")):
                for row, _ in whole(file):
                    text = output.get((cell, row["index"]))
                    if text is not None and text_sha(text) == row["output_sha"]:
                        about = {"cell": cell, "slug": file.stem.removeprefix("scores-")}
                        parts.append({**about, **{k: row[k] for k in SCORED}})
        return pd.DataFrame(parts, columns=["cell", "slug", *SCORED])

    @cached_property
    def histograms(self) -> pd.DataFrame:
        """What was tallied, summed over a cell's samples: cell, name, layer, bin, count, width."""
        parts = []
        for cell, path in self._paths.items():
            kept = set(self.samples.loc[self.samples["cell"] == cell, "index"])
            rows = [row for row, _ in _read_lines(path / "layers.jsonl") if row["index"] in kept]
            for name in dict.fromkeys(n for row in rows for n in row.get("histograms", ())):
                held = [row for row in rows if name in row.get("histograms", ())]
                counts = np.sum([row["histograms"][name] for row in held], axis=0)
                layer, at = np.indices(counts.shape)
                columns = {"layer": layer.ravel(), "bin": at.ravel(), "count": counts.ravel()}
                fixed = {"cell": cell, "name": name, "width": held[0]["width"]}
                parts.append(pd.DataFrame(columns).assign(**fixed))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    @cached_property
    def layers(self) -> pd.DataFrame:
        parts = []
        for cell, path in self._paths.items():
            kept = set(self.samples.loc[self.samples["cell"] == cell, "index"])
            parquet = path / "layers.parquet"
            part = pd.read_parquet(parquet) if parquet.exists() else pd.DataFrame({"index": []})
            if set(part["index"]) != kept:  # not finished: the lines know more
                rows = [row for row, _ in _read_lines(path / "layers.jsonl")]
                part = _long([row for row in rows if row["index"] in kept])
            parts.append(part.assign(cell=cell))
        return pd.concat(parts, ignore_index=True)


def read(out: Path | str) -> Results:
    """All cells of a results folder, also unfinished and failed ones (MacbenchError if none)."""
    paths = {p.parent.name: p.parent for p in sorted(Path(out).glob("*/config.yaml"))}
    if not paths:
        raise MacbenchError(
            f"no results in {out}; give the folder that a run was told as out=, or run one first."
        )
    cells, samples = [], []
    for name, path in paths.items():
        config = _read_config(path)
        identity = config["identity"]
        cells.append(
            {
                "cell": name,
                "model": identity["model"]["name"],
                "weights": identity["model"]["weights"],
                "dtype": identity["dtype"],
                "task": identity["task"]["name"],
                "length": identity["length"],
                "seed": identity["seed"],
                "hold": str(identity["hold"]),
                "method": identity["method"]["name"],
                "label": config["label"],
                "control": config["control"],
                "failed": _read_failure(path),
                "identity": identity,
                "config": config,
            }
        )
        rows = sorted(
            (row for row, _ in _read_lines(path / "samples.jsonl")), key=lambda r: r["index"]
        )
        samples += [{"cell": name, **row} for row in rows]
    return Results(
        pd.DataFrame(cells).set_index("cell"),
        pd.DataFrame(samples, columns=["cell", *COLUMNS]),
        paths,
    )
