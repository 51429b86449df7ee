"""A generated text cut into its sections, by the published rules, and what its writing is like.

The head of section 1 belongs to the prompt, so it is put before the text. Cut at `#*#`; a block
belongs to the number behind its first `<type> `; of two blocks with one number the first counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from statistics import median

MARK = "#*#"
STOP = "*** finished"  # the published run stops here


@dataclass(frozen=True)
class Text:
    """A text and its sections."""

    whole: str  # with the prefix, up to STOP
    type: str
    blocks: list[str]  # what stands between the marks, the part before the first included
    sections: dict[int, str]  # number -> block, in the order of writing; any numbers
    repeated: int  # blocks left out because their number came before


def read(output: str, prefix: str, type_: str) -> Text:
    """Split what was generated after `prefix`; texts stored by version 1 go on behind STOP."""
    whole = prefix + output.partition(STOP)[0]
    blocks = whole.split(MARK)
    sections: dict[int, str] = {}
    repeated = 0
    for block in blocks:
        found = re.search(rf"{type_} (\d+)", block)
        if found and int(found[1]) in sections:
            repeated += 1
        elif found:
            sections[int(found[1])] = block
    return Text(whole, type_, blocks, sections, repeated)


def completion(text: Text, number: int) -> float:
    """Share of sections 1 to `number` that are there."""
    return len({*range(1, number + 1)} & {*text.sections}) / number


def first_missing(text: Text, number: int) -> int | None:
    """The first of sections 1 to `number` that is not there."""
    return next((at for at in range(1, number + 1) if at not in text.sections), None)


def median_words(text: Text) -> float | None:
    """Median number of words below a section's heading; headings alone give 0."""
    heading = re.compile(rf"{text.type} \d+\s*(\([^)]*\))?\s*:?")
    lengths = []
    for block in text.sections.values():
        found = heading.search(block)
        lengths.append(len(block[found.end() :].split()) if found else 0)
    return float(median(lengths)) if lengths else None


def distinct(text: Text, n: int = 4) -> float | None:
    """Distinct sequences of n words / all of them; None for a text of fewer words."""
    words = text.whole.lower().split()
    grams = [*zip(*(words[i:] for i in range(n)), strict=False)]
    return len({*grams}) / len(grams) if grams else None
