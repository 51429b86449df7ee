"""Questions about invented people and places, answered by one or two of many documents."""

from __future__ import annotations

from macbench.experiments.long_context_adapter.draw import Draw
from macbench.experiments.long_context_adapter.lessons.base import Lesson, conversation
from macbench.experiments.long_context_adapter.texts import Size, prose

TRADES = "saddler miller surveyor chandler cooper falconer cartographer apothecary drover glazier"
TRADES += " thatcher gilder lutenist bookbinder harpooner beekeeper notary engraver"
PETS = "mule terrier goose parrot ferret goat pony tortoise jackdaw spaniel"
DISHES = "cabbage broth|oat porridge|fried perch|quince jam|nettle tea|lentil pudding|roast turnips"
DISHES += "|hazelnut bread|pickled herring|rhubarb wine|mutton pie|buckwheat cakes"
CAUSES = "a flood|a great fire|a long drought|a landslide|an early frost|a plague of locusts"
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
}
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
    """Passages with several facts each, numbered and shuffled, among passages of books."""
    style, intro = draw.wording(HEADS), draw.wording(INTROS)
    passages: list[str] = []
    asked: list[tuple[str, str]] = []
    room -= size(intro) + 250
    people: dict[str, str] = {}
    while not asked or (room > 0 and len(people) < 300):
        if draw.random() < 0.3 and passages:  # something from a book
            text = " ".join(s.strip() for s in prose(draw, size, draw.randint(60, 160)))
        else:
            who, towns = draw.name(), draw.places(1)[0]
            if who in people or towns in people.values():
                continue
            people[who] = towns
            text, questions = _about(draw, size, who, towns)
            asked += questions
        room -= size(text) + size(style) + 3
        passages.append(text)
    draw.shuffle(passages)
    joint = draw.choice(("\n\n", "\n"))
    context = joint.join(style.format(i=i) + text for i, text in enumerate(passages, 1))
    draw.shuffle(asked)
    form, opening = draw.wording(ASKS), draw.wording(OPENS)
    stop = draw.choice(("", "."))
    turns = [(form.format(q=q), opening, f"{a}{stop}") for q, a in asked[: draw.randint(1, 9)]]
    return conversation(draw, "documents", intro, context, turns)


def _about(draw: Draw, size: Size, who: str, town: str) -> tuple[str, list[tuple[str, str]]]:
    """A passage on a person and the town, and (question, answer) pairs, two-step ones too."""
    values = {
        "trade": draw.choice(TRADES.split()),
        "born": str(draw.randint(1405, 1899)),
        "pet": draw.choice(PETS.split()),
        "dish": draw.choice(DISHES.split("|")),
        "home": town,
        "teacher": draw.name(),
    }
    local = {
        "river": draw.choice(RIVERS.split("|")),
        "ruin": draw.choice(CAUSES.split("|")),
        "people": f"{draw.randint(1, 90)},{draw.randint(100, 999)}",
        "mayor": draw.name(),
    }
    said, asked = [], []
    for name in ["home", *draw.sample([n for n in FACTS if n != "home"], draw.randint(1, 4))]:
        facts, questions = FACTS[name]
        said.append(draw.choice(facts.split("|")).format(who=who, x=values[name]))
        asked.append((draw.choice(questions.split("|")).format(who=who), values[name]))
    for name in draw.sample([*PLACES], draw.randint(1, 3)):
        facts, question = PLACES[name]
        text = draw.choice(facts.split("|")).format(where=town, x=local[name])
        said.append(text[0].upper() + text[1:])
        asked.append((question.format(where=town), local[name]))
        there = question.format(where=f"the place where {who} settled")
        asked.append((there, local[name]))
    first, *rest = said
    if draw.random() < 0.4:  # as long as paragraphs are
        rest += [s.strip() for s in prose(draw, size, draw.randint(30, 120))]
    draw.shuffle(rest)
    return " ".join([first, *rest]), asked
