"""Questions with four choices for which several statements must be gone through: counting, the most
or the least, an order, the way of a thing. The reply lists what it finds and then concludes.

Sentences are put together from parts, so that one form is rarely met twice. All four choices are
said of something in the text, in one manner.
"""

from __future__ import annotations

from itertools import pairwise

from macbench.experiments.long_context_adapter.draw import Draw
from macbench.experiments.long_context_adapter.lessons import facts
from macbench.experiments.long_context_adapter.lessons.base import Question
from macbench.experiments.long_context_adapter.lessons.facts import sentence
from macbench.experiments.long_context_adapter.lessons.questions import things

DEEDS = (  # what somebody did | the same as something to be counted
    "rang the {bell} of {town}|ringings of the {bell} of {town} by {who}",
    "called at the {spot}|calls of {who} at the {spot}",
    "dined with {other}|dinners of {who} with {other}",
    "borrowed the {thing}|loans of the {thing} to {who}",
    "inspected the {house} of {town}|inspections of the {house} of {town} by {who}",
    "travelled to {town}|journeys of {who} to {town}",
    "slept in the {spot}|nights of {who} in the {spot}",
    "paid a fine in {town}|fines of {who} in {town}",
    "wrote to {other}|letters of {who} to {other}",
    "missed the ferry to {town}|times that {who} missed the ferry to {town}",
    "won at cards in the {spot}|wins of {who} at cards in the {spot}",
    "climbed the hill of {town}|climbs of {who} up the hill of {town}",
    "repaired the {thing}|repairs of the {thing} by {who}",
    "sang in the {house} of {town}|songs of {who} in the {house} of {town}",
    "lost a game against {other}|defeats of {who} by {other}",
)
DONE = (
    "{when} {who} {deed}.",
    "{when} came, and {who} {deed}.",
    "{when}: {who} {deed}.",
    "What is known of {when} is that {who} {deed}.",
    "Then {who} {deed} ({when}).",
    "{who} {deed} {when}.",
    "It was {when} when {who} {deed}.",
    '"I saw {when} how {who} {deed}," a neighbour told us.',
    "Nothing else is known of {when} but that {who} {deed}.",
    "{who} {deed} again; that was {when}.",
    "The diary says of {when} that {who} {deed}.",
    "{when}, in spite of the weather, {who} {deed}.",
    "Everybody remembers {when}, since {who} {deed} then.",
)
COUNTED = (
    "How many times does it happen that {who} {deed}?",
    "How often is it said that {who} {deed}?",
    "How many {counted} are told of?",
    "Count the {counted}: how many are they?",
    "What is the number of {counted}?",
    "The text speaks of several {counted}. Of how many?",
)
DATES = ("the {d} of {m}", "{m} {d}", "{d} {m}", "on {d} {m}", "on {m} {d}", "day {d} of {m}")
MONTHS = "January February March April May June July August September October November December"


def tally(draw: Draw) -> Question:
    """How often somebody did something; the others did it other numbers of times."""
    who, often = draw.names(4), draw.sample(range(1, 7), 4)
    parts = {
        "town": draw.places(1)[0],
        "other": next(name for name in iter(draw.name, "") if name not in who),
        "bell": draw.choice(("old bell", "alarm bell", "chapel bell")),
        "spot": draw.choice(facts.SPOTS.split("|")),
        "house": draw.choice(facts.HOUSES.split("|")),
        "thing": things(draw, "thing", 1)[0],
    }
    deed, counted = draw.wording(DEEDS).format(who=who[0], **parts).split("|")
    form, style = draw.wording(DONE), draw.choice(DATES)
    dates = [style.format(d=d, m=m) for m in MONTHS.split() for d in range(1, 29)]
    days = iter(draw.sample(dates, sum(often)))
    done = [(name, next(days)) for name, n in zip(who, often, strict=True) for _ in range(n)]
    draw.shuffle(done)
    said = [sentence(form.format(when=day, who=name, deed=deed)) for name, day in done]
    mine = [day for name, day in done if name == who[0]]
    counting = ", ".join(f"{i}. {day}" for i, day in enumerate(mine, 1))
    ask = draw.wording(COUNTED).format(who=who[0], deed=deed, counted=counted)
    return Question(
        ask, [str(n) for n in often], said, lambda _: f"{who[0]}: {counting}; so {often[0]}"
    )


