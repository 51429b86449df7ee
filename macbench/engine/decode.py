"""The decode loop: one batch holds every method's fork of every sample of a block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from macbench.attention.base import Method
from macbench.engine.audit import Audit
from macbench.engine.cache import PagedCache
from macbench.engine.sampling import Decoding, choose
from macbench.engine.view import View
from macbench.kernels.paged import PAGE
from macbench.measure.trace import Trace

if TYPE_CHECKING:
    from macbench.models import Model

POLL = {"cpu": 1, "cuda": 8}  # steps between looks at whether every row has finished


@dataclass
class Rows:
    """State of all rows (forks), method-major: row m * slots + i is method m on sample i."""

    table: Tensor  # [R, M] pages
    lens: Tensor  # [R] tokens in the cache
    step: Tensor  # [R] decode steps done
    live: Tensor  # [R] bool
    pending: Tensor  # [R, P] tokens still to be fed: held prompt tokens, or the first token
    waiting: Tensor  # [R] how many of `pending` are the row's own
    made: Tensor  # [R] tokens generated so far
    limit: Tensor  # [R] tokens to generate at most
    regimes: Tensor  # [R] rotary table
    keys: Tensor  # [R] sampling key


def views(cache: PagedCache, rows: Rows, methods: int, slots: int, longest: int) -> list[View]:
    """One view per method over its own rows, which have just been forked."""
    made = []
    for m in range(methods):
        part = slice(m * slots, (m + 1) * slots)
        table, lens, step, live = (x[part] for x in (rows.table, rows.lens, rows.step, rows.live))
        made.append(View(cache, table, lens, step, live, longest))
    return made


@dataclass
class Loop:
    """A decode step of a block's rows, to be run or captured, and what it leaves behind."""

    step: Callable[[], None]  # one token of every row; nothing of it depends on the host
    methods: Sequence[Method]
    forks: list[View]  # of each method
    active: list[int]  # methods that still have a live row
    sampled: Tensor  # [R, steps]
    began: list[int]  # tokens of every row before the first step
    most: int  # tokens no row exceeds
    rows: Rows
    audit: Audit | None
    capturable: bool  # as far as the model goes

    def reach(self, steps: int) -> None:
        """From now on shapes hold for the first `steps` steps; a graph needs that of all."""
        for fork in self.forks:
            fork.reach(steps, self.most)

    def plan(self, done: int) -> None:
        """Before the step after `done` steps: what the host has to do, and knows of it."""
        slots = len(self.began) // len(self.forks)
        for m, fork in enumerate(self.forks):
            if m in self.active:
                self.methods[m].between(fork, done)
            began = self.began[m * slots : (m + 1) * slots]
            lens = [min(n + done + 1, self.most) for n in began]
            fork.plan(lens, self.methods[m].lists(lens))


