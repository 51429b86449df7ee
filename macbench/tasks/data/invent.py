"""How the embedded question sets were made; run once, never at run time.

Invented towns and people in the formats of SQuAD v2 (paragraphs of one town are an article) and of
HotpotQA (two documents are needed: who did it, and where that person was born). Every answer occurs
in exactly one document that the question names.
"""

from __future__ import annotations

import json
import lzma
import random
import sys
from pathlib import Path

HEAD = ["Bel", "Cor", "Dun", "Eld", "Far", "Gar", "Hol", "Ist", "Jor", "Kel", "Lor", "Mar", "Nor"]
TAIL = ["by", "den", "ford", "ham", "lund", "mere", "minster", "stead", "thorpe", "wick"]
FIRST = ["Agnes", "Boris", "Clara", "Dmitri", "Edith", "Felix", "Greta", "Hugo", "Ingrid", "Jonas"]
FIRST += ["Katya", "Leopold", "Mabel", "Nils", "Odette", "Pavel", "Rosa", "Sven", "Thea", "Viktor"]
LAST = ["Albrecht", "Brandt", "Castellan", "Drummond", "Eskola", "Fontaine", "Grimaldi", "Hartwig"]
LAST += ["Ivarsen", "Jankowski", "Kestrel", "Lindqvist", "Moreau", "Novak", "Ostrander", "Petrov"]
CRAFT = ["glassblowing", "rope making", "clock repair", "paper milling", "bell casting", "tanning"]
CRAFT += ["salt boiling", "hat making", "barrel making", "weaving", "brewing", "stone carving"]
ANIMAL = ["heron", "badger", "otter", "falcon", "stag", "salmon", "hedgehog", "raven", "lynx"]
FOOD = [
    "plum dumplings",
    "smoked eel",
    "barley soup",
    "walnut bread",
    "pickled beets",
    "honey cake",
]
FOOD += ["pear cider", "goat cheese", "mustard stew", "rye pancakes", "sorrel pie", "apple butter"]
MONTH = ["January", "February", "March", "April", "May", "June", "July", "August", "September"]
STONE = ["granite", "limestone", "slate", "sandstone", "basalt", "marble", "brick", "flint"]
WORK = [
    "novel",
    "opera",
    "bridge",
    "lighthouse",
    "encyclopedia",
    "symphony",
    "observatory",
    "canal",
]


def article(town: str, people: list[str], rng: random.Random) -> list[tuple[str, list[list[str]]]]:
    """Seven paragraphs about a town, each with (question, answer) pairs."""
    year = rng.randint(1105, 1720)
    river, rival = f"River {rng.choice(HEAD)}a{rng.choice('lnrsv')}", rng.choice(ANIMAL)
    count, span = rng.randint(1_200, 98_000), rng.randint(35, 480)
    founder, mayor, doctor, painter, builder = people
    craft, food, stone, month = (rng.choice(x) for x in (CRAFT, FOOD, STONE, MONTH))
    miles, bells, rooms = rng.randint(11, 97), rng.randint(5, 49), rng.randint(13, 88)
    return [
        (
            f"The town of {town} was founded in {year} by {founder}, a merchant who had lost most "
            "of a fortune at sea and wanted to live far from any harbour. The first houses stood "
            f"in two rows along the {river}, and older maps show a wooden wall around them. For a "
            "long time nobody thought that the settlement would last, because the winters were "
            "hard and the nearest market was several days away on foot.",
            [
                [f"Who founded the town of {town}?", founder],
                [f"In which year was {town} founded?", str(year)],
                [f"Along which river did the first houses of {town} stand?", river],
            ],
        ),
        (
            f"Most families in {town} lived from {craft} until the railway came. Apprentices "
            "worked for seven years without pay, and were given a set of tools and a coat on the "
            f"last day. A guild kept the prices high and settled quarrels in a hall built of "
            f"{stone}, which is still the largest building on the square "
            "and is used for concerts in the summer.",
            [
                [f"Which craft did most families in {town} live from?", craft],
                [f"Of what material is the guild hall of {town} built?", stone],
            ],
        ),
        (
            f"At the last census {town} had {count:,} inhabitants. That was fewer than a "
            "generation before, since many of the young had moved to the coast, but the number of "
            "schools had grown. Visitors are often surprised by how quiet the streets are in the "
            "early evening, when almost everybody is at home for supper and the "
            "shops have already closed.",
            [[f"How many inhabitants did {town} have at the last census?", f"{count:,}"]],
        ),
        (
            f"Every {month} the people of {town} hold a fair in honour of the {rival} that appears "
            f"on the coat of arms. Children carry lanterns, the bakers compete, and {food} is "
            "served at long tables in front of the church. The fair was forbidden twice, once "
            "because of a fire and once because of a quarrel over who should lead the procession.",
            [
                [f"In which month do the people of {town} hold their fair?", month],
                [f"Which animal appears on the coat of arms of {town}?", rival],
                [f"Which dish is served at the fair of {town}?", food],
            ],
        ),
        (
            f"The stone bridge at {town} is {span} metres long and was designed by {builder}, who "
            "had never built anything larger than a barn. Experts from the capital predicted that "
            "it would fall within a year. It has been closed for repairs only once, after a flood "
            "carried a hay barge against the third pier and cracked it.",
            [
                [f"Who designed the stone bridge at {town}?", builder],
                [f"How many metres long is the bridge at {town}?", str(span)],
            ],
        ),
        (
            f"The hospital of {town} has {rooms} rooms and is named after {doctor}, the first "
            "physician who stayed for longer than one winter. Letters in the archive describe how "
            "patients were brought in by sledge and paid with firewood. A small museum in the "
            "cellar shows the instruments, most of which were made by the local smith.",
            [
                [f"After whom is the hospital of {town} named?", doctor],
                [f"How many rooms does the hospital of {town} have?", str(rooms)],
            ],
        ),
        (
            f"The painter {painter} spent eleven summers in {town} and filled {bells} sketchbooks "
            f"there. The railway station, {miles} kilometres from the town, appears in several of "
            "the pictures, always under a yellow sky. When the mayor "
            f"{mayor} offered to buy one of them for the council chamber, the answer was a long "
            "and rather rude poem that hangs there to this day.",
            [
                [f"Which painter spent eleven summers in {town}?", painter],
                [f"Which mayor of {town} offered to buy a picture?", mayor],
                [f"How many sketchbooks did the painter fill in {town}?", str(bells)],
            ],
        ),
    ]


