"""The engine's decode step of a whole model on one card: its time, what it must read, what it did.

Nothing is prefilled: the prompts' pages, and the queries that fill a ring, are random normal
values. The step itself is the engine's own (`macbench.engine.decode.build` and `graph`): embedding,
layers, attention of every method, head, the next token, and the counting of what was read. It goes
on from token to token as a real decode does; how often MAC hits is measured on the way.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from macbench.attention.base import Geometry, Method, Prompt
from macbench.bench.launches import launches
from macbench.engine.backend import resolve
from macbench.engine.cache import PagedCache
from macbench.engine.decode import Rows, build, graph, views
from macbench.engine.sampling import Decoding
from macbench.kernels.paged import PAGE
from macbench.measure.trace import Trace
from macbench.models import compiled

if TYPE_CHECKING:
    from macbench.models import Model

WARM = 12  # steps before the timed ones: two to compile and allocate, then replays
EAGER = 2
CLOSE = {torch.float32: 1e-3}  # relative error of a compiled piece
CLOSE_16 = 0.05  # of 16-bit types; what is wrong differs by more than 1

Row = dict[str, Any]


class Timer(Protocol):
    """`macbench.measure.latency.clock.CudaTimer`, or another one in a test."""

    def steps(
        self, replay: Callable[[], object], before: Callable[[int], None], done: int, count: int
    ) -> list[float]:
        """us of `count` replays, each after before(steps done)."""


class PassThrough(Method):
    """Gives every query back: what a step costs without its attention."""

    name = "pass_through"

    def attend(self, layer, q_pre, q, view, trace):
        return q


@dataclass(frozen=True)
class Case:
    """batch: rows of each method; length: tokens of a row after its last step; profiled: steps
    before the timed ones of which every launch is told."""

    length: int
    batch: int
    replays: int
    seed: int
    backend: str = "auto"
    profiled: int = 0

    @property
    def steps(self) -> int:
        return WARM + self.replays + self.profiled

    @property
    def prompt(self) -> int:
        """Tokens in the cache before the first step."""
        return self.length - self.steps


@dataclass
class Bed:
    """Memory of a case: the cache of `rows` rows with random prompts."""

    model: Model
    case: Case
    geometry: Geometry
    cache: PagedCache
    rows: int


def make_bed(model: Model, case: Case, methods: int) -> Bed:
    """Pools for `methods` methods, filled with normal values."""
    backend = resolve(case.backend, model.geometry.device)
    geometry = replace(model.geometry, backend=backend)
    model.prepare(case.length)
    rows = methods * case.batch
    cache = PagedCache(geometry, case.batch, rows, case.prompt, case.steps)
    draw = torch.Generator(geometry.device).manual_seed(case.seed)
    for pool in (*cache.k, *cache.v):
        pool.normal_(generator=draw)
    return Bed(model, case, geometry, cache, rows)


def fresh_rows(bed: Bed) -> Rows:
    """Every row at the end of its prompt, with a random token to feed."""
    case, device = bed.case, bed.geometry.device
    draw = torch.Generator().manual_seed(case.seed)
    for row in range(bed.rows):
        bed.cache.fork(row, row % case.batch, case.prompt)

    def every(value: int) -> Tensor:
        return torch.full((bed.rows,), value, dtype=torch.int64, device=device)

    tokens = torch.randint(bed.model.vocab, (bed.rows, 1), generator=draw)
    return Rows(
        table=bed.cache.table,
        lens=every(case.prompt),
        step=every(0),
        live=every(1).bool(),
        pending=tokens.to(device),
        waiting=every(1),
        made=every(1),
        limit=every(case.steps + 2),
        regimes=every(bed.model.regime(case.length)),
        keys=torch.arange(bed.rows, device=device),
    )


def begin(bed: Bed, methods: Sequence[Method], rows: Rows) -> None:
    """Methods after a prefill that there was not: the queries that they keep of it are random."""
    case, g = bed.case, bed.geometry
    forks = views(bed.cache, rows, len(methods), case.batch, case.prompt)
    keep = max(max(m.needs.prompt_queries, int(m.needs.observe)) for m in methods)
    keep = min(keep, case.prompt)
    draw = torch.Generator(g.device).manual_seed(case.seed + 1)
    for method in methods:
        method.check(g, case.length)
        method.allocate(g, case.batch, case.length)
    for slot in range(case.batch):
        shape = (keep, g.q_heads, g.head_dim)
        kept = [
            torch.randn(shape, generator=draw, device=g.device, dtype=g.dtype)
            for _ in range(g.layers)
        ]
        prompt = Prompt(case.prompt, case.steps, case.prompt, slot, kept, kept)
        for layer in range(g.layers):
            keys, _ = bed.cache.prompt(layer, slot, case.prompt)
            for method, fork in zip(methods, forks, strict=True):
                if method.needs.observe:
                    q = kept[layer]
                    method.observe(layer, slot, q, q, keys, case.prompt - keep)
                method.begin(layer, slot, prompt, fork)
            prompt.shared.clear()


@dataclass
class Timed:
    """us of every timed step, what the methods read in them, and a step's launches."""

    times: list[float]
    traces: list[Trace]
    launches: list[Row]


