"""LongGenBench: prompts and checks, cutting into sections, the published figures.

Where MACBENCH_DATA has the official files, prompts and checks are held against all 800 records.
"""

from __future__ import annotations

import json
import os
import re
from datetime import datetime
from importlib.resources import files
from pathlib import Path

import pytest

from macbench import tasks
from macbench.errors import MacbenchError
from macbench.tasks.longgenbench import metrics, records, scenarios, sections
from macbench.tasks.longgenbench.records import KINDS, Record

DATA = Path(os.environ.get("MACBENCH_DATA", "nowhere")).absolute() / "longgenbench"
OFFICIAL = pytest.mark.skipif(not DATA.is_dir(), reason="MACBENCH_DATA has no longgenbench")
PREFIXES = {  # conformance table of the published sets: type, number, how a prompt ends
    ("short", "diary"): ("Week", 52, "#*# Week 1 (January 1st - January 7th):"),
    ("short", "menu"): ("Menu Week", 52, "#*# Menu Week 1 (January 1st - January 7th):"),
    ("short", "skyscraper"): ("Floor", 100, "#*# Floor 1:"),
    ("short", "urban"): ("Block", 100, "#*# Block 1 (0, 0):"),
    ("long", "diary"): ("Day", 365, "#*# Day 1 (January 1st):"),
    ("long", "menu"): ("Menu Day", 365, "#*# Menu Day 1:"),
    ("long", "skyscraper"): ("Floor", 300, "#*# Floor 1:"),
    ("long", "urban"): ("Block", 361, "#*# Block 1 (0, 0):"),
}
TOTALS = {  # checks once, range, periodic of the 100 official records
    ("short", "diary"): (478, 200, 1010),
    ("short", "menu"): (475, 245, 1239),
    ("short", "skyscraper"): (500, 516, 353),
    ("short", "urban"): (500, 295, 394),
    ("long", "diary"): (596, 458, 550),
    ("long", "menu"): (498, 995, 1225),
    ("long", "skyscraper"): (500, 503, 1334),
    ("long", "urban"): (500, 296, 760),
}
SLIPS = {  # official records whose checks are not what their prompt asks: an event overwritten by
    # another of its day or week, 31 December as week 1, a stay that ends in the next January
    ("short", "diary"): 3,
    ("short", "menu"): 24,
    ("long", "diary"): 6,
    ("long", "menu"): 2,
}


@pytest.fixture(autouse=True)
def no_official(monkeypatch, tmp_path):
    monkeypatch.delenv("MACBENCH_DATA", raising=False)
    monkeypatch.setenv("MACBENCH_CACHE", str(tmp_path / "cache"))


class Plain:
    """A renderer of words, for samples that need none."""

    def encode(self, user, answer_prefix=""):
        return [0] * self.count(user, answer_prefix)

    def count(self, user, answer_prefix=""):
        return len((user + answer_prefix).split())

    def plain(self, text):
        return [0] * len(text.split())

    def decode(self, ids):
        return ""


def samples(task="diary", length=64, seed=42, limit=2, **knobs):
    made = tasks.get(f"longgenbench/{task}", **knobs)
    return [*made.samples(Plain(), length, seed, limit)]


def refusal(act, *args, **kwargs) -> str:
    with pytest.raises(MacbenchError) as caught:
        act(*args, **kwargs)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith((".", "?"))
    return sentence


# -- prompts -------------------------------------------------------------------------------------


def pattern(variant, scenario) -> re.Pattern:
    """The published wording, with anything in the places of what varies."""
    text = files("macbench.tasks.longgenbench").joinpath("prompts", f"{variant}_{scenario}.txt")
    parts = re.split(r"\{(\w+)\}", text.read_text("utf-8"))
    seen: set[str] = set()
    for i in range(1, len(parts), 2):
        name = parts[i]
        parts[i] = f"(?P={name})" if name in seen else f"(?P<{name}>.+?)"
        seen.add(name)
    parts[::2] = map(re.escape, parts[::2])
    return re.compile("".join(parts), re.DOTALL)


def day(text: str) -> int:
    return datetime.strptime(f"{text} 2018", "%B %d %Y").timetuple().tm_yday


