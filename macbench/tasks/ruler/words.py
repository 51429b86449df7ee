"""Words, numbers and identifiers of the tasks; word lists of wonderwords 3.0.1."""

from __future__ import annotations

import random
import string
import uuid
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from itertools import accumulate


@cache
def word_list(name: str) -> tuple[str, ...]:
    """nounlist, adjectivelist or verblist, as shipped."""
    text = (files("wonderwords") / "assets" / f"{name}.txt").read_text("utf-8")
    return tuple(line.rstrip() for line in text.splitlines())


class Pairs(Sequence[str]):
    """Every adjective-noun pair, sorted and distinct, without holding the six million of them.

    Pairs of adjectives that differ before their first hyphen sort as those adjectives do, so only
    adjectives that share that part have to be listed together.
    """

    def __init__(self, adjectives: Iterable[str], nouns: Iterable[str]):
        self.nouns = sorted(set(nouns))
        heads: dict[str, set[str]] = {}
        for adjective in adjectives:
            heads.setdefault(adjective.partition("-")[0] + "-", set()).add(adjective + "-")
        self.groups: list[tuple[str, list[str]]] = []  # what a group's pairs start with, the rest
        for _, group in sorted(heads.items()):
            if len(group) == 1:
                self.groups.append((group.pop(), self.nouns))
            else:
                self.groups.append(("", sorted({a + noun for a in group for noun in self.nouns})))
        self.ends = list(accumulate(len(rest) for _, rest in self.groups))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index):
        at = bisect_right(self.ends, index)
        start, rest = self.groups[at]
        return start + rest[index - self.ends[at]]  # counted from the group's end


@cache
def pairs() -> Pairs:
    """The keys of the needle tasks, in the order of the official list."""
    return Pairs(word_list("adjectivelist"), word_list("nounlist"))


def value(kind: str, rng: random.Random) -> str:
    """A random needle part: numbers (7 digits), words (a pair) or uuids."""
    if kind == "numbers":
        return str(rng.randint(10**6, 10**7 - 1))
    if kind == "words":
        return rng.choice(pairs())
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def letters(count: int, rng: random.Random, alphabet: str = string.ascii_uppercase) -> str:
    return "".join(rng.choices(alphabet, k=count))
