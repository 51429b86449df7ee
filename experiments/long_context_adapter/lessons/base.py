"""A lesson: turns of a conversation, and which of their parts are learnt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from macbench.experiments.long_context_adapter.draw import Draw

Part = tuple[str, Literal["answer", "text"]]  # learnt in full, or as language is


@dataclass(frozen=True)
class Turn:
    """What the user says, what of the reply is given, and the rest of it, which is learnt."""

    ask: str
    given: str
    reply: tuple[Part, ...]


@dataclass(frozen=True)
class Lesson:
    kind: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Question:
    """A question with four choices, and what of a text answers it."""

    ask: str
    four: list[str]  # the right one first
    said: list[str]  # sentences, in the order in which they stand in the text
    reason: Callable[[list[str]], str]  # what a reply goes by, from the choices in their order


GIVEN = 0.65  # share of replies whose opening words are given


def reply(draw: Draw, ask: str, opening: str, answer: str, given: float = GIVEN) -> Turn:
    """A turn whose reply opens with a sentence that ends in the answer; given: how often it is."""
    joined = answer if not opening or opening[-1].isspace() else f" {answer}"
    if opening and draw.random() < given:
        return Turn(ask, opening, ((joined, "answer"),))
    parts: tuple[Part, ...] = ((joined, "answer"),)
    return Turn(ask, "", ((opening.lstrip(), "text"), *parts) if opening.strip() else parts)


def conversation(
    draw: Draw,
    kind: str,
    intro: str,
    context: str,
    asked: Sequence[tuple[str, str, str]],
    given: float = GIVEN,
) -> Lesson:
    """A text with one or more questions (ask, opening, answer), the first beside the text."""
    first, *others = asked
    # the question: mostly after the text, sometimes before it, sometimes both
    place = draw.choices(("after", "before", "both"), (6, 1, 2))[0]
    parts = [intro] if intro else []
    if place != "after":
        parts.append(first[0])
    parts.append(context)
    if place != "before" or not intro:
        parts.append(first[0])
    ask = draw.choice(("\n", "\n\n")).join(parts)
    asks = [(ask, *first[1:]), *others]
    turns = [reply(draw, *each, given) for each in asks]
    return Lesson(kind, tuple(turns))