OWNED = "acres of land|sheep|wells|orchards|letters from abroad|crates of cork|bottles of cider"
OWNED += "|bales of cotton|tons of coal|pairs of boots|beehives|loaves|sacks of oats|pounds of tea"
OWNED += "|wooden spoons|umbrellas|pigeons|maps|candlesticks|barrels of herring"
GAINED = (
    "own owned|buy bought|keep kept|count counted|ship shipped|store stored|lose lost|need needed"
)
GAINED += "|order ordered|receive received|send sent|waste wasted|promise promised|pawn pawned"
GUILDS = "millers|bakers|weavers|monks|fishermen|carters|tailors|pupils|widows|soldiers|innkeepers"
AMOUNTS = (
    "{a} {past} {n} {goods}.",
    "{a} {past} as many as {n} {goods}.",
    "{n} {goods} were what {a} {past}.",
    "As to {goods}, {a} {past} {n}.",
    "In the end {a} {past} {n} {goods}, according to the books.",
    "{a} is said to have {past} {n} {goods} in one season.",
    "No more and no less than {n} {goods} is what {a} {past}.",
)
MEASURED = (  # statement | most | least | kind
    "{a} received its charter in {n}.|Which of these places was the latest to receive its charter?"
    "|Which of these places was the earliest to receive its charter?|town",
    "On the scales the {a} came to {n} grams.|Which stone was the heaviest on the scales?"
    "|Which stone was the lightest on the scales?|stone",
    "For the {a} the dealer wanted {n} shillings.|Which of the objects was the dearest?"
    "|Which of the objects was the cheapest?|thing",
    "The {a} needed {n} days for the crossing.|Which ship had the longest crossing?"
    "|Which ship had the shortest crossing?|ship",
    "A tunnel of {n} paces leads to {a}.|To which place does the longest tunnel lead?"
    "|To which place does the shortest tunnel lead?|town",
    "The {a} was built in {n}.|Which ship is the newest?|Which ship is the oldest?|ship",
    "{a} lies {n} paces above the sea.|Which place lies highest?|Which place lies lowest?|town",
    "The {a} fetched {n} ducats.|For which object was most paid?|For which was least paid?|thing",
)


def measure(draw: Draw) -> Question:
    """The most or the least of four."""
    low, high = draw.choice(((1203, 1897), (12, 990), (1010, 9900), (3, 60)))
    numbers, top = sorted(draw.sample(range(low, high), 4)), draw.random() < 0.5
    if draw.random() < 0.3:
        form, most, least, kind = draw.wording(MEASURED).split("|")
        four = things(draw, kind, 4)
        said = [sentence(form.format(a=a, n=n)) for a, n in zip(four, numbers, strict=True)]
        ask = most if top else least
    else:
        base, past = draw.choice(GAINED.split("|")).split()
        goods, guild = draw.choice(OWNED.split("|")), draw.choice(GUILDS.split("|"))
        four = things(draw, kind := draw.choice(("name", "town")), 4)
        form = draw.wording(AMOUNTS)
        of = f"the {guild} of " if kind == "town" else ""
        said = [
            sentence(form.format(a=f"{of}{a}", n=n, past=past, goods=goods))
            for a, n in zip(four, numbers, strict=True)
        ]
        which = draw.choice(
            (f"In which place did the {guild} {base} the {{more}} {goods}?",
             f"Name the town whose {guild} {past} the {{more}} {goods}.")
            if kind == "town"
            else (f"Who {past} the {{more}} {goods}?", f"Who of them {past} the {{more}} {goods}?")
        )  # fmt: skip
        ask = which.format(more="most" if top else draw.choice(("fewest", "least")))
    known = dict(zip(four, numbers, strict=True))
    if top:
        four.reverse()
    end = f"; {'most' if top else 'least'} {known[four[0]]}, {four[0]}"
    return Question(
        ask,
        four,
        draw.sample(said, 4),
        lambda order: ", ".join(f"{name} {known[name]}" for name in order) + end,
    )


