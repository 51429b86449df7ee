"""LongGenBench (Wu et al., arXiv 2409.02076): long texts of numbered sections, each checked.

A prompt asks for a text of 52 to 365 sections and says what some of them must hold: single ones, a
range of them, every n-th. Scenarios: diary, menu, skyscraper, urban; variants: short (16K tokens)
and long (32K).

`length` caps the generated tokens: 16,000 or 32,000 by variant, as published, where none is given.
A smaller cap is kept in the row (`extra.capped`) and printed as `capped`. The prompt, 400 to 900
tokens, comes on top.

template=none is the published run of local models: the prompt as it is, with no more than a
beginning-of-text token. template=model puts the model's chat template around all but the last line,
the head of section 1, which then follows the generation prompt; so in both forms the text goes on
after that head. Published decoding: temperature 0.95, top_p 0.95, stop at `*** finished`.

A row's score is STIC-2 of its text: checks that the judge found fulfilled / all checks. While texts
are generated they are judged by keywords; another judge follows when all are there, see
`macbench.score`. What else is different from the published run:
* without the official files prompts are generated (source=embedded): same wording, but people,
  events and the worked example are ours;
* draws of the sampled text come from macbench's generator, not vLLM's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from macbench.errors import MacbenchError
from macbench.tasks.base import Renderer, Sample, Score
from macbench.tasks.longgenbench import metrics, sections
from macbench.tasks.longgenbench.judge import Options
from macbench.tasks.longgenbench.judge.keyword import Keyword
from macbench.tasks.longgenbench.metrics import breakdown
from macbench.tasks.longgenbench.records import SCENARIO, Record, find, parse, plain
from macbench.tasks.longgenbench.scenarios import generate

__all__ = [
    "LATER",
    "LENGTH",
    "TASKS",
    "breakdown",
    "length_text",
    "make",
    "notes",
    "published_length",
    "score",
    "title",
]

TASKS = ("diary", "menu", "skyscraper", "urban")
CAPS = {"short": 16_000, "long": 32_000}  # generated tokens of the published run
LENGTH = "answer"
LATER = ("judge", "judge_model", "judge_url")  # options that change no generated text
DECODING = {"temperature": 0.95, "top_p": 0.95}


@dataclass(frozen=True)
class LongGenBench:
    """One scenario."""

    name: str
    version: int = field(default=2, init=False)
    variant: str = "short"
    template: str = "none"
    data: str | None = None
    decoding: dict[str, float] = field(default_factory=lambda: dict(DECODING), init=False)

    def samples(self, text: Renderer, length: int, seed: int, limit: int) -> Iterator[Sample]:
        """The first `limit` records: of the official file, else generated from the seed."""
        found = find(self.variant, self.data)
        if found is None:
            for index in range(limit):
                record = generate(self.name, self.variant, seed, index)
                yield self._sample(record, index, length, "embedded")
            return
        records, source = found
        mine = [record for record in records if SCENARIO[record.type] == self.name]
        if len(mine) < limit:
            raise MacbenchError(
                f"longgenbench/{self.name} has {len(mine)} {self.variant} records and limit="
                f"{limit} was asked for; lower limit."
            )
        for index, record in enumerate(mine[:limit]):
            yield self._sample(record, index, length, source)

    def _sample(self, record: Record, index: int, length: int, source: str) -> Sample:
        name = f"{self.name}-{self.variant}-{index:04d}"
        cap = CAPS[self.variant]
        model = self.template == "model"
        return Sample(
            index=index,
            id=name,
            prompt=record.prompt.removesuffix(record.prefix) if model else record.prompt,
            answer_prefix=record.prefix if model else "",
            question=len(record.prompt) - len(record.prefix),
            references=(),
            max_new_tokens=length,
            cluster=name,
            source=source,
            stop=(sections.STOP,),
            chat=model,
            extra={**plain(record), "capped": length if length < cap else None},
        )

    def score(self, sample: Sample, output: str) -> Score:
        """By keywords: a stand-in until another judge is asked."""
        return score(sample.extra, output)


def score(extra: dict[str, Any], output: str) -> Score:
    """A text by keywords, from what its row keeps."""
    record = parse(extra)
    text = sections.read(output, record.prefix, record.type)
    asked = metrics.questions(record, text)
    said = [answer for _, answer in Keyword().answer(asked)]
    return metrics.score(record, text, Keyword.name, asked, said)


def make(
    task: str,
    variant: str = "short",
    template: str = "none",
    data: str | None = None,
    **judge: Any,
) -> LongGenBench:
    """A scenario with the family's options; the judge's are checked here, long before its use."""
    if variant not in CAPS:
        raise MacbenchError(f"longgenbench.variant={variant}: choose {' or '.join(CAPS)}.")
    if template not in ("none", "model"):
        raise MacbenchError(f"longgenbench.template={template}: choose none or model.")
    Options(**judge)
    return LongGenBench(task, variant, template, data)


def published_length(variant: str = "short", **_: Any) -> int | None:
    """Generated tokens where `length` is not given; None for a variant that does not exist."""
    return CAPS.get(variant)


def length_text(length: int, variant: str = "short", **_: Any) -> str:
    """What `length` is, for the title of a table."""
    capped = f" (capped: {CAPS[variant]} published)" if length < CAPS[variant] else ""
    return f"{variant}, at most {length} new tokens{capped}"


def title(rows: Sequence[dict[str, Any]]) -> str:
    """The judge of these rows, and whether their prompts are another's than the published."""
    judge = _judge(rows)
    stand_in = " (a stand-in: not the benchmark's own scores)" if judge == Keyword.name else ""
    local = "source=local, " if any(row["source"] == "local" for row in rows) else ""
    return f"{local}judge={judge}{stand_in}"


def _judge(rows: Sequence[dict[str, Any]]) -> str:
    return rows[0]["details"]["judge"] if rows else Keyword.name


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the figures are, and what the judge is worth."""
    told = [
        "score of a text: checks fulfilled / all checks. finish: sections written; "
        "STIC-1: fulfilled / judged; STIC-2: fulfilled / all; weighted: finish x STIC-2; average: "
        "of once, range and periodic; words are whole numbers, all else is %."
    ]
    if _judge(rows) == Keyword.name:
        told.append(
            "judge=keyword: a check counts where the section holds every content word of its "
            "event; `macbench score` asks a model instead."
        )
    return told
