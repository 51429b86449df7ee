"""A judge without a model: every content word of the event stands in the section.

Words are compared by their stems, in lower case and in any order; both halves of an event such as
"Lantern Evening featuring Pumpkin Ravioli" must be there. Words that say only that one takes part
are left out, as a diary seldom says them in the words of the instruction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from macbench.tasks.longgenbench.judge import Question

SMALL = """
a an and around as at attend attending by each every featuring for from go going his her in into its
join joining like local my of on one or our part participate participating take taking the their
this to up use various visit visiting with your yourself
"""
STOP = frozenset(SMALL.split())
ENDINGS = {"'s": "", "ies": "y", "ing": "", "ed": "", "es": "", "s": ""}


class Keyword:
    """The judge of that name."""

    name = "keyword"

    def __init__(self) -> None:
        self.identity: dict[str, Any] = {"name": "keyword", "version": 1}

    def answer(self, questions: Sequence[Question]) -> Iterator[tuple[int, str]]:
        for at, question in enumerate(questions):
            there = content(question.event) <= stems(question.block)
            yield at, "yes" if there else "no"


def content(event: str) -> set[str]:
    """Stems of the words that say what an event is; all of them where every word is a small one."""
    words = _words(event)
    return {*map(stem, [w for w in words if w not in STOP and not w.isdigit()] or words)}


def stems(text: str) -> set[str]:
    return {*map(stem, _words(text))}


def stem(word: str) -> str:
    """The word without its ending, where at least three letters remain."""
    for ending, instead in ENDINGS.items():
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending) + instead
            break
    if len(word) > 3 and word[-1] == word[-2]:  # planning, plan
        word = word[:-1]
    return word.removesuffix("e") if len(word) > 3 else word


def _words(text: str) -> list[str]:
    """Lower-case words; `_` and `-` part them as blanks do."""
    return re.findall(r"[^\W_]+(?:'s\b)?", text.lower().replace("’", "'"))  # noqa: RUF001
