"""Long structured writing: numbered sections of real length, events where they were asked for.

What is learnt in full is the frame: that headings follow and which, how their text opens, what
the events are and how it ends. Only some headings and events of a document, drawn anew for each,
since a hundred easy ones would outweigh all other answers of a batch.
"""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import Literal

from macbench.experiments.long_context_adapter.draw import Draw
from macbench.experiments.long_context_adapter.lessons import scenes
from macbench.experiments.long_context_adapter.lessons.base import Lesson, Part, Turn
from macbench.experiments.long_context_adapter.lessons.request import (
    BEGINS,
    DATES,
    SHAPES,
    STOPS,
    WEEKS,
    Plan,
    new_mark,
    request,
)
from macbench.experiments.long_context_adapter.lessons.scenes import SCENES, capital, sentences
from macbench.experiments.long_context_adapter.texts import Size

WORDS = (60, 85, 100, 120, 150, 200)  # of a section, at least
SHORT = 40  # where there is no room for five of those
OVER = 10  # words by which a section is longer, nearly
MOST = 110  # sections
LEARNT = 3  # headings that are learnt in full, and as many sections' events
OPENING = r"( ?\S+ \S+ \S+)(.*)"  # three words, which say whether an event follows
LABELLED = 0.4  # share of documents whose sections have parts, where they are long enough
GIVEN = 0.75  # share of questions that end with the first heading


def writing(draw: Draw, size: Size, room: int) -> Lesson:
    """The whole document as one reply; its first heading may be given in the question."""
    brief = room < 1000
    example = draw.randint(60, 150) if room > 1500 and draw.random() < 0.5 else 0
    plan = make_plan(draw, size, room - 2 * example - (300 if brief else 460))
    ask = request(draw, plan, example, brief)
    given = draw.random() < GIVEN
    if given:
        begin = draw.wording(BEGINS).format(s=new_mark(draw))
        ask += draw.choice(("\n", " ", "\n\n")) + begin if begin else ""
        ask += "\n" + plan.number(1) + plan.rest(1)
    return Lesson("writing", (Turn(ask, "", tuple(_reply(draw, plan, given))),))


def make_plan(draw: Draw, size: Size, room: int) -> Plan:
    """A document of `room` tokens, nearly."""
    scene = draw.choice(SCENES)
    sample = " ".join(sentences(draw, scene, 100))
    rate = size(sample) / len(sample.split()) * 1.02
    unit, mark = draw.choice(scene.units.split("|")), new_mark(draw)
    dates = draw.choice(WEEKS if "Week" in unit else DATES)
    heading = 12 + 2 * size(mark) + (26 if "week" in dates else 10 * bool(dates))

    def fits(words: int) -> int:
        return int(room / ((words + OVER) * rate + heading))

    words = draw.choice([words for words in WORDS if fits(words) >= 5] or [SHORT])
    count = max(2, min(MOST, fits(words)))
    amount = min(draw.randint(3, 6), count // 2)
    places = sorted(draw.sample(range(1, count + 1), amount))
    begin = draw.randint(1, count - 1)
    shape = draw.wording(SHAPES)
    inline = shape.endswith((":", "-", "{mark}"))
    return Plan(
        scene,
        unit=unit,
        count=count,
        words=words,
        mark=mark,
        shape=shape,
        dates=dates,
        first=date(2021, 1, 10) + timedelta(draw.randrange(340)),
        side=draw.randint(4, 12),
        gap=draw.choice(("\n", "\n", " ")) if inline else "\n",
        between=draw.choice(("\n", "\n\n", "\n\n")),
        labels=_labels(draw, words),
        stop=draw.wording(STOPS).format(s=new_mark(draw)),
        single=dict(zip(places, draw.sample(scene.single.split("|"), amount), strict=True)),
        lasting=(
            begin,
            min(count, begin + draw.randint(1, 4)),
            draw.choice(scene.lasting.split("|")),
        ),
        regular=(
            draw.randint(1, max(1, count // 3)),
            draw.randint(3, max(4, min(20, count // 3))),
            draw.choice(scene.regular.split("|")),
        ),
    )


def _labels(draw: Draw, words: int) -> tuple[str, ...]:
    """Of a section's parts, as many as there are sentences for; mostly none."""
    labels = tuple(draw.choice(scenes.LABELS).split("|"))
    return labels if draw.random() < LABELLED and 20 * len(labels) <= words else ()


def _reply(draw: Draw, plan: Plan, given: bool) -> list[Part]:
    """Every section and the line at the end; given: the first heading is there already."""
    numbers = range(1, plan.count + 1)
    full = {1, plan.count, *draw.sample(numbers, min(LEARNT, plan.count))}
    told = [i for i in numbers if plan.events(i)]
    stated = set(draw.sample(told, min(LEARNT, len(told))))
    parts: list[Part] = []
    for i in numbers:
        kind = _kind(i in full)
        (first, _), *others = _section(draw, plan, i, i in stated)
        if i > 1 or not given:
            gap = plan.rest(i) + plan.gap.rstrip(" ")
            if i > 1:
                parts.append((plan.between, "text"))  # as an answer it would come too early
            parts += [(plan.number(i), kind), (gap, "text")]
            first = first if plan.gap == "\n" else " " + first
        opening, rest = re.findall(OPENING, first)[0]
        parts += [(opening, kind), (rest, "text"), *others]
    parts += [(plan.between, "text"), (plan.stop, "text")]
    return [part for part in parts if part[0]]


def _section(draw: Draw, plan: Plan, i: int, learnt: bool) -> list[Part]:
    """What section i says: its events, which are learnt in full if asked for, and sentences."""
    said: list[Part] = []
    events = plan.events(i)
    _, step, regular = plan.regular
    for event, frame in zip(events, draw.sample(scenes.STATED, len(events)), strict=True):
        person = capital(draw.choice(plan.scene.people.split("|")))
        before, after = frame.replace("{Person}", person).split(" {event}")
        kind = _kind(learnt)
        said += [(f" {before}", "text"), (f" {event}", kind), (after, "text")]
        if event == regular and i + step <= plan.count:  # so that it need not be reckoned out
            said += [
                (scenes.NEXT.format(unit=plan.unit), "text"),
                (f" {i + step}", kind),
                (".", "text"),
            ]
    told = len("".join(text for text, _ in said).split())
    labels = plan.labels
    rest = sentences(draw, plan.scene, max(plan.words - told, 20), least=max(1, len(labels)))
    for n, sentence in enumerate(rest):
        # labels come in their order, each before its share of the sentences
        at, new = divmod(n * len(labels), len(rest))
        label = f"{labels[at]}: " if new < len(labels) else ""
        said.append((f" {label}{sentence}", "text"))
    (first, told_as), *others = said
    return [(first[1:], told_as), *others]


def _kind(learnt: bool) -> Literal["answer", "text"]:
    return "answer" if learnt else "text"
