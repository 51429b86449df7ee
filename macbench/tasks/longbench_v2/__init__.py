"""LongBench v2 (Bai et al., arXiv 2412.15204): 503 four-choice questions over long texts.

`length` is the prompt after the cut: its tokens without the chat template, which like the answer
comes on top. A longer prompt loses its middle, as published. Prompts, cut, answer extraction and
generation settings are those of the published code (docs/benchmarks.md names what differs); the
prompt is the user's turn of the model's chat template. Samples are the records in file order,
whatever the seed, or, where the records are not at hand, generated ones that grow to the length
(`embedded.py`), marked source=embedded.

A row's `extra` holds the record's bins and `truncated_in`, `tokens` (kept) and `original_tokens`;
`details` holds `no_answer` and `empty`. An empty output is wrong here; the published script leaves
it out of the denominator, see `breakdown`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean as mean
from typing import Any

from macbench.errors import MacbenchError
from macbench.tasks.base import Renderer, Sample, Score
from macbench.tasks.longbench_v2 import data as records
from macbench.tasks.longbench_v2 import embedded, prompts
from macbench.tasks.longbench_v2.answer import extract
from macbench.tasks.longbench_v2.cuts import Cuts
from macbench.tasks.longbench_v2.data import Record
from macbench.tasks.longbench_v2.truncate import Cut, cut

__all__ = ["LENGTH", "TASKS", "breakdown", "length_text", "make", "notes", "title"]

TASKS = ("",)
LENGTH = "prompt"
ANSWER, THOUGHT = 128, 1024  # tokens to generate
BINS = ("domain", "sub_domain", "difficulty", "length")
SHARES = ("no answer", "prompt cut", "thought cut")  # figures that are not accuracies


@dataclass(frozen=True)
class Asked(Sample):
    """A sample that knows its record (without the text), for the second question."""

    record: Record | None = None


@dataclass(frozen=True)
class LongBenchV2:
    """prompt: zero_shot | cot. context: full | none, the published prompt without the text."""

    name: str = field(default="longbench_v2", init=False)
    version: int = field(default=1, init=False)
    prompt: str = "zero_shot"
    context: str = "full"
    data: str | None = None

    @property
    def decoding(self) -> dict[str, float]:
        """The published setting; top_p and top_k are not sent."""
        return {"temperature": 0.1}

    @property
    def template(self) -> tuple[str, str]:
        if self.context == "none":
            return prompts.NO_CONTEXT
        return prompts.COT if self.prompt == "cot" else prompts.ZERO_SHOT

    def samples(self, text: Renderer, length: int, seed: int, limit: int) -> Iterator[Sample]:
        """The first `limit` records; LengthUnfit where a question does not fit."""
        found = None if self.data == "embedded" else records.find(self.data)
        source = "embedded" if found is None else found.source
        made = self._embedded(text, length, seed) if found is None else iter(found)
        # generated texts went through the tokenizer to be made
        cutting = partial(cut, text) if found is None else Cuts(text).cut
        for index in range(limit):
            record = next(made, None)
            if record is None:
                raise MacbenchError(
                    f"longbench_v2 has {index} {source} records and limit={limit} was asked for; "
                    f"lower limit{'' if source == 'official' else f', or run `{records.FETCH}`'}."
                )
            kept = cutting(*prompts.fill(self.template, record), length)
            yield self._sample(kept, record, index, source)

    def _embedded(self, text: Renderer, length: int, seed: int) -> Iterator[Record]:
        def tokens(record: Record) -> int:
            return len(text.plain("".join(prompts.fill(self.template, record))))

        sizes = embedded.sizes_of(text) if self.context == "full" else []
        for draft in embedded.drafts(seed):
            if self.context == "none":
                yield draft.grown(0)
            else:
                yield embedded.fit(draft, tokens, sizes, length)

    def _sample(self, made: Cut, record: Record, index: int, source: str) -> Sample:
        return Asked(
            index=index,
            id=record.id,
            prompt=made.prompt,
            answer_prefix="",
            question=made.question,
            references=(record.answer,),
            max_new_tokens=THOUGHT if self.prompt == "cot" else ANSWER,
            cluster=f"doc-{hashlib.sha256(record.context.strip().encode()).hexdigest()[:16]}",
            source=source,
            extra={
                **{name: getattr(record, name) for name in BINS},
                "tokens": made.tokens,
                "original_tokens": made.original,
                "truncated_in": made.tokens < made.original,
            },
            record=replace(record, context=""),
        )

    def follow_up(self, sample: Sample, output: str) -> Sample | None:
        """The question for the letter, with the thought in place of the text."""
        if self.prompt != "cot" or output == "":  # as published: without a thought nothing is asked
            return None
        assert isinstance(sample, Asked) and sample.record is not None
        before, ask = prompts.fill(prompts.COT_ANSWER, sample.record, output)
        return replace(sample, prompt=before + ask, question=len(before), max_new_tokens=ANSWER)

    def score(self, sample: Sample, output: str) -> Score:
        """1 where the letter read out of the output is the record's."""
        letter = extract(output.strip())
        details = {"answer": letter, "no_answer": letter is None, "empty": output == ""}
        return Score(float(letter in sample.references), details)


