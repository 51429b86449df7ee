"""What a results folder says: one block per model, benchmark and length, a line per method.

A line pools the tasks and seeds of a method: scores, budgets and acceptance are means over tasks,
in which budgets weigh decode steps equally. Differences to full attention are paired by sample. How
intervals and p-values come about is in `macbench.measure.stats`, what the budgets are in
`macbench.measure.budget`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from macbench import tasks as benchmarks
from macbench.checks import brief
from macbench.errors import MacbenchError
from macbench.measure.budget import acceptance
from macbench.measure.stats import compare, holm
from macbench.store import Results
from macbench.tables.line import Line, different, make_line

FAMILIES = {"ruler": "RULER", "longbench_v2": "LongBench v2", "longgenbench": "LongGenBench"}
FULL = "full"
MORE = 1.01  # of full attention's bytes: a note
PAIR = ["task", "seed", "id"]  # within one block, that is one model and length
EXPLAIN = (
    "accuracy: mean over tasks, % +- half of its 95 % interval. vs full: paired difference in "
    "points [95 % interval]; p: exact McNemar or sign-flip test, then Holm over this table; same: "
    "answers that are full attention's, letter by letter.",
    "head, token, byte, resident: keys attended, K/V tokens loaded, bytes loaded (with metadata) "
    "and bytes held, % of full attention's, mean over tasks. asked: the knob; min: the least that "
    "the method reads at a prompt's length, more than was asked; radius: the L2 distance for tau.",
)

Grid = list[list[str]]  # a table; the first row is the header


@dataclass
class Block:
    """All methods on one model, length and task family under equal conditions."""

    about: dict[str, Any]
    family: str  # of its tasks
    title: str
    embedded: set[str]  # tasks whose text is the embedded one
    lines: list[Line]
    noise: tuple[float, int] | None  # share of samples on which two exact backends differ, of n
    notes: list[str] = field(default_factory=list)
    grids: list[Grid] | None = None  # what to draw instead of what the lines say
    against: str = FULL  # the method that the others are tested against
    layers: pd.DataFrame = field(default_factory=pd.DataFrame)  # its cells' sums, with the method


def reuse(block: Block, *by: str) -> pd.DataFrame:
    """Columns of `acceptance` by method and these (layer, head), means over tasks; empty without
    MAC."""
    keys = ["method", *by]
    each = acceptance(block.layers, by=[*keys, "task"])
    return each if each.empty else each.groupby(keys).mean()


def better(line: Line, block: Block) -> bool:
    """Significantly above full attention, which a method that reads less should not be."""
    above = line.versus is not None and line.versus.difference.mean > 0
    return block.against == FULL and above and different(line)


def fewer(line: Line, block: Block) -> str:
    """Such as "9 of 13 tasks" where a line has fewer tasks or samples than another; else ""."""
    tasks = max(len(other.tasks) for other in block.lines)
    if len(line.tasks) < tasks:
        return f"{len(line.tasks)} of {tasks} tasks"
    most = max(other.n for other in block.lines)
    return f"{line.n} of {most}" if line.n < most else ""


def summarise(results: Results, against: str = FULL) -> list[Block]:
    """The blocks of a results folder, by model, benchmark and length. against: the label of the
    method that the others are tested against."""
    cells = results.cells.assign(row=[_row(i) for i in results.cells["identity"]])
    layers = results.layers("hit")
    layers = layers.assign(**{key: _of_cells(layers, cells[key]) for key in ("row", "task")})
    columns = ["task", "seed", "row"]
    samples = results.samples.merge(cells[columns], left_on="cell", right_index=True)
    alone = samples["cluster"] == samples["id"]  # else a text, which every seed may ask about
    asked = samples["id"] + "/" + samples["prompt_sha"]  # another seed may ask the same
    samples["cluster"] = asked.where(alone, samples["cluster"]).astype(str)
    family = cells["task"].map(lambda task: [*FAMILIES, _family(task)].index(_family(task)))
    keys = ["model", family, "length", "hold", "dtype", "weights"]
    groups = cells.groupby([*keys, cells["identity"].map(_conditions)])
    return [
        _block(some, judged, layers, against)
        for _, group in groups
        for some, judged in _by_judge(group, samples, results.scores)
    ]


def _by_judge(
    cells: pd.DataFrame, samples: pd.DataFrame, scores: pd.DataFrame
) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """The cells' samples as they were scored, and as every other judge scored them since."""
    mine = samples[samples["cell"].isin(cells.index)]
    own = {_judge(details) for details in mine["details"]}
    again = []
    for _, said in scores[scores["cell"].isin(cells.index)].groupby("slug"):
        columns = ["cell", "index"]
        bare = mine.drop(columns=["score", "details"])
        judged = bare.merge(said[[*columns, "score", "details"]], on=columns)
        again.append((cells[cells.index.isin(judged["cell"])], judged))
        if own == {*said["judge"]} and len(judged) == len(mine):
            own = set()  # the same judge, asked once more
    if own or not again:
        yield cells, mine
    yield from again