def meant(record: Record, values: dict[str, str]) -> dict[str, dict[int, str]]:
    """The checks that a prompt's own sentences imply, read from its text."""
    once: dict[int, str] = {}

    def add(at: int, event: str) -> None:
        once[at] = f"{once[at]}, {event}" if at in once else event

    def every(first, interval, event, last=record.number):
        return dict.fromkeys(range(int(first), last + 1, int(interval)), event)

    birthdays = re.findall(r"(?:- |, |^)([^,\n]+?) \(birthday on (\w+ \d+)\)", values["once"])
    feasts = re.findall(
        r"Celebrate '(.+)' on (\S+|\w+ \d+) with a special dish: (.+)\.", values["once"]
    )
    if record.type == "Week":
        for who, when in birthdays:
            add((day(when) - 1) // 7 + 1, f"{who} birthday")
        event, first, last = re.fullmatch(r"(.+) in week (\d+)-(\d+)", values["range"]).groups()
        habit = r"(.+) every (\d+) weeks on weekends, starting from week (\d+)"
        again, interval, start = re.fullmatch(habit, values["periodic"]).groups()
    elif record.type == "Day":
        event, when = re.search(r"2\) (.+) on (\w+ \d+)$", values["once"]).groups()
        add(day(when), event)
        for who, when in birthdays:
            add(day(when), f"{who} birthday")
        stay = r"(.+) from (\w+ \d+) to (\w+ \d+), \d+"
        event, first, last = re.fullmatch(stay, values["range"]).groups()
        first, last = day(first), day(last)
        habit = r"(.+) starting from day (\d+) and repeating every (\d+) days"
        again, start, interval = re.fullmatch(habit, values["periodic"]).groups()
    elif record.type == "Menu Week":
        for name, when, dish in feasts:
            at = datetime.strptime(f"2018-{when}", "%Y-%m-%d").timetuple().tm_yday
            add((at - 1) // 7 + 1, f"{name} featuring {dish}")
        season = r"Feature '(.+)' from Week (\d+) to Week (\d+) with dishes like: (.+)"
        name, first, last, dish = re.fullmatch(season, values["range"]).groups()
        event = f"{name} featuring {dish}"
        regular = r"Include '(.+)' every (\d+) weeks starting from Week (\d+), serving: (.+)"
        name, interval, start, dish = re.fullmatch(regular, values["periodic"]).groups()
        again = f"{name} featuring {dish}"
    elif record.type == "Menu Day":
        for name, when, dish in feasts:
            add(day(when), f"{name} featuring {dish}")
        season = (
            r"Organize a festival, '(.+)', from (\w+ \d+) to (\w+ \d+) featuring dishes like: (.+)"
        )
        name, first, last, dish = re.fullmatch(season, values["range"]).groups()
        first, last, event = day(first), day(last), f"{name} featuring {dish}"
        regular = r"Schedule '(.+)' every (\d+) days starting from day (\w+ \d+), serving: (.+)"
        name, interval, start, dish = re.fullmatch(regular, values["periodic"]).groups()
        start, again = day(start), f"{name} featuring {dish}"
    elif record.type == "Floor":
        for at, room in re.findall(r"  - Designate Floor (\d+) for (.+) use\.", values["once"]):
            add(int(at), room)
        floors = r"Allocate Floors (\d+) to (\d+) for a (.+)"
        first, last, event = re.fullmatch(floors, values["range"]).groups()
        floors = r"Include a (.+) every (\d+) floors, starting from Floor (\d+)"
        again, interval, start = re.fullmatch(floors, values["periodic"]).groups()
    else:
        side = round(record.number**0.5)

        def number(place: str) -> int:
            x, y = map(int, place.strip("()").split(", "))
            return y * side + x + 1

        for at, use in re.findall(
            r"  - Designate Block at (\(.+\)) for (.+) use\.", values["once"]
        ):
            add(number(at), use)
        blocks = r"Allocate a (.+) along the (row|column) from (\(.+\)) to (\(.+\))"
        event, way, first, last = re.fullmatch(blocks, values["range"]).groups()
        step = 1 if way == "column" else side
        stretch = dict.fromkeys(range(number(first), number(last) + 1, step), event)
        blocks = (
            r"Include a (.+) starting from Block at (\(.+\)) with an interval of every (\d+) "
            r"blocks along the column"
        )
        again, start, interval = re.fullmatch(blocks, values["periodic"]).groups()
        end = number(start) + side - 1
        return {
            "once": once,
            "range": stretch,
            "periodic": every(number(start), interval, again, end),
        }
    stretch = dict.fromkeys(range(int(first), int(last) + 1), event)
    return {"once": once, "range": stretch, "periodic": every(start, interval, again)}


@pytest.mark.parametrize(("variant", "scenario"), PREFIXES)
def test_generated_prompts_ask_for_what_is_checked(variant, scenario):
    type_, number, prefix = PREFIXES[variant, scenario]
    seen = set()
    for index in range(60):
        record = scenarios.generate(scenario, variant, 42, index)
        seen.add(record.prompt)
        assert (record.type, record.number, record.prefix) == (type_, number, prefix)
        assert record.prompt.endswith(f"*** started ***\n{prefix}")
        values = pattern(variant, scenario).fullmatch(record.prompt).groupdict()
        assert record.checks == meant(record, values)
        for kind in KINDS:
            assert record.checks[kind] and {*record.checks[kind]} <= {*range(1, number + 1)}
        assert records.parse(json.loads(json.dumps(records.plain(record))), record.prompt) == record
    assert len(seen) == 60


def test_generated_records_depend_on_seed_and_index_alone():
    first = samples(limit=3)
    assert first[:2] == samples(limit=2)
    assert first != samples(limit=3, seed=43)
    assert [s.id for s in first] == [f"diary-short-000{i}" for i in range(3)]
    assert {s.source for s in first} == {"embedded"}
    assert first[:2] == samples(limit=2, data="embedded")
    assert len({s.cluster for s in first}) == 3


@OFFICIAL
@pytest.mark.parametrize(("variant", "scenario"), PREFIXES)
def test_official_prompts_have_the_wording_bit_by_bit(variant, scenario, monkeypatch):
    monkeypatch.setenv("MACBENCH_DATA", str(DATA.parent))
    raw = json.loads((DATA / records.FILES[variant]).read_text("utf-8"))
    raw = [value for value in raw if records.SCENARIO[value["type"]] == scenario]
    made = samples(scenario, limit=100, variant=variant)
    assert [s.prompt for s in made] == [value["prompt"] for value in raw]
    assert {s.source for s in made} == {"official"} and not any(s.chat for s in made)
    totals, slips, examples = [0, 0, 0], 0, set()
    for sample in made:
        record = records.parse(sample.extra, sample.prompt)
        assert (record.type, record.number, record.prefix) == PREFIXES[variant, scenario]
        values = pattern(variant, scenario).fullmatch(record.prompt).groupdict()
        examples.add(values["example"])
        totals = [n + len(record.checks[kind]) for n, kind in zip(totals, KINDS, strict=True)]
        slips += record.checks != meant(record, values)
    assert tuple(totals) == TOTALS[variant, scenario]
    assert len(examples) == 1
    assert slips == SLIPS.get((variant, scenario), 0)
    sentence = refusal(samples, scenario, limit=101, variant=variant)
    assert f"has 100 {variant} records and limit=101" in sentence


def test_forms_of_the_prompt():
    (plain,), (chat,) = samples(limit=1), samples(limit=1, template="model")
    assert not plain.chat and plain.answer_prefix == ""
    assert chat.chat and chat.answer_prefix == "#*# Week 1 (January 1st - January 7th):"
    assert chat.prompt + chat.answer_prefix == plain.prompt
    assert plain.prompt[plain.question :] == chat.answer_prefix
    assert (chat.prompt.endswith("*** started ***\n"), chat.question) == (True, len(chat.prompt))


@pytest.mark.parametrize(("variant", "cap"), [("short", 16_000), ("long", 32_000)])
def test_the_cap(variant, cap):
    (whole,), (small,) = (samples(limit=1, length=n, variant=variant) for n in (cap, 64))
    assert (whole.max_new_tokens, whole.extra["capped"]) == (cap, None)
    assert (small.max_new_tokens, small.extra["capped"]) == (64, 64)
    knobs = {"variant": variant}
    assert tasks.published_length("longgenbench/menu", knobs) == cap
    assert "capped" in tasks.length_text("longgenbench/menu", 64, knobs)
    assert "capped" not in tasks.length_text("longgenbench/menu", cap, knobs)


def test_published_decoding():
    assert tasks.get("longgenbench/urban").decoding == {"temperature": 0.95, "top_p": 0.95}


# -- bad input -----------------------------------------------------------------------------------


def test_unknown_names():
    assert "'longgenbench/diary'" in refusal(tasks.get, "longgenbench/diaries")
    assert "short or long" in refusal(tasks.get, "longgenbench/diary", variant="medium")
    assert "none or model" in refusal(tasks.get, "longgenbench/diary", template="chat")
    assert "'keyword'" in refusal(tasks.get, "longgenbench/diary", judge="keywords")


GOOD = {
    "prompt": "Write. *** started ***\n#*# Day 1:",
    "checks_once": {"061": "Party"},
    "checks_range": {},
    "checks_periodic": {"7": "Run"},
    "type": "Day",
    "prefix": "#*# Day 1:",
    "number": 365,
}


def given(tmp_path, content) -> str:
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "Dataset_long.json").write_text(text)
    return str(tmp_path)


def test_padded_ids_are_numbers(tmp_path):
    (sample,) = samples(limit=1, variant="long", data=given(tmp_path, [GOOD]))
    assert sample.source == "local"
    assert sample.extra["checks"] == {
        "once": {"61": "Party"},
        "range": {},
        "periodic": {"7": "Run"},
    }
    text = "\nA day.\n#*# Day 61 (March 2nd):\nThe party was late."
    score = tasks.get("longgenbench/diary", variant="long").score(sample, text)
    assert score.details["checks"] == {"once": [1, 1, 1], "range": [0, 0, 0], "periodic": [0, 0, 1]}
    assert score.value == 0.5


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (json.dumps([GOOD])[:-30], "not whole JSON"),
        ({"prompt": "x"}, "not a list of records"),
        ([GOOD, {k: v for k, v in GOOD.items() if k != "checks_range"}], "record 2"),
        ([{**GOOD, "prompt": "Write."}], "does not end with the prefix"),
        ([{**GOOD, "type": "Year"}], "Year"),
        ([{**GOOD, "number": "365"}], "'365'"),
        ([{**GOOD, "checks_once": {"a": "Party"}}], "record 1"),
        ([{**GOOD, "checks_once": {"61": "Party", "061": "Walk"}}], "there twice"),
        ([{**GOOD, "checks_once": {}, "checks_periodic": {}}], "nothing to check"),
        ([GOOD["prompt"]], "record 1"),
    ],
)
def test_damaged_files(tmp_path, content, says):
    sentence = refusal(samples, limit=1, variant="long", data=given(tmp_path, content))
    assert says in sentence and str(tmp_path) in sentence


