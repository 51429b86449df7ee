"""The embedded stand-in for the published records: generated questions over long texts.

A text is the shipped English prose (from a place of its own, from the start again where it ends)
with the question's sentences and tables spread over its whole depth. It grows to any length; the
question, its evidence and their places do not depend on the length. These records test the program
and rank methods on one model. They are not LongBench v2, and every row says source=embedded.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

from macbench.tasks.base import LengthUnfit, Renderer
from macbench.tasks.longbench_v2.data import Record
from macbench.tasks.longbench_v2.questions import KINDS, Question
from macbench.tasks.ruler.sentences import sentences
from macbench.tasks.sources import shipped

SIZE = 256  # questions of a seed
LETTERS = "ABCD"
PARAGRAPH = 5  # sentences
BINS = ((32_000, "short"), (128_000, "medium"))  # the published bins, in words; more is long


@dataclass(frozen=True)
class Draft:
    """A record whose text can still be of any length."""

    record: Record  # without a text
    pieces: tuple[str, ...]
    places: tuple[float, ...]  # of the pieces, as shares of the text, ascending
    start: int  # of the shipped sentences

    def grown(self, filler: int) -> Record:
        """The record with a text of this many shipped sentences around the pieces."""
        prose = _prose()
        line = [prose[(self.start + i) % len(prose)] for i in range(filler)]
        for place, piece in reversed([*zip(self.places, self.pieces, strict=True)]):
            line.insert(int(place * (filler + 1)), piece)
        context = "".join(_joined(line))
        words = len(context.split())
        length = next((name for most, name in BINS if words < most), "long")
        return replace(self.record, context=context, length=length)


def drafts(seed: int) -> Iterator[Draft]:
    """The SIZE drafts of a seed, in order; any four in a row have four different answers."""
    for index, (kind, letter) in enumerate(_plan(seed)):
        rng = random.Random(f"{seed}/{index}")
        made = KINDS[kind].make(rng)
        yield _draft(seed, index, letter, made, rng)


def fit(draft: Draft, tokens: Callable[[Record], int], sizes: list[int], room: int) -> Record:
    """The record with the longest text whose prompt has at most `room` tokens, nearly.

    sizes: tokens of every shipped sentence by itself, see `sizes_of`.
    """
    bare = tokens(draft.grown(0))
    if bare > room:
        raise LengthUnfit(
            f"longbench_v2 (embedded) at {room} tokens cannot hold a question with its evidence, "
            f"{bare} tokens; ask for a longer length."
        )
    filler, free = 0, room - bare
    while (size := sizes[(draft.start + filler) % len(sizes)]) <= free:
        filler, free = filler + 1, free - size
    grown = draft.grown(filler)
    while (over := tokens(grown) - room) > 0:  # joined, they can be more
        filler = max(0, filler - 1 - over * len(sizes) // sum(sizes))
        grown = draft.grown(filler)
    return grown


def sizes_of(text: Renderer) -> list[int]:
    """Tokens of every shipped sentence."""
    added = len(text.plain(""))
    return [len(text.plain(f" {sentence}")) - added for sentence in _prose()]


@cache
def _prose() -> list[str]:
    return sentences(shipped("english.txt").decode())


def _plan(seed: int) -> list[tuple[str, str]]:
    """Kinds and answers: both balanced over 32 questions, the answers over every four."""
    plan: list[tuple[str, str]] = []
    rng = random.Random(f"{seed}/plan")
    while len(plan) < SIZE:
        kinds = rng.sample([*KINDS], len(KINDS))
        for turn in rng.sample(range(4), 4):
            for half in (kinds[:4], kinds[4:]):
                four = [(kind, LETTERS[(at + turn) % 4]) for at, kind in enumerate(half)]
                plan += rng.sample(four, 4)
    return plan[:SIZE]


def _draft(seed: int, index: int, letter: str, made: Question, rng: random.Random) -> Draft:
    kind = KINDS[made.kind]
    answer, *others = made.candidates
    choices = rng.sample(others, 3)
    choices.insert(LETTERS.index(letter), answer)
    pieces = list(made.pieces)
    if not made.ordered:
        rng.shuffle(pieces)
    record = Record(
        id=hashlib.sha256(f"{seed}/{index}".encode()).hexdigest()[:24],
        domain=kind.domain,
        sub_domain=made.kind,
        difficulty=kind.difficulty,
        length="short",
        question=made.question,
        choices=(choices[0], choices[1], choices[2], choices[3]),
        answer=letter,
        context="",
    )
    # one place in each of as many equal parts: evidence lies over the whole depth of the text
    places = tuple((i + rng.random()) / len(pieces) for i in range(len(pieces)))
    return Draft(record, tuple(pieces), places, rng.randrange(len(_prose())))


def _joined(line: list[str]) -> Iterator[str]:
    """Sentences as paragraphs, tables by themselves."""
    for i, (piece, before) in enumerate(zip(line, [None, *line], strict=False)):
        if before is not None:
            block = "\n" in piece or "\n" in before
            yield "\n\n" if block or i % PARAGRAPH == 0 else " "
        yield piece
