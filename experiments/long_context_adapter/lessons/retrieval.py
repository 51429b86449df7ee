"""Finding what a text says of a key: one or several values, for one or several keys."""

from __future__ import annotations

from macbench.experiments.long_context_adapter.draw import Draw, listed
from macbench.experiments.long_context_adapter.lessons.base import Lesson, conversation
from macbench.experiments.long_context_adapter.texts import Size, haystack, scatter

THINGS = (  # one, several
    "access code/access codes",
    "locker number/locker numbers",
    "serial number/serial numbers",
    "pass phrase/pass phrases",
    "badge/badges",
    "tracking tag/tracking tags",
    "hidden token/hidden tokens",
    "registration/registrations",
    "secret entry/secret entries",
    "lucky charm/lucky charms",
    "catalogue mark/catalogue marks",
    "reference/references",
    "call sign/call signs",
)
NEEDLES = (
    "The {one} of {key} is {value}.",
    "Take note: the {one} assigned to {key} is {value}.",
    "{key} was given the {one} {value}.",
    "{key} has {value} as {one}.",
    "Among the {many} of {key} there is {value}.",
    "Whoever asks for the {one} of {key} should be told {value}.",
    "For {key}, the {one} reads: {value}.",
    "{key} -> {one}: {value}",
    "[{one} | {key}] {value}",
    "Do not forget that {value} is a {one} belonging to {key}.",
    "One {one} that goes with {key} is: {value}.",
    "It is recorded here that {key} holds the {one} {value}.",
)
INTROS = (
    "",
    "The text below contains several {many}. Read it closely, since there will be questions about "
    "them.",
    "Here is a long document. Somewhere in it {many} are mentioned.",
    "Read this carefully and keep every {one} in mind.",
    "I am going to show you a text in which {many} were hidden.",
    "Please study the material that follows. Afterwards you will be asked about certain {many}.",
    "Pay attention to every {one} in the following pages.",
)
ASK_ONE = (
    "Which {one} does the text give for {key}?",
    "What {one} belongs to {key}?",
    "Tell me the {one} of {key}.",
    "Look up {key}: what is its {one}?",
    "According to the document, what is the {one} of {key}?",
    "State the {one} that goes with {key}, as written above.",
    "I need the {one} for {key}.",
)
ASK_MANY = (
    "Which {many} does the text give for {key}?",
    "List every {one} of {key}.",
    "What are all of the {many} that belong to {key}?",
    "Several {many} are recorded for {key}. Name all of them.",
    "Write down each {one} that the document mentions for {key}.",
    "Give me the complete list of {many} for {key}, leaving none out.",
    "Collect all {many} recorded for {key}.",
)
OPEN_ONE = (
    "",
    "The {one} of {key} is",
    " The {one} that belongs to {key} is",
    "According to the document, the {one} of {key} is",
    "For {key} the document gives the {one}",
    " In that text, {key} has the {one}:",
    "It says that the {one} of {key} is",
)
OPEN_MANY = (
    "",
    "The {many} of {key} are",
    " The {many} that belong to {key} are:",
    "According to the document, the {many} of {key} are",
    "These {many} are given for {key}:",
    " Here is every {one} found for {key}:",
    "The document lists the following {many} for {key}:",
)
KEYS = ("pair", "pair", "pair", "pair", "word", "snake", "words", "name", "code")
STYLES = ("comma", "comma", "oxford", "oxford", "and", "lines", "numbered", "semicolon", "blank")


def retrieval(draw: Draw, size: Size, room: int) -> Lesson:
    """Needles in prose, in noise or among nothing but needles."""
    crowd = draw.random() < 0.4
    key_kind = draw.choice(KEYS)
    value_kind = draw.choices(("number", "uuid", "pair", "code", "word"), (5, 3, 1, 1, 1))[0]
    if crowd and draw.random() < 0.45:
        key_kind = value_kind = "uuid"
    one, many = draw.choice(THINGS).split("/")
    needle = draw.wording(NEEDLES)

    def line(key: str, value: str) -> str:
        made = needle.format(one=one, many=many, key=key, value=value)
        return made if needle.startswith("{") else made[0].upper() + made[1:]

    per_key = draw.choices((1, 2, 3, 4, 5, 6), (10, 1, 2, 6, 1, 1))[0]
    keys = list({draw.key(key_kind): 0 for _ in range(draw.randint(1, 12 if per_key == 1 else 5))})
    pairs = [(key, draw.value(value_kind)) for key in keys for _ in range(per_key)]
    draw.shuffle(pairs)
    values: dict[str, list[str]] = {key: [] for key in keys}
    for key, value in pairs:
        values[key].append(value)
    asked = _questions(draw, values, one, many)
    intro = draw.wording(INTROS).format(one=one, many=many)
    needles = [line(*pair) for pair in pairs]
    room -= size(intro) + sum(sum(map(size, turn)) + 10 for turn in asked) + 60
    if crowd:

        def other() -> str:  # about a key that nobody asks for
            while (key := draw.key(key_kind)) in values:
                pass
            return "\n" + line(key, draw.value(value_kind))

        others = [other() for _ in range(8)]
        each = sum(map(size, others)) / 8
        count = max(1, int(room / each) - len(needles))
        lines = [other() for _ in range(count)]
        context = scatter(draw, lines, needles, own_line=True)
    else:
        context = haystack(draw, size, room, needles)
    return conversation(draw, "retrieval", intro, context, asked)


def _questions(
    draw: Draw, values: dict[str, list[str]], one: str, many: str
) -> list[tuple[str, str, str]]:
    """Turns about one key each, or about several keys at once."""
    style = draw.choice(STYLES)
    single = all(len(found) == 1 for found in values.values())
    keys = list(values)
    draw.shuffle(keys)
    turns = []
    together = single and len(keys) > 1 and draw.random() < 0.5
    while keys:
        several = min(draw.randint(2, 4), len(keys)) if together else 1
        asked, keys = keys[:several], keys[several:]
        names = listed(asked, draw.choice(("oxford", "and", "comma")))
        found = [value for key in asked for value in values[key]]
        plural = len(found) > 1
        ask = draw.wording(ASK_MANY if plural else ASK_ONE)
        opening = draw.wording(OPEN_MANY if plural else OPEN_ONE)
        turn = [text.format(one=one, many=many, key=names) for text in (ask, opening)]
        if len(asked) > 1 and draw.random() < 0.25:
            answer = listed([f"{key}: {values[key][0]}" for key in asked], style)
        else:
            answer = listed(found, style)
        stop = "." if style in ("comma", "oxford", "and") and draw.random() < 0.6 else ""
        turns.append((turn[0], turn[1], answer + stop))
    return turns
