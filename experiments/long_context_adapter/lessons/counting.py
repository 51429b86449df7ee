"""Counting: the words that a list repeats most, and the most frequent words of a coded text."""

from __future__ import annotations

from collections import Counter

from macbench.experiments.long_context_adapter.draw import Draw, listed
from macbench.experiments.long_context_adapter.lessons.base import Lesson, conversation
from macbench.experiments.long_context_adapter.texts import Size

REPEATED = (
    "Here is a list. Some of its words come up many times, most only a few times.",
    "The list below repeats itself. Find out which words it repeats most.",
    "Go through these words and notice those that keep coming back.",
    "",
    "Words are listed below; a handful of them are far more common than the others.",
)
ASK_REPEATED = (
    "Which {n} words come up most in the list?",
    "Name the {n} words that are repeated the most.",
    "Write down the {n} words with the highest counts.",
    "List the {n} words that the list contains most often.",
    "What {n} words occur far more often than the rest?",
)
OPEN_REPEATED = (
    "",
    "The {n} words that come up most are:",
    " The words repeated the most, {n} in all, are",
    "These {n} words have the highest counts:",
    " Most often the list contains",
)
CODED = (
    "The message below is in code. Count how often each code word is used.",
    "Below are meaningless words. Some of them are used much more than others.",
    "",
    "A station sends the same few signals again and again. Keep count of them.",
    "This is a secret text. Note which of its words are the most usual.",
)
ASK_CODED = (
    "Which {n} code words are used most? Leave {mark} out.",
    "Name the {n} most usual words, not counting {mark}.",
    "Apart from {mark}, what are the top {n} words by count?",
    "Give the {n} words with the highest counts. The sign {mark} is no word.",
    "Ignoring {mark}, which {n} words come most often?",
)
OPEN_CODED = (
    "",
    "The {n} most usual words are",
    " By their counts, the top {n} words are:",
    "Used most of all:",
    " The {n} code words that come most often are",
)
WAYS = ("numbered", "numbered", "numbered", "comma", "lines", "blank")


def repeated(draw: Draw, size: Size, room: int) -> Lesson:
    """A list in which a few words are far more common; often after a solved example.

    The answer is in the order of first appearance, so that a reply has one right order.
    """
    intro, ask = draw.wording(REPEATED), draw.wording(ASK_REPEATED)
    opening, shown, way = draw.wording(OPEN_REPEATED), draw.choice(WAYS), draw.choice(WAYS)
    n = draw.choice((10, 10, 10, 10, 5, 6, 8, 12))
    ask, opening = ask.format(n=n), opening.format(n=n)

    def task(often: int, seldom: int, room: int) -> tuple[str, str]:
        often = max(2, min(often, int(room * 0.7) // (6 * n)))
        seldom = min(seldom, max(1, often // 3))
        others = (room // (6 if shown == "numbered" else 3) - n * often) // seldom
        words = draw.words(n + min(max(3, others), 9000 if not draw.held else 1500))
        common, rest = words[:n], words[n:]
        while True:
            line = common * often + rest * seldom
            over = size(listed(line, shown)) / room
            if over <= 1 or often == 1:
                break
            if len(rest) > 3:
                rest = rest[: int(len(rest) * min(0.95, 1 / over))]
            else:
                often -= 1
        draw.shuffle(line)
        return listed(line, shown), listed(sorted(common, key=line.index), way)

    if draw.random() < 0.7:
        context, answer = task(draw.randint(4, 10), draw.randint(1, 3), min(room // 4, 700))
        gap = "" if not opening or opening[-1].isspace() else " "
        parts = [intro, context, f"{ask}\n{opening}{gap}{answer}", intro]
        intro = "\n".join(filter(None, parts))
    room -= size(intro) + 150
    often, seldom = draw.choice(((30, 3), (30, 3), (20, 2), (12, 1), (40, 4)))
    if room < 2500:
        often, seldom = draw.choice(((6, 1), (8, 1)))
    context, answer = task(often, seldom, room)
    return conversation(draw, "repeated", intro, context, [(ask, opening, answer)])


def coded(draw: Draw, size: Size, room: int) -> Lesson:
    """Invented words whose counts fall as a power of their rank; the first rank is a sign."""
    letters, power = draw.choice((4, 5, 7, 8)), draw.uniform(1.6, 2.4)
    invented = draw.choice((draw.invented, draw.letters))
    mark, n = draw.choice(("***", "---", "##", "~~~", "+++", "___")), draw.choice((3, 3, 3, 2, 4))
    room -= 170
    length = max(60, int(room / 2.2))
    pool: dict[str, int] = {}
    while len(pool) < max(n + 2, length // draw.choice((8, 10, 14))):
        pool[invented(letters)] = 0
    ranked = [mark, *pool]
    scale = sum(rank**-power for rank in range(1, len(ranked) + 1))
    counts = [int(length * rank**-power / scale) for rank in range(1, len(ranked) + 1)]
    line = [word for word, count in zip(ranked, counts, strict=True) for _ in range(count)]
    draw.shuffle(line)
    while size(" ".join(line)) > room:
        line = line[: int(len(line) * min(0.97, room / size(" ".join(line))))]
    told = [
        text.format(n=n, mark=mark) for text in (draw.wording(ASK_CODED), draw.wording(OPEN_CODED))
    ]
    top = [word for word, _ in Counter(line).most_common(n + 1) if word != mark][:n]
    answer = listed(top, draw.choice(("comma", "oxford", "blank", "numbered")))
    return conversation(
        draw, "coded", draw.wording(CODED), " ".join(line), [(told[0], told[1], answer)]
    )
