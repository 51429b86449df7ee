"""Cells that share model, task and length: their samples, rendered into requests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from macbench import tasks
from macbench.attention import Method
from macbench.engine import Decoding, Engine, Request
from macbench.models import Model
from macbench.tasks.base import Sample, Task

if TYPE_CHECKING:
    from macbench.config import RunConfig
    from macbench.progress import Progress


@dataclass
class Group:
    """Cells that share model, task and length: one prefill per sample."""

    config: RunConfig
    model: Model
    task: Task
    task_name: str
    length: int
    samples: list[Sample]
    requests: list[Request]

    @property
    def tokens(self) -> int:
        """Tokens of the longest row; `length` where that counts prompt and answer."""
        if tasks.counts(self.task_name) == "row":
            return self.length
        return max(len(request.tokens) + request.max_new for request in self.requests)


def make_groups(config: RunConfig, model: Model, progress: Progress) -> Iterator[Group]:
    """Every (length, task) with its samples rendered into tokens."""
    assert model.text is not None
    for length in config.lengths:
        for name in config.tasks:
            task = tasks.get(name, **config.task_knobs.get(name, {}))
            try:
                samples = list(task.samples(model.text, length, config.seed, config.limit))
            except tasks.LengthUnfit as error:
                if len(config.tasks) == 1:
                    raise
                progress.note(f"skipped {name} at {length}: {error}")
                continue
            requests = [request(config, model, name, sample) for sample in samples]
            yield Group(config, model, task, name, length, samples, requests)


def request(config: RunConfig, model: Model, task: str, sample: Sample) -> Request:
    assert model.text is not None
    if sample.chat:
        tokens = model.text.encode(sample.prompt, sample.answer_prefix)
    else:
        tokens = model.text.plain(sample.prompt + sample.answer_prefix)
    question = hold = 0
    if config.hold == "question":
        if sample.chat:
            asked = (sample.prompt, sample.answer_prefix, sample.question)
            question = model.text.question_tokens(*asked)
        else:
            question = len(model.text.plain(sample.prompt[: sample.question]))
        hold = len(tokens) - question
    else:
        hold, question = int(config.hold), len(tokens)
    digest = hashlib.sha256(f"{task}/{sample.id}/{config.seed}".encode()).digest()
    return Request(
        tokens=tokens,
        max_new=config.max_new or sample.max_new_tokens,
        key=int.from_bytes(digest[:4], "big") >> 1,
        hold=hold,
        question=question,
        stop=sample.stop,
    )


def prompt_sha(request: Request) -> str:
    """Identity of a prompt."""
    return hashlib.sha256(json.dumps(request.tokens).encode()).hexdigest()[:16]


def decoding(group: Group) -> dict[str, Any]:
    """How answers are decoded: as asked, else as the task was published."""
    published = {**asdict(Decoding()), **getattr(group.task, "decoding", {})}
    return {key: published[key] if v is None else v for key, v in group.config.decoding.items()}


def make_engine(group: Group, methods: Sequence[Method], slots: int, made: int = 0) -> Engine:
    """made: tokens of an answer that its request's prompt holds already, at most."""
    return Engine(
        group.model,
        methods,
        slots=slots,
        max_prompt=max(len(r.tokens) for r in group.requests),
        max_new=max(r.max_new for r in group.requests),
        max_hold=max(r.hold for r in group.requests),
        decoding=Decoding(**decoding(group)),
        backend=group.config.backend,
        max_made=made,
        audit=group.config.audit,
    )
