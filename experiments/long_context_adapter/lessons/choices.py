"""Questions with four choices over long texts. All four are said of something in the text."""

from __future__ import annotations

from collections.abc import Callable

from macbench.experiments.long_context_adapter.draw import Draw
from macbench.experiments.long_context_adapter.lessons import lists, questions
from macbench.experiments.long_context_adapter.lessons.base import Lesson, Part, Question, Turn
from macbench.experiments.long_context_adapter.texts import Size, haystack

KINDS: tuple[Callable[[Draw], Question], ...] = (
    *(questions.event, questions.feature, questions.pair, questions.cell, questions.words),
    *(questions.linked, lists.measure, lists.tally, lists.rank, lists.moved) * 2,  # the hard ones
)

INTROS = (
    "A long text comes first, then a question with four options.",
    "Study this text; then pick one of four options.",
    "",
    "Below is a text. Choose the option that it supports.",
    "Here is something to read before you choose.",
)
ASKS = ("{q}", "Question: {q}", "Which option is right? {q}", "Choose. {q}", "Quiz: {q}")
OPTIONS = ("({l}) {c}", "({l}) {c}", "{l}. {c}", "{l}) {c}", "[{l}] {c}", "({l}) {c}")
# what is asked for; the reply repeats the sentence, whatever it is
TELL = (
    'Reply in this form: "{form}".',
    'Your reply has to look like this: "{form}".',
    'End with: "{form}".',
    'Use these words: "{form}".',
    'Write it down like so: "{form}".',
    'State your choice as "{form}".',
    "Close with the sentence: {form}",
    'Give your choice in the form "{form}".',
    'The last line must be "{form}".',
)
GAPS = "letter|insert letter here|your letter|A, B, C or D|put the letter here|X|…|letter of it"
SAYS = (
    "The {adjective} {noun} is ({gap})",
    "The text supports ({gap})",
    "I choose ({gap})",
    "My {noun} is ({gap})",
    "Going by the text, the {adjective} {noun} is ({gap})",
    "{Adjective} {noun}: ({gap})",
    "The {noun} I take is ({gap})",
)
ADJECTIVES = "right best true proper fitting valid supported accurate"
NOUNS = "option choice pick solution letter candidate conclusion"
REASONED = 0.92  # share of lessons whose replies say what they go by
REASONS = ("{r}. ", "{r}.\n", "The text: {r}. ", "From the text: {r}. ", '"{r}." ', "({r}) ")


def choices(draw: Draw, size: Size, room: int) -> Lesson:
    """One text, several questions of different kinds on it."""
    count = max(1, min(draw.randint(4, 10), (room - 300) // 260))
    made = [kind(draw) for kind in draw.sample(KINDS, count)]
    intro, option = draw.wording(INTROS), draw.wording(OPTIONS)
    adjective = draw.choice(ADJECTIVES.split())
    says = draw.wording(SAYS).format(
        adjective=adjective,
        Adjective=adjective.capitalize(),
        noun=draw.choice(NOUNS.split()),
        gap="{gap}",
    )
    form = draw.wording(TELL).format(form=says.format(gap=draw.choice(GAPS.split("|"))))
    opening = says.removesuffix("({gap})")
    ask, reasoned = draw.wording(ASKS), draw.random() < REASONED
    reasons = draw.wording(REASONS)
    turns: list[Turn] = []
    evidence: list[str] = []
    for question in made:
        order = draw.sample(question.four, 4)
        letter = "ABCD"[order.index(question.four[0])]
        lines = [option.format(l=name, c=c) for name, c in zip("ABCD", order, strict=True)]
        text = "\n".join([ask.format(q=question.ask), *lines, form])
        parts: list[Part] = []
        if reasoned:
            parts.append((reasons.format(r=question.reason(order)), "answer"))
        parts += [(opening, "text"), (f"({letter})", "answer")]
        turns.append(Turn(text, "", tuple(parts)))
        evidence = lists.merged(draw, evidence, question.said)
    asked = sum(size(turn.ask) + sum(size(t) for t, _ in turn.reply) + 10 for turn in turns)
    context = haystack(draw, size, room - size(intro) - asked - 60, evidence, "prose")
    first_turn = Turn("\n\n".join(filter(None, (intro, context, turns[0].ask))), "", turns[0].reply)
    return Lesson("choices", (first_turn, *turns[1:]))
