"""Filling a length: how many haystack units a sample gets, in the official order of draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from macbench.tasks.base import LengthUnfit, Renderer


@dataclass(frozen=True)
class Draft:
    """A sample before it has a place in the task."""

    prompt: str
    question: int  # character offset in the prompt
    prefix: str  # the official answer prefix
    answers: list[str]
    cluster: str | None = None  # samples that share a text
    extra: dict[str, Any] = field(default_factory=dict)


Count = Callable[[Draft], int]  # tokens of a rendered draft


class Maker(Protocol):
    """A task's generator. Every draw advances its random stream, whether it is kept or not."""

    source: str  # "official", "embedded" or "synthetic"
    step: int  # units by which a draw that is too long is shortened

    def units(self, count: Count, room: int) -> int:
        """Units of haystack to start every sample from: the most that fit `room` tokens."""
        ...

    def draw(self, units: int, index: int) -> Draft | None:
        """A sample with this many units of haystack; None when there are no more samples."""
        ...

    def least(self, index: int) -> int:
        """Fewest units that make sense for this sample."""
        ...


def draw_samples(
    maker: Maker, text: Renderer, name: str, length: int, answer: int, prefixed: bool
) -> Iterator[Draft]:
    """Samples of at most `length` tokens, `answer` of them left for the answer."""

    def count(draft: Draft) -> int:
        return text.count(draft.prompt, draft.prefix if prefixed else "")

    room = length - answer
    units = maker.units(count, room)
    index = 0
    while True:
        used = units
        while (draft := maker.draw(used, index)) is not None and (size := count(draft)) > room:
            least = maker.least(index)
            if used <= least:
                raise LengthUnfit(
                    f"ruler/{name} does not fit into {length} tokens: its shortest sample takes "
                    f"about {size + answer}; ask for a longer length."
                )
            used = max(used - maker.step, least)
        if draft is None:
            return
        yield draft
        index += 1


def search(tokens: Callable[[int], int], room: int, low: int, high: int) -> int:
    """The official binary search: most units from `low` to `high` whose draw fits, else `low`."""
    best = low
    while low <= high:
        middle = (low + high) // 2
        if tokens(middle) <= room:
            best, low = middle, middle + 1
        else:
            high = middle - 1
    return best


def probe_and_search(
    tokens: Callable[[int], int], length: int, room: int, step: int, beside: int = 0
) -> int:
    """The official sizing: a draw of `step` units gives a unit's tokens, then the search.

    beside: tokens of text that stands next to the units.
    """
    per_unit = tokens(step) / step
    return search(tokens, room - beside, step, max(int(length / per_unit * 3), 2 * step))
