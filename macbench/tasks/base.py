"""The contract of a task: samples in, text out, score back. Tasks know no model and no method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from macbench.errors import MacbenchError


class LengthUnfit(MacbenchError):
    """The task cannot be made at this length: refused when asked for alone, skipped in a family."""


class Renderer(Protocol):
    """Turns a user turn and an answer prefix into the model's own prompt tokens.

    The chat template of the model is applied to `user`; `answer_prefix` follows the generation
    prompt, so the model continues it.
    """

    @property
    def identity(self) -> str:
        """Of what turns a text into tokens and back; letters and digits."""
        ...

    def encode(self, user: str, answer_prefix: str = "") -> list[int]: ...

    def count(self, user: str, answer_prefix: str = "") -> int: ...

    def plain(self, text: str) -> list[int]:
        """Tokens of a text without template, with what the tokenizer adds to any text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, without special tokens."""
        ...


@dataclass(frozen=True)
class Sample:
    """One prompt with what is needed to score its answer."""

    index: int  # 0-based within the task: sample i of a seed is the same whatever the limit
    id: str  # unique within the task
    prompt: str  # the user's turn
    answer_prefix: str
    question: int  # character offset in `prompt` where the question starts (hold=question)
    references: tuple[str, ...]
    max_new_tokens: int
    cluster: str  # samples that share a text: the unit of resampling
    source: str  # "official", "embedded" or "synthetic" (generated, no text behind it)
    stop: tuple[str, ...] = ()  # strings that end the answer; they are no part of it
    chat: bool = True  # False: prompt and prefix as they are, without the model's chat template
    extra: dict[str, Any] = field(default_factory=dict)  # kept in the sample's row


@dataclass(frozen=True)
class Score:
    """value in [0, 1]; details go into the sample's row."""

    value: float
    details: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A task may also have, where it needs them:

    decoding: dict of how it was published to decode, such as {"temperature": 0.1}; what the user
        gives goes before it, and without it a task decodes greedily.
    follow_up(sample, output) -> Sample | None: the second question, once `output` is the first
        answer; the second answer is the one that is scored. None: the output stands.
    """

    name: str
    version: int  # raised by any edit that changes samples or scores

    def samples(self, text: Renderer, length: int, seed: int, limit: int) -> Iterator[Sample]:
        """The first `limit` samples at this length, in order; reproducible from `seed` alone."""
        ...

    def score(self, sample: Sample, output: str) -> Score:
        """Score the generated text (without the answer prefix)."""
        ...
