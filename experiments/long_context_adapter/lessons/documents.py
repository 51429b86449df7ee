"""Questions about invented people and places, answered by one or two of many documents."""

from __future__ import annotations

from macbench.experiments.long_context_adapter.draw import Draw
from macbench.experiments.long_context_adapter.lessons import facts
from macbench.experiments.long_context_adapter.lessons.base import Lesson, conversation
from macbench.experiments.long_context_adapter.texts import Size, prose

TRADES = "saddler miller surveyor chandler cooper falconer cartographer apothecary drover glazier"
TRADES += " thatcher gilder lutenist bookbinder harpooner beekeeper notary engraver"
PETS = "mule terrier goose parrot ferret goat pony tortoise jackdaw spaniel"
DISHES = "cabbage broth|oat porridge|fried perch|quince jam|nettle tea|lentil pudding|roast turnips"
DISHES += "|hazelnut bread|pickled herring|rhubarb wine|mutton pie|buckwheat cakes"
TONGUES = "Low Marsh|Old Hill|Coast Romance|Upper Fen|Bell Cant|Tin Latin"
WARES = "ladles|candlesticks|felt boots|paper kites|barometers|church bells|fish hooks|accordions"
SUBJECTS = "comets|mosses|tides|glaciers|bees|old coins|folk dances|mirages|earthquakes"
RIVERS = "the Anse|the Burl|the Corry|the Dwyle|the Esk Minor|the Fosse|the Gannel|the Hamble"

FACTS = {  # what is said of a person | question | opening of the reply
    "trade": (
        "{who} earned a living as a {x}.|For years {who} worked as a {x}, and did it well.",
        "What was the trade of {who}?|As what did {who} earn a living?",
    ),
    "born": (
        "{who} came into the world in the year {x}.|The birth of {who} is dated to {x}.",
        "When was {who} born?|In what year did {who} come into the world?",
    ),
    "pet": (
        "A {x} followed {who} wherever the road led.|{who} was never seen without a {x}.",
        "Which animal followed {who}?|What kind of animal did {who} keep?",
    ),
    "dish": (
        "Guests of {who} were always served {x}.|The favourite meal of {who} was {x}.",
        "What did guests of {who} get to eat?|What was the favourite meal of {who}?",
    ),
    "home": (
        "{who} settled in {x} and stayed there.|The house of {who} stands in {x}.",
        "Where did {who} settle?|In which place is the house of {who}?",
    ),
    "teacher": (
        "{who} had learnt everything from {x}.|It was {x} who taught {who}.",
        "Who taught {who}?|From whom did {who} learn?",
    ),
    "study": (
        "{who} wrote a thick book on {x}.|The great subject of {who} was {x}.",
        "On what did {who} write a book?|What was the great subject of {who}?",
    ),
    "tongue": (
        "At home {who} spoke {x}.|The mother tongue of {who} was {x}.",
        "Which language did {who} speak at home?|What was the mother tongue of {who}?",
    ),
    "died": (
        "{who} was buried in {x}.|In {x} they carried {who} to the grave.",
        "In which year was {who} buried?|When was {who} carried to the grave?",
    ),
    "children": (
        "{who} brought up {x} children.|There were {x} children in the household of {who}.",
        "How many children did {who} bring up?",
    ),
}
PLACES = {
    "river": ("{where} lies on {x}.|Through {where} flows {x}.", "On which river lies {where}?"),
    "ruin": ("{where} was ruined by {x}.|{x} once emptied {where}.", "What ruined {where}?"),
    "people": (
        "{where} counts {x} people.|In the last count {where} had {x} people.",
        "How many people live in {where}?",
    ),
    "mayor": (
        "{where} elected {x} to its council chair.|The council of {where} is led by {x}.",
        "Who leads the council of {where}?",
    ),
    "hall": (
        "The assembly hall of {where} was put up in {x}, entirely out of {y}, after long quarrels.",
        "When was the assembly hall of {where} put up?",
    ),
    "walls": (
        "Walls of {x} surround {where}.|Whoever comes to {where} first sees its walls of {x}.",
        "What are the walls of {where} made of?",
    ),
    "wares": (
        "All over the country people use {x} from {where}.|{where} is known for its {x}.",
        "What is {where} known for?",
    ),
    "distance": (
        "It takes {x} hours on foot to get from {where} to the sea.",
        "How many hours on foot is {where} from the sea?",
    ),
    "saint": (
        "On the feast of {x} the bells of {where} ring all night.",
        "On whose feast do the bells of {where} ring?",
    ),
}
WORKS = "Symphony Tragedy Fresco Waltz Treatise Mosaic Ballad Sonata Globe Fountain Staircase Mill"
BY = "{work} is by {who}.|It was {who} who gave the world {work}."
BY += "|{work} came from the hands of {who}.|{who} spent nine winters on {work}."
BY += "|Of all that {who} left, {work} is praised most."
CREATORS = "the author of {work}|the creator of {work}|whoever made {work}|the person behind {work}"
STEPS = "{who}: {x}|{who}, and so {x}|It is by {who}; {x}|{work} is by {who}, so {x}"
HEADS = (
    "[{i}] ",
    "Text {i}. ",
    "### Passage {i}\n",
    "<{i}> ",
    "Item {i}: ",
    "Source no. {i}\n",
    "-{i}- ",
)
INTROS = (
    "Some short texts follow. Use them to answer what is asked; keep the reply brief.",
    "Base your reply on these passages and on nothing else.",
    "",
    "Read the passages. One or two of them hold what you need.",
    "Below are passages from several sources. Reply with the answer only.",
    "Reply in as few words as possible, going by the passages.",
)
ASKS = ("{q}", "Question for you: {q}", "{q} Reply with the answer alone.", "Q: {q}", "Now: {q}")
OPENS = ("", "", "The answer is", "A:", " Reply:", "From the passages:", "It is")