def test_files_that_are_not_there_or_too_short(tmp_path):
    assert "does not exist" in refusal(samples, data=str(tmp_path))
    assert "macbench fetch longgenbench" in refusal(samples, data="official")
    data = given(tmp_path, [GOOD])
    assert "has 1 long records" in refusal(samples, limit=2, variant="long", data=data)
    assert "has 0 long records" in refusal(samples, "menu", limit=1, variant="long", data=data)


# -- sections ------------------------------------------------------------------------------------


def test_blocks_stand_between_the_marks():
    text = sections.read(" a#*# Week 2: b", "#*# Week 1:", "Week")
    assert text.blocks == ["", " Week 1: a", " Week 2: b"]
    assert text.sections == {1: " Week 1: a", 2: " Week 2: b"}


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ("#*# Week 2: b#*# Week 2: c", {1: "", 2: "b"}),  # the first counts
        ("#*# Week 2 and Week 3", {1: "", 2: "and Week 3"}),  # one number a block
        ("#*# Week two: b", {1: ""}),
        ("#*# Week  4: b", {1: ""}),  # one blank, as the pattern has it
        ("#*# week 4: b", {1: ""}),
        ("## Week 4: b", {1: "## Week 4: b"}),
        ("#*# Menu Week 4: b", {1: "", 4: "b"}),
        ("#*# In Week 7 we rest", {1: "", 7: "we rest"}),
        ("a *** finished ***\n#*# Week 2: b", {1: "a"}),  # what follows is not there
    ],
)
def test_which_sections_are_there(output, found):
    text = sections.read(output, "#*# Week 1:", "Week")
    assert [*text.sections] == [*found]
    for number, rest in found.items():
        assert text.sections[number].rstrip().endswith(rest)


