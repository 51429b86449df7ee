"""Stored answers judged again, without generating: `macbench score DIR judge=…`.

Beside a cell's samples.jsonl, which stays as it is, a judge leaves scores-<judge>.jsonl (a line per
sample, appended) and scores-<judge>.json (derived: the family's figures). The answers of a model
are kept in DIR/judge.jsonl, so that nothing is asked twice, whatever was killed in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from macbench import store
from macbench.checks import check_types
from macbench.errors import MacbenchError, nearest
from macbench.progress import Progress
from macbench.store.lines import Lines, write
from macbench.tasks.longgenbench import metrics, sections
from macbench.tasks.longgenbench.judge import Judge, Options, make, says_yes, slug, unclear
from macbench.tasks.longgenbench.judge.cached import Cached
from macbench.tasks.longgenbench.judge.keyword import Keyword
from macbench.tasks.longgenbench.records import KINDS, parse

OPTIONS = ("judge", "judge_model", "judge_url")
FAMILY = "longgenbench"
PATIENCE = 10  # answers before a judge that is mostly unclear is given up

Row = dict[str, Any]


def read_options(words: Sequence[str]) -> Options:
    """The judge that `macbench score DIR WORDS` means."""
    values: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise MacbenchError(f"'{word}' is not an option; write key=value, as in judge=keyword.")
        if key not in OPTIONS:
            raise MacbenchError(f"unknown option '{key}': {nearest(key, [*OPTIONS])}")
        values[key] = None if value == "null" else value
    return options(values)


def options(values: Row) -> Options:
    """The judge's options among a family's."""
    mine = {key: values[key] for key in OPTIONS if key in values}
    check_types(f"{FAMILY}.", Options, mine)
    return Options(**mine)


def score(out: Path, asked: Options, progress: Progress, only: Iterable[str] | None = None) -> None:
    """Judge what is stored in OUT and was not judged by this judge before.

    only: folder names of the cells, where not all of OUT are meant. MacbenchError where there is
    nothing to judge or the judge fails; what it said by then is kept.
    """
    results = store.read(out)
    names = [
        name
        for name, cell in results.cells.iterrows()
        if cell["task"].partition("/")[0] == FAMILY and (only is None or name in {*only})
    ]
    rows = results.samples[results.samples["cell"].isin(names)]
    if not len(rows):
        raise MacbenchError(f"{out} holds no answers of {FAMILY}, the tasks that a judge scores.")
    judge = make(asked)
    heard: list[bool] = []

    def hear(answer: str) -> None:
        heard.append(unclear(answer))
        if len(heard) >= PATIENCE and 2 * sum(heard) > len(heard):
            raise MacbenchError(
                f"judge {judge.name} says neither yes nor no in {sum(heard)} of {len(heard)} "
                f"answers, such as {' '.join(answer.split())[:60]!r}; use another judge."
            )

    progress.start(len(rows))
    with ExitStack() as stack:
        cached = None
        if not isinstance(judge, Keyword):
            cached = Cached(judge, stack.enter_context(Lines(out / "judge.jsonl")), hear)
        for name in names:
            cell: Any = rows[rows["cell"] == name].to_dict("records")
            _score_cell(out / str(name), cell, judge, cached, progress)


def after_run(knobs: dict[str, Row], out: Path, cells: Iterable[str], progress: Progress) -> None:
    """The judge that a run asked for, on the run's cells; keywords have judged already.

    knobs: the options of each task of the run.
    """
    mine = [values for name, values in knobs.items() if name.partition("/")[0] == FAMILY]
    if mine and (asked := options(mine[0])).judge != "keyword":
        score(out, asked, progress, only=cells)


def _score_cell(
    cell: Path, rows: Sequence[Row], judge: Judge, cached: Cached | None, progress: Progress
) -> None:
    name = f"scores-{slug(judge)}"
    with Lines(cell / f"{name}.jsonl") as lines:
        done = {(line["index"], line["output_sha"]) for line in lines.rows}
        for row in rows:
            stored = (row["index"], store.text_sha(row["output"])) in done
            if not stored:
                lines.append(_judged(row, judge, cached))
            progress.advance(1, stored=stored)
        by_index = {line["index"]: line for line in lines.rows}
    judged = [{**row, **by_index[row["index"]]} for row in rows]
    figures = {label: [value, n] for label, value, n in metrics.breakdown(judged)}
    summary = {"judge": judge.identity, "samples": len(judged), "figures": figures}
    write(cell / f"{name}.json", summary)


def _judged(row: Row, judge: Judge, cached: Cached | None) -> Row:
    """A line of scores-<judge>.jsonl."""
    record = parse(row["extra"])
    text = sections.read(row["output"], record.prefix, record.type)
    asked = metrics.questions(record, text)
    keyword = [says_yes(answer) for _, answer in Keyword().answer(asked)]
    said = cached.answers(asked) if cached else ["yes" if yes else "no" for yes in keyword]
    result = metrics.score(record, text, judge.name, asked, said)
    details = result.details
    if cached:
        found: dict[str, dict[str, bool]] = {kind: {} for kind in KINDS}
        for question, yes in zip(asked, keyword, strict=True):
            found[question.kind][str(question.section)] = yes
        details = {**details, "keyword": found}
    return {
        "index": row["index"],
        "id": row["id"],
        "output_sha": store.text_sha(row["output"]),
        "judge": judge.name,
        "score": result.value,
        "details": details,
    }