def build(
    model: Model,
    cache: PagedCache,
    rows: Rows,
    methods: Sequence[Method],
    traces: Sequence[Trace],
    decoding: Decoding,
    longest: int,
    most: int,
    steps: int,
    audit: Audit | None = None,
) -> Loop:
    """The loop of `decode`, nothing of it run yet. A step feeds one token of every row through the
    model once; each method attends on its own rows.

    longest: the largest of rows.lens; most: tokens no row exceeds; steps at most.
    """
    slots = len(rows.lens) // len(methods)
    forks = views(cache, rows, len(methods), slots, longest)
    device = rows.lens.device
    stop = torch.tensor(model.stop_ids, dtype=torch.int64, device=device)
    everyone = torch.arange(len(rows.lens), device=device)
    clock = torch.zeros(1, dtype=torch.int64, device=device)  # steps done
    last = rows.pending[:, 0].clone()
    sampled = last.new_zeros(len(last), steps)
    active = list(range(len(methods)))

    def step() -> None:
        held = rows.pending[:, clock.clamp_max(rows.pending.shape[1] - 1)].squeeze(1)
        token = torch.where(clock < rows.waiting, held, last)
        rows.lens.add_(rows.live)
        position = rows.lens - rows.live.long()  # a finished row writes behind its own tokens
        at, offset = rows.table[everyone, position // PAGE], position % PAGE

        def attend(layer: int, q_pre: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cache.write(layer, at, offset, k[:, 0], v[:, 0])
            outs = []
            for m in range(len(methods)):
                part = slice(m * slots, (m + 1) * slots)
                own = q[part, 0]
                if m in active:
                    out = methods[m].attend(layer, q_pre[part, 0], own, forks[m], traces[m])
                    if audit is not None:
                        audit.compare(layer, own, out, forks[m], traces[m])
                else:  # never used, but written to the cache, where all must be finite
                    out = torch.zeros_like(own)
                outs.append(out.to(q.dtype))
            return (outs[0] if len(outs) == 1 else torch.cat(outs))[:, None]

        hidden = model.step(token[:, None], position[:, None], rows.regimes, attend)
        logits = model.logits(hidden[:, 0])
        last.copy_(choose(logits, decoding, rows.keys, rows.made))
        sampled.index_copy_(1, clock, last[:, None])
        for m in active:
            methods[m].settle(forks[m], traces[m])
        for trace, fork in zip(traces, forks, strict=True):
            trace.commit(fork)
        rows.step.add_(rows.live)
        emitted = rows.live & (clock >= rows.waiting - 1)
        if audit is not None:
            audit.count(logits, last, rows.live, emitted)
        rows.made.add_(emitted)
        ended = (last[:, None] == stop).any(1) | (rows.made >= rows.limit)
        rows.live.logical_and_(~(emitted & ended))
        clock.add_(1)

    began = rows.lens.tolist()
    return Loop(step, methods, forks, active, sampled, began, most, rows, audit, model.capturable)


@torch.inference_mode()
def decode(
    loop: Loop,
    every: int = 0,
    pause: Callable[[Tensor], None] | None = None,
    ended: Callable[[Tensor], list[int]] | None = None,
) -> Tensor:
    """Decode until every row has stopped, at most the loop's steps; tokens, [R, steps done].

    On a card the second step is captured as a CUDA graph and replayed from then on, where the model
    allows it; it is captured again once the rows of half of its methods have all stopped.
    Steps that the audit compares run eagerly. After every `every` steps (0: never) `pause` is
    called with the tokens sampled so far; it may wait for the device and must leave rows and
    methods alone. `ended` gets them, too, wherever the host looks at the rows, and
    names rows that are to stop.
    """
    rows, methods, steps = loop.rows, loop.methods, loop.sampled.shape[1]
    device = rows.lens.device
    capture = device.type == "cuda" and loop.capturable and steps > 2
    if capture:
        loop.reach(steps)
    replay = loop.step
    for done in range(steps):
        if done % POLL[device.type] == 0:
            if ended is not None:
                rows.live[ended(loop.sampled[:, :done])] = False
            living = rows.live.view(len(methods), -1).any(1).tolist()
            active = [m for m, alive in enumerate(living) if alive]
            if not active:
                return loop.sampled[:, :done]
            # a capture takes as long as many steps: once half of the methods are through
            if active != loop.active and (not capture or 2 * len(active) <= len(loop.active)):
                loop.active[:] = active
                replay = loop.step
        if pause is not None and every and done and done % every == 0:
            pause(loop.sampled[:, :done])
        if not capture:
            loop.reach(done + 1)
        loop.plan(done)
        if loop.audit is not None and loop.audit.due(done):
            loop.step()
            continue
        # the first step has compiled and allocated what is made once
        if capture and done and replay is loop.step:
            replay = graph(loop.step)
        replay()
    return loop.sampled


def graph(step: Callable[[], None]) -> Callable[[], None]:
    """The step as a CUDA graph; capturing does not run it."""
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        step()
    return captured.replay
