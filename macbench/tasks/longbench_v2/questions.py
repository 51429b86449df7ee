"""Invented questions of eight kinds, each with the sentences of a text that answer it.

Whoever has not read the text is at chance, by construction: four candidates are drawn alike, the
text says the same kind of thing of each of them, and only then is one of them asked for. So a
choice's form, place or number says nothing, and every wrong choice is the right one for another
question on the same text.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

FIRST = "Agnes Boris Clara Dmitri Edith Felix Greta Hugo Ingrid Jonas Katya Leopold Mabel Nils"
FIRST += " Odette Pavel Quentin Rosa Sven Thea Ursula Viktor Wanda Yusuf Zelda"
LAST = "Albrecht Brandt Castellan Drummond Eskola Fontaine Grimaldi Hartwig Ivarsen Jankowski"
LAST += " Kestrel Lindqvist Moreau Novak Ostrander Petrov Quist Rossetti Stavros Thorne Ulrich"
LAST += " Vasquez Wieland Yardley Zimmer"
HEAD = "Bel Cor Dun Eld Far Gar Hol Ist Jor Kel Lor Mar Nor Ost Pel Quin Ros Sul Tor Vel"
TAIL = "bridge by den ford ham lund mere minster stead thorpe wick worth"
ANIMALS = "heron badger otter falcon stag salmon hedgehog raven lynx beaver swan adder pike crane"
METALS = "silver brass copper iron pewter tin bronze golden"
THINGS = "key lamp bell compass flute goblet mirror clock chest dagger"
ROOMS = "cellar attic chapel stable bakery library mill tower smithy greenhouse boathouse granary"
WORKS = "canal lighthouse theatre aqueduct hospital harbour mint prison courthouse ropewalk"
GOODS = "salt timber wool herring barley candles rope honey tar slate"
MONTHS = "January February March April May June July August September October November December"
COLOURS = "red blue green white black yellow grey brown"
NOUNS = "boat house river mountain horse road garden fire stone bird"
SYLLABLES = "ba da fe gi ka lo mu ne po ra si ta vu wo ze shu tri"


@dataclass(frozen=True)
class Question:
    """A question without its text."""

    kind: str
    question: str
    candidates: tuple[str, ...]  # four, the answer first
    pieces: tuple[str, ...]  # sentences and tables that belong into the text
    ordered: bool = False  # whether the pieces must keep their order


def lookup(rng: random.Random) -> Question:
    """Stated in one sentence, which the text says of four towns."""
    towns, people = _towns(rng, 4), _people(rng, 4)
    pieces = [
        f"The first library of {town} was opened by {person} in {year}."
        for town, person, year in zip(towns, people, rng.sample(range(1710, 1890), 4), strict=True)
    ]
    ask = f"Who opened the first library of {towns[0]}?"
    return Question("lookup", ask, tuple(people), tuple(pieces))


def table(rng: random.Random) -> Question:
    """A cell of a table; the wrong choices stand in other rows."""
    (town,), rows = _towns(rng, 1), 8
    items = _items(rng, rows)
    prices = [str(price) for price in rng.sample(range(103, 998), rows)]
    lines = [
        f"{lot} | {item} | {buyer} | {price}"
        for lot, item, buyer, price in zip(
            rng.sample(range(11, 99), rows), items, _people(rng, rows), prices, strict=True
        )
    ]
    rng.shuffle(lines)
    head = f"Register of the auction at {town}\nlot | item | buyer | price in crowns"
    ask = f"What was the price in crowns of the {items[0]} at the auction at {town}?"
    return Question("table", ask, tuple(prices[:4]), ("\n".join([head, *lines]),))


def count(rng: random.Random) -> Question:
    """How often somebody did something; the wrong choices are the numbers of others."""
    (town,), people = _towns(rng, 1), _people(rng, 4)
    times = rng.sample(range(1, 6), 4)
    days = [f"{day} {month}" for month in _all(MONTHS) for day in range(1, 29)]
    pieces = [
        f"On {day} {person} visited the observatory of {town}."
        for person, often in zip(people, times, strict=True)
        for day in rng.sample(days, often)
    ]
    ask = f"How many visits of {people[0]} to the observatory of {town} does the text mention?"
    return Question("count", ask, tuple(map(str, times)), tuple(pieces))


def order(rng: random.Random) -> Question:
    """First or last of four buildings, from who came how long after whom."""
    (town,), works = _towns(rng, 1), rng.sample(_all(WORKS), 4)
    pieces = [
        f"In {town} the {late} was finished {years} years after the {early}."
        for early, late, years in zip(works, works[1:], rng.sample(range(2, 60), 3), strict=False)
    ]
    which = rng.choice(["first", "last"])
    if which == "last":
        works.reverse()
    ask = f"Which of these was finished {which} in {town}?"
    return Question("order", ask, tuple(works), tuple(pieces))


def comparison(rng: random.Random) -> Question:
    """The most or the least of four towns."""
    towns, good = _towns(rng, 4), rng.choice(_all(GOODS))
    amounts = sorted(rng.sample(range(210, 9_900), 4))
    which = rng.choice(["most", "least"])
    if which == "most":
        amounts.reverse()
    pieces = [
        f"The merchants of {town} sold {amount} barrels of {good} that year."
        for town, amount in zip(towns, amounts, strict=True)
    ]
    ask = f"The merchants of which of these towns sold the {which} {good}?"
    return Question("comparison", ask, tuple(towns), tuple(pieces))


def two_hop(rng: random.Random) -> Question:
    """From a person to the town, and from the town to its animal."""
    towns, people, animals = _towns(rng, 4), _people(rng, 4), rng.sample(_all(ANIMALS), 4)
    homes = [f"{p} has a house in {t}." for p, t in zip(people, towns, strict=True)]
    arms = [
        f"On the coat of arms of {t} stands the {a}." for t, a in zip(towns, animals, strict=True)
    ]
    ask = f"Which animal is on the coat of arms of the town where {people[0]} has a house?"
    return Question("two_hop", ask, tuple(animals), (*homes, *arms))


def moves(rng: random.Random) -> Question:
    """Where a thing is in the end; another thing goes through the same rooms in another order."""
    rooms, speakers = rng.sample(_all(ROOMS), 4), _people(rng, 3)
    thing, other = _items(rng, 2)
    pieces: list[str] = []
    for name, path in ((thing, rooms[::-1]), (other, rng.sample(rooms, 4))):
        said = [f"At first the {name} was in the {path[0]}."]
        said += [
            f'"I have carried the {name} from the {start} to the {end}," said {speaker}.'
            for start, end, speaker in zip(path, path[1:], speakers, strict=False)
        ]
        pieces = _riffle(pieces, said, rng)
    ask = f"Where was the {thing} in the end?"
    return Question("moves", ask, tuple(f"the {room}" for room in rooms), tuple(pieces), True)


def translation(rng: random.Random) -> Question:
    """Two words of an invented language; the choices are two colours with two nouns."""
    (town,) = _towns(rng, 1)
    colours, nouns = rng.sample(_all(COLOURS), 2), rng.sample(_all(NOUNS), 2)
    words: list[str] = []
    while len(words) < 4:
        word = "".join(rng.sample(_all(SYLLABLES), 3))
        words += [word] if word not in words else []
    pieces = [
        f'In the old tongue of {town} the word "{word}" means "{meaning}".'
        for word, meaning in zip(words, [*colours, *nouns], strict=True)
    ]
    ask = f'What does "{words[0]} {words[2]}" mean in the old tongue of {town}?'
    candidates = tuple(f"{colour} {noun}" for colour in colours for noun in nouns)
    return Question("translation", ask, candidates, tuple(pieces))


@dataclass(frozen=True)
class Kind:
    """How questions of a kind are made and filed."""

    make: Callable[[random.Random], Question]
    domain: str  # of the published ones
    stated: bool  # in one place: easy; else hard

    @property
    def difficulty(self) -> str:
        return "easy" if self.stated else "hard"


KINDS = {
    "lookup": Kind(lookup, "Single-Document QA", True),
    "table": Kind(table, "Long Structured Data Understanding", True),
    "count": Kind(count, "Single-Document QA", False),
    "order": Kind(order, "Single-Document QA", False),
    "comparison": Kind(comparison, "Multi-Document QA", False),
    "two_hop": Kind(two_hop, "Multi-Document QA", False),
    "moves": Kind(moves, "Long-dialogue History Understanding", False),
    "translation": Kind(translation, "Long In-context Learning", False),
}


def _all(words: str) -> list[str]:
    return words.split()


def _towns(rng: random.Random, number: int) -> list[str]:
    return rng.sample([head + tail for head in _all(HEAD) for tail in _all(TAIL)], number)


def _items(rng: random.Random, number: int) -> list[str]:
    return rng.sample([f"{m} {t}" for m in _all(METALS) for t in _all(THINGS)], number)


def _people(rng: random.Random, number: int) -> list[str]:
    """Full names that share no part."""
    firsts, lasts = rng.sample(_all(FIRST), number), rng.sample(_all(LAST), number)
    return [f"{first} {last}" for first, last in zip(firsts, lasts, strict=True)]


def _riffle(one: list[str], other: list[str], rng: random.Random) -> list[str]:
    """Both lists in one, each in its order."""
    first = {*rng.sample(range(len(one) + len(other)), len(one))}
    left, right = iter(one), iter(other)
    return [next(left if i in first else right) for i in range(len(one) + len(other))]
