"""How a long document is asked for: what it has to be, and many ways to say so."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

from macbench.experiments.long_context_adapter.draw import Draw
from macbench.experiments.long_context_adapter.lessons.scenes import (
    SCENES,
    Scene,
    capital,
    sentences,
)

SIGNS = "#=*+~@%$^&|<>/!:-_"
SHAPES = (  # of a heading
    "{mark} {unit} {i}{date}:",
    "{mark} {unit} {i}{date}",
    "{mark} {unit} {i}{date} {mark}",
    "{mark} {unit} {i}{date} -",
    "{mark}{unit} {i}{date}:",
    "{mark} {unit} No. {i}{date}:",
    "{mark} {unit} {i}{date} |",
    "{mark} {unit} {i}.{date}",
)
WEEKS = ("", "week", "ordinal week")  # what a heading may say of its week, and of another unit
DATES = ("", "", "day", "ordinal", "seat", "grid")
STOPS = (
    "{s} the end",
    "{s} complete {s}",
    "{s} all done {s}",
    "{s} document closed",
    "END OF TEXT",
    "{s} fin",
    "{s} concluded",
    "{s} that was all {s}",
    "THE END {s}",
    "{s} last line",
    "(nothing follows)",
)
ROLES = (
    "",
    "You write for a living and leave nothing out.",
    "{Who} has kept records of this kind for years. Take that part.",
    "You are {who}, known for long and careful documents.",
    "Imagine that you are {who} and have a whole winter for this.",
    "The task was given to {who}, whose place you take.",
    "You are the author of many patient books.",
    "Act as an editor who knows every detail of the matter.",
    "{Who} is ill, so the whole document falls to you.",
    "You hold the pen for {who} today.",
)
ASKS = (
    "Write {about} in {n} sections, one for every {unit}.",
    "Compose {about}. It has {n} parts, {unit} 1 to {unit} {n}, and none may be skipped.",
    "I need {about} with exactly {n} entries, from {unit} 1 to {unit} {n}.",
    "Draft {about}: {n} entries, each for one {unit}, all of them written out.",
    "What is wanted is {about}, all {n} {unit}s of it.",
    "Set down {about} from {unit} 1 on, without a gap, as far as {unit} {n}.",
    "{n} {unit}s make up {about}; write them all, in their order.",
    "Work out {about}. Number its {n} {unit}s from 1.",
    "Tell {about} to the last of its {n} {unit}s.",
    "Please produce {about}, {unit} after {unit}, until number {n} is done.",
)
LEADS = (
    "This has to come in:",
    "Keep to these points.",
    "Wishes:",
    "Agreed so far:",
    "Things that must not be missing:",
    "Notes",
    "Mind the following, please:",
    "The frame is given by these lines.",
    "Plan:",
    "What to keep in mind:",
)
RULES = (
    "{at}: {event}",
    "{at} - {event}",
    "{event} ({at})",
    "{event} belongs to {at}",
    "keep {at} for {event}",
    "put {event} into {at}",
    "{at} has to contain {event}",
    "for {at}, plan {event}",
    "{event} is due with {at}",
    "reserve {at} for {event}",
    "{at} calls for {event}",
)
JOINED = (
    "Once only: ",
    "Single {unit}s: ",
    "One by one: ",
    "",
    "",
    "By number: ",
    "Fixed points: ",
)
LASTING = (
    "from {unit} {a} up to {unit} {b}, mention {event} each time",
    "{event} in {unit} {a}-{b}",
    "{unit}s {a} to {b}: {event} in all of them",
    "{event} runs through {unit}s {a} to {b}",
    "let {event} last from {unit} {a} until {unit} {b}",
    "{event} takes up {unit}s {a} through {b}",
    "mention {event} in every {unit} from {a} through {b}",
    "between {unit} {a} and {unit} {b}, both included, describe {event}",
    "give {unit}s {a} to {b} to {event}",
    "{event} stays on from {unit} {a} to the end of {unit} {b}",
)
REGULAR = (
    "starting with {unit} {start}, every {nth} {unit} brings {event}",
    "on every {nth} {unit}, counted from {unit} {start}, there is {event}",
    "{event} every {step} {unit}s, the first time at {unit} {start}",
    "{unit} {start} has {event}, and so does each {nth} after it",
    "every {step} {unit}s comes {event}; {unit} {start} is the first",
    "repeat {event} at steps of {step} {unit}s, beginning with {unit} {start}",
    "with an interval of {step} {unit}s from {unit} {start} on, add {event}",
    "{event}: first in {unit} {start}, then {step} {unit}s later, and so on to the last",
    "plan {event} for {unit} {start} and again after every {step} {unit}s",
    "{event} comes back every {step} {unit}s and for the first time at {unit} {start}",
)
SEPARATORS = (
    "Begin each entry with its own heading {shown}",
    "Put '{mark}' at the head of every {unit} {shown}",
    "'{mark}' opens a new {unit} {shown}",
    "New {unit}, new heading, marked with '{mark}' {shown}",
    "Every part starts with '{mark}' and its number {shown}",
    "To keep the {unit}s apart, set '{mark}' in front of each one {shown}",
    "Mark the start of a {unit} by '{mark}' {shown}",
    "The {unit}s are told apart by '{mark}' {shown}",
    "Each {unit} is headed by '{mark}', its name and its number {shown}",
    "Let '{mark}' stand before each {unit} {shown}",
)
SHOWN = (
    "as in '{head}'.",
    "(say, {head})",
    "like this: {head}",
    '(as in "{head}").',
    "thus: {head}",
)
SHOWN_WHOLE = (  # with the example of a section
    "(say, {head}{gap}{example})",
    "like this:\n{head}{gap}{example}\n",
    "(for instance: {head}{gap}{example}).",
    "as here:\n\n{head}{gap}{example}\n\n",
    "- a sample: {head}{gap}{example}",
    "(model: '{head}{gap}{example}')",
)
LENGTHS = (
    "Give each {unit} {w} words or more.",
    "No {unit} has fewer than {w} words.",
    "{w} words for one {unit} is the shortest that will do.",
    "Each {unit} runs to {w} words and more.",
    "Write {w} words per {unit}, rather more than less.",
    "Length: {w} words for a {unit}, not fewer.",
    "Do not go below {w} words in any {unit}.",
    "The minimum for one {unit} is {w} words.",
    "Fill every {unit} with {w} words or longer text.",
    "Count on {w} words for every single {unit}.",
)
CLOSES = (
    "When {unit} {n} is written, close with '{stop}'. Do not stop before.",
    "After {unit} {n}, and only there, put '{stop}'.",
    "'{stop}' is the last line, below {unit} {n}.",
    "Once all {n} are there, add the line '{stop}'.",
    "End the whole with '{stop}' when nothing is missing.",
    "The closing line reads '{stop}'.",
    "Show by '{stop}' that the last of the {unit}s is behind you.",
    "Do not rest before {unit} {n}; then write '{stop}'.",
    "Sign off with '{stop}' after the last {unit}.",
    "Behind the last {unit} belongs '{stop}'.",
)
CARES = (
    "",
    "Leave no number out.",
    "Go on without asking me in between.",
    "Do not shorten anything and do not sum up.",
    "Each part should read differently from the one before.",
    "Keep the numbers in order.",
    "No remarks of your own between the parts.",
    "It must be one piece of text, from first to last.",
    "Vary what happens.",
    "Nothing may be left to the imagination.",
)
PARAGRAPH = " "  # in place of bullets: all in one paragraph
BEGINS = (
    "",
    "{s} begin {s}",
    "{s} here we go",
    "Start below.",
    "(start)",
    "Go on from here:",
    "{s} text {s}",
    "Your turn.",
    "The beginning is made:",
    "{s} opening {s}",
    "BEGIN",
)


@dataclass(frozen=True)
class Plan:
    """What a document has to be."""

    scene: Scene
    unit: str
    count: int  # of sections
    words: int  # of a section, at least
    mark: str
    shape: str  # of a heading
    dates: str
    first: date
    side: int  # of a grid
    gap: str  # between a heading and its text
    between: str  # two sections
    labels: tuple[str, ...]
    stop: str
    single: dict[int, str]
    lasting: tuple[int, int, str]  # first and last section, event
    regular: tuple[int, int, str]  # first section, step, event

    def number(self, i: int) -> str:
        """A heading up to its number."""
        until = self.shape.partition("{i}")[0]
        return (until + "{i}").format(mark=self.mark, unit=self.unit, i=i)

    def rest(self, i: int) -> str:
        """Of the heading."""
        dated = f" ({self.dated(i)})" if self.dates else ""
        return self.shape.partition("{i}")[2].format(mark=self.mark, date=dated)

    def dated(self, i: int) -> str:
        """The date of a section, or its place."""
        row, seat = divmod(i - 1, self.side)
        if self.placed:
            return f"row {row}, seat {seat}" if self.dates == "seat" else f"{row}, {seat}"
        if "week" not in self.dates:
            return self.day(i, 0)
        return f"{self.day(i, 0)} - {self.day(i, 6)}"

    def day(self, i: int, after: int) -> str:
        """The date of so many days after the first of section i."""
        days = (i - 1) * (7 if "week" in self.dates else 1) + after
        return _day(self.first + timedelta(days), self.dates)

    @property
    def placed(self) -> bool:
        """Whether sections lie in a grid."""
        return self.dates in ("seat", "grid")

    def events(self, i: int) -> list[str]:
        """Of a section; the regular one last."""
        found = [self.single[i]] if i in self.single else []
        begin, last, lasting = self.lasting
        found += [lasting] * (begin <= i <= last)
        start, step, regular = self.regular
        return found + [regular] * (i >= start and (i - start) % step == 0)


def new_mark(draw: Draw) -> str:
    """Two to four signs, such as ==, #=# or ~/~/, but never the mark of the evaluation."""
    while True:
        a, b = draw.sample(SIGNS, 2)
        made = draw.choice(
            (a * 2, a * 3, a * 4, a + b, a + b + a, a + b + b + a, a + a + b, a + b * 2)
        )
        if "#*#" not in made:
            return made


