"""RULER's string match: lowercase substrings, no word boundaries, punctuation kept."""

from __future__ import annotations

import re
from collections.abc import Sequence

CONTROL = re.compile(r"[\x00-\x1f]")


def clean(output: str) -> str:
    """The official post-processing: control characters become newlines, ends are stripped."""
    return CONTROL.sub("\n", output.strip()).strip()


def _hits(output: str, references: Sequence[str]) -> list[float]:
    text = clean(output).lower()
    return [float(reference.lower() in text) for reference in references]


def match_all(output: str, references: Sequence[str]) -> float:
    """Share of the references that occur in the output."""
    hits = _hits(output, references)
    return sum(hits) / len(hits)


def match_part(output: str, references: Sequence[str]) -> float:
    """1 if any reference occurs: the references of a question are paraphrases."""
    return max(_hits(output, references))
