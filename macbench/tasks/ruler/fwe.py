"""Frequent words: the three most frequent coded words of a Zipf-distributed text."""

from __future__ import annotations

import random
import string

from macbench.tasks.base import LengthUnfit
from macbench.tasks.ruler.fit import Count, Draft
from macbench.tasks.ruler.words import letters

TEMPLATE = (
    "Read the following coded text and track the frequency of each coded word. Find the three "
    "most frequently appeared coded words. {context}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'. What are the three "
    "most frequently appeared words in the above coded text?"
)
PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"
ANSWER = 50  # tokens to generate: the official code takes them off the length at once


class Maker:
    source = "synthetic"

    def __init__(self, length: int, seed: int, data: str | None, alpha: float, letters: int):
        self.room = length - ANSWER
        self.seed, self.alpha, self.letters = seed, alpha, letters
        self.rng = random.Random(seed)
        self.step = max(1, self.room // 32)
        self.drawn: tuple[int, list[str]] = -1, []  # the sample being drawn, its vocabulary
        if self.room // 50 < 4:
            raise LengthUnfit(f"ruler/fwe needs more than {length} tokens; ask for at least 256.")

    def least(self, index: int) -> int:
        return self.room // 50

    def units(self, count: Count, room: int) -> int:
        """Words of text of one vocabulary, which no sample then has."""
        words, vocabulary = self.room // 6, self._vocabulary()
        while count(self._write(words, vocabulary)) < room:
            words += self.step
        return words - self.step

    def draw(self, units: int, index: int) -> Draft:
        """A shorter draw of the same sample keeps its words, as in the official code."""
        if index != self.drawn[0]:
            self.drawn = index, self._vocabulary()
        return self._write(units, self.drawn[1])

    def _vocabulary(self) -> list[str]:
        """By rank; the most frequent word is the dots that the question says to ignore."""
        size = self.room // 50
        words = [self._word() for _ in range(size)]
        while len(set(words)) < size:
            words.append(self._word())
        words = sorted(set(words))
        random.Random(self.seed).shuffle(words)
        return ["...", *words[1:]]

    def _write(self, words: int, vocabulary: list[str]) -> Draft:
        from scipy.special import zeta

        scale = float(zeta(self.alpha))
        text = [
            word
            for rank, word in enumerate(vocabulary, 1)
            for _ in range(int(words * rank**-self.alpha / scale))
        ]
        random.Random(self.seed).shuffle(text)
        prompt = TEMPLATE.format(context=" ".join(text))
        return Draft(prompt, prompt.rindex("Question: "), PREFIX, vocabulary[1:4])

    def _word(self) -> str:
        return letters(self.letters, self.rng, string.ascii_lowercase)
