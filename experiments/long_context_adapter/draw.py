"""Draws that a seed determines: wordings, and the words, names and values that lessons are about.

No word is one of the evaluation's: keys and list words are words of the training texts that are in
none of the wonderwords lists, which RULER draws from; names are built of other parts than those of
the embedded question sets. Of every list of wordings the last is held out: only lessons for the
held-out scores use it, and of the words every eighth.
"""

from __future__ import annotations

import random
import re
import string
import uuid
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from zlib import crc32

from macbench.experiments.long_context_adapter.texts import works

FIRST = "Abel Bettina Cosmo Delia Emeric Fenna Gideon Hester Ivo Jemima Kasimir Lavinia Matthias"
FIRST += " Nerida Osric Philippa Ragnar Sabine Tobias Ulla Valentin Winifred Xenia Yorick Zora"
FIRST += " Ambrose Beatrix Caspar Dorothea Edmund Flora Gustav Henrietta Isidor Juliet Konrad Lydia"
LAST = "Ashdown Bellamy Crowther Dunstan Ellery Farrow Garrick Holloway Inskip Jessop Kinnaird"
LAST += " Lockhart Marchbank Nettlefold Oakshott Pemberton Quennell Ravenscroft Selwyn Tattersall"
LAST += " Underhill Vickery Wetherby Yelland Arkwright Birtwhistle Cobbold Dalrymple Entwistle"
HEAD = "Ash Bram Cald Drey Ever Fenn Glen Hart Ingle Kess Lamb Mill Nether Oak Penn Rush Stan Thorn"
HEAD += " Under Wend Yarrow Birch Copper Dove Elm"
TAIL = (
    "acre brook combe dale end field gate holt hurst ley mouth pool ridge shaw ton vale water well"
)
CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"


class Draw(random.Random):
    """A stream of draws. held: for the held-out scores, with held-out wordings and words."""

    def __init__(self, seed: str, held: bool = False):
        super().__init__(seed)
        self.held = held

    def wording(self, options: Sequence[str]) -> str:
        """One of several wordings; the last of them only where held."""
        return options[-1] if self.held else options[self.randrange(len(options) - 1)]

    def words(self, count: int) -> list[str]:
        """Different lower-case words."""
        return self.sample(word_list(self.held), count)

    def key(self, kind: str) -> str:
        """Something that values can belong to."""
        if kind == "uuid":
            return self.value("uuid")
        if kind == "name":
            return self.name()
        if kind == "code":
            return "".join(self.choices(string.ascii_uppercase, k=2)) + str(self.randint(100, 9999))
        return {"pair": "-", "words": " ", "snake": "_", "word": ""}[kind].join(
            self.words(1 if kind == "word" else 2)
        )

    def value(self, kind: str) -> str:
        """A number of 4 to 9 digits, a pair of words, a uuid or a code."""
        if kind == "number":
            digits = self.choice((4, 5, 6, 7, 7, 7, 8, 9))
            return str(self.randint(10 ** (digits - 1), 10**digits - 1))
        if kind == "uuid":
            return str(uuid.UUID(int=self.getrandbits(128), version=4))
        return self.key(kind)

    def name(self) -> str:
        return f"{self.choice(FIRST.split())} {self.choice(LAST.split())}"

    def names(self, count: int) -> list[str]:
        """People that share no part of their names."""
        firsts, lasts = self.sample(FIRST.split(), count), self.sample(LAST.split(), count)
        return [f"{first} {last}" for first, last in zip(firsts, lasts, strict=True)]

    def places(self, count: int) -> list[str]:
        """Different towns."""
        return self.sample([h + t for h in HEAD.split() for t in TAIL.split()], count)

    def letters(self, count: int) -> str:
        return "".join(self.choices(string.ascii_lowercase, k=count))

    def invented(self, letters: int) -> str:
        """A word that means nothing, consonants and vowels in turn."""
        turn = self.randrange(2)
        sets = (CONSONANTS, VOWELS)
        return "".join(self.choice(sets[(i + turn) % 2]) for i in range(letters))


@cache
def word_list(held: bool) -> list[str]:
    """Words of the texts, sorted, but none of wonderwords; held: every eighth, by checksum."""
    found: set[str] = set()
    for paragraphs in works().values():
        for paragraph in paragraphs:
            found.update(re.findall(r"(?<![\w'-])[a-z]{4,12}(?![\w'-])", paragraph))
    return sorted(w for w in found - evaluated() if (crc32(w.encode()) % 8 == 0) == held)


@cache
def evaluated() -> frozenset[str]:
    """Every word, and part of a hyphened word, that RULER's tasks can draw."""
    assets = files("wonderwords") / "assets"
    lists = (assets / f"{name}.txt" for name in ("nounlist", "adjectivelist", "verblist"))
    lines = (line.strip().lower() for file in lists for line in file.read_text().splitlines())
    return frozenset(part for line in lines for part in (line, *re.split(r"[\s-]+", line)))


def listed(items: Sequence[str], style: str) -> str:
    """Items as an answer: comma, and, blank, numbered, bullets, lines or semicolon."""
    if style == "and":
        return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
    if style == "oxford":
        return items[0] if len(items) == 1 else f"{', '.join(items[:-1])}, and {items[-1]}"
    if style == "numbered":
        return " ".join(f"{i}. {item}" for i, item in enumerate(items, 1))
    if style == "bullets":
        return "\n".join(f"- {item}" for item in items)
    return {"comma": ", ", "blank": " ", "lines": "\n", "semicolon": "; "}[style].join(items)
