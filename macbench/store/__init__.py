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

A sample counts once both of its lines are whole. Cells are written by `macbench.store.cell`.
Without its layers.* a finished cell can still be read, and others be added beside it.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from macbench.errors import MacbenchError
from macbench.measure.budget import KV_STATS
from macbench.store.lines import whole

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
    "planned",  # byte budget at the prompt's length by the method's integers; null: data decide it
    "resident",  # bytes held / full attention's
    "acted",  # whether the method did anything that full attention does not
    "extra",
    "resumed",  # tokens there were when another process went on with it; absent where none did
    "audit",  # `macbench.engine.audit.summary`; absent without one
    "time",  # {"prefill_s", "begin_s" (the method's own work), "decode_s"}: the only key that
    # differs between equal runs
]

SCORED = ("index", "judge", "score", "details")  # of a line of scores-JUDGE.jsonl
YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same and ten times as fast, where built
KIND = pd.CategoricalDtype(["q", "kv"])  # query heads, KV heads

Row = dict[str, Any]


def text_sha(text: str) -> str:
    """Identity of an answer's text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_lines(path: Path) -> list[tuple[Row, int]]:
    """The rows of samples.jsonl or layers.jsonl, each with the offset where its line ends
    (`lines.whole`)."""
    mend = "delete that line's sample from samples.jsonl and layers.jsonl"
    return [*whole(path, mend, "index")]


def read_partial(path: Path) -> dict[int, Row]:
    """Unfinished answers by sample; a torn or damaged line counts as none."""
    rows: dict[int, Row] = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with suppress(ValueError, TypeError, KeyError):
            row = json.loads(line)
            rows[row["index"]] = row
    return rows


def read_config(path: Path) -> Row:
    try:
        config = yaml.load((path / "config.yaml").read_text(), YAML)
    except yaml.YAMLError as error:
        raise MacbenchError(
            f"{path}/config.yaml is damaged; restore it or move the folder away."
        ) from error
    if not isinstance(config, dict) or "identity" not in config:
        raise MacbenchError(f"{path}/config.yaml is not a macbench cell's; move the folder away.")
    return config


def read_finished(path: Path, samples: int) -> bool:
    """Whether a run came to its end after these samples; one that was killed did not."""
    file = path / "summary.json"
    return file.exists() and json.loads(file.read_bytes())["samples"] == samples


def read_failure(path: Path) -> str | None:
    file = path / "failed.json"
    return json.loads(file.read_bytes())["reason"] if file.exists() else None


def long_form(rows: list[Row]) -> pd.DataFrame:
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
    method, label, control, failed, finished, identity, config. samples: the rows of samples.jsonl
    with the column `cell`, by cell and index.
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
            rows = [row for row, _ in read_lines(path / "layers.jsonl") if row["index"] in kept]
            kinds = ((n, row["width"]) for row in rows for n in row.get("histograms", ()))
            for name, width in dict.fromkeys(kinds):  # a later run's buckets may be wider
                held = [row for row in rows if row.get("width") == width]
                held = [row for row in held if name in row["histograms"]]
                counts = np.sum([row["histograms"][name] for row in held], axis=0)
                layer, at = np.indices(counts.shape)
                columns = {"layer": layer.ravel(), "bin": at.ravel(), "count": counts.ravel()}
                fixed = {"cell": cell, "name": name, "width": width}
                parts.append(pd.DataFrame(columns).assign(**fixed))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def layers(self, statistic: str) -> pd.DataFrame:
        """The sums by layer and head in long form, of the cells that counted this statistic: cell,
        index, kind, layer, head, steps, context, a column per statistic, missing where a kind has
        none."""
        parts, names = [], pd.CategoricalDtype([*self._paths])  # a text a row takes gigabytes
        for cell, path in self._paths.items():
            kept = set(self.samples.loc[self.samples["cell"] == cell, "index"])
            parquet = path / "layers.parquet"
            part = pd.read_parquet(parquet) if parquet.exists() else pd.DataFrame({"index": []})
            if set(part["index"]) != kept:  # not finished: the lines know more
                rows = [row for row, _ in read_lines(path / "layers.jsonl")]
                part = long_form([row for row in rows if row["index"] in kept])
            if statistic in part:
                name = pd.Series(cell, part.index, dtype=names)
                parts.append(part.assign(cell=name, kind=part["kind"].astype(KIND)))
        none = pd.DataFrame({"cell": pd.Series([], dtype=names), "index": []})
        return pd.concat(parts or [none], ignore_index=True)


def _size(cell: Path) -> int:
    return len(read_lines(cell / "samples.jsonl"))


def read(*outs: Path | str) -> Results:
    """All cells of results folders, also unfinished and failed ones (MacbenchError if none).

    Of a cell that lies in several folders the one with the most samples, else the first.
    """
    configs: dict[Path, Row] = {}
    found: dict[str, list[Path]] = {}  # by identity
    for out in outs:
        paths = sorted(Path(out).glob("*/config.yaml"))
        if not paths:
            packed = next(Path(out).glob("*.tar.*"), None)
            hint = f"; unpack {packed} first" if packed else ", or run one first"
            raise MacbenchError(
                f"no results in {out}; give the folder that a run was told as out={hint}."
            )
        for path in (each.parent for each in paths):
            configs[path] = read_config(path)
            identity = json.dumps(configs[path]["identity"], sort_keys=True)
            found.setdefault(identity, []).append(path)
    chosen = [max(those, key=_size) if those[1:] else those[0] for those in found.values()]
    folders = {path.name: path for path in sorted(chosen, key=lambda path: path.name)}
    cells, samples = [], []
    for name, path in folders.items():
        config = configs[path]
        identity = config["identity"]
        rows = sorted(
            (row for row, _ in read_lines(path / "samples.jsonl")), key=lambda r: r["index"]
        )
        samples += [{"cell": name, **row} for row in rows]
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
                "failed": read_failure(path),
                "finished": read_finished(path, len(rows)),
                "identity": identity,
                "config": config,
            }
        )
    return Results(
        pd.DataFrame(cells).set_index("cell"),
        pd.DataFrame(samples, columns=["cell", *COLUMNS]),
        folders,
    )
