"""From verdicts to the published figures, of one text and of many.

Of one text: yes, judged and asked per kind of instruction, where only a check whose section exists
is judged. Over texts, as published: CR is the mean completion; STIC-1 = yes / judged; STIC-2 =
yes / asked; weighted = CR x STIC-2; the accuracy of a kind = yes / judged of that kind, their
average the plain mean of the three (a kind that nobody judged counts 0). The average number of
words counts texts of more than 40 blocks and 2,000 words only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from macbench.tasks.base import Score
from macbench.tasks.longgenbench import sections
from macbench.tasks.longgenbench.judge import Question, says_yes, unclear
from macbench.tasks.longgenbench.records import KINDS, Record

Row = dict[str, Any]
Part = tuple[str, float | int | None, int]  # label, value, of how many


def questions(record: Record, text: sections.Text) -> list[Question]:
    """What a judge is asked: every check whose section was written."""
    return [
        Question(kind, at, event, text.sections[at])
        for kind in KINDS
        for at, event in record.checks[kind].items()
        if at in text.sections
    ]


def score(
    record: Record, text: sections.Text, judge: str, asked: Sequence[Question], said: Sequence[str]
) -> Score:
    """The score of a text, STIC-2, and all else in its details.

    said: the judge's answer to each of `asked`.
    """
    verdicts: dict[str, dict[str, bool]] = {kind: {} for kind in KINDS}
    for question, answer in zip(asked, said, strict=True):
        verdicts[question.kind][str(question.section)] = says_yes(answer)
    checks = {
        kind: [sum(verdicts[kind].values()), len(verdicts[kind]), len(record.checks[kind])]
        for kind in KINDS
    }
    yes, judged, total = (sum(column) for column in zip(*checks.values(), strict=True))
    done = sections.completion(text, record.number)
    details = {
        "judge": judge,
        "completion": done,
        "stic_1": yes / judged if judged else None,
        "stic_2": yes / total,
        "weighted": done * yes / total,
        "checks": checks,
        "verdicts": verdicts,
        "unclear": sum(map(unclear, said)),
        "blocks": len(text.blocks),
        "sections": len(text.sections),
        "repeated": text.repeated,
        "first_missing": sections.first_missing(text, record.number),
        "words": len(text.whole.split()),
        "median_words": sections.median_words(text),
        "distinct_4": sections.distinct(text),
    }
    return Score(yes / total, details)


@dataclass(frozen=True)
class Agreement:
    """Two judges on the same checks."""

    n: int
    same: float  # share
    kappa: float | None  # Cohen's; None where chance alone would agree always


def agreement(one: Sequence[bool], other: Sequence[bool]) -> Agreement | None:
    """How far two judges agree; None where there is nothing to compare."""
    n = len(one)
    if not n:
        return None
    same = sum(a == b for a, b in zip(one, other, strict=True)) / n
    p, q = sum(one) / n, sum(other) / n
    chance = p * q + (1 - p) * (1 - q)
    return Agreement(n, same, (same - chance) / (1 - chance) if chance < 1 else None)


def breakdown(rows: Sequence[Row]) -> list[Part]:
    """The family's figures over rows of samples: label, value, of how many.

    A value of type float is a share, of type int a count; None where there is nothing to count.
    """
    details = [row["details"] for row in rows]
    if not details:
        return []
    sums = {k: [sum(d["checks"][k][i] for d in details) for i in range(3)] for k in KINDS}
    yes, judged, total = (sum(column) for column in zip(*sums.values(), strict=True))
    finish = mean(d["completion"] for d in details)
    stic_2 = _share(yes, total)
    kinds = {kind: _share(sums[kind][0], sums[kind][1]) for kind in KINDS}
    n = len(details)
    long = [d["words"] for d in details if d["blocks"] > 40 and d["words"] > 2000]
    lengths = [d["median_words"] for d in details if d["median_words"] is not None]
    varied = [d["distinct_4"] for d in details if d["distinct_4"] is not None]
    parts: list[Part] = [
        ("finish", finish, n),
        ("STIC-1", _share(yes, judged), judged),
        ("STIC-2", stic_2, total),
        ("weighted", None if stic_2 is None else finish * stic_2, n),
        *((kind, kinds[kind], sums[kind][1]) for kind in KINDS),
        ("average", mean(share or 0.0 for share in kinds.values()), judged),
        ("section words", round(median(lengths)) if lengths else None, len(lengths)),
        ("distinct 4-grams", mean(varied) if varied else None, len(varied)),
        ("words", round(mean(d["words"] for d in details)), n),
        ("words of long texts", round(mean(long)) if long else None, len(long)),
        ("unclear answers", _share(sum(d["unclear"] for d in details), judged), judged),
        ("texts cut by the cap", _share(sum(row["stopped"] == "length" for row in rows), n), n),
    ]
    compared = [d["keyword"] for d in details if "keyword" in d]
    if compared:
        pairs = agreement(*_pairs(details))
        parts += [("agrees with keyword", pairs.same if pairs else None, pairs.n if pairs else 0)]
        parts += [("kappa", pairs.kappa if pairs else None, pairs.n if pairs else 0)]
    return parts


def _pairs(details: Sequence[Row]) -> tuple[list[bool], list[bool]]:
    """Verdicts of the rows' judge and of the keyword judge on the same checks."""
    one, other = [], []
    for row in details:
        for kind in KINDS:
            for at, verdict in row["verdicts"][kind].items():
                if "keyword" in row:
                    one.append(verdict)
                    other.append(row["keyword"][kind][at])
    return one, other


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
