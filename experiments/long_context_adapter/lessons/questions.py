"""Questions with four choices that one or two statements answer; the reply quotes them.

All four choices are said of something in the text, in one manner.
"""

from __future__ import annotations

from macbench.experiments.long_context_adapter.draw import Draw
from macbench.experiments.long_context_adapter.lessons import facts
from macbench.experiments.long_context_adapter.lessons.base import Question
from macbench.experiments.long_context_adapter.lessons.facts import sentence

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
