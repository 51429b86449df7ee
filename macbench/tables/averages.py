"""RULER's published averages, over its tasks and its lengths.

At one length: the plain mean of the 13 tasks. Avg.: the mean over 4K to 128K; wAvg (inc), wAvg
(dec): with weights 1 to 6 that grow or shrink with the length. A number stands for all that it
averages or is not given: a length with a task missing has no average, and without an average at all
six lengths there is none over them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pandas as pd

from macbench.errors import MacbenchError
from macbench.store import Results
from macbench.tables.blocks import Block, labels
from macbench.tables.report import render
from macbench.tasks.ruler import TASKS

LENGTHS = tuple(4096 << i for i in range(6))
USUAL = {"prefix": "official", "qa_metric": "part"}  # options of a published run
WEIGHTS = {"Avg.": (1,) * 6, "wAvg (inc)": range(1, 7), "wAvg (dec)": range(6, 0, -1)}


@dataclass(frozen=True)
class Average:
    """A method at one length."""

    mean: float | None  # None where a task is missing
    missing: tuple[str, ...]
    n: tuple[int, int]  # samples of the task with the fewest and with the most


@dataclass(frozen=True)
class Row:
    """A method, at the lengths it ran at."""

    label: str
    at: dict[int, Average]


def table(results: Results, format: str = "text") -> str:
    """One block per model and setting, a row per method; text, md, latex or csv (fractions)."""
    mine = results.cells[results.cells["task"].str.startswith("ruler/")]
    if mine.empty:
        raise MacbenchError(
            "there are no RULER results in this folder, and these are its averages."
        )
    blocks, tidy = [], []
    for _, cells in mine.groupby(mine["identity"].map(_conditions), sort=False):
        rows = averages(cells, results.samples)
        blocks.append(_block(cells, results.samples, rows))
        about = {"model": cells["model"].iloc[0], "setting": blocks[-1].title}
        for row in rows:
            means = {str(length): row.at[length].mean for length in row.at}
            tidy.append({**about, "method": row.label, **means, **over_lengths(row)})
    if format == "csv":
        return pd.DataFrame(tidy, dtype=object).to_csv(index=False, lineterminator="\n")
    return render(blocks, format)


def averages(cells: pd.DataFrame, samples: pd.DataFrame) -> list[Row]:
    """Full attention first. Of each task the newest version counts, of failed cells nothing."""
    version = cells["identity"].map(lambda identity: identity["task"]["version"])
    newest = version == version.groupby(cells["task"]).transform("max")
    cells = cells[newest & cells["failed"].isna() & cells.index.isin(samples["cell"])]
    methods = [*map(_method, cells["identity"], cells["config"])]
    method = pd.Series(methods, index=cells.index, dtype=object)
    groups = {str(key): own for key, own in cells.groupby(method, sort=False)}
    rows = []
    for key, label in labels(groups).items():
        own = groups[key]
        lengths = sorted({*own["length"]})
        at = {length: _average(own[own["length"] == length], samples) for length in lengths}
        rows.append(Row(label, at))
    return sorted(rows, key=lambda row: (row.label != "full", row.label))


def _method(identity: dict[str, Any], config: dict[str, Any]) -> str:
    """Equal for cells of one row. A floor differs by length, what was asked for does not."""
    method = identity["method"]
    if config["floor"] is not None:
        method = {**method, "knobs": {**method["knobs"], **config["asked"]}}
    return json.dumps({"method": method})


def _average(cells: pd.DataFrame, samples: pd.DataFrame) -> Average:
    scores = samples[samples["cell"].isin(cells.index)]
    scores = scores.groupby(scores["cell"].map(cells["task"]))["score"].agg(["mean", "size"])
    missing = tuple(task for task in TASKS if f"ruler/{task}" not in scores.index)
    least, most = (int(scores["size"].agg(what)) for what in ("min", "max"))
    return Average(None if missing else float(scores["mean"].mean()), missing, (least, most))


def over_lengths(row: Row) -> dict[str, float | None]:
    """Avg. and both wAvg; None unless all six lengths have their average."""
    means = [row.at[length].mean if length in row.at else None for length in LENGTHS]
    known = [mean for mean in means if mean is not None]
    if len(known) < len(means):
        return dict.fromkeys(WEIGHTS)
    return {
        name: sum(w * mean for w, mean in zip(weights, known, strict=True)) / sum(weights)
        for name, weights in WEIGHTS.items()
    }


def _conditions(identity: dict[str, Any]) -> str:
    """What the cells of one table share: all but task, length, seed and method."""
    same = {k: v for k, v in identity.items() if k not in ("task", "length", "seed", "method")}
    return json.dumps([same, identity["task"]["knobs"]], sort_keys=True)


def _block(cells: pd.DataFrame, samples: pd.DataFrame, rows: list[Row]) -> Block:
    lengths = sorted({length for row in rows for length in row.at})
    grid = [["method", *map(_name, lengths), *WEIGHTS]]
    for row in rows:
        means = [row.at[length].mean if length in row.at else None for length in lengths]
        grid.append([row.label, *map(_percent, [*means, *over_lengths(row).values()])])
    identity = cells["identity"].iloc[0]
    embedded = bool((samples.loc[samples["cell"].isin(cells.index), "source"] == "embedded").any())
    knobs = identity["task"]["knobs"]
    title = [
        cells["model"].iloc[0],
        identity["dtype"],
        "RULER averages" + (" source=embedded" if embedded else ""),
        f"hold={identity['hold']}",
        *([f"max_new={cut}"] if (cut := identity["max_new"]) else []),
        *(f"{k}={knobs[k]}" for k, usual in USUAL.items() if knobs.get(k, usual) != usual),
    ]
    notes = _notes(rows, embedded)
    return Block({}, "ruler", ", ".join(title), set(), [], None, notes, [grid])


def _notes(rows: list[Row], embedded: bool) -> list[str]:
    notes = [
        "a length: mean of RULER's 13 tasks, %. Avg., wAvg: over 4K to 128K; weights of wAvg (inc) "
        "1 to 6, of wAvg (dec) 6 to 1."
    ]
    sizes = {size for row in rows for average in row.at.values() for size in average.n}
    if sizes:
        n = " to ".join(map(str, sorted({min(sizes), max(sizes)})))
        notes.append(f"samples per task: {n}; the published runs have 500.")
    lacking: dict[str, list[str]] = {}  # what is missing, whose
    for row in rows:
        for length, average in row.at.items():
            if average.missing:
                some = f"{_name(length)} has {len(TASKS) - len(average.missing)} of {len(TASKS)}"
                what = f"{some} tasks, not {', '.join(average.missing)}"
                lacking.setdefault(what, []).append(row.label)
        without = [_name(x) for x in LENGTHS if x not in row.at or row.at[x].mean is None]
        if without:
            what = f"no average over lengths without {', '.join(without)}"
            lacking.setdefault(what, []).append(row.label)
    for what, whom in lacking.items():
        whose = "all methods" if len(whom) == len(rows) else ", ".join(whom)
        notes.append(f"left out, {whose}: {what}.")
    if embedded:
        notes.append("embedded texts: these averages are not RULER scores.")
    return notes


def _name(length: int) -> str:
    return f"{length // 1024}K" if length % 1024 == 0 else str(length)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