def test_repeated_sections_are_counted():
    text = sections.read("#*# Week 2#*# Week 1#*# Week 2", "#*# Week 1:", "Week")
    assert (text.repeated, [*text.sections]) == (2, [1, 2])


def test_completion():
    text = sections.read("a#*# Week 2: b", "#*# Week 1:", "Week")
    assert sections.completion(text, 4) == 0.5
    beyond = sections.read("#*# Week 60: x", "#*# Week 1:", "Week")
    assert sections.completion(beyond, 52) == 1 / 52
    assert sections.first_missing(text, 4) == 3
    assert sections.first_missing(text, 2) is None
    assert sections.completion(sections.read("", "#*# Floor 1:", "Floor"), 100) == 0.01


def test_headings_alone_are_no_writing():
    heads = "".join(f"\n#*# Week {i} (January {i}th - May 1st):" for i in range(2, 9))
    bare = sections.read(heads, "#*# Week 1 (January 1st - January 7th):", "Week")
    assert sections.completion(bare, 8) == 1 and sections.median_words(bare) == 0
    text = sections.read(" one two\n#*# Week 2:\nthree", "#*# Week 1 (a):", "Week")
    assert sections.median_words(text) == 1.5


def test_distinct_sequences():
    def of(words):
        return sections.distinct(sections.read(words, "", "Week"))

    assert of("a b c") is None
    assert of("a b c d e") == 1
    assert of("a b c d a b c d") == 4 / 5  # a b c d twice
    assert of("x " * 103) == 1 / 100


