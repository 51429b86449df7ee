"""Following names: which of them stand for a value that was handed on from one to the next."""

from __future__ import annotations

import string
from itertools import pairwise

from macbench.experiments.long_context_adapter.draw import Draw, listed
from macbench.experiments.long_context_adapter.lessons.base import Lesson, conversation
from macbench.experiments.long_context_adapter.texts import Size, haystack

RULES = (  # the first of a chain | each further one
    "let {new} be {value}|let {new} be {old}",
    "Set {new} to {value}.|Set {new} to {old}.",
    "{new} := {value};|{new} := {old};",
    "LET {new} = {value}|LET {new} = {old}",
    "{new} takes the number {value}.|{new} takes whatever {old} has.",
    "store {value} in {new}|copy {old} to {new}",
    "define {new} as {value}|define {new} as {old}",
    "The letterbox {new} holds {value}.|The letterbox {new} holds the same as {old}.",
    "{new} <- {value}|{new} <- {old}",
    "assign {new}: {value}|assign {new}: {old}",
    "const {new} = {value};|const {new} = {old};",
    "Label {new} equals {value}.|Label {new} equals label {old}.",
    "put {value} into {new}|put {old} into {new}",
    "{new} == {value} from here on.|{new} == {old} from here on.",
)
INTROS = (
    "Names are given values in the text below, some of them through other names.",
    "In what follows, labels get their values one from another. Keep track of them.",
    "",
    "Follow the definitions that are scattered through this text.",
    "Some lines below hand a number on from name to name; the rest can be ignored.",
)
ASK = (
    "Which names end up with the number {value}?",
    "List every name that stands for {value}, directly or through other names.",
    "Name all labels whose value is {value}.",
    "What are the {count} names that hold {value}?",
    "{value} was passed along. Write down each name that has it.",
    "Starting from {value}, give all names that it reached.",
)
OPEN = (
    "",
    "The names with the number {value} are",
    " {count} names hold {value}. They are: ",
    "Following the definitions, {value} belongs to {count} names:",
    " By the lines above, these {count} names have the number {value}: ",
    "{value} reached the names",
)


def tracing(draw: Draw, size: Size, room: int) -> Lesson:
    """Chains of names in noise or prose; some lessons begin with a solved example."""
    rule = draw.wording(RULES).split("|")
    named = draw.choice((_capitals, _capitals, _capitals, _letters, _numbered, _word))
    style = draw.choice(("blank", "blank", "comma", "oxford"))
    ask, opening, intro = draw.wording(ASK), draw.wording(OPEN), draw.wording(INTROS)
    hops = draw.choice((1, 2, 3, 4, 4, 4, 5, 6))
    chains = draw.choice((1, 1, 1, 2, 3) if room < 3000 else (1, 2, 3, 4, 5, 6))
    kind = draw.choice(("noise", "noise", "prose"))

    def task(room: int, chains: int) -> tuple[str, list[tuple[str, str, str]]]:
        lines: list[str] = []
        asked = []
        pool: dict[str, int] = {}
        while len(pool) < chains * (hops + 1):
            pool[named(draw)] = 0
        names = list(pool)
        for at in range(chains):
            mine = names[at * (hops + 1) : (at + 1) * (hops + 1)]
            value = str(draw.randint(10_000, 99_999))
            said = [rule[0].format(new=mine[0], value=value)]
            said += [rule[1].format(new=new, old=old) for old, new in pairwise(mine)]
            lines = _merge(draw, lines, said)
            told = [text.format(value=value, count=len(mine)) for text in (ask, opening)]
            asked.append((told[0], told[1], listed(mine, style)))
        room -= sum(sum(map(size, turn)) + 10 for turn in asked) + 60
        return haystack(draw, size, room, lines, kind), asked

    if draw.random() < 0.5 and room > 1500:  # a solved example first, of the same form
        context, [(question, begin, answer)] = task(draw.randint(200, 500), 1)
        gap = "" if not begin or begin[-1].isspace() else " "
        parts = [intro, context, f"{question}\n{begin}{gap}{answer}", intro]
        intro = "\n".join(filter(None, parts))
    context, asked = task(room - size(intro), chains)
    return conversation(draw, "tracing", intro, context, asked)


def _merge(draw: Draw, one: list[str], other: list[str]) -> list[str]:
    """Both lists in one, each in its order."""
    first = set(draw.sample(range(len(one) + len(other)), len(one)))
    left, right = iter(one), iter(other)
    return [next(left if i in first else right) for i in range(len(one) + len(other))]


def _capitals(draw: Draw) -> str:
    return "".join(draw.choices(string.ascii_uppercase, k=draw.choice((4, 6, 6, 7))))


def _letters(draw: Draw) -> str:
    return "".join(draw.choices(string.ascii_lowercase, k=draw.choice((4, 5, 6))))


def _numbered(draw: Draw) -> str:
    return draw.choice(string.ascii_lowercase) + str(draw.randint(10, 999))


def _word(draw: Draw) -> str:
    return draw.words(1)[0]