def make(task: str, prompt: str = "zero_shot", context: str = "full", data: str | None = None):
    """The task with its options."""
    if prompt not in ("zero_shot", "cot"):
        raise MacbenchError(f"longbench_v2.prompt={prompt}: choose zero_shot or cot.")
    if context not in ("full", "none"):
        raise MacbenchError(f"longbench_v2.context={context}: choose full or none.")
    if (prompt, context) == ("cot", "none"):
        raise MacbenchError("longbench_v2.context=none has one prompt; leave prompt=cot out.")
    return LongBenchV2(prompt, context, data)


def length_text(length: int, prompt: str = "zero_shot", context: str = "full", **_: Any) -> str:
    """What `length` is, for the title of a table, and the form of the prompt."""
    if context == "none":
        return "without the text (control)"
    thought = ", chain of thought" if prompt == "cot" else ""
    return f"at most {length} prompt tokens{thought}"


def title(rows: Sequence[dict[str, Any]]) -> str:
    """Marks records that are not the published 503."""
    return "source=local" if any(row["source"] == "local" for row in rows) else ""


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How to read the figures, and of how many samples they are."""
    each = {row["id"]: row for row in rows}
    figures = breakdown([*each.values()])
    counts = ", ".join(f"{label} {n}" for label, _, n in figures if label not in SHARES)
    return [
        "breakdown: an empty output counts as wrong; non-empty leaves it out, as the published "
        "script does. Guessing gives 25 %; longbench_v2.context=none measures it for this model.",
        f"samples: {counts}.",
    ]


def breakdown(rows: Sequence[dict[str, Any]]) -> list[tuple[str, float, int]]:
    """The benchmark's own figures: label, share, of how many rows.

    overall to long are the published ones, with an empty output as wrong; `non-empty` is overall as
    the published script has it, which leaves such rows out. Then domains, and the shares of rows
    without a readable letter, with a prompt that was cut, and with a thought that was cut.
    """
    domains = sorted({row["extra"]["domain"] for row in rows})
    labels = ["overall", *records.VALUES["difficulty"], *records.VALUES["length"], "non-empty"]
    labels += [*domains, *SHARES]
    found: dict[str, list[float]] = {label: [] for label in labels}
    for row in rows:
        extra, details, score = row["extra"], row["details"], row["score"]
        bins = [extra[name] for name in ("difficulty", "length", "domain")]
        for label in ["overall", *bins, *([] if details["empty"] else ["non-empty"])]:
            found[label].append(score)
        found["no answer"].append(details["no_answer"])
        found["prompt cut"].append(extra["truncated_in"])
        if "first" in extra:
            found["thought cut"].append(extra["first"]["stopped"] == "length")
    return [(label, mean(values), len(values)) for label, values in found.items() if values]
