"""Long structured writing: numbered sections of real length, events where they were asked for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

from macbench.experiments.long_context_adapter.draw import Draw
from macbench.experiments.long_context_adapter.lessons.base import Lesson, Part, Turn
from macbench.experiments.long_context_adapter.texts import Size

TOKENS_A_WORD = 1.36


@dataclass(frozen=True)
class Scene:
    """A kind of document; lists are separated by bars."""

    unit: str
    about: str
    things: str
    places: str
    people: str
    single: str
    lasting: str
    regular: str


SCENES = (
    Scene(
        "Day",
        "the log of the schooner {name}",
        "mainsail|anchor chain|water casks|compass|rigging|rudder|charts|lantern|pumps|stove",
        "foredeck|cabin|hold|crow's nest|stern|harbour|reef|open sea|sheltered bay|quay",
        "the mate|the cook|the carpenter|the youngest sailor|the pilot|the captain|passengers",
        "a whale beside the hull|the repair of the broken spar|a birthday of the cook"
        "|a race against a brig|the sale of the spare sail|a visit of the customs officer",
        "a passage through ice|a stay in the dry dock|a convoy with two frigates",
        "a fire drill|a bath for all hands|an inspection of the stores|music on deck",
    ),
    Scene(
        "Room",
        "the guide to the museum of {name}",
        "tapestry|glass case|oak panels|marble floor|skylight|long bench|bronze bust"
        "|spiral stair|brass railing|fountain|carved door",
        "east wall|alcove|gallery|entrance|window side|far corner|balcony|passage",
        "the keeper|school classes|the restorer|visiting scholars|the guide|evening guests",
        "a collection of clocks|a whale skeleton|the armour of a duke|a map room|a hall of mirrors"
        "|a model of the old town|a reading corner",
        "an exhibition of textiles|a display of minerals|a suite on seafaring",
        "a drinking tap|a lift|a resting place with sofas|an emergency store",
    ),
    Scene(
        "Station",
        "a travel book on the railway line to {name}",
        "platform roof|signal box|waiting room|water tower|goods shed|flower beds|iron footbridge"
        "|ticket window|clock|sidings",
        "valley|hillside|market square|north platform|tunnel mouth|river bank|old quarter|fields",
        "the station master|commuters|a porter|farmers|the signalman|hikers|a vendor of pears",
        "a glass-blowing workshop|a viaduct of nine arches|a buffet with pies|a war memorial"
        "|a nature trail|a locomotive museum|a cattle market",
        "a stretch of rebuilt track|a run along the gorge|a district of vineyards",
        "a coal depot|a bicycle hire|a telegraph office|a crossing loop",
    ),
    Scene(
        "Page",
        "the almanac of the gardens of {name}",
        "rose arch|compost heap|greenhouse|stone path|pear trees|herb border|pond|beehives"
        "|hedge|sundial|tool shed",
        "kitchen garden|lower terrace|orchard|south wall|meadow|nursery beds|shade garden",
        "the head gardener|apprentices|neighbours|volunteers|the botanist|children from the school",
        "the planting of a walnut tree|a talk on moss|the arrival of the new bees|a frost alarm"
        "|an open day|a prize for the dahlias|the draining of the pond",
        "a harvest of plums|a repair of the glass roof|a trial of late tulips",
        "a sale of seedlings|a pruning lesson|a stock-taking of pots|an evening walk",
    ),
    Scene(
        "Evening",
        "the season book of the theatre in {name}",
        "velvet curtain|footlights|orchestra pit|costumes|painted forest|trapdoor|props|chandelier"
        "|prompt box|programme",
        "stage|foyer|balcony|dressing room|workshop|stalls|rehearsal hall|stage door",
        "the director|the tenor|the chorus|the wardrobe mistress|critics|the stagehands|students",
        "a gala for the founders|a comedy in verse|the farewell of the conductor|a puppet play"
        "|an evening of ballads|a lecture with lantern slides|a benefit for the fire brigade",
        "a festival of one-act plays|a guest troupe from abroad|a cycle of operettas",
        "a matinee for families|a costume check|a raffle|a discussion with the audience",
    ),
    Scene(
        "Plot",
        "the plan of the new settlement of {name}",
        "brick arcade|rain garden|timber hall|bus shelter|cycle path|solar roofs|row of lime trees"
        "|playing field|granite steps|street lamps|glass pavilion",
        "north side|courtyard|corner|main street|canal bank|inner lane|slope|square",
        "residents|shopkeepers|the architect|commuters|families|the gardener|older people",
        "a clinic|a fire station|a pottery|a market hall|a boarding school|a covered pool|a cinema"
        "|a tailor's shop|a bank of allotments",
        "a row of workshops|a green belt|a terrace of small houses",
        "a recycling point|a public well|a charging post|a chess table",
    ),
)
FRAMES = (
    "{Person} spent most of the time near the {place}, where the {thing} needed a careful hand.",
    "The {thing} by the {place} was cleaned twice, and {person} took notes on how it held up.",
    "From the {place} one could see the {thing}, which looked {adj} in the {light} light.",
    "What people noticed first was the {thing}, {adj} and larger than they had expected.",
    "{Person} suggested moving the {thing} closer to the {place}, and nobody objected.",
    "There was some talk about the {thing}, but in the end it stayed at the {place}.",
    "Around the {place} it was {adj}, so {person} stayed longer than planned.",
    "It took {n} people to carry the {thing} across, and the work was done before noon.",
    "Between the {place} and the {place2} there is now a {adj} corner with room for {n} visitors.",
    "The {thing} and the {thing2} belong together, as {person} likes to explain.",
    "{Person} counted {n} small faults in the {thing}, none of them serious.",
    "In the {light} light the {place} seemed almost {adj}, and conversation grew quiet.",
    "A new coat of varnish was given to the {thing}; it should last for {n} seasons.",
    "Some asked why the {place} had been left empty, and {person} told them the story behind it.",
    "Nobody had used the {thing} for a while, yet it proved to be {adj} and sound.",
    "Later {person} walked from the {place} to the {place2} and wrote down what was missing.",
    "One detail deserves a mention: the {thing} was made by hand and still shows the maker's mark.",
    "Costs were kept low because the {thing} could be mended with what lay at the {place}.",
    "The weather was {adj}, which suited {person} and made the {place} pleasant.",
    "After a short pause {person} returned to the {thing} and finished the task with patience.",
    "A visitor praised the {adj} air of the {place} and asked for a drawing of the {thing}.",
    "Everything at the {place} follows a simple order: first the {thing}, then the {thing2}.",
    "It was quiet at the {place}, apart from {person} and the faint sound of the {thing2}.",
    "For those who come in the morning, the {thing} offers a {adj} view toward the {place2}.",
    "Plans for the {thing} were discussed at length, and {n} proposals were put on the table.",
    "{Person} remembered how the {place} used to look before the {thing} was set up.",
    "By the end the {thing2} had been put away and the {place} swept clean.",
    "Much depends on the {thing}, so {person} looks after it every few hours.",
    "The {place} smelled of {smell}, and the {thing} was still {adj} to the touch.",
    "With a little luck the {thing} will be ready soon; {person} has promised to help.",
)
ADJECTIVES = (
    "calm warm damp bright plain narrow sturdy cool pale generous lively dusty graceful mild"
)
ADJECTIVES += " orderly cheerful weathered spacious modest curious"
LIGHTS = "early|failing|golden|grey|clear|slanting|soft"
SMELLS = "resin|wet stone|coffee|fresh paint|lavender|smoke|cut grass|old paper|salt"
STATED = (
    "Here the reader finds {event}, just as planned.",
    "This is the place for {event}, and much care went into it.",
    "What sets it apart is {event}.",
    "The main matter was {event}, which everybody had looked forward to.",
    "As intended, there was {event}.",
)
MARKS = (
    "@@@ {unit} {i}{date}:",
    "=== {unit} {i}{date} ===",
    "## {unit} {i}{date}",
    ">>> {unit} {i}{date}:",
    "+++ {unit} {i}{date}:",
    "#-# {unit} {i}{date}:",
    "[{unit} {i}{date}]",
    "#=# {unit} {i}{date}:",
)
STOPS = (
    "*** the end",
    "<<< complete >>>",
    "--- all done ---",
    "*** document closed ***",
    "END OF TEXT",
    "=== fin ===",
    "*** concluded",
    "(nothing follows)",
)
ASKS = (
    "Write {about} in {n} sections, one for every {unit}.",
    "Compose {about}. It has {n} parts, {unit} 1 to {unit} {n}, and none may be skipped.",
    "I need {about} with exactly {n} entries, from {unit} 1 to {unit} {n}.",
    "Draft {about}: {n} entries, each for one {unit}, all of them written out.",
    "Please produce {about}, {unit} after {unit}, until number {n} is done.",
)
RULES = (
    "On {unit} {at} there has to be {single}.",
    "{unit} {at}: include {single}.",
    "Reserve {unit} {at} for {single}.",
    "{single} belongs to {unit} {at}.",
)
LASTING = "From {unit} {a} up to {unit} {b}, mention {lasting} each time."
REGULAR = (
    "Starting with {unit} {start}, every {step}th {unit} brings {regular}.",
    "On every {step}th {unit}, counted from {unit} {start}, there is {regular}.",
    "{regular} comes back every {step} {unit}s and for the first time at {unit} {start}.",
)


def writing(draw: Draw, size: Size, room: int) -> Lesson:
    """The whole document as one reply; its first heading may be given in the question."""
    scene = draw.choice(SCENES)
    words = draw.choice((85, 100, 120, 150))
    count = int((room - 500) / (words * TOKENS_A_WORD + 22))
    if count < 5:
        words, count = 85, max(3, int((room - 450) / 140))
    count = min(count, 110)
    mark, stop, unit = draw.wording(MARKS), draw.wording(STOPS), scene.unit
    dated = draw.choice(("", "", "day", "week", "grid"))
    day = date(2021, 1, 1) + timedelta(draw.randrange(360))
    events: dict[int, list[str]] = {i: [] for i in range(1, count + 1)}
    rules = []
    singles = scene.single.split("|")
    for at, event in zip(
        sorted(draw.sample(range(1, count + 1), min(5, count // 2))),
        draw.sample(singles, min(5, count // 2)),
        strict=True,
    ):
        rules.append(draw.wording(RULES).format(unit=unit, at=at, single=event))
        events[at].append(event)
    a = draw.randint(1, count - 2)
    b = min(count, a + draw.randint(1, 4))
    lasting = draw.choice(scene.lasting.split("|"))
    rules.append(LASTING.format(unit=unit, a=a, b=b, lasting=lasting))
    start, step = draw.randint(1, max(1, count // 3)), draw.randint(3, max(4, min(20, count // 3)))
    regular = draw.choice(scene.regular.split("|"))
    rules.append(draw.wording(REGULAR).format(unit=unit, start=start, step=step, regular=regular))
    for i in range(a, b + 1):
        events[i].append(lasting)
    for i in range(start, count + 1, step):
        events[i].append(regular)

    def heading(i: int) -> str:
        return mark.format(unit=unit, i=i, date=_date(dated, day, i))

    about = scene.about.format(name=draw.places(1)[0])
    number = draw.choice(("- {r}", "* {r}", "{i}) {r}"))
    ask = [draw.wording(ASKS).format(about=about, n=count, unit=unit)]
    ask += [number.format(i=i, r=rule[0].upper() + rule[1:]) for i, rule in enumerate(rules, 1)]
    ask += [f"Begin each entry with a line such as '{heading(1)}'; give it {words} words or more."]
    ask += [f"When {unit} {count} is written, close with '{stop}'. Do not stop before."]
    begun = draw.random() < 0.5
    if begun:
        ask.append(heading(1))
    parts: list[Part] = []
    for i in range(1, count + 1):
        if i > 1 or not begun:
            parts.append((heading(i) + "\n", "text"))
        parts += _section(draw, scene, words, events[i])
        parts.append(("\n\n", "text"))
    parts.append((stop, "answer"))
    return Lesson("writing", (Turn("\n".join(ask), "", tuple(parts)),))


def _date(form: str, first: date, i: int) -> str:
    """What stands in brackets after a heading's number."""
    if form == "week":
        start = first + timedelta(7 * (i - 1))
        return f" ({start:%d %b} to {start + timedelta(6):%d %b})"
    if form == "day":
        return f" ({first + timedelta(i - 1):%d %B})"
    return f" (row {(i - 1) // 8}, seat {(i - 1) % 8})" if form else ""


