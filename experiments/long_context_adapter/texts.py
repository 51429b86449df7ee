"""The shipped texts, and haystacks of them."""

from __future__ import annotations

import hashlib
import json
import lzma
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from macbench.errors import MacbenchError

if TYPE_CHECKING:
    from macbench.experiments.long_context_adapter.draw import Draw

SHA256 = "ff61e5055ba78e05ed2950c5ad4cdf19e573034946d171b8dbc28ba6c566fc1c"
HELD = "Lewis Carroll: Alice's Adventures in Wonderland (1865)"  # read for the held-out scores only
Size = Callable[[str], int]  # tokens of a piece of text, nearly


@cache
def works() -> dict[str, list[str]]:
    """Paragraphs of every work, by title."""
    packed = files("macbench.experiments.long_context_adapter") / "texts.json.xz"
    text = lzma.decompress(packed.read_bytes())
    if hashlib.sha256(text).hexdigest() != SHA256:
        raise MacbenchError(f"'{packed}' is not the expected file; install macbench again.")
    return json.loads(text)


@cache
def trained() -> dict[str, list[str]]:
    return {title: lines for title, lines in works().items() if title != HELD}


@cache
def _sentences(title: str) -> list[str]:
    """Sentences of a work; the first of a paragraph begins with a newline."""
    split = [re.split(r"(?<=[.!?]) (?=[A-Z\"'])", line) for line in works()[title]]
    return [("\n" if i == 0 else "") + s for line in split for i, s in enumerate(line)]


def prose(draw: Draw, size: Size, room: int) -> list[str]:
    """Sentences in their order, from a random place in a random work, of `room` tokens."""
    titles = [HELD] if draw.held else [*trained()]
    found: list[str] = []
    while room > 0:
        lengths = [sum(map(len, works()[title])) for title in titles]
        line = _sentences(draw.choices(titles, lengths)[0])
        start = draw.randrange(len(line))
        for sentence in line[start : start + 400]:
            room -= size(sentence)
            if room < 0:
                break
            found.append(sentence)
    return found


NOISE = (  # what is said again and again
    "Rain fell on the roof. The kettle boiled. Nobody spoke. The lamp was lit.",
    "A cart went by. The dog barked twice. Then it was quiet again.",
    "The river runs to the sea. The wind comes from the west. Bread is baked at dawn.",
    "Nothing of note happened. The clock was wound. The door was closed.",
    "One step follows another. Left, right, left, right. The road goes on.",
    "The shop opens at nine. The shop closes at six. On holidays it stays shut.",
    "Snow lay on the hills. Smoke rose from the chimneys. The children were at school.",
    "Stones are hard. Feathers are soft. Iron is heavy. Smoke is light.",
    "The tide came in. The tide went out. Gulls cried over the pier.",
    "All is well. The watch is set. The gate is barred. Sleep in peace.",
    "This line is only here to take up room. Please read on.",
    "Winter, spring, summer, autumn. Then winter comes once more.",
)


def haystack(draw: Draw, size: Size, room: int, needles: Sequence[str], kind: str = "") -> str:
    """Needles in their order, spread over `room` tokens of prose or of repeated lines."""
    kind = kind or draw.choice(("prose", "prose", "prose", "noise"))
    room -= sum(map(size, needles))
    if kind == "prose":
        lines = prose(draw, size, room)
    else:
        noise = draw.wording(NOISE)
        lines = ["\n" + noise] * max(1, room // size("\n" + noise))
    return scatter(draw, lines, needles, own_line=kind != "prose")


def scatter(draw: Draw, lines: list[str], needles: Sequence[str], own_line: bool) -> str:
    """Needles between lines, in their order; a line that begins with a newline starts a new one."""
    places = sorted((draw.randrange(len(lines) + 1) for _ in needles), reverse=True)
    lines = lines.copy()
    for place, needle in zip(places, reversed(needles), strict=True):
        lines.insert(place, ("\n" if own_line else "") + needle)
    return "".join(s if s.startswith("\n") else " " + s for s in lines).strip()
