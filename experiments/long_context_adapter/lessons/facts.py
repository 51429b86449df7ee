"""A small grammar of statements, so that a sentence kind is rarely met twice.

An event is something that somebody did to a thing, somewhere, at some time; a feature is something
that a town's institution has. Either can be stated in several forms and asked for by any part.
"""

from __future__ import annotations

from dataclasses import dataclass

from macbench.experiments.long_context_adapter.draw import Draw

VERBS = (  # base, past, participle
    "restore restored restored|paint painted painted|sell sold sold|hide hid hidden"
    "|mend mended mended|lose lost lost|borrow borrowed borrowed|pawn pawned pawned"
    "|inherit inherited inherited|steal stole stolen|carve carved carved|bury buried buried"
    "|insure insured insured|sketch sketched sketched|smuggle smuggled smuggled"
    "|weigh weighed weighed|polish polished polished|inspect inspected inspected"
    "|donate donated donated|exhibit exhibited exhibited|break broke broken|rent rented rented"
    "|ship shipped shipped|forge forged forged|copy copied copied|praise praised praised"
    "|unearth unearthed unearthed|dismantle dismantled dismantled|draw drew drawn"
    "|choose chose chosen|burn burnt burnt|test tested tested|swap swapped swapped"
    "|raffle raffled raffled|clean cleaned cleaned|order ordered ordered|forget forgot forgotten"
)
ODD = "crooked cracked heavy tiny gilded faded dented striped hollow foreign folding square wicker"
ODD += " enamelled varnished patched leather oaken rusty squeaking three-legged two-handed carved"
THINGS = "barometer weathervane violin globe telescope tapestry anvil sundial plough saddle quilt"
THINGS += " inkwell typewriter microscope canoe sleigh abacus cradle loom churn scarecrow harpoon"
THINGS += " gramophone hammock parasol bellows candelabra spyglass wheelbarrow sextant easel"
SPOTS = "customs house|north quay|corn exchange|old dairy|riding school|ferry landing|bishop's yard"
SPOTS += "|toll gate|printing shop|rectory|drill hall|fish market|assembly rooms|weighing house"
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
SEASONS = "spring summer autumn winter"
SAID = (
    "{who} {past} the {thing} {at} {when}.",
    "{when}, {who} {past} the {thing} {at}.",
    "The {thing} was {part} by {who} {at} {when}.",
    "{at}, the {thing} was {part} by {who} {when}.",
    "It was {who} who {past} the {thing} {at} {when}.",
    "{when} the {thing} was {part} {at}; {who} did it.",
    "Nobody but {who} could have {part} the {thing} {at} {when}.",
    "They say that {who} {past} the {thing} {at}, and that it was {when}.",
    "Of the {thing} we know that it was {part} {at} {when}, by {who}.",
)
ASKED = {  # what is asked for, by the other parts
    "who": (
        "Who {past} the {thing}?|By whom was the {thing} {part}?|Which person {past} the {thing}?"
        "|Name the person who {past} the {thing}."
    ),
    "thing": (
        "What did {who} {base}?|Which thing was {part} by {who}?|What was it that {who} {past}?"
        "|Which object did {who} {base} {at}?"
    ),
    "at": (
        "Where did {who} {base} the {thing}?|Where was the {thing} {part}?"
        "|In what place was the {thing} {part} by {who}?|At which spot did {who} {base} it?"
    ),
    "when": (
        "When did {who} {base} the {thing}?|When was the {thing} {part}?"
        "|At what time was the {thing} {part} by {who}?"
    ),
}
HOUSES = "racecourse|brewery|orphanage|ropeway|archive|quarry|cattle fair|choir|bathhouse|windmill"
HOUSES += "|foundry|tannery|chess club|herb garden|regatta|poorhouse|post office|pottery|ice house"
HOUSES += "|shooting range|bowling green|lending shelf|cable ferry|silk mill|drama society|nursery"
STUFFS = "oak|pumice|clay brick|river pebbles|cedar|tufa|iron plates|whitewashed mud|larch planks"
CAUSES = "a flood|a great fire|a long drought|a landslide|an early frost|a plague of locusts"
CAUSES += "|a lost lawsuit|a lightning stroke|a bank failure"
PARTS = "chimneys|gates|benches|workers|windows|lanterns|members|wagons|stoves|steps|pillars|cats"
PRICES = "florins|shillings|ducats|thalers"
FEATURES = {  # what is said of {it}, with value {x}; what is asked
    "head": (
        "{it} is run by {x}.|At the head of {it} stands {x}.|For years {x} has looked after {it}."
        "|{it} has {x} for a manager.",
        "Who runs {it}?|Who stands at the head of {it}?|Whom has {it} for a manager?",
    ),
    "giver": (
        "{it} was paid for by {x}.|{x} gave the money for {it}.|Without a gift from {x} there would"
        " be no trace of {it}.",
        "Who paid for {it}?|Who gave the money for {it}?|Whose gift made {it} possible?",
    ),
    "since": (
        "{it} dates from {x}.|{it} goes back to the year {x}.|Since {x} people have known {it}.",
        "From which year does {it} date?|How far back does {it} go?|Since when have people known"
        " {it}?",
    ),
    "stuff": (
        "{it} is made of {x}.|For {it} nothing was used but {x}.|{x} holds up all of {it}.",
        "What is {it} made of?|What was used for {it}?|Out of what was {it} made?",
    ),
    "end": (
        "{it} was closed by {x}.|{x} put an end to {it}.|{it} did not survive {x}.",
        "What put an end to {it}?|Why was {it} closed?|What did {it} not survive?",
    ),
    "beside": (
        "{it} stands beside the {x}.|From the {x} it is a few steps to {it}.|{it} shares a wall "
        "with the {x}.",
        "What does {it} stand beside?|From where is it a few steps to {it}?",
    ),
    "parts": (
        "{it} has {x} {parts}.|There are {x} {parts} in {it}.|Somebody counted {x} {parts} at "
        "{it}.|{it} could not do with fewer than {x} {parts}.",
        "How many {parts} has {it}?|How many {parts} are there in {it}?|What number of {parts} was "
        "counted at {it}?",
    ),
    "cost": (
        "{it} cost {x} {coins}.|For {it} the sum of {x} {coins} was spent.|{x} {coins} went into "
        "{it}.",
        "What did {it} cost?|How many {coins} went into {it}?|What sum was spent for {it}?",
    ),
}


