"""The times of whole models' decode steps: the columns of a row, and rows for reading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from macbench.bench.shared import draw
from macbench.measure.latency.record import key_of

# column: its type; all before `us_median` are the row's identity
COLUMNS = {
    "model": "string",
    "dtype": "string",
    "length": "Int64",  # tokens of a row after the last timed step
    "batch": "Int64",  # rows of each method
    "method": "string",  # with the knobs that vary; `mixed`: all of the run as one batch
    "around": "string",  # eager, compiled, tuned: what stands around attention
    "fused": "boolean",  # q, k and v weights as one matrix
    "backend": "string",
    "kv": "string",  # random: the prompts' keys and values are normal values, nothing is prefilled
    "seed": "Int64",
    "us_median": "float64",  # of a step: one token of every row
    "us_p10": "float64",
    "us_p90": "float64",
    "n": "Int64",  # timed steps
    "rows": "Int64",
    "tokens_s": "float64",  # of all rows together
    "rest_us": "float64",  # median of the same step where attention gives its query back
    "attention_us": "float64",  # the difference
    "attention_share": "float64",
    "attention_floor_us": "float64",  # K, V and metadata of the step / read bandwidth
    "vs_full": "float64",  # full attention's step / this one; above 1: faster than full attention
    "weight_bytes": "Int64",  # of weights read in a step, once for all rows
    "cache_bytes": "Int64",  # of K and V read in a step, as the methods count them
    "meta_bytes": "Int64",  # of rings, page bounds and the like
    "floor_us": "float64",  # these bytes / read bandwidth
    "over_floor": "float64",  # time / floor
    "rest_over_floor": "float64",  # rest / (weights / read bandwidth)
    "hit": "float64",  # MAC's share of (row, layer, head, step) that reused
    "hits": "string",  # measured: as they came, from the model's own queries over random prompts
    "alone_us": "float64",  # of a mixed batch: sum over its methods of each one's own step
    "vs_alone": "float64",  # that / this time; above 1: the mixed batch is faster
    "peer": "string",  # how transformers ran the same step
    "peer_us": "float64",
    "vs_peer": "float64",  # its time / this time; above 1: faster than transformers
    "weights": "string",  # identity of the model's weights
    "bandwidth_gbs": "float64",  # of the best plain read in this run
    "device": "string",
    "ok": "boolean",  # the step agrees with the modules as they are
    "error": "float64",  # largest relative error of a hidden state
    "note": "string",
    "run": "string",  # when the process began
}
LONGEST = 12  # launches of a step that are printed
NOTES = (
    "ms: median of n captured steps (10th to 90th percentile); a step is one token of every row.",
    "rest: the same step where attention only gives its query back; attention: the difference.",
    "must: what the bytes that the method reads take at read bandwidth; the rest of `attention` is "
    "our code and its launches.",
    "x full: full attention's step in this run / this one.",
    "floor: bytes of weights (once), K, V and metadata that the step reads / read bandwidth of "
    "this run.",
    "Prompts are random keys and values, nothing is prefilled; hit is what MAC then did.",
)
HEADER = (
    *("model", "length", "batch", "method", "around", "fused", "ms", "10-90 %", "tokens/s", "rest"),
    *("x weights", "attention", "must", "share", "x full", "floor", "x floor", "hit", "alone"),
    *("x alone", "peer", "x peer", "note"),
)


def table(rows: pd.DataFrame) -> str:
    """Rows for reading."""
    cells = [_cells(row) for _, row in rows.iterrows()]
    peers = sorted({str(peer) for peer in rows["peer"].dropna()})
    lines = [f"peer: transformers, {peer}" for peer in peers]
    return draw(cells, HEADER, lines, NOTES)


def keep_launches(path: Path, parts: Sequence[dict[str, Any]], key: Sequence[str]) -> None:
    """Add a step's launches to a file, in place of older ones of the same step."""
    new = pd.DataFrame(parts).round(2)
    if path.exists():
        old = pd.read_csv(path)
        same = (old[[*key]].astype(str) == new.loc[0, [*key]].astype(str)).all(axis=1)
        new = pd.concat([old[~same], new])
    new.to_csv(path, index=False, lineterminator="\n")


def launch_table(parts: Sequence[dict[str, Any]]) -> str:
    """The longest launches of every step, for reading."""
    header = ("model", "length", "batch", "method", "launch", "a step", "us a step")
    cells = []
    for _, found in pd.DataFrame(parts).groupby(key_of(COLUMNS), sort=False):
        for part in found.head(LONGEST).to_dict("records"):
            cell = {key: str(part[key]) for key in header[:4]} | {"launch": part["launch"][:60]}
            cell |= {"a step": f"{part['a_step']:.4g}", "us a step": f"{part['us_step']:.1f}"}
            cells.append(cell)
    return draw(cells, header, [], ["of all layers, by torch's profiler; the file has the rest."])


def _cells(row: pd.Series) -> dict[str, str]:
    def number(key: str, form: str = ".2f", unit: float = 1) -> str:
        return "" if pd.isna(row[key]) else format(row[key] / unit, form)

    def ms(key: str) -> str:
        return number(key, ".3f", 1000)

    cells = {key: str(row[key]) for key in ("model", "length", "batch", "method", "around")}
    cells |= {"fused": "yes" if row["fused"] else "no", "ms": ms("us_median")}
    cells["10-90 %"] = f"{ms('us_p10')} to {ms('us_p90')}" if cells["ms"] else ""
    cells |= {"tokens/s": number("tokens_s", ".0f"), "rest": ms("rest_us")}
    cells |= {"x weights": number("rest_over_floor"), "attention": ms("attention_us")}
    cells |= {"must": ms("attention_floor_us"), "x full": number("vs_full")}
    cells |= {"share": number("attention_share"), "floor": ms("floor_us")}
    cells |= {"x floor": number("over_floor"), "hit": number("hit")}
    cells |= {"alone": ms("alone_us"), "x alone": number("vs_alone")}
    cells |= {"peer": ms("peer_us"), "x peer": number("vs_peer")}
    cells["note"] = "" if row["ok"] else f"FAILED: {row['note']}"
    return cells


def title(row: dict[str, Any]) -> str:
    words = [row["model"], f"length {row['length']} batch {row['batch']}", row["method"]]
    return " ".join([*words, row["around"], "" if row["fused"] else "not fused"]).strip()


def sentence(row: dict[str, Any]) -> str:
    """A row as it is told while the run goes on."""
    if not row["ok"]:
        return f"{title(row)}: FAILED, {row['note']} (error {row['error']:.2g})"
    line = f"{title(row)}: {row['us_median'] / 1000:.3f} ms, {row['over_floor']:.2f} x floor"
    if row.get("rest_us"):
        line += f", {row['rest_us'] / 1000:.3f} ms without attention"
    if row.get("vs_alone"):
        line += f", {row['vs_alone']:.2f} x as fast as each method alone"
    if row.get("vs_peer"):
        line += f", {row['vs_peer']:.2f} x as fast as transformers"
    return line
