"""Needles in a haystack: eight of the 13 tasks.

Some special magic numbers are hidden within the following text. …
<haystack> One of the special magic numbers for KEY is: VALUE. <haystack>
What are all the special magic numbers for KEY mentioned in the provided text?
"""

from __future__ import annotations

import random
import re
from itertools import pairwise

from macbench.tasks import sources
from macbench.tasks.ruler.fit import Count, Draft, probe_and_search
from macbench.tasks.ruler.sentences import sentences
from macbench.tasks.ruler.words import value

TEMPLATE = (
    "Some special magic {type} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {type} afterwards.\n{context}\n"
    "What are all the special magic {type} for {query} mentioned in the provided text?"
)
PREFIX = " The special magic {type} for {query} mentioned in the provided text are"
NEEDLE = "One of the special magic {type} for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DEPTHS = [round(100 * i / 39) for i in range(40)]  # percent; no ties, so any rounding agrees
SINGULAR = (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer"))


class Maker:
    def __init__(
        self,
        length: int,
        seed: int,
        data: str | None,
        haystack: str,
        keys: int = 1,
        per_key: int = 1,
        queries: int = 1,
        key_type: str = "words",
        values: str = "numbers",
    ):
        self.length, self.seed = length, seed
        self.rng = random.Random(seed)
        self.haystack, self.keys, self.per_key, self.queries = haystack, keys, per_key, queries
        self.key_type, self.values = key_type, values
        self.source = "synthetic"
        if haystack == "essay":
            text, self.source = sources.essays(data)
            self.words = re.sub(r"\s+", " ", text).split(" ")
        # official: 500 words; below the official lengths that would leave samples half empty
        words, lines = (500, 25) if length >= 4096 else (50, 5)
        self.step = words if haystack == "essay" else lines

    def least(self, index: int) -> int:
        return self.keys * self.per_key  # lines to put the needles between

    def units(self, count: Count, room: int) -> int:
        return probe_and_search(lambda n: count(self.draw(n, 0)), self.length, room, self.step)

    def draw(self, units: int, index: int) -> Draft:
        rng = self.rng
        names, answers, needles = [], [], []
        for _ in range(self.keys):
            names.append(value(self.key_type, rng))
            answers.append([value(self.values, rng) for _ in range(self.per_key)])
            needles += [
                NEEDLE.format(type=self.values, key=names[-1], value=v) for v in answers[-1]
            ]
        random.Random(self.seed).shuffle(needles)
        context = (
            self._essay(units, needles) if self.haystack == "essay" else self._lines(units, needles)
        )
        asked = rng.sample(range(self.keys), self.queries)
        query = names[asked[0]]
        if len(asked) > 1:
            query = ", ".join(names[i] for i in asked[:-1]) + f", and {names[asked[-1]]}"
        template, prefix, kind = TEMPLATE, PREFIX, self.values
        if self.queries * self.per_key == 1:
            for many, one in SINGULAR:
                template, prefix = template.replace(many, one), prefix.replace(many, one)
            kind = kind[:-1]
        prompt = template.format(type=kind, context=context, query=query)
        question = template.rpartition("\n")[2].format(type=kind, query=query)
        return Draft(
            prompt=prompt,
            question=len(prompt) - len(question),
            prefix=prefix.format(type=kind, query=query),
            answers=[v for i in asked for v in answers[i]],
        )

    def _essay(self, units: int, needles: list[str]) -> str:
        repeats = -(-units // len(self.words))
        parts = sentences(" ".join((self.words * repeats)[:units]).strip())
        depths = self.rng.sample(DEPTHS, len(needles))
        places = sorted(int(len(parts) * (depth / 100)) for depth in depths)
        # official: an empty stretch (before the first sentence, after the last) keeps its blank
        cuts = pairwise([0, *places, len(parts)])
        first, *rest = (" ".join(parts[start:end]) for start, end in cuts)
        return " ".join([first, *(f"{n} {text}" for n, text in zip(needles, rest, strict=True))])

    def _lines(self, units: int, needles: list[str]) -> str:
        if self.haystack == "noise":
            lines = [NOISE] * units
        else:
            lines = [
                NEEDLE.format(
                    type=self.values,
                    key=value(self.key_type, self.rng),
                    value=value(self.values, self.rng),
                )
                for _ in range(units)
            ]
        places = sorted(self.rng.sample(range(units), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            lines.insert(place, needle)
        return "\n".join(lines)