DEGREES = (  # more less most least unit kind
    "older younger oldest youngest years name",
    "taller shorter tallest shortest inches name",
    "heavier lighter heaviest lightest pounds thing",
    "longer shorter longest shortest spans thing",
    "dearer cheaper dearest cheapest florins thing",
    "higher lower highest lowest paces town",
    "richer poorer richest poorest ducats town",
    "faster slower fastest slowest knots ship",
    "larger smaller largest smallest tons ship",
)
COMPARED = (
    "{a} is {n} {unit} {more} than {b}.",
    "{b} is {n} {unit} {less} than {a}.",
    "By {n} {unit}, {a} is {more} than {b}.",
    "Compared with {b}, {a} is {n} {unit} {more}.",
    "{b}, it is known, is {less} than {a} by {n} {unit}.",
    "Set beside {a}, {b} is {less} by {n} {unit}.",
)
EVENTS = "was completed|was painted|burnt down|was sold|was opened to guests|got a new roof"
EVENTS += "|was flooded|was put up|received a visit of the queen|was lit by gas|was given up"
CAME = "came home|was born|took the oath|fell ill|learnt to read|left the village|became a judge"
ORDERED = (
    "{b} {event} {n} {time} after {a}.",
    "{a} {event} {n} {time} before {b}.",
    "{n} {time} after {a}, {b} {event}.",
    "{a} {event}; {b} {event} {n} {time} later.",
    "When {b} {event}, {n} {time} had passed since {a} {event}.",
    "{n} {time} had to go by after {a} {event} until {b} {event}.",
    "{a} {event} {n} {time} earlier than {b}.",
)
FIRSTS = (
    "Which of these {event} {end}?",
    "Which of the four {event} {end}?",
    "What is the {end} of these that {event}?",
    "By time, which one {event} {end}?",
)


def rank(draw: Draw) -> Question:
    """First or last of four, from statements on two of them each."""
    top, numbers = draw.random() < 0.5, draw.sample(range(2, 70), 3)
    if draw.random() < 0.4:
        more, less, most, least, unit, kind = draw.choice(DEGREES).split()
        parts = {"more": more, "less": less, "unit": unit}
        form, four, place = draw.wording(COMPARED), things(draw, kind, 4), ""
        ask = draw.choice(("Which of these is the {x}?", "Which is the {x} of the four?"))
        ask = ask.format(x=most if top else least)
    else:
        persons = draw.random() < 0.3
        event = draw.choice((CAME if persons else EVENTS).split("|"))
        kind = "name" if persons else draw.choice(("house", "house", "town"))
        parts = {"event": event, "time": draw.choice(("years", "years", "months", "weeks", "days"))}
        form, place = draw.wording(ORDERED), ""
        four = draw.sample(facts.HOUSES.split("|"), 4) if kind == "house" else things(draw, kind, 4)
        if kind == "house" and draw.random() < 0.7:
            place = f"in {draw.places(1)[0]}"
        ask = draw.wording(FIRSTS).format(event=event, end="first" if top else "last")
        ask = f"{ask[:-1]} {place}?" if place else ask
    the = "the " if kind in ("thing", "ship", "house") else ""
    said = []
    for (a, b), n in zip(pairwise(four), numbers, strict=True):
        text = form.format(a=the + a, b=the + b, n=n, **parts)
        said.append(f"{sentence(place)}, {text}" if place else sentence(text))
    path = ", then ".join(four)
    if not top:
        four = four[::-1]
    return Question(ask, four, draw.sample(said, 3), lambda _: f"{path}; so {four[0]}")


