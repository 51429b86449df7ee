"""Drives a method over random keys, values and queries, without a model.

A `Problem` holds, per layer and sequence, everything that happens at every position of the prompt
and of the decode. `drive` feeds it to a method through the real cache and view; the oracles of
`naive` index the same arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from macbench.attention import Geometry, Method, Prompt
from macbench.engine.cache import PagedCache
from macbench.engine.view import View
from macbench.kernels.paged import PAGE
from macbench.measure.trace import Trace


def rope(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding in halves: x [T, H, d], positions [T]."""
    half = x.shape[-1] // 2
    frequency = 100.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = (positions[:, None].double() * frequency)[:, None]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    left, right = x[..., :half], x[..., half:]
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)


@dataclass
class Sequence_:
    """One sequence: prompt of `length` tokens, then decoded ones. Arrays are [layers, T, H, d]."""

    length: int
    q_pre: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    key: int = 0


@dataclass
class Problem:
    geometry: Geometry
    sequences: list[Sequence_]
    steps: int

    def only(self, *slots: int) -> Problem:
        return replace(self, sequences=[self.sequences[i] for i in slots])

    def to(self, dtype: torch.dtype) -> Problem:
        """The same data, rounded once to `dtype`."""
        cast = [
            replace(s, **{n: getattr(s, n).to(dtype) for n in ("q_pre", "q", "k", "v")})
            for s in self.sequences
        ]
        return replace(self, geometry=replace(self.geometry, dtype=dtype), sequences=cast)


def problem(
    seed: int = 0,
    lengths: Sequence[int] = (37, 22),
    steps: int = 6,
    layers: int = 2,
    kv_heads: int = 2,
    group: int = 2,
    d: int = 8,
    centres: int = 3,
    noise: float = 0.25,
) -> Problem:
    """Random fp64 data. Queries scatter by `noise` around `centres` points per layer and head; one
    in five is unlike any other."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    heads = kv_heads * group
    sequences = []
    for slot, length in enumerate(lengths):
        total = length + steps
        middle = normal(layers, centres, heads, d)
        which = torch.randint(centres, (layers, total, heads), generator=draw)
        index = which[..., None].expand(-1, -1, -1, d)
        stray = torch.rand(layers, total, heads, 1, generator=draw) < 0.2
        q_pre = middle.gather(1, index) + noise * normal(layers, total, heads, d)
        q_pre = torch.where(stray, 1.5 * normal(layers, total, heads, d), q_pre)
        position = torch.arange(total)
        keys = normal(layers, total, kv_heads, d)
        sequences.append(
            Sequence_(
                length,
                q_pre,
                torch.stack([rope(x, position) for x in q_pre]),
                torch.stack([rope(x, position) for x in keys]),
                normal(layers, total, kv_heads, d),
                key=1000 * seed + slot,
            )
        )
    geometry = Geometry(
        layers, heads, kv_heads, d, d**-0.5, torch.device("cpu"), torch.float64, rope
    )
    return Problem(geometry, sequences, steps)


@dataclass
class Record:
    """What came out: out[step][layer] [B, Hq, d]; counts[step][name] [layers, B, heads]."""

    method: Method
    trace: Trace
    view: View
    out: list[list[Tensor]] = field(default_factory=list)
    counts: list[dict[str, Tensor]] = field(default_factory=list)

    def tensor(self) -> Tensor:
        """[steps, layers, B, Hq, d]"""
        return torch.stack([torch.stack(step) for step in self.out])

    def sums(self) -> dict[str, float]:
        """Totals over rows, layers and heads, as `Method.witness` gets them."""
        totals = {name: value.sum().item() for name, value in self.trace.sums.items()}
        context = self.trace.context.sum().item() * self.trace.shape[0]
        totals["context_head"] = context * self.trace.heads["q"]
        totals["context_kv"] = context * self.trace.heads["kv"]
        return totals


def cached(given: Problem) -> tuple[PagedCache, View]:
    """A cache that holds the prompts, forked once per sequence, and the view on the forks."""
    lengths = [s.length for s in given.sequences]
    slots = len(lengths)
    cache = PagedCache(given.geometry, slots, slots, max(lengths), given.steps)
    for slot, s in enumerate(given.sequences):
        for layer in range(given.geometry.layers):
            cache.write_prompt(
                layer, slot, 0, s.k[layer, : s.length], s.v[layer, : s.length]
            )
        cache.fork(slot, slot, s.length)
    zero = torch.zeros(slots, dtype=torch.int64)
    live = torch.ones(slots, dtype=torch.bool)
    return cache, View(cache, cache.table, torch.tensor(lengths), zero, live, max(lengths))


def start(method: Method, given: Problem, cache: PagedCache, view: View) -> Record:
    """Allocate and begin, as the engine does after the prefill."""
    geometry = given.geometry
    longest = max(s.length for s in given.sequences)
    method.check(geometry, longest)
    method.allocate(geometry, len(given.sequences), longest + given.steps)
    kept = method.needs.prompt_queries
    for slot, s in enumerate(given.sequences):
        last = slice(max(s.length - kept, 0), s.length)
        prompt = Prompt(
            s.length, given.steps, s.length, s.key, list(s.q_pre[:, last]), list(s.q[:, last])
        )
        for layer in range(geometry.layers):
            method.begin(layer, slot, prompt, view)
    trace = Trace(
        geometry.layers, len(given.sequences), geometry.q_heads, geometry.kv_heads, geometry.device
    )
    return Record(method, trace, view)


def step(record: Record, given: Problem, at: int) -> None:
    """Decode step number `at`: write every row's own token, attend in every layer, commit."""
    view, cache = record.view, record.view.cache
    view.lens += 1
    view.bound += 1
    position = view.lens - 1
    page = view.table.gather(1, (position // PAGE)[:, None]).squeeze(1)
    outs = []
    for layer in range(given.geometry.layers):
        now = {
            name: torch.stack([getattr(s, name)[layer, s.length + at] for s in given.sequences])
            for name in ("q_pre", "q", "k", "v")
        }
        cache.write(layer, page, position % PAGE, now["k"], now["v"])
        outs.append(record.method.attend(layer, now["q_pre"], now["q"], view, record.trace))
    record.out.append(outs)
    record.counts.append({name: value.clone() for name, value in record.trace.now.items()})
    record.trace.commit(view)
    view.step += 1


def drive(method: Method, given: Problem) -> Record:
    """Every decode step of the problem through `method`."""
    cache, view = cached(given)
    record = start(method, given, cache, view)
    for at in range(given.steps):
        step(record, given, at)
    return record
