"""Questions with four choices over long texts. All four are said of something in the text."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from macbench.experiments.long_context_adapter.draw import Draw
from macbench.experiments.long_context_adapter.lessons.base import Lesson, Part, Turn
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

Reason = Callable[[list[str]], str]  # from the choices in their order
# question, four choices with the right one first, evidence, and what a reply says before it chooses
Made = tuple[str, list[str], list[str], Reason]


def letters(draw: Draw) -> Made:
    who, to = draw.names(8)[:4], draw.places(4)
    said = [f"A letter from {a} arrived in {b} by mail." for a, b in zip(who, to, strict=True)]
    return f"Whose letter arrived in {to[0]}?", who, said, lambda _: f"{to[0]}: {who[0]}"


def harbour(draw: Draw) -> Made:
    ships, cargo = draw.sample(SHIPS.split(), 4), draw.sample(CARGO.split("|"), 4)
    said = [f"The hold of the {s} was full of {c}." for s, c in zip(ships, cargo, strict=True)]
    if draw.random() < 0.5:
        ask = f"With what was the {ships[0]} loaded?"
        return ask, cargo, said, lambda _: f"{ships[0]}: {cargo[0]}"
    return f"Which ship carried {cargo[0]}?", ships, said, lambda _: f"{cargo[0]}: {ships[0]}"


def tally(draw: Draw) -> Made:
    who, often = draw.names(4), draw.sample(range(1, 7), 4)
    days = [draw.choice(DAYS.split()) for _ in range(often[0])]
    rung = [(name, draw.choice(DAYS.split())) for name, n in zip(who[1:], often[1:], strict=True)
            for _ in range(n)]  # fmt: skip
    rung += [(who[0], "") for _ in days]
    draw.shuffle(rung)
    left = iter(days)
    rung = [(name, day or next(left)) for name, day in rung]
    said = [f"{day} came, and {name} rang the great bell." for name, day in rung]
    counted = ", ".join(f"{day} {i}" for i, day in enumerate(days, 1))
    ask = f"How many times did {who[0]} ring the great bell?"
    return ask, [str(n) for n in often], said, lambda _: f"{counted}, so {often[0]}"


def dates(draw: Draw) -> Made:
    towns, years = draw.places(4), sorted(draw.sample(range(1203, 1897), 4))
    known = dict(zip(towns, years, strict=True))
    said = [f"{town} received its charter in {year}." for town, year in known.items()]
    last = draw.random() < 0.5
    ask = "Which of these places was the {} to receive its charter?"
    four = towns[::-1] if last else towns
    return ask.format("latest" if last else "earliest"), four, _shuffled(draw, said), _all_of(known)


def weights(draw: Draw) -> Made:
    stones, grams = draw.sample(STONES.split(), 4), sorted(draw.sample(range(12, 990), 4))
    known = dict(zip(stones, grams, strict=True))
    said = [f"On the scales the {s} came to {g} grams." for s, g in known.items()]
    heavy = draw.random() < 0.5
    ask = f"Which stone was the {'heaviest' if heavy else 'lightest'} on the scales?"
    return ask, stones[::-1] if heavy else stones, _shuffled(draw, said), _all_of(known)


def lodging(draw: Draw) -> Made:
    who, inns = draw.names(4), draw.places(4)
    music = draw.sample(INSTRUMENTS.split(), 4)
    said = [f"{name} spent that winter at {inn}." for name, inn in zip(who, inns, strict=True)]
    said += [
        f"At {inn} somebody played the {m} all night." for inn, m in zip(inns, music, strict=True)
    ]
    ask = f"Which instrument was played where {who[0]} spent the winter?"
    return ask, music, _shuffled(draw, said), lambda _: f"{who[0]}: {inns[0]}: {music[0]}"


def hands(draw: Draw) -> Made:
    who, thing = draw.names(4), draw.choice(KEEPSAKES.split("|"))
    said = [f"The {thing} first belonged to {who[3]}."]
    said += [f"{a} made {b} a present of the {thing}." for a, b in pairwise(who[::-1])]
    first = draw.random() < 0.3
    ask = f"Who owned the {thing} {'first' if first else 'last'}?"
    path = ", then ".join(who[::-1])
    return ask, who[::-1] if first else who, said, lambda _: path


def signs(draw: Draw) -> Made:
    marks = draw.sample(SIGNS.split(), 4)
    meanings = draw.sample(MEANINGS.split(), 4)
    said = [f"Carved on a door, a {m} meant {x}." for m, x in zip(marks, meanings, strict=True)]
    ask = f"What did a carved {marks[0]} mean?"
    return ask, meanings, _shuffled(draw, said), lambda _: f"{marks[0]}: {meanings[0]}"


def phrases(draw: Draw) -> Made:
    """Two signs beside each other; the choices pair two meanings with two others."""
    marks, meanings = draw.sample(SIGNS.split(), 4), draw.sample(MEANINGS.split(), 4)
    said = [f"On the old map a {m} is for {x}." for m, x in zip(marks, meanings, strict=True)]
    four = [f"{a} and {b}" for a in meanings[:2] for b in meanings[2:]]
    ask = f"What do a {marks[0]} and a {marks[2]} side by side on the old map tell?"
    told = f"{marks[0]}: {meanings[0]}, {marks[2]}: {meanings[2]}"
    return ask, four, _shuffled(draw, said), lambda _: told


def ledger(draw: Draw) -> Made:
    who, sums = draw.names(6), draw.sample(range(115, 990), 6)
    towns = draw.places(6)
    lines = [f"{n}; {t}; {s} florins" for n, t, s in zip(who, towns, sums, strict=True)]
    draw.shuffle(lines)
    said = ["Debts still open (name; home; sum)\n" + "\n".join(lines)]
    if draw.random() < 0.5:
        ask = f"How much did {who[0]} owe, in florins?"
        return ask, [str(s) for s in sums[:4]], said, lambda _: f"{who[0]}: {sums[0]}"
    ask = f"Where was the home of {who[0]}, who had debts?"
    return ask, towns[:4], said, lambda _: f"{who[0]}: {towns[0]}"


def _shuffled(draw: Draw, said: list[str]) -> list[str]:
    return draw.sample(said, len(said))


def _all_of(known: dict[str, int]) -> Reason:
    return lambda order: ", ".join(f"{name} {known[name]}" for name in order)


KINDS: tuple[Callable[[Draw], Made], ...] = (
    letters, harbour, tally, dates, weights, lodging, hands, signs, phrases, ledger,
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
# what is asked for; the reply repeats the sentence, whatever it is
TELL = (
    'Reply in this form: "{form}".',
    'Your reply has to look like this: "{form}".',
    'End with: "{form}".',
    'Use these words: "{form}".',
    'Write it down like so: "{form}".',
    'State your choice as "{form}".',
    "Close with the sentence: {form}",
    'Give your choice in the form "{form}".',
    'The last line must be "{form}".',
)
GAPS = "letter|insert letter here|your letter|A, B, C or D|put the letter here|X|…|letter of it"
SAYS = (
    "The {adjective} {noun} is ({gap})",
    "The text supports ({gap})",
    "I choose ({gap})",
    "My {noun} is ({gap})",
    "Going by the text, the {adjective} {noun} is ({gap})",
    "{Adjective} {noun}: ({gap})",
    "The {noun} I take is ({gap})",
)
ADJECTIVES = "right best true proper fitting valid supported accurate"
NOUNS = "option choice pick solution letter candidate conclusion"
REASONED = 0.85  # share of lessons whose replies say what they go by
REASONS = ("{r}. ", "{r}.\n", "The text: {r}. ", "From the text: {r}. ", "({r}) ")


def choices(draw: Draw, size: Size, room: int) -> Lesson:
    """One text, several questions of different kinds on it."""
    count = max(1, min(draw.randint(4, 9), (room - 300) // 250))
    kinds = draw.sample(KINDS, count)
    made = [kind(draw) for kind in kinds]
    intro, option = draw.wording(INTROS), draw.wording(OPTIONS)
    adjective = draw.choice(ADJECTIVES.split())
    says = draw.wording(SAYS).format(
        adjective=adjective,
        Adjective=adjective.capitalize(),
        noun=draw.choice(NOUNS.split()),
        gap="{gap}",
    )
    form = draw.wording(TELL).format(form=says.format(gap=draw.choice(GAPS.split("|"))))
    opening = says.removesuffix("({gap})")
    ask, reasoned = draw.wording(ASKS), draw.random() < REASONED
    reasons = draw.choice(REASONS)
    turns: list[Turn] = []
    evidence = []
    for question, four, pieces, reason in made:
        right, order = four[0], draw.sample(four, 4)
        lines = [option.format(l=letter, c=c) for letter, c in zip("ABCD", order, strict=True)]
        letter = "ABCD"[order.index(right)]
        text = "\n".join([ask.format(q=question), *lines, form])
        parts: list[Part] = []
        if reasoned:
            parts.append((reasons.format(r=reason(order)), "answer"))
        parts += [(opening, "text"), (f"({letter})", "answer")]
        turns.append(Turn(text, "", tuple(parts)))
        evidence.append(pieces)
    needles = evidence[0]
    for pieces in evidence[1:]:
        first = set(draw.sample(range(len(needles) + len(pieces)), len(needles)))
        left, right_ = iter(needles), iter(pieces)
        total = len(needles) + len(pieces)
        needles = [next(left if i in first else right_) for i in range(total)]
    asked = sum(size(turn.ask) + sum(size(t) for t, _ in turn.reply) + 10 for turn in turns)
    context = haystack(draw, size, room - size(intro) - asked - 60, needles, "prose")
    first_turn = Turn("\n\n".join(filter(None, (intro, context, turns[0].ask))), "", turns[0].reply)
    return Lesson("choices", (first_turn, *turns[1:]))
