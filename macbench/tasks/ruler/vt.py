"""Variable tracking: which variables got a value, through a chain of assignments in noise.

    VAR ABCDE = 12345 … VAR FGHIJ = VAR ABCDE … -> ABCDE FGHIJ …

A worked example of its own names and value precedes every sample.
"""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np

from macbench.tasks.ruler.fit import Count, Draft, probe_and_search
from macbench.tasks.ruler.niah import NOISE
from macbench.tasks.ruler.words import letters

TEMPLATE = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    "{context}\n"
    "Question: Find all variables that are assigned the value {value} in the text above."
)
PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} "
    "variables are assigned the value {value}, they are: "
)
EXAMPLE_TOKENS, EXAMPLE_STEP = 500, 5  # official room of the worked example
EXAMPLE_VALUE = "12345"  # while it is sized


class Maker:
    source = "synthetic"

    def __init__(self, length: int, seed: int, data: str | None, hops: int):
        self.length, self.names = length, hops + 1
        self.rng = random.Random(seed)
        self.numbers = np.random.RandomState(seed)
        self.step = 10 if length >= 4096 else 5
        self.example: tuple[int, list[int]] = EXAMPLE_STEP, []  # noise lines, places of the chain

    def least(self, index: int) -> int:
        return self.names

    def units(self, count: Count, room: int) -> int:
        """Sizes the worked example, then the task beside it."""
        names: list[str] = []
        template = count(Draft("", 0, "", []))  # of the model: the example has none of its own

        def example(lines: int) -> int:
            nonlocal names
            names = self._names(3)
            self.example = lines, self._places(lines)
            return count(_draft(*self.example, names, EXAMPLE_VALUE)) - template

        lines = probe_and_search(example, EXAMPLE_TOKENS, EXAMPLE_TOKENS, EXAMPLE_STEP)
        while example(lines) > EXAMPLE_TOKENS and lines > EXAMPLE_STEP:
            lines -= EXAMPLE_STEP
        beside = Draft(self._solved(names, EXAMPLE_VALUE), 0, "", [])
        taken = count(beside) - template

        def task(lines: int) -> int:
            return count(self._task(lines))

        return probe_and_search(task, self.length, room, self.step, taken)

    def draw(self, units: int, index: int) -> Draft:
        task = self._task(units)
        example = self._solved([letters(3, self.rng) for _ in range(self.names)], self._value())
        prompt = f"{example}\n{task.prompt}"
        return Draft(prompt, prompt.rindex("Question: "), task.prefix, task.answers)

    def _task(self, lines: int) -> Draft:
        names, value = self._names(5), self._value()
        return _draft(lines, self._places(lines), names, value)

    def _solved(self, names: list[str], value: str) -> str:
        draft = _draft(*self.example, names, value)
        return f"{draft.prompt}{draft.prefix} {' '.join(names)}\n"

    def _names(self, size: int) -> list[str]:
        names: dict[str, None] = {}
        while len(names) < self.names:
            names.setdefault(letters(size, self.rng))
        return list(names)

    def _value(self) -> str:
        return str(self.numbers.randint(10_000, 99_999))

    def _places(self, lines: int) -> list[int]:
        return sorted(self.rng.sample(range(lines), self.names))


def _draft(lines: int, places: list[int], names: list[str], value: str) -> Draft:
    """The task over so many noise lines, an assignment before each of the places."""
    chain = [f"VAR {names[0]} = {value}"]
    chain += [f"VAR {new} = VAR {old} " for old, new in pairwise(names)]
    text = [NOISE] * lines
    for place, line in zip(reversed(places), reversed(chain), strict=True):
        text.insert(place, line)
    context = "\n".join(text).replace(". \n", ".\n")
    prompt = TEMPLATE.format(context=context, value=value)
    prefix = PREFIX.format(count=len(names), value=value)
    return Draft(prompt, prompt.rindex("Question: "), prefix, names)
