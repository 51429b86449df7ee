"""Batches of rows, made by worker processes ahead of the training; a step's batch depends on its
number and the seed alone."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from macbench.experiments.long_context_adapter.draw import Draw
from macbench.experiments.long_context_adapter.rows import Row, Spec, Writer

Schedule = Sequence[Sequence]  # [until which share of the steps, [lengths], [shares]]
ANCHOR_ROW = 2048  # tokens, or fewer where a step has fewer


@dataclass(frozen=True)
class Batch:
    """Rows of one length, and the places where something is learnt (of the flattened rows)."""

    tokens: np.ndarray  # [rows, length]
    positions: np.ndarray  # [rows, length]
    places: np.ndarray  # [learnt]
    targets: np.ndarray  # [learnt]
    answer: np.ndarray  # [learnt], whether of an answer; else of a text
    weight: np.ndarray  # [learnt], float32; of an answer's n tokens 1 / sqrt(n), so that a letter
    # counts beside a list of long identifiers; of text 1; either sums to 1 over the batch
    span: np.ndarray  # [learnt], the answer's number in the batch, or 0
    anchor: tuple[np.ndarray, np.ndarray] | None = None  # tokens and positions [rows, length] of
    # text on which the base is followed


def gather(rows: Sequence[Row]) -> Batch:
    """A batch of rows."""
    tokens = np.stack([row.tokens for row in rows]).astype(np.int64)
    learnt = np.stack([row.learnt for row in rows]).ravel()
    spans, last = [], 0
    for row in rows:
        spans.append(np.where(row.span > 0, row.span.astype(np.int64) + last, 0))
        last = max(last, int(spans[-1].max()))
    places = np.flatnonzero(learnt)
    answer, span = learnt[places] == 1, np.concatenate(spans)[places]
    weight = np.where(answer, np.bincount(span)[span] ** -0.5, 1.0)
    for part in (answer, ~answer):
        weight[part] /= max(weight[part].sum(), 1e-9)
    return Batch(
        tokens[:, :-1],
        np.stack([row.positions for row in rows]),
        places,
        tokens[:, 1:].ravel()[places],
        answer,
        weight.astype(np.float32),
        span,
    )


@dataclass(frozen=True)
class Order:
    """How many tokens a step has, in rows of which lengths."""

    steps: int
    tokens: int
    schedule: Schedule
    anchor: int = 0  # tokens of the anchor

    def length(self, draw: Draw, step: int) -> int:
        """Of the rows of a step."""
        for until, lengths, shares in self.schedule:
            if step < until * self.steps:
                return draw.choices(lengths, shares)[0]
        return draw.choices(self.schedule[-1][1], self.schedule[-1][2])[0]


class Supply:
    """Makes the batch of a step, in this process."""

    def __init__(self, spec: Spec, order: Order):
        self.writer, self.order = Writer(spec), order

    def batch(self, step: int) -> Batch:
        draw = Draw(f"{self.writer.spec.seed}/{step}")
        length = self.order.length(draw, step)
        batch = gather([self.writer.row(draw, length) for _ in range(self.order.tokens // length)])
        return replace(batch, anchor=self.anchor(step)) if self.order.anchor else batch

    def anchor(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        draw = Draw(f"{self.writer.spec.seed}/{step}/anchor")
        length = min(self.order.anchor, ANCHOR_ROW)
        rows = [self.writer.anchor(draw, length) for _ in range(self.order.anchor // length)]
        tokens, positions = zip(*rows, strict=True)
        return np.stack(tokens), np.stack(positions)


_mine: Supply | None = None  # a worker's own


def _begin(spec: Spec, order: Order) -> None:
    global _mine
    _mine = Supply(spec, order)


def _make(step: int) -> Batch:
    assert _mine is not None
    return _mine.batch(step)


def batches(spec: Spec, order: Order, first: int, workers: int) -> Iterator[Batch]:
    """The batches of steps `first` to the last; workers 0: made in this process."""
    steps = range(first, order.steps)
    if workers == 0:
        mine = Supply(spec, order)
        yield from map(mine.batch, steps)
        return
    context = multiprocessing.get_context("spawn")  # a process with a card open must not fork
    with context.Pool(workers, _begin, (spec, order)) as pool:
        yield from pool.imap(_make, steps)


def held_out(spec: Spec, kinds: Sequence[str], length: int, tokens: int) -> dict[str, Batch]:
    """A batch of each kind with wordings, words and a text that are never trained on."""
    writer = Writer(spec)
    made = {}
    for kind in kinds:
        draw = Draw(f"{spec.seed}/held/{kind}", held=True)
        made[kind] = gather([writer.row(draw, length, kind) for _ in range(tokens // length)])
    return made
