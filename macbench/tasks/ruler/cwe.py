"""Common words: the ten most frequent words of a numbered list, after a worked example."""

from __future__ import annotations

import random

from macbench.tasks import sources
from macbench.tasks.base import LengthUnfit
from macbench.tasks.ruler.fit import Count, Draft, search
from macbench.tasks.ruler.words import word_list

TEMPLATE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?"
)
PREFIX = " Answer: The top 10 words that appear most often in the list are:"
PROBE = 4096  # words of the official first sizing draw
STEP = 10


class Maker:
    source = "synthetic"
    step = STEP

    def __init__(
        self, length: int, seed: int, data: str | None, common: int, often: int, seldom: int
    ):
        self.length, self.seed, self.data, self.common = length, seed, data, common
        self.counts = (often, seldom) if length >= 4096 else (6, 1)
        self.example = (40, 10, 3) if length >= 4096 else (20, 3, 1)  # words, often, seldom
        self.rng = random.Random(seed)
        pool = {*word_list("nounlist"), *word_list("adjectivelist"), *word_list("verblist")}
        self.words = sorted(pool)
        random.Random(seed).shuffle(self.words)

    def least(self, index: int) -> int:
        return self.common

    def units(self, count: Count, room: int) -> int:
        def tokens(words: int) -> int:
            if words > len(self.words) and not sources.more_words(self.data):
                return room + 1
            return count(self.draw(words, 0))

        high = max(int(self.length // (tokens(PROBE) / PROBE)) * 2, 2 * STEP)
        most = search(tokens, room, STEP, high)
        if most == len(self.words) and not sources.more_words(self.data):
            raise LengthUnfit(
                f"ruler/cwe cannot fill {self.length} tokens with its {most} words; get the longer "
                "list with `macbench fetch ruler`, or ask for a shorter length."
            )
        return most

    def draw(self, units: int, index: int) -> Draft:
        example, answers = self._instance(*self.example)
        task, common = self._instance(units, *self.counts)
        prompt = f"{example}{PREFIX} {_numbered(answers)}\n{task}"
        return Draft(prompt, prompt.rindex("Question: "), PREFIX, common)

    def _instance(self, words: int, often: int, seldom: int) -> tuple[str, list[str]]:
        pool = self.words if words <= len(self.words) else sources.more_words(self.data)
        if words > len(pool):
            raise LengthUnfit(f"ruler/cwe has {len(pool)} words; ask for a shorter length.")
        drawn = self.rng.sample(pool, words)
        common, rest = drawn[: self.common], drawn[self.common :]
        text = common * often + rest * seldom
        random.Random(self.seed).shuffle(text)
        return TEMPLATE.format(context=_numbered(text)), common


def _numbered(words: list[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))
