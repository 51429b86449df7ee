"""A judge that is asked nothing twice: its answers are kept, line by line, beside the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from macbench.store.lines import Lines
from macbench.tasks.longgenbench.judge import Judge, Question, digest


class Cached:
    """Answers from `lines`, and where they have none from `judge`, kept as they come.

    A key is a checksum of the judge's identity and the whole prompt; nothing else of a question is
    stored. `heard` is told of every new answer.
    """

    def __init__(self, judge: Judge, lines: Lines, heard: Callable[[str], None]):
        self.judge, self.lines, self.heard = judge, lines, heard
        self.known = {row["key"]: row["answer"] for row in lines.rows}

    def answers(self, questions: Sequence[Question]) -> list[str]:
        """The answers in order."""
        keys = [digest(self.judge.identity, q.prompt) for q in questions]
        pairs = zip(keys, questions, strict=True)
        new = {key: question for key, question in pairs if key not in self.known}
        waiting = [*new]
        for at, answer in self.judge.answer([*new.values()]) if new else ():
            row = {"key": waiting[at], "judge": self.judge.name, "answer": answer}
            self.lines.append(row)
            self.known[waiting[at]] = answer
            self.heard(answer)
        return [self.known[key] for key in keys]