def _judge(details: Any) -> str | None:
    return details.get("judge") if isinstance(details, dict) else None


def _row(identity: dict[str, Any]) -> str:
    """Cells of one row differ in task and seed only."""
    return json.dumps({k: v for k, v in identity.items() if k not in ("task", "seed")})


def _conditions(identity: dict[str, Any]) -> str:
    """What else cells of one table must share; tasks of two families are never averaged."""
    task = identity["task"]
    same = [identity[k] for k in ("decoding", "max_new", "schema")]
    return json.dumps([_family(task["name"]), task["knobs"], *same], sort_keys=True)


def _block(cells: pd.DataFrame, samples: pd.DataFrame, layers: pd.DataFrame, against: str) -> Block:
    version = cells["identity"].map(lambda identity: identity["task"]["version"])
    newest = version == version.groupby(cells["task"]).transform("max")
    older, cells = int((~newest).sum()), cells[newest]
    samples = samples[samples["cell"].isin(cells.index)]
    layers = layers[layers["cell"].isin(cells.index)]
    reused = acceptance(layers, by=["row", "task"])
    accepted = {} if reused.empty else reused["acceptance"].to_dict()
    rows = {str(key): group for key, group in cells.groupby("row")}
    names = labels(rows)
    passes = {
        key: group["identity"].iloc[0]["method"]["knobs"].get("passes", 1)
        for key, group in rows.items()
        if group["method"].iloc[0] == "full"
    }
    exact = min(passes, key=lambda key: passes[key], default=None)
    full = samples[samples["row"] == exact]
    named = [key for key in rows if names[key] == against]
    other = exact if against == FULL else next(iter(named), None)
    base = samples[samples["row"] == other]
    split = [key for key in passes if exact and passes[key] != passes[exact]]
    noise = None
    if split:
        pairs = _pair(full, samples[samples["row"] == split[0]])
        differ = pairs["output_full"].to_numpy() != pairs["output"].to_numpy()
        noise = (float(differ.mean()) if len(pairs) else 0.0, len(pairs))

    tasks = sorted({*cells["task"]})
    lines = []
    order = {key: (key != exact, g["control"].iloc[0], names[key]) for key, g in rows.items()}
    for key in sorted(rows.keys() - {*split}, key=lambda key: order[key]):
        own = samples[samples["row"] == key]
        line = make_line(rows[key], names[key], own, tasks)
        pairs = _pair(full, own)
        if key != exact and len(pairs):
            line.same = float((pairs["output_full"] == pairs["output"]).mean())
        pairs = _pair(base, own)
        if key != other and len(pairs):
            line.versus = compare(
                pairs["score_full"], pairs["score"], pairs["task"], pairs["cluster"]
            )
        for task, part in line.tasks.items():
            part.acceptance = accepted.get((key, task))
        rates = [x.acceptance for x in line.tasks.values() if x.acceptance is not None]
        if rates and len(rates) == len(line.tasks):  # not where some cells lack their layers
            line.acceptance = sum(rates) / len(rates)
        lines.append(line)
    tested = [line for line in lines if line.versus]
    for line, p in zip(tested, holm([t.versus.p for t in tested if t.versus]), strict=True):
        line.holm = p
    embedded = _embedded(cells, samples)
    first = cells.iloc[0]
    about = {k: first[k] for k in ("model", "dtype", "length", "hold")}
    if judge := next(filter(None, map(_judge, samples["details"])), None):
        about["judge"] = judge
    every: Any = samples.to_dict("records")
    block = Block(
        about=about,
        family=_family(first["task"]),
        title=", ".join(filter(None, [_title(cells, embedded), benchmarks.title(tasks[0], every)])),
        embedded=embedded,
        lines=lines,
        noise=noise,
        against=against,
        layers=layers.assign(method=_of_cells(layers, cells["row"].map(names))),
    )
    block.notes = [*_notes(block, cells), *benchmarks.notes(tasks[0], every)]
    resumed = samples.loc[samples["resumed"].notna(), "cell"]
    for cell in sorted({*resumed}):
        block.notes.append(
            f"resumed: {cells['label'][cell]} on {cells['task'][cell]}, {(resumed == cell).sum()} "
            f"of {(samples['cell'] == cell).sum()} answers were cut off and continued from an "
            "exact prefill, which is not the state the method was in."
        )
    if older:
        block.notes.append(f"left out: {older} cells of older versions of these tasks.")
    return block


def _of_cells(layers: pd.DataFrame, values: pd.Series) -> pd.Categorical:
    """What the cell of every sum has; millions of sums hold a number for it, not a text."""
    values, cell = values.astype("category"), layers["cell"].cat
    at = values.index.get_indexer(cell.categories)[cell.codes]
    dtype: Any = values.dtype
    return pd.Categorical.from_codes(values.cat.codes.to_numpy()[at], dtype=dtype)


