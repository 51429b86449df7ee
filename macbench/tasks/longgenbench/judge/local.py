"""A judge that runs here: a model continues the published prompt, greedily and without template.

The one place under `tasks/` that runs a model: as an instrument of scoring, loaded when asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from macbench import presets
from macbench.errors import MacbenchError
from macbench.tasks.longgenbench.judge import ANSWER, Question

TOGETHER = 8  # questions that decode as one batch


class Local:
    """The judge of that name. model: a name of `macbench list models`, a hub id or a folder."""

    def __init__(self, model: str):
        from macbench.models import Source, load

        known = model in presets.models()
        fields = presets.read("model", model) if known else _elsewhere(model)
        try:
            self.model = load(Source(**fields), reads=True)
        except MacbenchError as error:
            told = str(error).replace("model.source", "judge_model").rstrip(".")
            raise MacbenchError(
                f"judge_model={model} cannot be loaded: {told}; or name another, as in "
                "judge_model=smollm2."
            ) from error
        self.name = f"local {self.model.name}"
        self.identity: dict[str, Any] = {
            "name": "local",
            "version": 1,
            "model": self.model.name,
            "weights": self.model.weights,
            "dtype": str(self.model.geometry.dtype).removeprefix("torch."),
            "temperature": 0,
            "max_tokens": ANSWER,
        }

    def answer(self, questions: Sequence[Question]) -> Iterator[tuple[int, str]]:
        for start in range(0, len(questions), TOGETHER):
            block = questions[start : start + TOGETHER]
            yield from enumerate(self._together([q.prompt for q in block]), start)

    def _together(self, prompts: list[str]) -> list[str]:
        from macbench.attention import create
        from macbench.engine import Engine, Request

        text = self.model.text
        assert text is not None
        requests = [Request(text.plain(p), ANSWER, key=0) for p in prompts]
        longest = max(len(r.tokens) for r in requests)
        full = create("full", presets.read("method", "full"))
        engine = Engine(self.model, [full], len(requests), longest, ANSWER, backend="auto")
        (answers,) = engine.run(requests)
        return [text.decode(answer.tokens) for answer in answers]


def _elsewhere(model: str) -> dict[str, Any]:
    return {"name": Path(model).name, "source": model}
