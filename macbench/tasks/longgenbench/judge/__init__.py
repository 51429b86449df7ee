"""The judges: whether a section holds its event.

* `keyword`: every content word of the event stands in the section. No model, no network, always
  the same; it takes a mention for the thing and misses a paraphrase. A stand-in for trying things
  out: its numbers are never the benchmark's own.
* `local`: any model macbench can load continues the published prompt, greedily.
* `openai`: any address that speaks OpenAI's chat completions gets it as the user's turn.

The published judge is Llama-3.1-8B-Instruct, continuing the prompt without a chat template, sampled
(temperature 0.95). Both of ours are greedy, so that the same judge says the same again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from macbench import presets
from macbench.errors import MacbenchError, nearest

TEMPLATE = (
    "Context: {block}### Instruction: Does this context include the {event}? Please answer with "
    "'yes' or 'no' only."
)
ANSWER = 50  # tokens of an answer at most
NAMES = ("keyword", "local", "openai")
PUBLISHED = "llama-3.1-8b-instruct"  # the model of the published judge
KEY = "OPENAI_API_KEY"


@dataclass(frozen=True)
class Options:
    """The judge asked for; checked when made."""

    judge: str = "keyword"
    judge_model: str | None = None
    judge_url: str | None = None

    def __post_init__(self) -> None:
        if self.judge not in NAMES:
            raise MacbenchError(f"judge={self.judge}: {nearest(self.judge, [*NAMES])}")
        if self.judge == "keyword" and (self.judge_model or self.judge_url):
            raise MacbenchError("judge=keyword takes neither judge_model nor judge_url.")
        if self.judge == "local" and self.judge_url:
            raise MacbenchError("judge=local takes no judge_url; use judge=openai for an address.")
        if self.judge == "local" and self.judge_model:
            check_model(self.judge_model)
        if self.judge == "openai":
            from macbench.tasks.longgenbench.judge.openai import check

            check(self.judge_model, self.judge_url)


def check_model(name: str) -> None:
    """Refuse (MacbenchError) what is neither a model's name nor could be a checkpoint."""
    known = presets.models()
    if name not in known and "/" not in name and not Path(name).exists():
        raise MacbenchError(
            f"unknown judge_model '{name}': {nearest(name, known)} For any other checkpoint give "
            "a hub id, OWNER/NAME, or a folder."
        )


@dataclass(frozen=True)
class Question:
    """One check: does this section hold this event?"""

    kind: str
    section: int
    event: str
    block: str

    @property
    def prompt(self) -> str:
        return TEMPLATE.format(block=self.block, event=self.event)


class Judge(Protocol):
    name: str  # as people read it, such as "keyword" or "local smollm2"
    identity: dict[str, Any]  # all that determines its answers

    def answer(self, questions: Sequence[Question]) -> Iterator[tuple[int, str]]:
        """What the judge says, word for word, with the question's position; in any order.

        Where it fails in the middle, what it had said by then comes before the MacbenchError.
        """
        ...


def make(options: Options) -> Judge:
    """The judge that the options mean, ready to answer."""
    if options.judge == "keyword":
        from macbench.tasks.longgenbench.judge.keyword import Keyword

        return Keyword()
    if options.judge == "local":
        from macbench.tasks.longgenbench.judge.local import Local

        return Local(options.judge_model or PUBLISHED)
    from macbench.tasks.longgenbench.judge.openai import OpenAI

    assert options.judge_model  # Options has seen to it
    return OpenAI(options.judge_model, options.judge_url)


def slug(judge: Judge) -> str:
    """A file name's part: the readable name and a hash of the identity."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", judge.name).strip("-.")[:60]
    return f"{readable}-{digest(judge.identity)[:8]}"


def digest(*values: Any) -> str:
    """Checksum of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def says_yes(answer: str) -> bool:
    """The published rule: "yes" occurs, in any case, also within a word; else it is a no."""
    return "yes" in answer.lower()


def unclear(answer: str) -> bool:
    """Neither of the words was said: counted, as the rule takes it for a no (or for a yes)."""
    return not re.search(r"\b(yes|no)\b", answer.lower())