def documents(draw: Draw, size: Size, room: int) -> Lesson:
    """Passages with several facts each, numbered and shuffled, among passages of books; or several
    passages on each of some towns; or entries on works and on the people who made them."""
    style, intro = draw.wording(HEADS), draw.wording(INTROS)
    room -= size(intro) + 400
    made = draw.choices((_entries, _articles, _passages), (5, 3, 2))[0]
    passages, asked = made(draw, size, room, size(style) + 3)
    draw.shuffle(passages)
    joint = draw.choice(("\n\n", "\n"))
    context = joint.join(style.format(i=i) + text for i, text in enumerate(passages, 1))
    asked = list(dict.fromkeys(draw.sample(asked, len(asked))))
    form, opening = draw.wording(ASKS), draw.wording(OPENS)
    stop = draw.choice(("", "."))
    turns = [(form.format(q=q), opening, f"{a}{stop}") for q, a in asked[: draw.randint(2, 10)]]
    return conversation(draw, "documents", intro, context, turns)


def _passages(
    draw: Draw, size: Size, room: int, more: int
) -> tuple[list[str], list[tuple[str, str]]]:
    """On a person and a town each; and (question, answer) pairs."""
    passages: list[str] = []
    asked: list[tuple[str, str]] = []
    people: dict[str, str] = {}
    told: list[tuple[str, str, str]] = []
    while not asked or (room > 0 and len(people) < 300):
        if draw.random() < 0.3 and passages:  # something from a book
            text = " ".join(s.strip() for s in prose(draw, size, draw.randint(60, 160)))
        else:
            who, towns = draw.name(), draw.places(1)[0]
            if who in people or towns in people.values():
                continue
            people[who] = towns
            text, questions = _about(draw, size, who, towns, told)
            asked += questions
        room -= size(text) + more
        passages.append(text)
    return passages, asked


OPENERS = (
    "{town} is a place of which little was written before {year}.",
    "Nobody passes through {town} by accident.",
    "Of all towns on the coast, {town} has changed the least.",
    "The people of {town} have seen better times.",
    "A traveller of the year {year} calls {town} the quietest town of the land.",
    "Few maps of {year} show {town}.",
    "Whoever grew up in {town} speaks of it with a smile.",
    "In {year} there were only nine houses in {town}.",
)


def _articles(
    draw: Draw, size: Size, room: int, more: int
) -> tuple[list[str], list[tuple[str, str]]]:
    """Passages on towns, several on each, and on every town of the same things. A passage names its
    town at the beginning, most of its facts do not; so the town has to be kept in mind."""
    passages: list[str] = []
    asked: list[tuple[str, str]] = []
    houses = draw.sample(facts.HOUSES.split("|"), draw.randint(3, 9))
    told = {house: draw.choice([*facts.FEATURES]) for house in houses}
    for town in draw.places(200):
        mine = draw.sample(houses, len(houses))
        while mine and (room > 0 or not asked):
            opener = draw.wording(OPENERS).format(town=town, year=draw.randint(1402, 1899))
            house = mine.pop()
            text, known = [opener], [facts.feature(draw, town, house, told[house])]
            text.append(known[0].said if draw.random() < 0.4 else known[0].short)
            while mine and draw.random() < 0.5:
                house = mine.pop()
                known.append(facts.feature(draw, town, house, told[house]))
                text.append(known[-1].short)
            if draw.random() < 0.3:
                known.append(facts.happened(draw))
                text.append(known[-1].said)
            if draw.random() < 0.7:  # as long as paragraphs are
                filler = [s.strip() for s in prose(draw, size, draw.randint(30, 130))]
                text[1:] = draw.sample(text[1:] + filler, len(text) - 1 + len(filler))
            asked += [question for fact in known for question in fact.asked]
            passages.append(" ".join(text))
            room -= size(passages[-1]) + more
        if room <= 0:
            break
    return passages, asked