@dataclass(frozen=True)
class Fact:
    """A statement with its whole names, one that leaves the town out, and what can be asked."""

    said: str
    short: str  # the same where the town is known: "the brewery there"
    asked: tuple[tuple[str, str], ...]  # question, answer


def event(draw: Draw) -> dict[str, str]:
    """The parts of an event."""
    base, past, part = draw.choice(VERBS.split("|")).split()
    at = draw.choice((f"in {draw.places(1)[0]}", f"at the {draw.choice(SPOTS.split('|'))}"))
    year = draw.randint(1402, 1899)
    when = draw.choice(
        (f"in {year}", f"in the {draw.choice(SEASONS.split())} of {year}",
         f"on a {draw.choice(WEEKDAYS.split())}")
    )  # fmt: skip
    thing = f"{draw.choice(ODD.split())} {draw.choice(THINGS.split())}"
    made = {"base": base, "past": past, "part": part, "at": at, "when": when, "thing": thing}
    return {"who": draw.name(), **made}


def state(form: str, parts: dict[str, str]) -> str:
    return sentence(form.format(**parts))


def ask(draw: Draw, what: str, parts: dict[str, str]) -> str:
    """A question for one part of an event."""
    return draw.choice(ASKED[what].split("|")).format(**parts)


def happened(draw: Draw) -> Fact:
    """Some event."""
    parts = event(draw)
    said = state(draw.choice(SAID), parts)
    asked = tuple((ask(draw, what, parts), parts[what]) for what in ASKED)
    return Fact(said, said, tuple((q, _bare(a)) for q, a in asked))


def feature(
    draw: Draw, town: str, house: str = "", name: str = "", value: str = "", first: bool = False
) -> Fact:
    """Something that an institution of a town has; first: the town comes before the value."""
    name = name or draw.choice([*FEATURES])
    house = house or draw.choice(HOUSES.split("|"))
    value = value or feature_value(draw, name)
    parts, coins = draw.choice(PARTS.split("|")), draw.choice(PRICES.split("|"))
    forms, asks = FEATURES[name]
    every = forms.split("|")
    form = draw.choice([f for f in every if not first or f.find("{it}") < f.find("{x}")])
    whole = f"the {house} of {town}" if draw.random() < 0.7 else f"the {house} in {town}"
    there = draw.choice((f"the {house}", f"the {house} there", f"its {house}"))
    said, short = (
        sentence(form.format(it=it, x=value, parts=parts, coins=coins)) for it in (whole, there)
    )
    question = sentence(draw.choice(asks.split("|")).format(it=whole, parts=parts, coins=coins))
    return Fact(said, short, ((question, value),))


def feature_value(draw: Draw, name: str) -> str:
    return {
        "head": draw.name,
        "giver": draw.name,
        "since": lambda: str(draw.randint(1210, 1890)),
        "stuff": lambda: draw.choice(STUFFS.split("|")),
        "end": lambda: draw.choice(CAUSES.split("|")),
        "beside": lambda: draw.choice(SPOTS.split("|")),
        "parts": lambda: str(draw.randint(3, 240)),
        "cost": lambda: str(draw.randint(150, 9900)),
    }[name]()


def sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _bare(value: str) -> str:
    """A place or time without its preposition."""
    first, _, rest = value.partition(" ")
    return rest if first in ("in", "at", "on") else value
