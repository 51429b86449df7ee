"""RULER (Hsieh et al., arXiv 2404.06654): 13 synthetic long-context tasks, official arguments.

`length` is prompt + answer: the rendered prompt (chat template and answer prefix) plus the tokens
that the official run generates; official lengths are 4K, 8K, 16K, 32K, 64K and 128K, with 500
samples per task. The protocol is that of the official scripts, with an answer prefix after the
generation prompt. Where sources and tokenizer are the official ones and there is no chat template,
the same seed gives the same samples to the byte: random draws come in the official order. The known
differences are
* the model's own chat template, where it has one, is counted and put around the task; the worked
  example of cwe stands inside the user's turn, where the official scripts repeat the template;
* cwe needs the longer official word list at 128K tokens, and where its 8,166 words do not fill
  the length is refused without;
* below 4096 tokens, which the official runs do not have, haystacks change in smaller steps;
* a draw that cannot fit ends in a sentence, where the official scripts loop or crash.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from macbench.errors import MacbenchError
from macbench.tasks.base import Renderer, Sample, Score
from macbench.tasks.ruler import cwe, fwe, niah, qa, vt
from macbench.tasks.ruler.fit import draw_samples
from macbench.tasks.ruler.score import match_all, match_part

__all__ = ["LENGTH", "TASKS", "make"]

LENGTH = "row"  # prompt and answer together

# kind, arguments, tokens to generate (official synthetic.yaml and constants)
TASKS: dict[str, tuple[Any, dict[str, Any], int]] = {
    "niah_single_1": (niah, {"haystack": "noise"}, 128),
    "niah_single_2": (niah, {"haystack": "essay"}, 128),
    "niah_single_3": (niah, {"haystack": "essay", "values": "uuids"}, 128),
    "niah_multikey_1": (niah, {"haystack": "essay", "keys": 4}, 128),
    "niah_multikey_2": (niah, {"haystack": "needle"}, 128),
    "niah_multikey_3": (niah, {"haystack": "needle", "key_type": "uuids", "values": "uuids"}, 128),
    "niah_multivalue": (niah, {"haystack": "essay", "per_key": 4}, 128),
    "niah_multiquery": (niah, {"haystack": "essay", "keys": 4, "queries": 4}, 128),
    "vt": (vt, {"hops": 4}, 30),
    "cwe": (cwe, {"common": 10, "often": 30, "seldom": 3}, 120),
    "fwe": (fwe, {"alpha": 2.0, "letters": 6}, 50),
    "qa_1": (qa, {"dataset": "squad"}, 32),
    "qa_2": (qa, {"dataset": "hotpotqa"}, 32),
}


FIRST = {"niah_single_1", "niah_multikey_2", "niah_multikey_3", "qa_1", "qa_2"}
VERSIONS = {name: 1 if name in FIRST else 2 for name in TASKS}


@dataclass(frozen=True)
class Ruler:
    """One RULER task. prefix: official | none. qa_metric: part (official) | all."""

    name: str
    version: int
    prefix: str = "official"
    qa_metric: str = "part"
    data: str | None = None

    def samples(self, text: Renderer, length: int, seed: int, limit: int) -> Iterator[Sample]:
        """The first `limit` samples; raises LengthUnfit where the task cannot be made."""
        kind, arguments, answer = TASKS[self.name]
        maker = kind.Maker(length=length, seed=seed, data=self.data, **arguments)
        drafts = draw_samples(maker, text, self.name, length, answer, self.prefix == "official")
        for index in range(limit):
            draft = next(drafts, None)
            if draft is None:
                raise MacbenchError(
                    f"ruler/{self.name} has {index} samples and limit={limit} was asked for; lower "
                    "limit, or get the official sources with `macbench fetch ruler`."
                )
            yield Sample(
                index=index,
                id=f"{self.name}-{index:04d}",
                prompt=draft.prompt,
                answer_prefix=draft.prefix if self.prefix == "official" else "",
                question=draft.question,
                references=tuple(draft.answers),
                max_new_tokens=answer,
                cluster=draft.cluster or f"{self.name}-{index:04d}",
                source=maker.source,
                extra={**draft.extra, "length_counts": "prompt + answer"},
            )

    def score(self, sample: Sample, output: str) -> Score:
        """Official string match, as a share: 0 to 1."""
        part = self.name.startswith("qa_") and self.qa_metric == "part"
        return Score((match_part if part else match_all)(output, sample.references))


def make(task: str, prefix: str = "official", qa_metric: str = "part", data: str | None = None):
    """A task with the family's options."""
    if prefix not in ("official", "none"):
        raise MacbenchError(f"ruler.prefix={prefix}: choose official or none.")
    if qa_metric not in ("part", "all"):
        raise MacbenchError(f"ruler.qa_metric={qa_metric}: choose part or all.")
    return Ruler(task, VERSIONS[task], prefix, qa_metric, data)