def squad(rng: random.Random, towns: list[str], names: list[str]) -> dict:
    data = []
    for i, town in enumerate(towns):
        paragraphs: list[dict] = []
        for text, pairs in article(town, names[5 * i : 5 * i + 5], rng):
            qas = [
                {
                    "question": question,
                    "id": f"{town}-{len(paragraphs)}-{n}",
                    "answers": [{"text": answer, "answer_start": text.index(answer)}],
                    "is_impossible": False,
                }
                for n, (question, answer) in enumerate(pairs)
            ]
            paragraphs.append({"qas": qas, "context": text})
        data.append({"title": town, "paragraphs": paragraphs})
    return {"version": "macbench-embedded", "data": data}


def hotpot(rng: random.Random, towns: list[str], names: list[str]) -> list[dict]:
    """120 questions: the maker of a work (one document), born in a town (another)."""
    births, works = {}, []
    for i, name in enumerate(names):
        births[name] = (towns[i % len(towns)], rng.randint(1780, 1960), rng.choice(CRAFT))
    for i, name in enumerate(names):
        works.append(
            (f"The {rng.choice(ANIMAL).title()} {WORK[i % len(WORK)].title()} {i + 1}", name)
        )
    person = {
        name: [
            name,
            [
                f"{name} was born in {town} in {year}.",
                f" As a child {name.split()[0]} learned {craft} from an aunt.",
                " Very little else is known about the early years.",
            ],
        ]
        for name, (town, year, craft) in births.items()
    }
    work = {
        title: [
            title,
            [
                f"{title} is the best known work of {name}.",
                f" It took {rng.randint(2, 19)} years to finish and was almost given up twice.",
            ],
        ]
        for title, name in works
    }
    records = []
    for i, (title, name) in enumerate(works[:120]):
        town, year, _ = births[name]
        question, answer = (
            (f"In which town was the maker of {title} born?", town)
            if i % 2
            else (f"In which year was the maker of {title} born?", str(year))
        )
        others = rng.sample([n for n in names if n != name], 4)
        else_works = rng.sample([t for t, n in works if n != name], 4)
        context = [work[title], person[name], *(person[n] for n in others)]
        context += [work[t] for t in else_works]
        rng.shuffle(context)
        records.append({"question": question, "answer": answer, "context": context})
    return records


def main(folder: Path) -> None:
    rng = random.Random(2604)
    towns = rng.sample([a + b for a in HEAD for b in TAIL], 30)
    names = rng.sample([f"{a} {b}" for a in FIRST for b in LAST], 5 * len(towns))
    for name, value in (
        ("squad", squad(rng, towns, names)),
        ("hotpotqa", hotpot(rng, towns, names)),
    ):
        text = json.dumps(value, indent=0).encode()
        packed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
        (folder / f"{name}.json.xz").write_bytes(packed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
