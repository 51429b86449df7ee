"""What the engine is asked and answers; the rows' tokens on the host, and where they end."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from macbench.models import Model


@dataclass(frozen=True)
class Request:
    """One sample for the engine."""

    tokens: list[int]  # the whole prompt
    max_new: int
    key: int  # identifies (task, sample, seed) for everything random
    hold: int = 0  # last prompt tokens decoded through the method instead of prefilled
    question: int | None = None  # token index where the question starts
    stop: tuple[str, ...] = ()  # strings that end the answer; for models with a tokenizer
    made: int = 0  # of the answer's tokens, those that end `tokens` already
    steps: int = 0  # decode steps that made them
    decoded: int = 0  # of `tokens` without the held ones, those that had been decoded for it


@dataclass
class Answer:
    """One method's answer to one request."""

    # generated, without the stop token; a stop string stays, with what came until it was seen
    tokens: list[int]
    stopped: str  # "stop" (token), "stop_string", "length", or "" while it grows
    reads: dict  # Trace.fetch of the row, and Audit.fetch
    prefill_s: float  # of the sample, shared by all methods
    decode_s: float  # of the block, shared by all its rows
    end: int | None = None  # the stop token
    resumed: list[int] = field(default_factory=list)  # tokens there were when it was continued
    begin_s: float = 0.0  # the method's own work on the prompt, as if no other method had shared it


def cut(text: str, stop: Collection[str]) -> str:
    """The text before its first stop string; all of it where it holds none."""
    return re.split("|".join(map(re.escape, stop)), text, maxsplit=1)[0] if stop else text


class Transcript:
    """What the rows of a block have written, on the host; rows are method-major as in `Rows`."""

    def __init__(
        self,
        model: Model,
        requests: Sequence[Request],
        hold: Sequence[int],
        firsts: Sequence[int],
        methods: int,
    ):
        self.heard = 0  # decode steps
        one = zip(requests, hold, firsts, strict=True)
        lines = [(request, held, first) for request, held, first in one]
        self.lines = [Line(model, *line) for _ in range(methods) for line in lines]

    def hear(self, sampled: Tensor, made: Tensor) -> None:
        """sampled [R, steps so far], made [R] as in `Rows`: only what is new is brought over."""
        fresh = sampled[:, self.heard :].tolist()
        self.heard = sampled.shape[1]
        for line, tokens, count in zip(self.lines, fresh, made.tolist(), strict=True):
            line.hear(tokens, count)

    def ended(self) -> list[int]:
        """The rows whose text holds a stop string."""
        return [row for row, line in enumerate(self.lines) if line.found]


class Line:
    """The answer of one row as far as it is."""

    def __init__(self, model: Model, request: Request, hold: int, first: int):
        """first: what the prefill chose; the answer's first token where nothing is held."""
        self.model, self.request = model, request
        before = request.tokens[len(request.tokens) - request.made :]
        self.sampled = before if hold else [*before, first]  # goes on behind the end
        self.skip = max(hold - 1, 0)  # sampled while held tokens were fed
        self.made = 0
        self.found = False  # whether the text holds a stop string

    def hear(self, sampled: list[int], made: int) -> None:
        """sampled: of further steps; made: tokens of the answer by now."""
        self.sampled += sampled[self.skip :]
        self.skip = max(self.skip - len(sampled), 0)
        if self.request.stop and not self.found and made > self.made:
            assert self.model.text is not None
            # a token is a byte of text or more: no further back can such a string begin
            reach = max(len(string.encode()) for string in self.request.stop)
            text = self.model.text.decode(self.sampled[max(self.made - reach, 0) : made])
            self.found = any(string in text for string in self.request.stop)
        self.made = made

    def answer(self, reads: dict, prefill_s: float, decode_s: float) -> Answer:
        tokens, end = self.sampled[self.request.made : self.made], None
        whole = len(tokens) == self.request.max_new
        if tokens and tokens[-1] in self.model.stop_ids:
            *tokens, end = tokens
        why = "stop_string" if self.found else "stop" if end is not None else "length"
        ended = self.found or end is not None or whole
        return Answer(tokens, why if ended else "", reads, prefill_s, decode_s, end)
