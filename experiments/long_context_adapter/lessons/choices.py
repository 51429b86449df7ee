"""Questions with four choices over long texts. All four are said of something in the text."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from macbench.experiments.long_context_adapter.draw import Draw
from macbench.experiments.long_context_adapter.lessons.base import Lesson, conversation
from macbench.experiments.long_context_adapter.texts import Size, haystack

SHIPS = "Albatross Bluebell Corsair Diligence Eglantine Fortuna Gauntlet Harmony Iolanthe Juniper"
SHIPS += " Kingfisher Larkspur Meridian Nightjar Orlando Patience Ranger Sapphire Tempest Zephyr"
CARGO = "indigo|cork|sugar|cotton|saltpetre|ivory|oranges|sailcloth|nutmeg|whale oil|copra|hemp"
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
INSTRUMENTS = "cello bassoon harp trumpet oboe viola zither trombone piccolo tambourine"
KEEPSAKES = (
    "locket|signet ring|snuff box|ivory comb|chess queen|music box|sealed letter|silver spoon"
)
SIGNS = "triangle circle anchor crown wheel ladder star feather arrow spiral hourglass"
MEANINGS = "danger water shelter treasure north supper enemy friend silence gold market sickness"
STONES = "opal garnet amber jasper topaz onyx beryl agate"

Made = tuple[str, list[str], list[str]]  # question, four choices with the right one first, evidence


def letters(draw: Draw) -> Made:
    who, to = draw.names(8)[:4], draw.places(4)
    said = [f"A letter from {a} arrived in {b} by mail." for a, b in zip(who, to, strict=True)]
    return f"Whose letter arrived in {to[0]}?", who, said


def harbour(draw: Draw) -> Made:
    ships, cargo = draw.sample(SHIPS.split(), 4), draw.sample(CARGO.split("|"), 4)
    said = [f"The hold of the {s} was full of {c}." for s, c in zip(ships, cargo, strict=True)]
    if draw.random() < 0.5:
        return f"With what was the {ships[0]} loaded?", cargo, said
    return f"Which ship carried {cargo[0]}?", ships, said


def tally(draw: Draw) -> Made:
    who, often = draw.names(4), draw.sample(range(1, 7), 4)
    said = [
        f"{draw.choice(DAYS.split())} came, and {name} rang the great bell."
        for name, count in zip(who, often, strict=True)
        for _ in range(count)
    ]
    draw.shuffle(said)
    return f"How many times did {who[0]} ring the great bell?", [str(n) for n in often], said


def dates(draw: Draw) -> Made:
    towns, years = draw.places(4), sorted(draw.sample(range(1203, 1897), 4))
    said = [
        f"{town} received its charter in {year}." for town, year in zip(towns, years, strict=True)
    ]
    if draw.random() < 0.5:
        return "Which of these places was the earliest to receive its charter?", towns, said
    return "Which of these places was the latest to receive its charter?", towns[::-1], said


def weights(draw: Draw) -> Made:
    stones, grams = draw.sample(STONES.split(), 4), sorted(draw.sample(range(12, 990), 4))
    said = [f"On the scales the {s} came to {g} grams." for s, g in zip(stones, grams, strict=True)]
    if draw.random() < 0.5:
        return "Which stone was the lightest on the scales?", stones, said
    return "Which stone was the heaviest on the scales?", stones[::-1], said


def lodging(draw: Draw) -> Made:
    who, inns = draw.names(4), draw.places(4)
    music = draw.sample(INSTRUMENTS.split(), 4)
    said = [f"{name} spent that winter at {inn}." for name, inn in zip(who, inns, strict=True)]
    said += [
        f"At {inn} somebody played the {m} all night." for inn, m in zip(inns, music, strict=True)
    ]
    draw.shuffle(said)
    return f"Which instrument was played where {who[0]} spent the winter?", music, said


def hands(draw: Draw) -> Made:
    who, thing = draw.names(4), draw.choice(KEEPSAKES.split("|"))
    said = [f"The {thing} first belonged to {who[3]}."]
    said += [f"{a} made {b} a present of the {thing}." for a, b in pairwise(who[::-1])]
    return f"Who owned the {thing} last?", who, said


def signs(draw: Draw) -> Made:
    marks = draw.sample(SIGNS.split(), 4)
    meanings = draw.sample(MEANINGS.split(), 4)
    said = [f"Carved on a door, a {m} meant {x}." for m, x in zip(marks, meanings, strict=True)]
    return f"What did a carved {marks[0]} mean?", meanings, said


def ledger(draw: Draw) -> Made:
    who, sums = draw.names(6), draw.sample(range(115, 990), 6)
    towns = draw.places(6)
    lines = [f"{n}; {t}; {s} florins" for n, t, s in zip(who, towns, sums, strict=True)]
    draw.shuffle(lines)
    said = ["Debts still open (name; home; sum)\n" + "\n".join(lines)]
    if draw.random() < 0.5:
        return f"How much did {who[0]} owe, in florins?", [str(s) for s in sums[:4]], said
    return f"Where was the home of {who[0]}, who had debts?", towns[:4], said


KINDS: tuple[Callable[[Draw], Made], ...] = (
    letters, harbour, tally, dates, weights, lodging, hands, signs, ledger,
)  # fmt: skip
INTROS = (
    "A long text comes first, then a question with four options.",
    "Study this text; then pick one of four options.",
    "",
    "Below is a text. Choose the option that it supports.",
    "Here is something to read before you choose.",
)
ASKS = ("{q}", "Question: {q}", "Which option is right? {q}", "Choose. {q}", "Quiz: {q}")
OPTIONS = ("({l}) {c}", "({l}) {c}", "{l}. {c}", "{l}) {c}", "[{l}] {c}", "({l}) {c}")
FORMS = (  # what is asked for | the reply
    'Reply in this form: "The right option is (letter)".|The right option is ({l})',
    'Write your reply as: "I choose (your letter)".|I choose ({l})',
    "Reply with the letter alone.|{l}",
    'Use these words: "The text supports option (letter)".|The text supports option ({l})',
    'Finish the sentence "The text supports (…)".|The text supports ({l})',
    'Put your choice in brackets: "My choice: (…)".|My choice: ({l})',
    'Your reply has to look like this: "The best choice is (insert letter here)".'
    "|The best choice is ({l})",
    "Give the letter and its text.|({l}) {c}",
    'State it as: "The solution is (letter)".|The solution is ({l})',
)


def choices(draw: Draw, size: Size, room: int) -> Lesson:
    """One text, several questions of different kinds on it."""
    count = max(1, min(draw.randint(3, 8), (room - 400) // 250))
    kinds = draw.sample(KINDS, count)
    made = [kind(draw) for kind in kinds]
    intro, option = draw.wording(INTROS), draw.wording(OPTIONS)
    form, said = draw.wording(FORMS).split("|")
    ask = draw.wording(ASKS)
    asked: list[tuple[str, str, str]] = []
    evidence = []
    for kind, (question, four, pieces) in zip(kinds, made, strict=True):
        if kind is not hands:  # who had it last is a matter of order
            draw.shuffle(pieces)
        right, order = four[0], draw.sample(four, 4)
        lines = [option.format(l=letter, c=c) for letter, c in zip("ABCD", order, strict=True)]
        letter = "ABCD"[order.index(right)]
        text = "\n".join([ask.format(q=question), *lines, form])
        opening, _, _ = said.format(l=letter, c=right).rpartition(f"({letter})")
        if opening:  # what is hard is the letter; the sentence around it is learnt as language
            asked.append((text, opening.rstrip(), f"({letter})"))
        else:
            asked.append((text, "", said.format(l=letter, c=right)))
        evidence.append(pieces)
    needles = evidence[0]
    for pieces in evidence[1:]:
        first = set(draw.sample(range(len(needles) + len(pieces)), len(needles)))
        left, right_ = iter(needles), iter(pieces)
        total = len(needles) + len(pieces)
        needles = [next(left if i in first else right_) for i in range(total)]
    room -= size(intro) + sum(sum(map(size, turn)) + 10 for turn in asked) + 60
    context = haystack(draw, size, room, needles, "prose")
    return conversation(draw, "choices", intro, context, asked, given=0.3)