@torch.inference_mode()
def time_step(bed: Bed, methods: Sequence[Method], timer: Timer, capture=graph) -> Timed:
    """The captured step of these methods' rows; capture(step) -> what replays it."""
    case, g = bed.case, bed.geometry
    rows = fresh_rows(bed)
    begin(bed, methods, rows)
    traces = [Trace(g.layers, case.batch, g.q_heads, g.kv_heads, g.device) for _ in methods]
    loop = build(
        bed.model,
        bed.cache,
        rows,
        methods,
        traces,
        Decoding(),
        case.prompt,
        case.length,
        case.steps,
    )
    loop.reach(case.steps)
    for done in range(EAGER):
        loop.plan(done)
        loop.step()
    replay = capture(loop.step)
    timer.steps(replay, loop.plan, EAGER, WARM - EAGER)
    done = WARM + case.profiled
    told = launches(replay, loop.plan, WARM, case.profiled, g.device) if case.profiled else []
    for trace in traces:
        for total in (*trace.sums.values(), trace.steps, trace.context):
            total.zero_()
    times = timer.steps(replay, loop.plan, done, case.replays)
    assert rows.step.tolist() == [case.steps] * bed.rows, "a row stopped before the end"
    return Timed(times, traces, told)


@torch.inference_mode()
def disagreement(bed: Bed) -> float:
    """Largest relative error of what is compiled of the step, against the modules as they are, with
    exact attention between them (`compiled.disagreement`); 0 where nothing is compiled."""
    model, case, rows = bed.model, bed.case, fresh_rows(bed)
    if model.around == "eager":
        return 0.0
    forks = views(bed.cache, rows, bed.rows // case.batch, case.batch, case.prompt)
    for fork in forks:
        fork.reach(1, case.length)
        fork.plan([case.prompt + 1] * case.batch)
    position = rows.lens.clone()
    rows.lens.add_(1)
    page = rows.table.gather(1, (position // PAGE)[:, None]).squeeze(1)

    def attend(layer: int, q_pre: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bed.cache.write(layer, page, position % PAGE, k[:, 0], v[:, 0])
        parts = zip(forks, q[:, 0].split(case.batch), strict=True)
        return torch.cat([fork.exact(layer, own)[0].to(q.dtype) for fork, own in parts])[:, None]

    return compiled.disagreement(model, rows.pending, position[:, None], rows.regimes, attend)


def close(model: Model, error: float) -> bool:
    return error <= CLOSE.get(model.geometry.dtype, CLOSE_16)


# -- what a step must read -----------------------------------------------------------------------


def weight_bytes(model: Model) -> int:
    """Bytes of weights that any step reads: all but the rows of the embedding that are not used
    (unless the head is the same table), of experts the fewest that a token can go to."""
    table = model.base.embed_tokens.weight
    tied = model.head.weight.data_ptr() == table.data_ptr()
    total = 0.0
    for name, parameter in model.lm.named_parameters():
        if parameter is table and not tied:
            continue
        share = 1.0
        if ".experts." in name:
            share = model.config.num_experts_per_tok / model.config.num_experts
        total += share * parameter.numel() * parameter.itemsize
    return round(total)


def read_bytes(traces: Sequence[Trace], geometry: Geometry) -> tuple[float, float]:
    """Bytes of K and V, and of metadata such as rings, that one step of all rows read."""
    cache = meta = 0.0
    for trace in traces:
        steps = trace.steps[0].item()  # every row does as many
        if steps and "kv_tokens" in trace.sums:
            cache += trace.sums["kv_tokens"].sum().item() / steps * geometry.token_bytes
            meta += trace.sums["meta_bytes"].sum().item() / steps
    return cache, meta


def hit_rate(traces: Sequence[Trace]) -> float | None:
    """Share of (row, layer, query head, step) that reused; None without MAC."""
    hits = units = 0.0
    for trace in traces:
        if "hit" in trace.sums:
            layers, _, heads = trace.sums["hit"].shape
            hits += trace.sums["hit"].sum().item()
            units += layers * heads * trace.steps.sum().item()
    return hits / units if units else None


def spread(times: Sequence[float]) -> Row:
    """Median and 10th and 90th percentile, and how many."""
    ordered = sorted(times)
    last = len(ordered) - 1
    return {
        "us_median": statistics.median(ordered),
        "us_p10": ordered[round(0.1 * last)],
        "us_p90": ordered[round(0.9 * last)],
    }
