"""Kinds of questions with four choices. All four are said of something in the text, in one manner.

A kind returns its question, the four choices with the right one first, the sentences that answer it
in the order in which they stand in the text, and what a reply says before it chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from macbench.experiments.long_context_adapter.draw import Draw
from macbench.experiments.long_context_adapter.lessons import facts
from macbench.experiments.long_context_adapter.lessons.facts import sentence


@dataclass(frozen=True)
class Question:
    ask: str
    four: list[str]  # the right one first
    said: list[str]
    reason: Callable[[list[str]], str]  # from the choices in their order; without a full stop


SHIPS = "Albatross Bluebell Corsair Diligence Eglantine Fortuna Gauntlet Harmony Iolanthe Juniper"
SHIPS += " Kingfisher Larkspur Meridian Nightjar Orlando Patience Ranger Sapphire Tempest Zephyr"
CARGO = "indigo|cork|sugar|cotton|saltpetre|ivory|oranges|sailcloth|nutmeg|whale oil|copra|hemp"
STONES = "opal garnet amber jasper topaz onyx beryl agate"
SIGNS = "triangle circle anchor crown wheel ladder star feather arrow spiral hourglass"
MEANINGS = "danger water shelter treasure north supper enemy friend silence gold market sickness"
ADJECTIVES = "old young deaf proud hungry sleepy angry brave clumsy lazy polite jealous"
PERSONS = "miller widow thief king cousin sailor judge aunt shepherd soldier nurse monk"


def event(draw: Draw) -> Question:
    """One of four events; each has its own person, thing, place and time."""
    base, past, part = draw.choice(facts.VERBS.split("|")).split()
    years = draw.sample(range(1402, 1899), 4)
    things = draw.sample([f"{a} {t}" for a in facts.ODD.split() for t in facts.THINGS.split()], 4)
    town = draw.random() < 0.6
    at = [f"in {p}" for p in draw.places(4)]
    if not town:
        at = [f"at the {s}" for s in draw.sample(facts.SPOTS.split("|"), 4)]
    four = [
        {"base": base, "past": past, "part": part, "who": w, "thing": t, "at": a, "when": f"in {y}"}
        for w, t, a, y in zip(draw.names(4), things, at, years, strict=True)
    ]
    form, same = draw.wording(facts.SAID), draw.random() < 0.6
    said = [facts.state(form if same else draw.wording(facts.SAID), parts) for parts in four]
    mine = four[0]
    keys = {"who": "thing", "thing": "who", "at": "thing", "when": "thing"}
    what = draw.choice([w for w, key in keys.items() if reads(said[0], mine[key], mine[w])])
    return Question(
        facts.ask(draw, what, four[0]),
        [parts[what].removeprefix("in ").removeprefix("at ") for parts in four],
        draw.sample(said, 4),
        lambda _: quoted(said[0]),
    )


def quoted(said: str) -> str:
    """A sentence as a reason."""
    return said.removesuffix(".")


def reads(said: str, key: str, value: str) -> bool:
    """Whether a reader who looks for the key comes upon it before the value."""
    low = said.lower()
    return low.find(key.lower()) < low.find(value.lower())


def feature(draw: Draw) -> Question:
    """The same of four towns."""
    towns, house = draw.places(4), draw.choice(facts.HOUSES.split("|"))
    name, values = _values(draw)
    state, made = draw.getstate(), []
    for town, value in zip(towns, values, strict=True):
        draw.setstate(state)  # the same wording for all
        made.append(facts.feature(draw, town, house, name, value, first=True))
    said = [fact.said for fact in made]
    ask = made[0].asked[0][0]
    return Question(ask, values, draw.sample(said, 4), lambda _: quoted(said[0]))


def _values(draw: Draw) -> tuple[str, list[str]]:
    """A feature and four values of it."""
    name = draw.choice([*facts.FEATURES])
    found: dict[str, int] = {}
    while len(found) < 4:
        found[facts.feature_value(draw, name)] = 0
    return name, list(found)


PAIRED = (  # what is said of {a} and {b}, a first; for what of a's is asked
    "Into {a} came a letter from {b} by mail.|Whose letter came into {a}?|town|name",
    "The hold of the {a} was full of {b}.|With what was the {a} loaded?|ship|cargo",
    "The {a} sailed under captain {b}.|Who was captain of the {a}?|ship|name",
    "{a} sat for a portrait beside the {b}.|Beside what did {a} sit for a portrait?|name|thing",
    "For the hand of {a} asked {b}.|Who asked for the hand of {a}?|name|name",
    "The cheese of {a} is wrapped in leaves of {b}.|In leaves of what is the cheese of {a} wrapped?"
    "|town|cargo",
    "Instead of rent, {a} paid with a {b}.|With what did {a} pay instead of rent?|name|thing",
    "In {a} they named a street after {b}.|After whom did they name a street in {a}?|town|name",
    "The road from {a} ends at {b}.|Where does the road from {a} end?|town|town",
    "{a} trusts nobody except {b}.|Whom does {a} trust?|name|name",
    "A carved {a} on a door meant {b}.|What did a carved {a} on a door mean?|sign|meaning",
    "The crew of the {a} was paid in {b}.|In what was the crew of the {a} paid?|ship|cargo",
    "At the christening of {a}, {b} was godparent.|Who was godparent of {a}?|name|name",
    "The lawyer of {a} is called {b}.|What is the lawyer of {a} called?|name|name",
    "Next to the {a} lay the {b} in the harbour.|Which ship lay next to the {a}?|ship|ship",
    "The oldest map of {a} was drawn by {b} in ink.|Who drew the oldest map of {a}?|town|name",
    "On the market of {a} stands a {b}.|What stands on the market of {a}?|town|thing",
    "The dog of {a} answers to the name of {b}.|To what name does the dog of {a} answer?|name|ship",
    "The aunt of {a} left all to {b}.|To whom did the aunt of {a} leave all?|name|name",
    "Over the gate of {a} they hung a {b}.|What did they hang over the gate of {a}?|town|thing",
    "From {a} the mail goes straight to {b}.|Where does the mail from {a} go?|town|town",
    "The song that {a} wrote is about the ship {b}.|Which ship is the song of {a} about?|name|ship",
    "During the strike, the tailors of {a} lived on {b}.|On what did the tailors of {a} live?"
    "|town|cargo",
    "The first doctor of {a} was {b}, who had studied abroad.|Who was the first doctor of {a}?"
    "|town|name",
    "The {a} was cut in the workshop of {b}.|In whose workshop was the {a} cut?|stone|name",
    "The flag of {a} shows a {b} on a plain ground.|What does the flag of {a} show?|town|sign",
    "{a} always carries a {b} in a coat pocket.|What does {a} carry in a coat pocket?|name|stone",
    "{a} was last seen near {b}.|Near which place was {a} last seen?|name|town",
)


def things(draw: Draw, kind: str, count: int) -> list[str]:
    """Different ones of a kind."""
    if kind == "name":
        return draw.names(count)
    if kind == "town":
        return draw.places(count)
    if kind == "thing":
        made = [f"{a} {t}" for a in facts.ODD.split() for t in facts.THINGS.split()]
        return draw.sample(made, count)
    return draw.sample(
        {"ship": SHIPS.split(), "cargo": CARGO.split("|"), "sign": SIGNS.split(),
         "meaning": MEANINGS.split(), "stone": STONES.split(),
         "spot": facts.SPOTS.split("|")}[kind], count,
    )  # fmt: skip


def pair(draw: Draw) -> Question:
    """Who or what goes with which of four."""
    form, ask, one, other = draw.wording(PAIRED).split("|")
    if one == other:
        eight = things(draw, one, 8)
        a, b = eight[:4], eight[4:]
    else:
        a, b = things(draw, one, 4), things(draw, other, 4)
    said = [sentence(form.format(a=x, b=y)) for x, y in zip(a, b, strict=True)]
    return Question(ask.format(a=a[0]), b, draw.sample(said, 4), lambda _: quoted(said[0]))


LISTS = (
    "Debts still open|debtor name/home town/florins number/since year",
    "Berths of the {ship}|passenger name/bound for town/berth number",
    "Prizes of the lottery at {town}|ticket number/winner name/prize thing",
    "Cattle sold at {town}|seller name/head number/thalers number/buyer name",
    "Ships in port|ship ship/freight cargo/from town/tons number",
    "Books lent out|reader name/shelf number/returned year",
    "Pupils of the school in {town}|pupil name/entered year/marks number",
    "Pieces in the {town} collection|piece thing/giver name/case number/found in town",
    "Repairs done in the yard of {town}|item thing/owner name/hours number",
)
CUTS = ("; ", " / ", ", ", " - ", "\t", " || ", "|", " ~ ", " : ")
CELLS = (
    "According to '{title}', what is the {column} of {key}?",
    "Give the {column} of {key} in '{title}'.",
    "What does the list '{title}' give as {column} for {key}?",
    "Look at '{title}': what is the {column} in the line of {key}?",
    "Which {column} stands beside {key} under '{title}'?",
    "In the table called '{title}', what is entered for {key} as {column}?",
)


def cell(draw: Draw) -> Question:
    """A cell of a list of six to twelve lines."""
    title, columns = draw.choice(LISTS).split("|")
    title = title.format(ship=draw.choice(SHIPS.split()), town=draw.places(1)[0])
    names, kinds = zip(*(c.rsplit(" ", 1) for c in columns.split("/")), strict=True)
    rows, cut = draw.randint(6, 12), draw.wording(CUTS)
    people, towns = draw.names(2 * rows), draw.places(2 * rows)
    cells: list[list[str]] = []
    for kind in kinds:
        if kind == "number":
            cells.append([str(n) for n in draw.sample(range(11, 990), rows)])
        elif kind == "year":
            cells.append([str(n) for n in draw.sample(range(1402, 1899), rows)])
        elif kind == "cargo":
            cells.append(draw.sample(CARGO.split("|"), rows))
        else:
            two = {"name": people, "town": towns}.get(kind)
            cells.append(two[:rows] if two else things(draw, kind, rows))
            people, towns = people[::-1], towns[::-1]
    key, order = 0, draw.sample(range(len(names)), len(names))
    column = draw.choice([i for i in range(1, len(names)) if kinds[i] != kinds[key]])
    lines = [cut.join(cells[i][row] for i in order) for row in range(rows)]
    text = "\n".join([title, cut.join(names[i] for i in order), *draw.sample(lines, rows)])
    ask = draw.wording(CELLS).format(title=title, column=names[column], key=cells[key][0])
    return Question(ask, cells[column][:4], [text], lambda _: lines[0].replace("\t", " "))


DEEDS = "rang the great bell|missed the ferry|slept in the barn|won at cards|asked for credit"
DEEDS += "|fell off the horse|sang at the tavern|brought a basket of eggs|wrote to the editor"
DEEDS += "|paid a fine|came late to supper|went out to fish|lost a glove|climbed the watchtower"
DONE = (
    "{when} came, and {who} {deed}.",
    "{when} was a day on which {who} {deed}.",
    "Then {who} {deed} ({when}).",
    "{when} - {who} {deed}.",
    '"{when} I saw how {who} {deed}," a neighbour told us.',
    "Nothing else is known of {when} but that {who} {deed}.",
    "{who} {deed} again. This was {when}.",
    "People spoke of {when}, when {who} {deed} once more.",
    "{when}: {who} {deed}.",
    "It was {when} when {who} {deed}.",
    "{who} {deed}; that was {when}.",
    "{when}, as the diary says, {who} {deed}.",
)
COUNTED = (
    "How many times did it happen that {who} {deed}?",
    "How often is it said that {who} {deed}?",
    "Count the occasions on which {who} {deed}. How many are they?",
    "Of how many times do we read when {who} {deed}?",
)
MONTHS = "January February March April May June July August September October November December"


def tally(draw: Draw) -> Question:
    """How often somebody did something; the others did it other numbers of times."""
    who, often = draw.names(4), draw.sample(range(1, 7), 4)
    deed, form = draw.choice(DEEDS.split("|")), draw.wording(DONE)
    style = draw.choice(("the {d} of {m}", "{m} {d}", "day {d} of {m}"))
    dates = [style.format(d=d, m=m) for m in MONTHS.split() for d in range(1, 29)]
    days = iter(draw.sample(dates, sum(often)))
    done = [(name, next(days)) for name, n in zip(who, often, strict=True) for _ in range(n)]
    draw.shuffle(done)
    said = [sentence(form.format(when=day, who=name, deed=deed)) for name, day in done]
    mine = [day for name, day in done if name == who[0]]
    counted = ", ".join(f"{day} {i}" for i, day in enumerate(mine, 1))
    ask = draw.wording(COUNTED).format(who=who[0], deed=deed)
    return Question(
        ask, [str(n) for n in often], said, lambda _: f"{who[0]}: {counted}; so {often[0]}"
    )


MEASURED = (  # statement | most | least | kind
    "{a} received its charter in {n}.|Which of these places was the latest to receive its charter?"
    "|Which of these places was the earliest to receive its charter?|town",
    "On the scales the {a} came to {n} grams.|Which stone was the heaviest on the scales?"
    "|Which stone was the lightest on the scales?|stone",
    "{a} owns {n} acres of land.|Who of these owns the most land?|Who of these owns the least land?"
    "|name",
    "In {a} there are {n} wells.|Where are there more wells than in the other three?"
    "|Where are there fewer wells than in the other three?|town",
    "For the {a} the dealer wanted {n} shillings.|Which of the objects was the dearest?"
    "|Which of the objects was the cheapest?|thing",
    "The {a} needed {n} days for the crossing.|Which ship had the longest crossing?"
    "|Which ship had the shortest crossing?|ship",
    "{a} wrote {n} letters from abroad.|Who wrote the most letters?|Who wrote the fewest letters?"
    "|name",
    "A tunnel of {n} paces leads to {a}.|To which place does the longest tunnel lead?"
    "|To which place does the shortest tunnel lead?|town",
    "{n} sheep belong to the farm of {a}.|Whose farm has the largest flock of sheep?"
    "|Whose farm has the smallest flock of sheep?|name",
    "The {a} was built in {n}.|Which ship is the newest?|Which ship is the oldest?|ship",
    "{a} lies {n} paces above the sea.|Which place lies highest?|Which place lies lowest?|town",
    "The {a} fetched {n} ducats.|For which object was most paid?|For which was least paid?|thing",
)


def measure(draw: Draw) -> Question:
    """The most or the least of four."""
    form, most, least, kind = draw.wording(MEASURED).split("|")
    low, high = draw.choice(((1203, 1897), (12, 990), (1010, 9900), (3, 60)))
    four, numbers = things(draw, kind, 4), sorted(draw.sample(range(low, high), 4))
    known = dict(zip(four, numbers, strict=True))
    said = [sentence(form.format(a=a, n=n)) for a, n in known.items()]
    top = draw.random() < 0.5
    if top:
        four.reverse()
    listed: Callable[[list[str]], str] = lambda order: ", ".join(  # noqa: E731
        f"{name} {known[name]}" for name in order
    )
    return Question(
        most if top else least,
        four,
        draw.sample(said, 4),
        lambda order: f"{listed(order)}; {'most' if top else 'least'} {known[four[0]]}, {four[0]}",
    )


RANKED = (  # statement on two, {a} the higher | first | last | kind
    "{a} is {n} years older than {b}.|Who is the oldest of them?|Who is the youngest of them?|name",
    "The {a} came into port {n} hours before the {b}.|Which ship came into port first?"
    "|Which ship came into port last?|ship",
    "The {a} was painted {n} weeks earlier than the {b}.|Which of them was painted first?"
    "|Which of them was painted last?|thing",
    "{a} lies {n} miles upstream of {b}.|Which place is farthest up the river?"
    "|Which place is farthest down the river?|town",
    "The {b} weighs {n} pounds less than the {a}.|Which of these weighs most?"
    "|Which of these weighs least?|thing",
    "{b} owes the bank {n} florins less than {a}.|Who owes the bank most?|Who owes the bank least?"
    "|name",
    "{b} got its fire engine {n} months later than {a}.|Which place got its fire engine first?"
    "|Which place got its fire engine last?|town",
    "{a} crossed the line {n} steps ahead of {b}.|Who won the race?|Who lost the race?|name",
    "{n} days before the {b}, the {a} was launched.|Which was launched first?"
    "|Which was launched last?|ship",
    "{a} has {n} more pupils than {b}.|Who has the most pupils?|Who has the fewest pupils?|name",
)


def rank(draw: Draw) -> Question:
    """First or last of four, from statements on two of them each."""
    form, first, last, kind = draw.wording(RANKED).split("|")
    four = things(draw, kind, 4)
    numbers = draw.sample(range(2, 70), 3)
    said = [
        sentence(form.format(a=a, b=b, n=n))
        for (a, b), n in zip(pairwise(four), numbers, strict=True)
    ]
    path, top = ", then ".join(four), draw.random() < 0.5
    if not top:
        four = four[::-1]
    return Question(
        first if top else last, four, draw.sample(said, 3), lambda _: f"{path}; so {four[0]}"
    )


HAVE = (
    "keeps bees|runs an inn|went to school|owns a mill|died|has a cousin|was christened|sells hats"
)
HAVE += "|lost a lawsuit|grew roses|hid from the rain|broke a leg|paid taxes|rents a room"
LINKS = (  # what is said of a person and a town | the town by the person
    "{who} spent that winter at {town}.|the place where {who} spent the winter",
    "{who} owns a vineyard near {town}.|the town near which {who} owns a vineyard",
    "{who} was brought up in {town}.|the town where {who} was brought up",
    "{who} keeps a shop in {town}.|the town in which {who} keeps a shop",
    "{town} is where {who} learnt to swim.|the place where {who} learnt to swim",
    "{who} got married at {town}.|the place where {who} got married",
    "{who} sends money to an aunt in {town}.|the town to which {who} sends money",
    "The grave of {who} is in {town}.|the town with the grave of {who}",
    "{who} used to teach in {town}.|the town where {who} used to teach",
    "Every summer {who} travels to {town}.|the place to which {who} travels in summer",
    *(f"{{who}} {have} in {{town}}.|the town in which {{who}} {have}" for have in HAVE.split("|")),
    "{who} fled from {town} at night.|the town from which {who} fled",
)


def linked(draw: Draw) -> Question:
    """From a person to a town, and from the town to something it has."""
    form, there = draw.wording(LINKS).split("|")
    who, towns, house = draw.names(4), draw.places(4), draw.choice(facts.HOUSES.split("|"))
    name, values = _values(draw)
    state, made = draw.getstate(), []
    places = [there.format(who=who[0]), *towns]
    for place, value in zip(places, [values[0], *values], strict=True):
        draw.setstate(state)
        made.append(facts.feature(draw, place, house, name, value, first=True))
    asked, *said = made
    homes = [sentence(form.format(who=w, town=t)) for w, t in zip(who, towns, strict=True)]
    has = [fact.said for fact in said]
    return Question(
        asked.asked[0][0],
        values,
        draw.sample([*homes, *has], 8),
        lambda _: f"{homes[0]} {quoted(has[0])}",
    )


MOVED = (  # at first | each further time
    "The {x} first belonged to {b}.|{a} made {b} a present of the {x}.|name",
    'The first to speak of the {x} had seen it in the {b}.|"We took the {x} out of the {a} and put '
    'it into the {b}," {who} wrote.|spot',
    "They left the {x} at the {b}.|{who} fetched the {x} from the {a} to the {b}.|spot",
    'In those days {b} kept the {x}.|"I bought the {x} from {a}, and you shall have it, {b}," said '
    "{who}.|name",
    "{b} is where the story of the {x} starts.|From {a} the {x} travelled to {b}, in a bag of "
    "{who}.|town",
    "At the outset the {x} hung in the {b}.|Nobody saw {who} move the {x} from the {a} to the {b}."
    "|spot",
    '"You will find the {x} in the {b}," the note began.|{who} said: "The {x} has left the {a} for '
    'the {b}."|spot',
    "A thief sold the {x} to {b}.|{b} got the {x} out of the hands of {a}.|name",
    "To begin with, the {x} stood in the {b}.|The {x} went from the {a} over to the {b}.|spot",
    "The {x} was bought in {b}.|Out of {a} the {x} was sent on to {b}.|town",
    "{b} was the first to wear the {x}.|{b} won the {x} from {a}.|name",
    'In the beginning the {x} lay in the {b}.|"The {x} is not in the {a} any more; look in the {b}"'
    ", it was said.|spot",
    "The {x} came out of a workshop in {b}.|A carter took the {x} from {a} to {b}.|town",
    "The {x} was loaded on the {b}.|The {x} changed from the {a} to the {b} at sea.|ship",
    "It was {b} who found the {x}.|{a} lent the {x} to {b}.|name",
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
    "Follow the {x}. Who or what has it at last?|Follow the {x} back. Who or what had it at first?",
)


def moved(draw: Draw) -> Question:
    """Where something is in the end; a second thing goes through the same places."""
    begin, go, kind = draw.wording(MOVED).split("|")
    one, other = things(draw, "thing", 2)
    four = things(draw, kind, 4)
    paths, said = [four[::-1], draw.sample(four, 4)], []
    for x, path in zip((one, other), paths, strict=True):
        lines = [begin.format(x=x, b=path[0])]
        lines += [go.format(x=x, a=a, b=b, who=draw.name()) for a, b in pairwise(path)]
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


MEANT = (
    'Among the shepherds of {town}, "{w}" stands for "{m}".',
    'Whoever says "{w}" in {town} thinks of "{m}".',
    'The dictionary of {town} explains "{w}" as "{m}".',
    'Children in {town} shout "{w}" instead of "{m}".',
    '"{m}" is "{w}" in the speech of {town}.',
    'For "{m}" they say "{w}" around {town}.',
)
TRANSLATED = (
    'Put into plain words, what is "{w}" of {town}?',
    'Somebody from {town} says "{w}". What is that?',
    'How would one explain the expression "{w}" from {town}?',
    'Translate "{w}" from the speech of {town}.',
)


def words(draw: Draw) -> Question:
    """Two invented words; the choices pair two meanings with two others."""
    town, form = draw.places(1)[0], draw.wording(MEANT)
    one, other = draw.sample(ADJECTIVES.split(), 2), draw.sample(PERSONS.split(), 2)
    invented: dict[str, int] = {}
    while len(invented) < 4:
        invented[draw.invented(draw.randint(4, 8))] = 0
    code = list(invented)
    said = [form.format(town=town, w=w, m=m) for w, m in zip(code, [*one, *other], strict=True)]
    four = [f"{a} {b}" for a in one for b in other]
    ask = draw.wording(TRANSLATED).format(town=town, w=f"{code[0]} {code[2]}")
    told = f"{code[0]} is {one[0]}, {code[2]} is {other[0]}; so {four[0]}"
    return Question(ask, four, draw.sample(said, 4), lambda _: told)


def merged(draw: Draw, one: list[str], other: list[str]) -> list[str]:
    """Both lists in one, each in its order."""
    first = set(draw.sample(range(len(one) + len(other)), len(one)))
    left, right = iter(one), iter(other)
    return [next(left if i in first else right) for i in range(len(one) + len(other))]


KINDS: tuple[Callable[[Draw], Question], ...] = (
    event, feature, pair, cell, measure, words,
    linked, linked, tally, tally, rank, rank, moved, moved,  # the hard ones twice
)  # fmt: skip
