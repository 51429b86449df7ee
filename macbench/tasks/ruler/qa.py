"""Question answering with distractor documents: SQuAD (qa_1) and HotpotQA (qa_2)."""

from __future__ import annotations

import random

from macbench.tasks import sources
from macbench.tasks.ruler.fit import Count, Draft, probe_and_search

ASK = "Answer the question based on the given documents. "
ONLY = "Only give me the answer and do not output any other words."
TEMPLATE = (
    f"{ASK}{ONLY}\n\nThe following are given documents.\n\n{{context}}\n\n{ASK}{ONLY}\n\n"
    "Question: {query}"
)
PREFIX = " Answer:"


class Maker:
    def __init__(self, length: int, seed: int, data: str | None, dataset: str):
        self.length, self.seed = length, seed
        self.step = 10 if length >= 4096 else 1  # below the official lengths ten may not fit
        self.rng = random.Random(seed)
        self.questions, self.docs, self.source = sources.questions(dataset, data)

    def least(self, index: int) -> int:
        return len(self.questions[index].own)

    def units(self, count: Count, room: int) -> int:
        def tokens(documents: int) -> int:
            return count(self._sample(documents, 0))

        least = max(self.step, self.least(0))
        return probe_and_search(tokens, self.length, room, least)

    def draw(self, units: int, index: int) -> Draft | None:
        return self._sample(units, index) if index < len(self.questions) else None

    def _sample(self, units: int, index: int) -> Draft:
        asked = self.questions[index]
        chosen = self._documents(asked, max(units, len(asked.own)))
        random.Random(self.seed).shuffle(chosen)
        context = "\n\n".join(f"Document {i}:\n{text}" for i, text in enumerate(chosen, 1))
        prompt = TEMPLATE.format(context=context, query=asked.query)
        return Draft(
            prompt=prompt,
            question=prompt.rindex(ASK),
            prefix=PREFIX,
            answers=list(asked.answers),
            cluster=f"{self.source}-doc-{'-'.join(map(str, asked.own))}",
            extra={"documents": len(chosen)},
        )

    def _documents(self, asked: sources.Question, count: int) -> list[str]:
        """The question's own documents, then its article's, then others."""
        if count >= len(self.docs):
            repeats = -(-count // len(self.docs))
            return (self.docs * repeats)[:count]
        own, more = list(asked.own), list(asked.more)
        if count - len(own) > len(more):
            known = {*own, *more}
            rest = [i for i in range(len(self.docs)) if i not in known]
            picked = own + more + self.rng.sample(rest, count - len(own) - len(more))
        else:
            picked = own + self.rng.sample(more, count - len(own))
        return [self.docs[i] for i in picked]
