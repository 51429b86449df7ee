"""From lessons to rows of tokens: whole rows of one length, filled with lessons one after another.

A row's arrays: `tokens`, one more than its length, so that every place has one that follows;
`positions`, which rise and may skip; `learnt`, the class of the token that follows (0 not learnt,
1 answer, 2 text); `span`, the number of the answer that the token that follows is part of, or 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from macbench.errors import MacbenchError
from macbench.experiments.long_context_adapter.draw import Draw
from macbench.experiments.long_context_adapter.lessons.base import Lesson, Turn
from macbench.experiments.long_context_adapter.lessons.choices import choices
from macbench.experiments.long_context_adapter.lessons.counting import coded, repeated
from macbench.experiments.long_context_adapter.lessons.documents import documents
from macbench.experiments.long_context_adapter.lessons.retrieval import retrieval
from macbench.experiments.long_context_adapter.lessons.tracing import tracing
from macbench.experiments.long_context_adapter.lessons.writing import writing
from macbench.experiments.long_context_adapter.texts import prose

MAKERS = {
    "retrieval": retrieval,
    "tracing": tracing,
    "repeated": repeated,
    "coded": coded,
    "documents": documents,
    "choices": choices,
    "writing": writing,
}
PLAIN, OWN = "prose", "own"  # the other two: text without a chat, and chats of the model itself
KINDS = (*MAKERS, PLAIN, OWN)
CLASSES = {"": 0, "answer": 1, "text": 2}
DENSE = ("choices", "documents")  # mostly short ones: what is hard there is not the length
LEAST = 400  # tokens below which a row's rest is plain text
SHRINK = 0.97  # of the room, when a lesson came out too long


@dataclass(frozen=True)
class Frame:
    """A chat template cut at the turns: what stands before, between and after them."""

    opening: str
    to_reply: str
    end: str  # the token that ends a turn
    to_next: str

    @classmethod
    def of(cls, tokenizer: Any) -> Frame:
        """From a transformers tokenizer."""
        said = [("user", "\u2402a"), ("assistant", "\u2402b"), ("user", "\u2402c")]
        turns = [{"role": role, "content": text} for role, text in said]
        whole = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        opening, rest = whole.split("\u2402a")
        to_reply, rest = rest.split("\u2402b")
        to_next, _ = rest.split("\u2402c")
        end = tokenizer.eos_token
        if not end or not to_next.startswith(end):
            raise MacbenchError(
                f"the chat template does not end a reply with the tokenizer's eos_token, {end!r}, "
                "so nothing would teach a model to stop; take a tokenizer whose two agree."
            )
        return cls(opening, to_reply, end, to_next.removeprefix(end))


@dataclass(frozen=True)
class Row:
    tokens: np.ndarray
    positions: np.ndarray
    learnt: np.ndarray
    span: np.ndarray


@dataclass(frozen=True)
class Spec:
    """What rows are made with; the same in every worker."""

    tokenizer: str  # path of a tokenizer.json
    frame: Frame
    seed: int
    shares: Mapping[str, float]
    skipping: float  # share of rows whose positions skip
    spans: tuple[int, ...]  # what positions may reach
    own: str | None  # path of what the base wrote itself: own.write, as JSON


class Writer:
    """Makes rows from a tokenizer and a mixture."""

    def __init__(self, spec: Spec):
        from tokenizers import Tokenizer

        self.spec = spec
        self.tokenizer = Tokenizer.from_file(spec.tokenizer)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.size = lru_cache(200_000)(lambda text: len(self.ids(text)))
        own = json.loads(Path(spec.own).read_text()) if spec.own else {}
        self.own = own.get("chats", [])
        chats = ["".join(text for text, _ in self._chat(*chat)) for chat in self.own]
        self.written: list[str] = chats + own.get("passages", [])

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def row(self, draw: Draw, length: int, kind: str | None = None) -> Row:
        """A row of `length` tokens; kind: of its lessons, else each is drawn from the mixture."""
        tokens: list[int] = []
        learnt: list[int] = []  # class of the token itself
        span: list[int] = []
        spans = 0
        while (left := length + 1 - len(tokens)) > LEAST:
            room = left if draw.random() < 0.6 else draw.randint(LEAST, left)
            own = kind or self.kind(draw, room)
            if own in DENSE and draw.random() < 0.5:  # more questions a row
                room = min(room, draw.randint(800, 3000))
            pieces = self.pieces(draw, own, room)
            for text, name in pieces:
                ids = self.ids(text)
                spans += name == "answer"
                tokens += ids
                learnt += [CLASSES[name]] * len(ids)
                span += [spans if name == "answer" else 0] * len(ids)
            if len(tokens) > length + 1:
                raise AssertionError("a lesson is longer than its room")
        while need := length + 1 - len(tokens):
            ids = self.ids(plain(draw, self.size, need + 500))[:need]
            tokens += ids
            learnt += [CLASSES["text"]] * len(ids)
            span += [0] * len(ids)
        return Row(
            np.array(tokens, np.uint16),
            positions(draw, length, self.spec.skipping, self.spec.spans),
            np.array(learnt[1:], np.uint8),
            np.array(span[1:], np.uint16),
        )

    def kind(self, draw: Draw, room: int) -> str:
        shares = {k: s for k, s in self.spec.shares.items() if k != OWN or self.own}
        return draw.choices([*shares], [*shares.values()])[0]

    def pieces(self, draw: Draw, kind: str, room: int) -> list[tuple[str, str]]:
        """Text of `room` tokens at most, cut at what is learnt."""
        if kind == PLAIN:
            return [(plain(draw, self.size, room), "text")]
        if kind == OWN:
            return self._chats(draw, room)
        state, asked = draw.getstate(), room - self.size(self.spec.frame.opening) - 16
        while True:
            draw.setstate(state)
            pieces = self.framed(MAKERS[kind](draw, self.size, asked))
            count = sum(len(self.ids(text)) for text, _ in pieces)
            if count <= room:
                return pieces
            if asked < LEAST // 2:
                return [(plain(draw, self.size, room), "text")]
            asked = int(min(asked * SHRINK, asked - (count - room)))

    def framed(self, lesson: Lesson) -> list[tuple[str, str]]:
        """A lesson in the model's chat template."""
        frame = self.spec.frame
        pieces: list[tuple[str, str]] = []
        before = frame.opening
        for turn in lesson.turns:
            pieces.append((before + turn.ask + frame.to_reply + turn.given, ""))
            *parts, (last, kind) = turn.reply
            pieces += [*parts, (last + frame.end, kind)]  # to stop is a part of the answer
            before = frame.to_next
        return pieces

    def _chats(self, draw: Draw, room: int) -> list[tuple[str, str]]:
        """Chats of the model itself, as many as there is room for."""
        found: list[tuple[str, str]] = []
        room = min(room, 3000)
        while True:
            chat = self._chat(*draw.choice(self.own))
            room -= sum(len(self.ids(text)) for text, _ in chat)
            if room < 0:
                return found or [(plain(draw, self.size, LEAST), "text")]
            found += chat

    def _chat(self, ask: str, said: str) -> list[tuple[str, str]]:
        return self.framed(Lesson(OWN, (Turn(ask, "", ((said, "text"),)),)))

    def anchor(self, draw: Draw, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and positions of a row by which the language is held to the base's.

        Pieces of books, and of what the base wrote itself, by turns. In half of the rows positions
        skip once, between two pieces: the language is the same with what is far away. (To move a
        whole row would change nothing: rotary embeddings see distances.)
        """
        tokens: list[int] = []
        cuts: list[int] = []
        turn = draw.randint(0, 1)
        while len(tokens) < length:
            own = self.written and (len(cuts) + turn) % 2
            piece = draw.choice(self.written) if own else plain(draw, self.size, 500)
            cuts.append(len(tokens))
            tokens += self.ids(piece)
        places = np.arange(length)
        if len(cuts) > 1 and draw.random() < 0.5:
            free = max((*self.spec.spans, length)) - length
            places[draw.choice(cuts[1:]) :] += draw.randint(0, free)
        return np.array(tokens[:length]), places


def plain(draw: Draw, size: Any, room: int) -> str:
    return "".join(s if s.startswith("\n") else " " + s for s in prose(draw, size, room)).lstrip(
        " "
    )


def positions(draw: Draw, length: int, share: float, spans: tuple[int, ...]) -> np.ndarray:
    """0, 1, 2, …; in a share of rows with up to 8 skips, so that the last is below a longer span.

    So a short row teaches distances that only long rows have (positional skip-wise training, Zhu et
    al., arXiv 2309.10400).
    """
    made = np.arange(length, dtype=np.int32)
    longer = [span for span in spans if span > length]
    if draw.random() < share and longer:
        free = draw.choice(longer) - length
        places = sorted(draw.sample(range(1, length), draw.randint(1, 8)))
        cuts = sorted(draw.randint(0, free) for _ in places)
        for place, skip in zip(places, np.diff([0, *cuts]), strict=True):
            made[place:] += int(skip)
    return made