# -- figures -------------------------------------------------------------------------------------


def row(completion=1.0, once=(0, 0, 0), range_=(0, 0, 0), periodic=(0, 0, 0), **more):
    details = {
        "judge": "keyword",
        "completion": completion,
        "checks": {"once": [*once], "range": [*range_], "periodic": [*periodic]},
        "unclear": 0,
        "blocks": 3,
        "words": 100,
        "median_words": 30.0,
        "distinct_4": 0.5,
        **more,
    }
    return {"details": details, "stopped": "length"}


def figures(*rows) -> dict:
    return {label: value for label, value, _ in metrics.breakdown(rows)}


def test_published_figures_by_hand():
    # once 1/2, range 0/1, periodic 1/1: average .5, STIC-1 .5; 4 more checks lack their sections
    got = figures(row(0.5, (1, 2, 4), (0, 1, 2), (1, 1, 2)))
    assert got["finish"] == 0.5 and got["STIC-1"] == 0.5 and got["STIC-2"] == 0.25
    assert (got["once"], got["range"], got["periodic"], got["average"]) == (0.5, 0, 1, 0.5)
    assert got["weighted"] == 0.125


def test_figures_pool_the_checks_and_average_the_completion():
    got = figures(row(0.2, (1, 1, 10)), row(0.6, (0, 3, 10)))
    assert (got["finish"], got["STIC-1"], got["STIC-2"]) == (0.4, 0.25, 0.05)
    assert got["range"] is None and got["average"] == pytest.approx(0.25 / 3)


def test_nothing_judged_still_counts():
    got = figures(row(0.0, (0, 0, 5)))
    assert (got["STIC-1"], got["STIC-2"], got["average"]) == (None, 0, 0)
    assert metrics.breakdown([]) == []


def test_words_of_long_texts_only():
    long = {"blocks": 41, "words": 2001}
    got = figures(row(**long), row(words=1000, blocks=41), row(words=5000, blocks=40))
    assert got["words of long texts"] == 2001 and got["words"] == round((2001 + 1000 + 5000) / 3)
    assert figures(row())["words of long texts"] is None


def test_a_check_without_section_is_not_judged():
    checks = {"once": {9: "Party"}, "range": {1: "Rain", 60: "Snow"}, "periodic": {}}
    record = Record("", "Week", 52, "#*# Week 1:", checks)
    text = sections.read("It rains.\n#*# Week 60: Snow.", record.prefix, record.type)
    asked = metrics.questions(record, text)
    assert [(q.kind, q.section, q.event) for q in asked] == [
        ("range", 1, "Rain"),
        ("range", 60, "Snow"),
    ]
    score = metrics.score(record, text, "x", asked, ["Yes.", "no"])
    assert score.value == pytest.approx(1 / 3)
    assert score.details["checks"] == {"once": [0, 0, 1], "range": [1, 2, 2], "periodic": [0, 0, 0]}
    assert score.details["verdicts"]["range"] == {"1": True, "60": False}
    assert score.details["stic_1"] == 0.5 and score.details["completion"] == 1 / 52


def test_agreement_of_two_judges():
    one, other = [True, True, False, False], [True, False, False, False]
    found = metrics.agreement(one, other)
    assert (found.n, found.same, found.kappa) == (4, 0.75, pytest.approx(0.5))
    assert metrics.agreement([True], [True]).kappa is None
    assert metrics.agreement([], []) is None
