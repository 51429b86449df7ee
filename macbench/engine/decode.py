"""The decode loop: one batch holds every method's fork of every sample of a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from macbench.attention.base import Method
from macbench.engine.cache import PagedCache
from macbench.engine.sampling import Decoding, choose
from macbench.engine.view import View
from macbench.kernels.paged import PAGE
from macbench.measure.trace import Trace

if TYPE_CHECKING:
    from macbench.models import Model

POLL = {"cpu": 1, "cuda": 16}  # steps between looks at whether every row has finished


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


@torch.inference_mode()
def decode(
    model: Model,
    cache: PagedCache,
    rows: Rows,
    methods: Sequence[Method],
    traces: Sequence[Trace],
    decoding: Decoding,
    longest: int,
    most: int,
    steps: int,
) -> Tensor:
    """Decode until every row has stopped, at most `steps` steps; tokens sampled, [R, steps done].

    longest: the largest of rows.lens; most: tokens no row exceeds. A step feeds one token of every
    row through the model once; each method attends on its own rows.
    """
    slots = len(rows.lens) // len(methods)
    forks = views(cache, rows, len(methods), slots, longest)
    stop = torch.tensor(model.stop_ids, dtype=torch.int64, device=rows.lens.device)
    everyone = torch.arange(len(rows.lens), device=rows.lens.device)
    at, offset = rows.lens, rows.lens

    def attend(layer: int, q_pre: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache.write(layer, at, offset, k[:, 0], v[:, 0])
        out = torch.zeros_like(q)
        for m in active:
            method = methods[m]
            part = slice(m * slots, (m + 1) * slots)
            own = method.attend(layer, q_pre[part, 0], q[part, 0], forks[m], traces[m])
            out[part, 0] = own.to(q.dtype)
        return out

    sampled = []
    active = list(range(len(methods)))  # methods that still have a live row
    last = rows.pending[:, 0]
    for step in range(steps):
        if step % POLL[rows.lens.device.type] == 0:
            living = rows.live.view(len(methods), slots).any(1).tolist()
            active = [m for m, alive in enumerate(living) if alive]
            if not active:
                break
        if step < rows.pending.shape[1]:
            last = torch.where(step < rows.waiting, rows.pending[:, step], last)
        rows.lens.add_(rows.live)
        position = rows.lens - rows.live.long()  # a finished row writes behind its own tokens
        at, offset = rows.table[everyone, position // PAGE], position % PAGE
        for fork in forks:
            fork.grow(most)
        hidden = model.forward(last[:, None], position[:, None], rows.regimes, attend)
        last = choose(model.logits(hidden[:, 0]), decoding, rows.keys, rows.made)
        sampled.append(last)
        for trace, fork in zip(traces, forks, strict=True):
            trace.commit(fork)
        rows.step.add_(rows.live)
        emitted = rows.live & (step >= rows.waiting - 1)
        rows.made.add_(emitted)
        ended = torch.isin(last, stop) | (rows.made >= rows.limit)
        rows.live.logical_and_(~(emitted & ended))
    return torch.stack(sampled, 1) if sampled else last.new_empty(len(last), 0)