def _entries(
    draw: Draw, size: Size, room: int, more: int
) -> tuple[list[str], list[tuple[str, str]]]:
    """Short entries under titles that are much alike: works, and who made them; the questions go
    from a work to its maker, and on to what is said there."""
    entries: list[str] = []
    asked: list[tuple[str, str]] = []
    seen: set[str] = set()
    kinds = draw.sample(WORKS.split(), draw.randint(2, 6))
    places = draw.places(draw.randint(2, 8))
    steps = draw.choice(STEPS.split("|"))
    while not asked or (room > 0 and len(seen) < 400):
        who = draw.name()
        work = f"{draw.choice(places)} {draw.choice(kinds)} {draw.randint(1, 120)}"
        if who in seen or work in seen:
            continue
        seen |= {who, work}
        values = _person(draw, draw.places(1)[0])
        names = draw.sample([*FACTS], draw.randint(1, 3))
        said = [draw.choice(FACTS[n][0].split("|")).format(who=who, x=values[n]) for n in names]
        by = draw.choice(BY.split("|")).format(work=work, who=who)
        filler = [s.strip() for s in prose(draw, size, draw.randint(15, 50))]
        for title, text in ((who, said), (work, [by])):
            text = [*text, *(filler if draw.random() < 0.5 else [])]
            entry = f"{title}\n" + " ".join(text)
            room -= size(entry) + more
            entries.append(entry)
        for name in names:
            question = draw.choice(FACTS[name][1].split("|"))
            creator = draw.choice(CREATORS.split("|")).format(work=work)
            answer = steps.format(who=who, work=work, x=values[name])
            asked += [(question.format(who=creator), answer)] * 2
            asked.append((question.format(who=who), values[name]))
        asked.append((f"By whom is {work}?", who))
    return entries, asked


def _person(draw: Draw, town: str) -> dict[str, str]:
    """What can be said of a person."""
    year = draw.randint(1405, 1830)
    return {
        "trade": draw.choice(TRADES.split()),
        "born": str(year),
        "died": str(year + draw.randint(20, 88)),
        "pet": draw.choice(PETS.split()),
        "dish": draw.choice(DISHES.split("|")),
        "home": town,
        "teacher": draw.name(),
        "study": draw.choice(SUBJECTS.split("|")),
        "tongue": draw.choice(TONGUES.split("|")),
        "children": draw.choice(["two", "three", "four", "five", "six", "seven", "eight", "nine"]),
    }


def _about(
    draw: Draw, size: Size, who: str, town: str, told: list[tuple[str, str, str]]
) -> tuple[str, list[tuple[str, str]]]:
    """A passage on a person and the town, and (question, answer) pairs, two-step ones too.

    told: person, fact and value of the passages so far; this one's are added.
    """
    values = _person(draw, town)
    local = {
        "river": draw.choice(RIVERS.split("|")),
        "ruin": draw.choice(facts.CAUSES.split("|")),
        "people": f"{draw.randint(1, 90)},{draw.randint(100, 999)}",
        "mayor": draw.name(),
        "hall": str(draw.randint(1210, 1890)),
        "walls": draw.choice(facts.STUFFS.split("|")),
        "wares": draw.choice(WARES.split("|")),
        "distance": str(draw.randint(3, 95)),
        "saint": f"Saint {draw.name().split()[0]}",
    }
    said, asked, before = [], [], told.copy()
    for name in ["home", *draw.sample([n for n in FACTS if n != "home"], draw.randint(1, 4))]:
        forms, questions = FACTS[name]
        said.append(draw.choice(forms.split("|")).format(who=who, x=values[name]))
        asked.append((draw.choice(questions.split("|")).format(who=who), values[name]))
        told.append((who, name, values[name]))
    places = draw.sample([*PLACES], draw.randint(1, 4))
    if "mayor" in places and before:  # somebody of another passage: two passages are needed
        local["mayor"], name, value = draw.choice(before)
        question = draw.choice(FACTS[name][1].split("|"))
        leader = f"the person who leads the council of {town}"
        asked += [(question.format(who=leader), value)] * 3
    for name in places:
        forms, question = PLACES[name]
        stuff = draw.choice(facts.STUFFS.split("|"))
        text = draw.choice(forms.split("|")).format(where=town, x=local[name], y=stuff)
        said.append(text[0].upper() + text[1:])
        asked.append((question.format(where=town), local[name]))
        there = question.format(where=f"the place where {who} settled")
        asked.append((there, local[name]))
    first, *rest = said
    if draw.random() < 0.4:  # as long as paragraphs are
        rest += [s.strip() for s in prose(draw, size, draw.randint(30, 120))]
    draw.shuffle(rest)
    return " ".join([first, *rest]), asked