def labels(rows: dict[str, pd.DataFrame]) -> dict[str, str]:
    """A label per row; rows that were given the same one also name what tells them apart."""
    given = {key: str(group["label"].iloc[0]) for key, group in rows.items()}
    answer = {}
    for key, label in given.items():
        methods = {other: json.loads(other)["method"] for other in given if given[other] == label}
        mine = {**methods[key]["knobs"], "version": methods[key]["version"]}
        others = [{**m["knobs"], "version": m["version"]} for m in methods.values()]
        apart = [f"{k}={brief(v)}" for k, v in mine.items() if any(o.get(k) != v for o in others)]
        answer[key] = " ".join([label, *apart])
    return answer


def _pair(full: pd.DataFrame, method: pd.DataFrame) -> pd.DataFrame:
    """Samples that both answered, full's columns suffixed `_full`; refuses different prompts."""
    columns = [*PAIR, "cell", "prompt_sha", "score", "output"]
    pairs = method.merge(full[columns], on=PAIR, suffixes=("", "_full"), validate="one_to_one")
    wrong = pairs[pairs["prompt_sha"] != pairs["prompt_sha_full"]]
    if len(wrong):
        one = wrong.iloc[0]
        raise MacbenchError(
            f"sample {one['id']} has another prompt in {one['cell']} than in {one['cell_full']}, "
            "so the two cannot be compared; run both again into an empty out=."
        )
    return pairs


def _embedded(cells: pd.DataFrame, samples: pd.DataFrame) -> set[str]:
    """Tasks that used the embedded text, also where every cell of them failed."""
    noted = cells[["source=embedded" in config["notes"] for config in cells["config"]]]
    return {*noted["task"], *samples.loc[samples["source"] == "embedded", "task"]}


def _title(cells: pd.DataFrame, embedded: set[str]) -> str:
    first = cells.iloc[0]
    notes = {note for config in cells["config"] for note in config["notes"]}
    about = "; ".join(sorted(note for note in notes if not note.startswith("source=")))
    family = _family(first["task"])
    temperature = first["identity"]["decoding"].get("temperature")
    parts = [
        f"{first['model']} ({about})" if about else first["model"],
        first["dtype"],
        benchmarks.length_text(first["task"], first["length"], first["identity"]["task"]["knobs"]),
        FAMILIES.get(family, family) + (" source=embedded" if embedded else ""),
        f"hold={first['hold']}",
        *([f"max_new={cut}"] if (cut := first["identity"]["max_new"]) else []),
        f"temperature={temperature:g}" if temperature else "greedy",
    ]
    return ", ".join(parts)


def _family(task: str) -> str:
    return task.partition("/")[0]


def _elsewhere(block: Block, line: Line) -> str | None:
    """Where a line was calibrated, if not at its block's length on its benchmark."""
    found = line.plan.calibration
    if found is None:
        return None
    same = {task.partition("/")[0] for task in found["tasks"]} == {block.family}
    if same and found["length"] == block.about["length"]:
        return None
    return f"at {found['length']} tokens of {', '.join(found['tasks'])}"


def _notes(block: Block, cells: pd.DataFrame) -> list[str]:
    notes = [*EXPLAIN]
    if block.noise:
        share, n = block.noise
        notes.append(
            f"noise floor: {100 * share:.1f} % of {n} samples got another answer from full "
            "attention split in two and merged, which is also exact."
        )
    if any(line.control for line in block.lines):
        notes.append("control: not a method to be used; it may look at every key to choose some.")
    if any(line.drift for line in block.lines):
        notes.append(
            "audit: relative L2 of attention outputs to exact attention on the same query and "
            "cache; share of the tokens that full attention would choose after the same text; ln "
            "of their probability less full attention's, per token."
        )
    marks = " ".join(mark for line in block.lines for mark in line.marks)
    if "not finished" in marks:
        notes.append("not finished: a run was stopped there; the same command again continues it.")
    if "never acted" in marks:
        notes.append("never acted: in no step did the method leave anything out or reuse anything.")
    if len(seeds := sorted({*cells["seed"]})) > 1:
        notes.append(
            f"seeds: {', '.join(map(str, seeds))}, whose samples are pooled; a prompt or text that "
            "they share counts as one."
        )
    for line in block.lines:
        if elsewhere := _elsewhere(block, line):
            notes.append(f"calibrated elsewhere: {line.label}, {elsewhere}.")
        if better(line, block):
            notes.append(f"{line.label} is better than full attention: look for a bug first.")
        if line.budgets and line.budgets.byte is not None and line.budgets.byte > MORE:
            notes.append(
                f"{line.label} reads more than full attention: at this length its metadata "
                "outweighs what it leaves out."
            )
    for _, cell in cells[cells["failed"].notna()].iterrows():
        notes.append(f"failed: {cell['label']} on {cell['task']}: {cell['failed']}")
    identities = [*cells["identity"]]
    versions = {f"{i[k]['name']} {i[k]['version']}" for i in identities for k in ("task", "method")}
    notes.append(f"versions: {', '.join(sorted(versions))}; schema {identities[0]['schema']}.")
    return notes