CARRIED = "carried brought shifted dragged sent hauled wheeled smuggled passed returned taken moved"
WAYS = {  # from {a} to {b}, by what they are
    "spot": "from the {a} to the {b}|out of the {a} into the {b}|from the {a} over to the {b}"
    "|away from the {a} and to the {b}|from the {a} across to the {b}",
    "town": "from {a} to {b}|out of {a} and on to {b}|from {a} over to {b}"
    "|all the way from {a} to {b}",
    "ship": "from the {a} to the {b}|off the {a} and aboard the {b}|from the {a} over to the {b}",
    "name": "from {a} to {b}|from the house of {a} to that of {b}|by {a} into the hands of {b}",
}
LIES = {"spot": "in the {b}|at the {b}", "town": "in {b}", "ship": "on the {b}", "name": "with {b}"}
BEGUN = (
    "To begin with, the {x} was {at}.",
    "The {x} started out {at}.",
    "In the beginning one found the {x} {at}.",
    'The story of the {x} begins: "It is {at}."',
    '"Look for the {x} {at}," {who} had told us.',
    "Before it was ever moved, the {x} was {at}.",
    "The first time that anybody saw it, the {x} was {at}.",
)
WENT = (
    "The {x} was {carried} {way} by {who}.",
    "Then the {x} was {carried} {way}.",
    "{who} had the {x} {carried} {way}.",
    'Says {who}: "The {x} was {carried} {way}."',
    '"We had the {x} {carried} {way}," {who} wrote.',
    '"Today the {x} was {carried} {way}," said {who}.',
    "A note of {who} tells us that the {x} was {carried} {way}.",
    "At night the {x} got {carried} {way}.",
    '{who} nodded. "It is true, they have {carried} the {x} {way}."',
    "On the order of {who} the {x} had to be {carried} {way}.",
    "{way}, that is how the {x} was {carried}.",
)
ENDS = (
    "Where or with whom is the {x} now?|Where or with whom did the {x} begin?",
    "What was the last stop of the {x}?|What was the first stop of the {x}?",
    "Tell me where or with whom the {x} stayed for good.|Tell me where or with whom the {x} was "
    "before it was first moved.",
    "After all that happened, where or with whom must one look for the {x}?"
    "|Before anything happened, where or with whom must one look for the {x}?",
    "At the close of the text, where or with whom is the {x}?"
    "|At the opening, where or with whom was the {x}?",
    "Where is the {x} finally?|Where was the {x} originally?",
    "Follow the {x}. Who or what has it at last?|Follow the {x} back. Who or what had it at first?",
)


def moved(draw: Draw) -> Question:
    """Where something is in the end; a second thing goes through the same places."""
    kind = draw.choice([*WAYS])
    begin, went = draw.wording(BEGUN), draw.wording(WENT)
    at, way = draw.choice(LIES[kind].split("|")), draw.choice(WAYS[kind].split("|"))
    carried = draw.choice(CARRIED.split())
    one, other = things(draw, "thing", 2)
    four = things(draw, kind, 4)
    paths, said = [four[::-1], draw.sample(four, 4)], []
    for x, stops in zip((one, other), paths, strict=True):
        lines = [begin.format(x=x, at=at.format(b=stops[0]), who=draw.name())]
        lines += [
            went.format(x=x, way=way.format(a=a, b=b), carried=carried, who=draw.name())
            for a, b in pairwise(stops)
        ]
        said.append([sentence(line) for line in lines])
    last, first = draw.wording(ENDS).split("|")
    back = draw.random() < 0.25
    path = ", then ".join(four[::-1])
    if back:
        four = four[::-1]
    return Question(
        (first if back else last).format(x=one),
        four,
        merged(draw, *said),
        lambda _: f"{one}: {path}; so {four[0]}",
    )


def merged(draw: Draw, one: list[str], other: list[str]) -> list[str]:
    """Both lists in one, each in its order."""
    first = set(draw.sample(range(len(one) + len(other)), len(one)))
    left, right = iter(one), iter(other)
    return [next(left if i in first else right) for i in range(len(one) + len(other))]