def _day(day: date, form: str) -> str:
    if "ordinal" not in form:
        return f"{day:%d %b}"
    last = 0 if day.day in (11, 12, 13) else day.day % 10
    return f"{day:%B} {day.day}{({1: 'st', 2: 'nd', 3: 'rd'}).get(last, 'th')}"


def request(draw: Draw, plan: Plan, example: int, brief: bool) -> str:
    """What is asked, in one of many orders; example: words of a sample section, or 0."""
    unit, scene = plan.unit, plan.scene
    place, who = draw.places(1)[0], draw.name()
    told = {"unit": unit, "n": plan.count, "about": scene.about.format(name=place)}
    ask = capital(draw.wording(ASKS).format(**told))
    role = "" if brief else draw.wording(ROLES).format(who=who, Who=who)

    rule, by_date = draw.wording(RULES), bool(plan.dates) and draw.random() < 0.4
    single = []
    for i, event in plan.single.items():
        at = f"{unit} {i}"
        if by_date:
            after = draw.randrange(7) if "week" in plan.dates else 0
            at = f"the {unit} at ({plan.dated(i)})" if plan.placed else plan.day(i, after)
        single.append(rule.format(at=at, event=event))
    begin, last, lasting = plan.lasting
    start, step, regular = plan.regular
    points = [
        draw.wording(LASTING).format(unit=unit, a=begin, b=last, event=lasting),
        draw.wording(REGULAR).format(
            unit=unit,
            start=start,
            step=step,
            nth="3rd" if step == 3 else f"{step}th",
            event=regular,
        ),
    ]
    if draw.random() < 0.5:  # several events in one line
        label = draw.choice(JOINED).format(unit=unit)
        points.insert(0, label + draw.choice(("; ", ", ", " / ")).join(single))
    else:
        points = single + points
    if draw.random() < 0.2:
        draw.shuffle(points)
    bullet = draw.choice(("- ", "* ", "{i}) ", "{i}. ", "({i}) ", "", PARAGRAPH))
    end = "." if bullet == PARAGRAPH else draw.choice((".", ""))
    points = [capital(point) + end for point in points]

    head = plan.number(1) + plan.rest(1)
    shown = draw.choice(SHOWN).format(head=head)
    if example:
        other = scene if draw.random() < 0.5 else draw.choice(SCENES)
        text = " ".join(sentences(draw, other, example))
        shown = draw.choice(SHOWN_WHOLE).format(head=head, gap=plan.gap, example=text)
    form = [
        draw.wording(SEPARATORS).format(mark=plan.mark, unit=unit, shown=shown),
        draw.wording(LENGTHS).format(unit=unit, w=plan.words),
        draw.wording(CLOSES).format(unit=unit, n=plan.count, stop=plan.stop),
    ]
    draw.shuffle(form)
    care = "" if brief else draw.wording(CARES)
    lead = draw.wording(LEADS)
    if draw.random() < 0.4:  # all in one list
        points, form = points + form, []
    points = [(bullet.format(i=i) + point).strip() for i, point in enumerate(points, 1)]
    listed = (" " if bullet == PARAGRAPH else "\n").join([lead, *points])
    formed = draw.choice((" ", "\n", "\n- ")).join(form)
    ask, listed, formed, care = draw.choice(
        (
            (ask, listed, formed, care),
            (listed, ask, formed, care),
            (ask, formed, listed, care),
            (listed, formed, ask, care),
            (formed, ask, listed, care),
            (f"{ask} {care}", listed, formed, ""),
        )
    )
    parts = [role, ask, listed, formed, care]
    if draw.random() < 0.2:
        parts = [*parts[1:], role]
    return draw.choice(("\n", "\n", "\n\n")).join(part.strip() for part in parts if part.strip())
