"""The four scenarios in their two variants: seeded instructions in the published wording.

Where the published construction slips, ours does not: no date of the last week leads to a week
that does not exist, no event is overwritten by another of the same day, and no stay runs into the
next year. Section 1, whose head is given, is asked for by chance as there.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from importlib.resources import files
from random import Random

from macbench.tasks.longgenbench import events
from macbench.tasks.longgenbench.records import Record

NEW_YEAR = date(2018, 1, 1)  # a Monday
Checks = dict[int, str]
Parts = tuple[dict[str, str], Checks, Checks, Checks]  # what fills the prompt; its checks


def generate(scenario: str, variant: str, seed: int, index: int) -> Record:
    """Record `index` of a scenario and seed."""
    kind, number, fill = MAKERS[variant, scenario]
    rng = Random(f"{seed}/{variant}/{scenario}/{index}")
    values, once, stretch, periodic = fill(rng)
    example = _text("examples", variant, scenario)
    prompt = _text("prompts", variant, scenario).format(example=example, **values)
    checks = {"once": once, "range": stretch, "periodic": periodic}
    return Record(prompt, kind, number, prompt.rpartition("\n")[2], checks)


def _text(folder: str, variant: str, scenario: str) -> str:
    root = files("macbench.tasks.longgenbench")
    return root.joinpath(folder, f"{variant}_{scenario}.txt").read_text("utf-8")


def _day(number: int) -> date:
    """Day 1 to 365."""
    return NEW_YEAR + timedelta(days=number - 1)


def _week(day: int) -> int:
    return (day - 1) // 7 + 1


def _family(rng: Random) -> list[str]:
    """Five people of whom one to three are children."""
    children = [f"my child_{i + 1}" for i in range(rng.randint(1, 3))]
    everybody = ["husband (yourself)", "my wife", *children, "my father", "my mother"]
    return everybody[:5]


def _merged(pairs: list[tuple[int, str]]) -> Checks:
    """Events of the same section are one check."""
    checks: Checks = {}
    for at, event in pairs:
        checks[at] = f"{checks[at]}, {event}" if at in checks else event
    return checks


def _short_diary(rng: Random) -> Parts:
    family = _family(rng)
    days = [rng.randint(1, 364) for _ in family]  # 31 December belongs to no week of 52
    stay, first = rng.choice(events.STAYS), rng.randint(2, 51)
    habit, interval, start = rng.choice(events.HABITS), rng.randint(3, 5), rng.randint(10, 19)
    birthdays = [
        f"{who} (birthday on {_day(day):%B %d}), " for who, day in zip(family, days, strict=True)
    ]
    values = {
        "name": rng.choice(events.NAMES),
        "job": rng.choice(events.JOBS),
        "once": "".join(birthdays),
        "range": f"{stay} in week {first}-{first + 1}",
        "periodic": f"{habit} every {interval} weeks on weekends, starting from week {start}",
    }
    once = _merged([(_week(d), f"{who} birthday") for who, d in zip(family, days, strict=True)])
    return values, once, dict.fromkeys((first, first + 1), stay), _every(start, 52, interval, habit)


def _long_diary(rng: Random) -> Parts:
    family = _family(rng)
    *days, special = rng.sample(range(1, 366), len(family) + 1)
    event, stay, habit = map(rng.choice, (events.ONE_DAY, events.STAYS, events.HABITS))
    length = rng.randint(2, 7)
    first = rng.randint(1, 366 - length)
    last = first + length - 1
    interval = rng.choice([30, 40, 60])
    start = rng.randint(30, 365 - interval)
    birthdays = [
        f"- {who} (birthday on {_day(day):%B %d})\n" for who, day in zip(family, days, strict=True)
    ]
    values = {
        "name": rng.choice(events.NAMES),
        "job": rng.choice(events.JOBS),
        "once": f"{''.join(birthdays)}\n2) {event} on {_day(special):%B %d}",
        "range": f"{stay} from {_day(first):%B %d} to {_day(last):%B %d, %Y}",
        "periodic": f"{habit} starting from day {start} and repeating every {interval} days",
    }
    once = {special: event}
    once |= {day: f"{who} birthday" for who, day in zip(family, days, strict=True)}
    stretch = dict.fromkeys(range(first, last + 1), stay)
    return values, once, stretch, _every(start, 365, interval, habit)


def _short_menu(rng: Random) -> Parts:
    feasts = rng.sample(events.FEASTS, 5)
    days = [7 * week + rng.randint(1, 7) for week in rng.sample(range(52), 5)]
    (season, plate), weeks = rng.choice(events.SEASONS), rng.randint(1, 4)
    first = rng.randint(1, 53 - weeks)
    last = first + weeks - 1
    (regular, interval, _, dish), start = rng.choice(events.REGULARS), rng.randint(1, 28)
    lines = [
        f"1.{i} Celebrate '{name}' on {_day(day):%m-%d} with a special dish: {food}."
        for i, ((name, food), day) in enumerate(zip(feasts, days, strict=True), 1)
    ]
    values = {
        "once": "\n".join(lines),
        "range": f"Feature '{season}' from Week {first} to Week {last} with dishes like: {plate}",
        "periodic": f"Include '{regular}' every {interval} weeks starting from Week {start}, "
        f"serving: {dish}",
    }
    featuring = [f"{name} featuring {food}" for name, food in feasts]
    once = {_week(day): event for event, day in zip(featuring, days, strict=True)}
    stretch = dict.fromkeys(range(first, last + 1), f"{season} featuring {plate}")
    return values, once, stretch, _every(start, 52, interval, f"{regular} featuring {dish}")


def _long_menu(rng: Random) -> Parts:
    feasts = rng.sample(events.FEASTS, 5)
    days = rng.sample(range(1, 366), 5)
    (season, plate), length = rng.choice(events.SEASONS), rng.randint(7, 14)
    first = rng.randint(1, 366 - length)
    last = first + length - 1
    regular, _, interval, dish = rng.choice(events.REGULARS)
    start = rng.randint(1, 365 - interval)
    lines = [
        f"1) Celebrate '{name}' on {_day(day):%B %d} with a special dish: {food}."
        for (name, food), day in zip(feasts, days, strict=True)
    ]
    values = {
        "once": "\n".join(lines),
        "range": f"Organize a festival, '{season}', from {_day(first):%B %d} to {_day(last):%B %d} "
        f"featuring dishes like: {plate}",
        "periodic": f"Schedule '{regular}' every {interval} days starting from day "
        f"{_day(start):%B %d}, serving: {dish}",
    }
    once = {d: f"{name} featuring {food}" for (name, food), d in zip(feasts, days, strict=True)}
    stretch = dict.fromkeys(range(first, last + 1), f"{season} featuring {plate}")
    return values, once, stretch, _every(start, 365, interval, f"{regular} featuring {dish}")


def _skyscraper(floors: int, lowest: int, range_from: int) -> Callable[[Random], Parts]:
    def fill(rng: Random) -> Parts:
        once = {at: rng.choice(events.ROOMS) for at in rng.sample(range(lowest, floors + 1), 5)}
        complex_, length = rng.choice(events.COMPLEXES), rng.randint(3, 7)
        first = rng.randint(range_from, floors - length)
        last = first + length - 1
        again, interval = rng.choice(events.EVERY), rng.choice([15, 20, 25, 30])
        start = 20 + interval
        lines = [f"  - Designate Floor {at} for {room} use." for at, room in once.items()]
        values = {
            "once": "\n".join(lines),
            "range": f"Allocate Floors {first} to {last} for a {complex_}",
            "periodic": f"Include a {again} every {interval} floors, starting from Floor {start}",
        }
        stretch = dict.fromkeys(range(first, last + 1), complex_)
        return values, once, stretch, _every(start, floors, interval, again)

    return fill


def _urban(side: int, rows: tuple[int, ...]) -> Callable[[Random], Parts]:
    def number(x: int, y: int) -> int:
        return y * side + x + 1

    def fill(rng: Random) -> Parts:
        places = [divmod(at, side) for at in rng.sample(range(side * side), 5)]
        once = {number(x, y): rng.choice(events.PLACES) for x, y in places}
        quarter, length = rng.choice(events.QUARTERS), rng.randint(2, 4)
        first, fixed = rng.randint(0, side - length), rng.randrange(side)
        last = first + length - 1
        # As published: along the "column" x runs, along the "row" y.
        if rng.random() < 0.5:
            way, begin, end = "column", (first, fixed), (last, fixed)
            held = [number(x, fixed) for x in range(first, last + 1)]
        else:
            way, begin, end = "row", (fixed, first), (fixed, last)
            held = [number(fixed, y) for y in range(first, last + 1)]
        again, y, interval = rng.choice(events.CORNERS), rng.choice(rows), rng.choice([2, 4])
        lines = [
            f"  - Designate Block at {place} for {once[number(*place)]} use." for place in places
        ]
        values = {
            "once": "\n".join(lines),
            "range": f"Allocate a {quarter} along the {way} from {begin} to {end}",
            "periodic": f"Include a {again} starting from Block at (0, {y}) with an interval of "
            f"every {interval} blocks along the column",
        }
        stretch = dict.fromkeys(held, quarter)
        return values, once, stretch, _every(number(0, y), number(side - 1, y), interval, again)

    return fill


def _every(start: int, last: int, interval: int, event: str) -> Checks:
    return dict.fromkeys(range(start, last + 1, interval), event)


# type of section, number of sections, what fills the prompt
MAKERS: dict[tuple[str, str], tuple[str, int, Callable[[Random], Parts]]] = {
    ("short", "diary"): ("Week", 52, _short_diary),
    ("short", "menu"): ("Menu Week", 52, _short_menu),
    ("short", "skyscraper"): ("Floor", 100, _skyscraper(100, lowest=2, range_from=2)),
    ("short", "urban"): ("Block", 100, _urban(10, rows=(5,))),
    ("long", "diary"): ("Day", 365, _long_diary),
    ("long", "menu"): ("Menu Day", 365, _long_menu),
    ("long", "skyscraper"): ("Floor", 300, _skyscraper(300, lowest=5, range_from=20)),
    ("long", "urban"): ("Block", 361, _urban(19, rows=(5, 10, 15))),
}
