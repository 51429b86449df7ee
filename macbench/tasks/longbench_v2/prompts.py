"""The published prompts, word for word, and how they are filled.

github.com/THUDM/LongBench, prompts/0shot.txt, 0shot_cot.txt, 0shot_cot_ans.txt and
0shot_no_context.txt; none of them ends with a newline.
"""

from __future__ import annotations

from macbench.tasks.longbench_v2.data import Record

_READ = (
    "Please read the following text and answer the question below.\n\n<text>\n$DOC$\n</text>\n\n"
)
_READ_COT = _READ.replace("the question below", "the questions below")
_OMITTED = (
    "Please read the following text and answer the questions below.\n\n"
    "The text is too long and omitted here.\n\n"
)
_ASK = (
    "What is the correct answer to this question: $Q$\nChoices:\n"
    "(A) $C_A$\n(B) $C_B$\n(C) $C_C$\n(D) $C_D$\n\n"
)
_FORMAT = 'Format your response as follows: "The correct answer is (insert answer here)".'
_THINK = "Let\N{RIGHT SINGLE QUOTATION MARK}s think step by step:"
_LIKELY = "what is the single, most likely answer choice? "

# what stands before the question, and from the question on
ZERO_SHOT = (_READ, _ASK + _FORMAT)
COT = (_READ_COT, _ASK + _THINK)
COT_ANSWER = (_OMITTED, _ASK + f"{_THINK} $COT$\n\nBased on the above, {_LIKELY}{_FORMAT}")
NO_CONTEXT = ("", f"{_ASK}W{_LIKELY[1:]}{_FORMAT}")


def fill(template: tuple[str, str], record: Record, thought: str = "") -> tuple[str, str]:
    """The prompt in two parts: before the question, and from the question on.

    Marks are replaced one after the other, as published: a text that holds `$Q$` gets the question
    there too.
    """
    a, b, c, d = record.choices
    values = {"$DOC$": record.context, "$Q$": record.question}
    values |= {"$C_A$": a, "$C_B$": b, "$C_C$": c, "$C_D$": d}
    if "$COT$" in template[1]:  # only the answer prompt has it: elsewhere it is text
        values["$COT$"] = thought
    before, ask = template
    for mark, value in values.items():
        before, ask = before.replace(mark, value.strip()), ask.replace(mark, value.strip())
    return before, ask