def _section(draw: Draw, scene: Scene, words: int, events: list[str]) -> list[Part]:
    """Sentences of `words` words at least; the events' sentences are learnt in full."""
    said: list[Part] = []
    written = 0
    for event in events:
        before, after = draw.choice(STATED).split(" {event}")
        said += [(f" {before}", "text"), (f" {event}", "answer"), (after, "text")]
        written += len(f"{before} {event}{after}".split())
    for frame in draw.sample(FRAMES, 12):
        if written >= words:
            break
        text = _sentence(draw, scene, frame)
        said.append((f" {text}", "text"))
        written += len(text.split())
    (first, kind), *rest = said
    return [(first[1:], kind), *rest]


def _sentence(draw: Draw, scene: Scene, frame: str) -> str:
    person = draw.choice(scene.people.split("|"))
    thing, thing2 = draw.sample(scene.things.split("|"), 2)
    place, place2 = draw.sample(scene.places.split("|"), 2)
    return frame.format(
        person=person,
        Person=person[0].upper() + person[1:],
        thing=thing,
        thing2=thing2,
        place=place,
        place2=place2,
        adj=draw.choice(ADJECTIVES.split()),
        light=draw.choice(LIGHTS.split("|")),
        smell=draw.choice(SMELLS.split("|")),
        n=draw.choice(("two", "three", "four", "five", "six", "a dozen", "eight")),
    )
