"""MAC's decode step in Triton against the torch method, and against the naive one.

The method decodes a problem of `harness`. After each of its steps the kernels take the same step on
the same cache with a ring of their own, and everything that they leave is compared. Why this file
is a script too: `triton_cases`.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

pytest.importorskip("triton", reason="needs triton")

import naive
from harness import allocate, cached, exact, problem, start, step
from triton_cases import (
    SMS,
    assert_as_exact,
    build,
    compiled,
    fits,
    interpret,
    recorded,
    report,
    report_each,
    spread,
)

from macbench.attention import create
from macbench.kernels import attend, mac
from macbench.kernels.workspace import Tiling, Workspace, choose_tiling

KERNELS = [(attend, "_attend"), (mac, "_match"), (mac, "_merge")]
# Shares of the query's norm. The method takes rows as equally near that differ by 1e-5, and reuses
# the oldest; the kernels tell them apart as far as fp32 can.
EQUAL, ROUNDING = 2e-5, 2e-6
JUNK = -12345
# Largest deviations from the method: of an output or stored row (absolute, relative), of an lse.
LIMITS = {
    "float32": (3e-6, 3e-6, 1e-5),
    "float16": (5e-4, 2**-9, 1e-5),
    "bfloat16": (4e-3, 2**-6, 1e-4),
}


@dataclass(frozen=True)
class Case:
    """What is decoded, and how the kernels cut it. prompts and heads: see `harness.problem`."""

    name: str
    lengths: tuple[int, ...]
    kv_heads: int = 1
    group: int = 2
    d: int = 16
    steps: int = 4
    noise: float = 0.25
    stray: float = 0.2
    grid: float = 0  # queries are multiples of it: distances are exact, and many are equal
    dtype: str = "float32"
    # the method
    tau: float = 0.45
    K: int = 16
    r: int = 6
    sink: int = 0
    whole: bool = False
    max_chain: int | None = None
    min_context: int = 0
    # the kernels
    chunk: int = 16  # dims of a ring query that lie together
    turned: bool = False  # kept along other axes
    programs: int = 3
    tokens: int = 32
    weight: int = 1
    rows: int = 8
    partials: int = 4
    more: int = 16
    split: int = 1
    # shares of hits that the case is meant to meet
    hits: tuple[float, float] = (0.2, 0.95)

    def __str__(self) -> str:
        return self.name

    @property
    def knobs(self) -> dict:
        names = ("tau", "K", "r", "sink", "max_chain", "min_context")
        return {n: getattr(self, n) for n in names} | {"refresh_mixed_groups": self.whole}

    @property
    def tiling(self) -> Tiling:
        names = ("programs", "tokens", "weight", "rows", "partials", "more", "split")
        return Tiling(**{n: getattr(self, n) for n in names})


CASES = [
    Case("two kv heads", (70, 21), kv_heads=2, steps=3, programs=5),
    # E(t) = 0 at first; K no power of two nor of whole row tiles; the ring fills and wraps
    Case("shorter than r", (3, 40), group=3, steps=10, K=12, weight=2, programs=2),
    Case("no band, late start", (20, 37), 2, 1, 64, 4, K=32, r=0, min_context=39, rows=16,
         programs=7, hits=(0.05, 0.5)),
    Case("whole groups", (33, 130), group=4, noise=0.15, K=32, r=16, whole=True, rows=16,
         programs=7, tokens=16, partials=1, more=2, hits=(0.1, 0.9)),
    Case("chains end", (85,), group=8, d=64, steps=6, noise=0.1, stray=0, K=4, r=16,
         max_chain=1, chunk=32, programs=1, tokens=64),
    Case("no chain at all", (40,), steps=3, max_chain=0, hits=(0, 0)),
    Case("tau 1", (37, 20), steps=3, noise=0, stray=0, tau=1.0, hits=(0, 0)),
    Case("tau 1, no band", (37, 20), steps=3, noise=0, stray=0, tau=1.0, r=0, hits=(0, 0)),
    Case("sink", (40, 4), group=3, sink=5, split=2),
    Case("sink of pages", (70, 24), kv_heads=2, steps=3, sink=20, tokens=16, programs=6,
         partials=2, more=4),
    Case("sink, no band", (40, 2), r=0, sink=5),
    Case("sink, whole groups", (70, 24), sink=3, noise=0.1, stray=0.1, whole=True, split=4),
    Case("ties", (30, 5), steps=6, noise=0.4, stray=0, grid=0.5, tau=0.1, K=10, rows=4),
    Case("duplicates", (30, 5), steps=6, noise=0, stray=0.2, K=10, programs=2),
    Case("more programs than work", (30, 2), steps=3, K=4, r=20, programs=14, tokens=64,
         hits=(0, 0.95)),
    Case("one group of one head", (1,), group=1, steps=11, tau=0.2, K=5, r=3, programs=1),
    Case("other axes", (70, 21), kv_heads=2, group=3, d=64, steps=6, K=24, turned=True),
    Case("heads of 24", (70, 21), kv_heads=2, group=3, d=24, chunk=8, steps=5, split=4),
    Case("heads of 40", (33, 50), d=40, chunk=8, sink=5, partials=1, more=2, split=2),
    Case("fp16, three rows", (70, 21, 3), group=3, d=32, steps=2, dtype="float16", K=8, split=2),
    Case("fp16, large groups", (100,), group=8, d=64, steps=3, dtype="float16", K=32, r=16,
         rows=16, tokens=64),
    Case("fp16, sink", (50, 24), dtype="float16", sink=20, tokens=16),
    Case("fp16, long", (90,), group=1, d=64, steps=16, dtype="float16", tau=0.3, programs=2),
]  # fmt: skip


def placed(given, device: str, dtype: torch.dtype):
    """The problem rounded to dtype, on a device."""
    given = given.to(dtype)
    moved = [
        replace(s, **{n: getattr(s, n).to(device) for n in ("q_pre", "q", "k", "v")})
        for s in given.sequences
    ]
    geometry = replace(given.geometry, device=torch.device(device))
    return replace(given, geometry=geometry, sequences=moved)


def begun(given, knobs: dict):
    """The torch method after the prompts. Unused places of the cache hold something large."""
    view = cached(given, fill=300.0)
    device = given.geometry.device
    view = replace(view, **{n: getattr(view, n).to(device) for n in ("lens", "step", "live")})
    method = create("mac", dict(knobs))
    allocate(method, given)
    return start(method, given, view)


def queries(given, at: int) -> list[Tensor]:
    """q_pre and q [B, Hq, d] of step `at`."""
    return [
        torch.stack([getattr(s, n)[0, s.length + at] for s in given.sequences])
        for n in ("q_pre", "q")
    ]


def ring_of(method, chunk: int) -> mac.Ring:
    """A copy of what the method stored, in the kernels' layout."""
    stored = method.queries[0].transpose(2, 3).flatten(3)  # [B, Hq, K, d]
    stored = stored.unflatten(-1, (-1, chunk)).transpose(2, 3).contiguous()
    return copy(mac.Ring(stored, method.outputs[0], method.lse[0].float(), method.chain[0]))


def turn(ring: mac.Ring) -> None:
    """Keep the queries along random orthogonal axes."""
    heads, blocks, _, chunk = ring.queries.shape[1:]
    draw = torch.Generator().manual_seed(0)
    d = blocks * chunk
    axes = torch.linalg.qr(torch.randn(heads, d, d, generator=draw)).Q.to(ring.queries.device)
    kept = ring.queries.transpose(2, 3).flatten(3) @ axes
    ring.queries = kept.unflatten(-1, (-1, chunk)).transpose(2, 3).contiguous()
    ring.axes = axes


def copy(ring: mac.Ring) -> mac.Ring:
    return mac.Ring(*(x if x is None else x.clone() for x in vars(ring).values()))


def by_row(ring: mac.Ring) -> dict[str, Tensor]:
    """The ring's tensors as [B, Hq, K, ...]."""
    stored = ring.queries.transpose(2, 3).flatten(3)
    if ring.axes is not None:
        stored = stored @ ring.axes.mT
    return {"query": stored, "row": ring.rows, "lse": ring.lse, "chain": ring.chain}


def same_rings(a: mac.Ring, b: mac.Ring) -> bool:
    kept = [[x for x in vars(ring).values() if x is not None] for ring in (a, b)]  # no axes
    return all(torch.equal(x, y) for x, y in zip(*kept, strict=True))


def workspace(case: Case, tiling: Tiling, device) -> Workspace:
    shape = (len(case.lengths), case.kv_heads * case.group, case.kv_heads, case.d)
    work = Workspace(*shape, getattr(torch, case.dtype), device, tiling)
    work.best.fill_(mac.threshold(case.tau, case.d)[1])
    return work


def poison(work: Workspace) -> None:
    """Whatever a step does not write itself must not matter."""
    for name, x in vars(work).items():
        if torch.is_tensor(x) and name != "best":
            x.fill_(torch.nan if x.is_floating_point() else JUNK)


def launch(
    case: Case, work, ring: mac.Ring, view, pools, q_pre: Tensor, q: Tensor, live=None
) -> Tensor:
    knobs = (case.tau, case.r, case.sink, case.min_context, case.max_chain, case.whole)
    scale = view.cache.geometry.scale
    return mac.step(work, ring, q_pre, q, *pools, view.table, view.lens, scale, *knobs, live)


def measured(case: Case, stored: Tensor, query: Tensor, t: Tensor) -> tuple[Tensor, ...]:
    """fp64 distances [B, Hq, K] to the stored queries, and the positions of these [B, Hq, K].

    nearest [B, Hq]: the least distance. unclear [B, Hq]: where kernels and method may differ, and
    nowhere else. That is where a row that is neither the nearest nor exactly as far is as near up
    to EQUAL, or where the nearest is as far as the radius up to ROUNDING.
    """
    stored, query = stored.double(), query.double()
    away = (stored - query[:, :, None]).square().sum(-1).sqrt()
    slot = torch.arange(case.K, device=t.device)
    position = (t - 1)[:, None] - ((t - 1)[:, None] - slot) % case.K
    position = position[:, None].expand_as(away)
    away = away.masked_fill(position < 0, torch.inf)
    norm = query.norm(dim=-1)
    nearest, first = away.min(-1, keepdim=True)
    other = (stored != stored.take_along_dim(first[..., None], 2)).any(-1) & (away != nearest)
    unclear = (other & (away <= nearest + EQUAL * norm[..., None])).any(-1)
    nearest = nearest.squeeze(-1)
    unclear |= (nearest - radius(case)).abs() <= ROUNDING * norm
    if case.whole:
        grouped = unclear.unflatten(1, (-1, case.group))
        unclear = grouped.any(-1, keepdim=True).expand_as(grouped).flatten(1)
    return away, position, nearest, unclear


def radius(case: Case) -> float:
    return math.sqrt(2 * case.d) * (1 - case.tau)


@dataclass
class Step:
    """What the kernels did: all [B, Hq], out [B, Hq, d]. depth: hops since an exact row."""

    out: Tensor
    same: Tensor  # decided as the method
    hit: Tensor
    p: Tensor
    distance: Tensor
    depth: Tensor


class Decode:
    """A problem decoded by the method, with the kernels behind it."""

    def __init__(self, case: Case, device: str = "cpu", tiling: Tiling | None = None):
        self.case = case
        shape = (case.kv_heads, case.group, case.d)
        given = problem(3, case.lengths, case.steps, 1, *shape, 3, case.noise, case.stray)
        if case.grid:
            for s in given.sequences:
                s.q_pre = (s.q_pre / case.grid).round() * case.grid
        self.given = placed(given, device, getattr(torch, case.dtype))
        self.record = begun(self.given, case.knobs)
        self.view = self.record.view
        self.ring = ring_of(self.record.method, case.chunk)
        if case.turned:
            turn(self.ring)
        self.ring.rows[self.ring.lse == -torch.inf] = torch.inf  # never used
        self.work = workspace(case, tiling or case.tiling, device)
        self.steps: list[Step] = []
        self.differed = 0  # decisions that differ from the method's, both right up to rounding

    def pools(self, at: int) -> tuple[Tensor, Tensor]:
        """K and V, where pages that no query head of a group has to read are not numbers."""
        case, want, lens = self.case, self.record.counts[at], self.view.lens[:, None]
        end = (lens - case.r).clamp_min(0)
        taken = want["hit"][0] > 0
        start = torch.where(taken, lens - want["gap"][0] - case.r, end.clamp_max(case.sink))
        start = start.unflatten(1, (-1, case.group)).amin(-1)[..., None]
        first = 16 * torch.arange(self.view.table.shape[1], device=lens.device)
        row, head, page = ((first + 16 <= start) & (first >= case.sink)).nonzero().T
        pools = self.view.k[0].clone(), self.view.v[0].clone()
        for pool in pools:
            pool[self.view.table[row, page], head] = torch.nan
        return pools

    def step(self, at: int) -> None:
        """One step of both, compared."""
        case, ring, work = self.case, self.ring, self.work
        step(self.record, self.given, at)
        before = by_row(copy(ring))
        q_pre, q = queries(self.given, at)
        live = torch.arange(len(q)).to(q.device) % 2 == at % 2
        poison(work)
        some = launch(case, work, copy(ring), self.view, self.pools(at), q_pre, q, live).clone()
        poison(work)
        out = launch(case, work, ring, self.view, self.pools(at), q_pre, q)
        hit, p, distance = mac.hits(work, case.tau, case.whole)
        t = self.view.lens - 1
        where = f"step {at}, t = {t.tolist()}"
        reset = work.best == mac.threshold(case.tau, case.d)[1]
        assert reset.all(), f"{where}: keys are not reset"

        want = {name: value[0] for name, value in self.record.counts[at].items()}
        away, position, nearest, unclear = measured(case, before["query"], q_pre, t)
        slot, slack = (p % case.K)[..., None], ROUNDING * q_pre.double().norm(dim=-1)
        chosen, held = (x.gather(2, slot).squeeze(-1) for x in (away, position))
        right = (held == p) & (chosen <= nearest.clamp_max(radius(case)) + slack)
        assert right[hit].all(), f"{where}: a row is reused that is not the nearest"
        same = (hit == (want["hit"] > 0)) & (~hit | (t[:, None] - p == want["gap"]))
        assert (same | unclear).all(), f"{where}: decisions differ"
        apart = (distance - want["distance"])[hit & same].abs()
        assert (apart <= 1e-6 * math.sqrt(case.d)).all(), f"{where}: distances differ"

        # the new row is the method's, every other row what it was
        atol, rtol, lse_tol = LIMITS[case.dtype]
        theirs = by_row(ring_of(self.record.method, case.chunk))
        fresh = torch.arange(case.K, device=t.device) == (t % case.K)[:, None]
        for name, mine in by_row(ring).items():
            rows = fresh[:, None].expand(mine.shape[:3])
            assert torch.equal(mine[~rows], before[name][~rows]), f"{where}: another {name} changed"
            new, wanted = (x[rows].unflatten(0, hit.shape)[same] for x in (mine, theirs[name]))
            bounds = {"row": (atol, rtol), "lse": (lse_tol, 0)}
            if case.turned:
                bounds["query"] = 1e-5, 0
            bound = bounds.get(name, (0, 0))
            close_enough(new, wanted, *bound, f"{where}: stored {name}")
        close_enough(out[same], self.record.out[at][0][same], atol, rtol, f"{where}: output")
        depth = by_row(ring)["chain"][fresh[:, None].expand_as(away)].view(hit.shape)
        self.steps.append(Step(out.clone(), same, hit, p, distance, depth))

        close_enough(some[live], out[live], atol, rtol, f"{where}: beside finished rows")
        assert some.isfinite().all(), f"{where}: finished rows"

        self.differed += int((~same).sum())
        other = ring_of(self.record.method, case.chunk)  # these heads go on from one state
        if case.turned:
            turn(other)
        for name in ("queries", "rows", "lse", "chain"):
            getattr(ring, name)[~same] = getattr(other, name)[~same]

    def all(self, name: str) -> Tensor:
        """[steps, B, Hq, ...]"""
        return torch.stack([getattr(s, name) for s in self.steps])


def close_enough(a: Tensor, b: Tensor, atol: float, rtol: float, what: str) -> None:
    torch.testing.assert_close(
        a.double(), b.double(), atol=atol, rtol=rtol, msg=lambda text: f"{what}: {text}"
    )


def against_naive(decode: Decode) -> None:
    """Every step, one head at a time, in fp64."""
    case = decode.case
    atol, rtol, _ = LIMITS[case.dtype]
    for row, sequence in enumerate(decode.given.sequences):
        reference = naive.NaiveMac(naive.layer(decode.given, row, 0), **case.knobs)
        for at, ours in enumerate(decode.steps):
            want = reference.step(sequence.length + at)
            hit = np.array(want.hit)
            np.testing.assert_array_equal(ours.hit[row], hit)
            np.testing.assert_array_equal(ours.depth[row], want.depth)
            np.testing.assert_array_equal(ours.p[row][hit], np.array(want.p)[hit].astype(int))
            limit = 1e-6 * math.sqrt(case.d)
            np.testing.assert_allclose(
                ours.distance[row][hit], np.array(want.distance)[hit], rtol=0, atol=limit
            )
            np.testing.assert_allclose(
                ours.out[row].double(), np.array(want.out), atol=atol, rtol=rtol
            )


def check(case: Case) -> None:
    decode = Decode(case)
    for at in range(case.steps):
        decode.step(at)
    assert not decode.differed, "choose another problem: rounding decides"
    against_naive(decode)
    hit, distance, depth = (decode.all(n) for n in ("hit", "distance", "depth"))
    share, (low, high) = hit.float().mean().item(), case.hits
    assert low <= share <= high, f"hits: {share:.2f}"
    if case.tau == 1:
        close_enough(decode.all("out"), exact(decode.given)[:, 0], 3e-6, 0, "full attention")
    if case.max_chain:
        assert depth.max() == case.max_chain
    if case.noise == 0 and case.tau < 1:
        assert (distance[hit] == 0).any()


COMPILED = {  # name: (kv heads, group, d, rows, knobs)
    "small model": (3, 3, 64, 1, {}),
    "one row": (8, 4, 128, 1, {}),
    "many rows": (8, 4, 128, 64, {}),
    "every knob": (2, 8, 128, 64, {"sink": 4, "whole": True, "max_chain": 8}),
    "heads of 96": (8, 4, 96, 8, {}),
    "heads of 80": (8, 4, 80, 1, {"sink": 4}),
}


def compile_kernels() -> None:
    """The launches of a step in bf16, with the tilings that a card would get."""

    def empty(*shape: int, of: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    K, chunk, pages = 512, mac.CHUNK, 640
    for name, (kv_heads, group, d, batch, knobs) in COMPILED.items():
        tensors = {n: empty(batch, kv_heads * group, d) for n in ("q_pre", "q")}
        tensors |= {n: empty(pages, kv_heads, 16, d) for n in ("k", "v")}
        tensors |= {"table": empty(batch, pages, of=torch.int64)}
        tensors |= {"lens": empty(batch, of=torch.int64)}
        heads = (batch, kv_heads * group)
        ring = mac.Ring(
            empty(*heads, d // chunk, K, chunk),
            empty(*heads, K, d),
            empty(*heads, K, of=torch.float32),
            empty(*heads, K, of=torch.int32),
        )
        with recorded(*KERNELS) as launches:
            tiling = choose_tiling(batch * kv_heads, d, torch.bfloat16, torch.device("cuda"))
            work = Workspace(*heads, kv_heads, d, torch.bfloat16, "meta", tiling)
            tensors |= {"live": empty(batch, of=torch.bool)}
            mac.step(work, ring, **tensors, scale=0.1, tau=0.45, band=256, **knobs)
        facts = {}
        for kernel, args, kwargs in launches:
            resident = tiling.programs / SMS if kernel.__name__ == "_attend" else 1
            facts[kernel.__name__] = fits(build(kernel, args, kwargs), math.ceil(resident))
        report(name, facts)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return interpret(__file__, tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return compiled(__file__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_decode_equals_the_method_and_the_naive_one(interpreted, case):
    failure = interpreted[str(case)]
    assert failure is None, failure


def test_principal_axes_keep_distances_and_tell_most_first():
    draw = torch.Generator().manual_seed(0)
    spread_over = torch.randn(3, 4, 64, generator=draw)  # 4 of 64 directions, other ones per head
    queries = torch.einsum("nhk,hkd->nhd", torch.randn(200, 3, 4, generator=draw), spread_over)
    queries += 5  # a common part tells nothing
    axes = mac.principal(queries)
    torch.testing.assert_close(axes.mT @ axes, torch.eye(64).expand(3, 64, 64), atol=1e-5, rtol=0)
    moved = mac.turned(queries, axes)
    apart, own = (x[1:] - x[:-1] for x in (queries, moved))
    torch.testing.assert_close(own.norm(dim=-1), apart.norm(dim=-1), atol=1e-3, rtol=1e-4)
    assert (own[..., 4:].norm(dim=-1) < 1e-3 * own.norm(dim=-1)).all()


@pytest.mark.parametrize("name", COMPILED)
def test_bf16_kernels_compile_for_hopper(built, name):
    """And the shared memory holds as many programs as the tiling launches at once."""
    assert built[name] == {"_match": True, "_attend": True, "_merge": True}


CARD = dict(lengths=(700, 210), steps=200, K=128, r=64, hits=(0.6, 0.95))
SMALL = Case("bf16 3x3x64", kv_heads=3, group=3, d=64, dtype="bfloat16", sink=4, **CARD)
LARGE = Case("bf16 2x4x128", kv_heads=2, group=4, d=128, dtype="bfloat16", **CARD)
WHOLE = Case("fp16 1x8x128", kv_heads=1, group=8, d=128, dtype="float16", noise=0.15, stray=0.02,
             whole=True, **CARD)  # fmt: skip


def card_tiling(case: Case, device: str = "cuda") -> Tiling:
    dtype = getattr(torch, case.dtype)
    return choose_tiling(len(case.lengths) * case.kv_heads, case.d, dtype, torch.device(device))


class Truth:
    """The method in fp64 beside a decode, on the same rounded data."""

    def __init__(self, decode: Decode):
        self.decode, self.given = decode, decode.given.to(torch.float64)
        self.record = begun(self.given, decode.case.knobs)
        self.alike = torch.tensor(True, device=self.given.geometry.device)

    def step(self, at: int) -> tuple[Tensor, Tensor]:
        """The outputs [B, Hq, d], and the heads [B, Hq] where all decided alike."""
        step(self.record, self.given, at)
        ours, theirs = self.record.counts[at], self.decode.record.counts[at]
        for name in ("hit", "gap"):
            self.alike = self.alike & (ours[name] == theirs[name])[0]
        return self.record.out[at][0], self.alike & self.decode.steps[at].same


@pytest.mark.gpu
@pytest.mark.parametrize("case", [SMALL, LARGE, WHOLE], ids=str)
def test_long_decodes_on_a_card(case, device="cuda"):
    """200 chained steps: every decision, output and stored row is the method's.

    Except where `measured` calls a decision unclear. And the outputs are as near to those of the
    method in fp64 as the 16-bit method's own are.
    """
    decode = Decode(case, device, card_tiling(case, device))
    truth = Truth(decode)
    ours, theirs = [], []
    for at in range(case.steps):
        decode.step(at)
        right, same = truth.step(at)
        out = decode.steps[at].out
        ours.append((out - right)[same])
        theirs.append((decode.record.out[at][0].to(out.dtype) - right)[same])
    hit = decode.all("hit")
    assert case.hits[0] <= hit.float().mean() <= case.hits[1]
    assert decode.differed <= 0.002 * hit.numel() and truth.alike.float().mean() > 0.8
    (own, most), (reference, bound) = spread(torch.cat(ours)), spread(torch.cat(theirs))
    assert own <= 1.5 * reference and most <= 2 * bound


@pytest.mark.gpu
@pytest.mark.parametrize("case", [SMALL, LARGE, WHOLE], ids=str)
def test_as_exact_as_plain_attention_on_a_card(case, device="cuda"):
    """At most twice the error of torch's attention in the same 16-bit type, over short chains."""
    case = replace(case, steps=12, max_chain=2)
    decode = Decode(case, device, card_tiling(case, device))
    truth = Truth(decode)
    ours, plain, full, scale = [], [], exact(truth.given), truth.given.geometry.scale
    for at in range(case.steps):
        decode.step(at)
        right, same = truth.step(at)
        ours.append((decode.steps[at].out - right)[same])
        for row, s in enumerate(decode.given.sequences):
            t = s.length + at
            k, v = (x[0, : t + 1].transpose(0, 1)[None] for x in (s.k, s.v))
            q = s.q[0, t][None, :, None]
            out = scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True)
            plain.append(out[0, :, 0] - full[at, 0, row])
    assert_as_exact([torch.cat(ours)], [torch.cat(plain)])


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["shorter than r", "sink, whole groups"])
def test_fp32_on_a_card(name, monkeypatch):
    """Two of the interpreter's cases with the tiling that a card would get."""
    monkeypatch.setitem(LIMITS, "float32", (1e-5, 1e-5, 1e-4))
    case = next(c for c in CASES if c.name == name)
    decode = Decode(case, "cuda", card_tiling(case))
    for at in range(case.steps):
        decode.step(at)
    assert not decode.differed


class Rest:
    """A decode laid out at rest: the cache after all steps, lens and queries of each."""

    def __init__(self, case: Case, device: str):
        self.case, self.decode = case, Decode(case, device)
        lens = self.decode.view.lens.clone()
        for at in range(case.steps):  # K and V of later steps lie behind lens
            step(self.decode.record, self.decode.given, at)
        self.view = self.decode.view
        self.pools = self.view.k[0], self.view.v[0]
        self.lens = [lens + at + 1 for at in range(case.steps)]
        self.queries = [queries(self.decode.given, at) for at in range(case.steps)]
        self.device = device

    def state(self, tiling: Tiling) -> tuple[Workspace, mac.Ring]:
        return workspace(self.case, tiling, self.device), copy(self.decode.ring)

    def step(self, at: int, work: Workspace, ring: mac.Ring) -> Tensor:
        view = replace(self.view, lens=self.lens[at])
        return launch(self.case, work, ring, view, self.pools, *self.queries[at])


@pytest.mark.gpu
@pytest.mark.parametrize("pdl", [True, False])
def test_a_captured_step_replays(pdl):
    """Poisoned between replays, and fed other queries and lens: bitwise what a call gives."""
    case = replace(LARGE, steps=12)
    rest = Rest(case, "cuda")
    tiling = replace(card_tiling(case), pdl=pdl)
    (work, ring), (other, copied) = rest.state(tiling), rest.state(tiling)
    rest.step(0, *rest.state(tiling))  # compiles
    view = replace(rest.view, lens=rest.lens[0].clone())
    inputs = [x.clone() for x in rest.queries[0]]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch(case, other, copied, view, rest.pools, *inputs)
    assert same_rings(ring, copied)  # captured, not run
    for at in range(case.steps):
        out = rest.step(at, work, ring)
        for held, now in zip((view.lens, *inputs), (rest.lens[at], *rest.queries[at]), strict=True):
            held.copy_(now)
        poison(other)
        graph.replay()
        assert torch.equal(other.output, out) and torch.equal(other.picked, work.picked)
        assert torch.equal(other.best, work.best) and same_rings(copied, ring)


@pytest.mark.gpu
def test_steps_do_not_wait_and_may_overlap():
    """No call waits for the card; launches that overlap change no bit of outputs and ring."""
    case = replace(LARGE, steps=100)
    rest = Rest(case, "cuda")
    views = [replace(rest.view, lens=lens) for lens in rest.lens]
    ends = []
    for pdl in (True, False):
        tiling = replace(card_tiling(case), pdl=pdl)
        rest.step(0, *rest.state(tiling))  # compiles
        work, ring = rest.state(tiling)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for view, now in zip(views, rest.queries, strict=True):  # nothing else in between
                launch(case, work, ring, view, rest.pools, *now)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        ends.append((work.output, ring))
    assert torch.equal(ends[0][0], ends[1][0]) and same_rings(ends[0][1], ends[1][1])


def planned(rows: int, heads: int, share: float, together: bool, draw) -> Tensor:
    """Which heads [rows, heads] hit: a share of them. together: whole groups miss, else any."""
    if together:
        return (torch.arange(heads) >= round((1 - share) * heads)).expand(rows, -1)
    order = torch.randperm(rows * heads, generator=draw)
    return (order >= round((1 - share) * rows * heads)).view(rows, heads)


def long_step(shape, context: int, share: float, together: bool, dtype, device, tiling) -> None:
    """One step far into a context, from a ring where the planned heads find a near query.

    Every part of the answer is formed in fp64 from its definition, for some of the heads.
    """
    rows, kv_heads, group, d = shape
    K, r, tau, scale, heads = 128, 64, 0.45, d**-0.5, kv_heads * group
    draw = torch.Generator().manual_seed(7)
    dice = torch.Generator(device).manual_seed(7)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=dice, device=device, dtype=dtype)

    width = -(-context // 16)
    k, v = (normal(rows * width, kv_heads, 16, d) for _ in range(2))
    table = torch.randperm(rows * width, generator=draw).view(rows, width).to(device).int()
    lens = (context - 777 * torch.arange(rows)).clamp_min(context // 2).to(device)
    t = lens - 1
    hits = planned(rows, heads, share, together, draw).to(device)
    lag = torch.randint(1, K, (rows, heads), generator=draw).to(device)
    p = t[:, None] - lag

    q, q_pre = normal(rows, heads, d), normal(rows, heads, d)
    near = q_pre + 0.1 * normal(rows, heads, d)
    stored = normal(rows, heads, K, d)  # about sqrt(2 d) away
    place = torch.arange(K, device=device) == (p % K)[..., None]
    stored = torch.where((place & hits[..., None])[..., None], near[:, :, None], stored)
    kept, level = 0.1 * normal(rows, heads, K, d), 5 + normal(rows, heads, K).float()
    depth = torch.randint(9, (rows, heads, K), generator=draw).to(device).int()
    parts = stored.unflatten(-1, (-1, mac.CHUNK)).transpose(2, 3).contiguous()
    ring = mac.Ring(parts, kept.clone(), level.clone(), depth.clone())
    work = Workspace(rows, heads, kv_heads, d, dtype, device, tiling)
    poison(work)
    work.best.fill_(mac.threshold(tau, d)[1])
    out = mac.step(work, ring, q_pre, q, k, v, table, lens, scale, tau, r)

    hit, found, _ = mac.hits(work, tau)
    assert torch.equal(hit, hits) and torch.equal(found[hit], p[hit])

    def summary(query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        logits = keys.double() @ query.double() * scale
        return logits.softmax(0) @ values.double(), logits.logsumexp(0)

    def merged(a, b) -> tuple[Tensor, Tensor]:
        level = torch.logaddexp(a[1], b[1])
        return (a[1] - level).exp() * a[0] + (b[1] - level).exp() * b[0], level

    bound = 6e-3 if dtype == torch.bfloat16 else 1e-3
    for index in range(0, rows * heads, max(1, rows * heads // 24)):
        b, h = divmod(index, heads)
        at, end = int(t[b]), int(t[b]) + 1 - r
        begin = int(p[b, h]) + 1 - r if hits[b, h] else 0
        pages = table[b, begin // 16 : at // 16 + 1].long()
        keys, values = (
            x[pages, h // group].flatten(0, 1)[begin % 16 :][: at + 1 - begin] for x in (k, v)
        )
        cut = end - begin
        row = summary(q[b, h], keys[:cut], values[:cut])
        tail = summary(q[b, h], keys[cut:], values[cut:])
        old = int(p[b, h]) % K
        if hits[b, h]:
            row = merged((kept[b, h, old].double(), level[b, h, old].double()), row)
        whole = merged(row, tail)[0]
        new = at % K
        for mine, right in ((out[b, h], whole), (ring.rows[b, h, new], row[0])):
            assert (mine - right).norm() <= bound * right.norm(), (b, h)
        assert abs(ring.lse[b, h, new] - row[1]) < 1e-4, (b, h)
        assert ring.chain[b, h, new] == (depth[b, h, old] + 1 if hits[b, h] else 0), (b, h)


@pytest.mark.gpu
@pytest.mark.parametrize("rows, kv_heads", [(2, 2), (8, 8)])  # few groups, many: other tilings
@pytest.mark.parametrize("share, together", [(0.0, True), (0.5, True), (0.5, False), (1.0, True)])
def test_long_contexts_on_a_card(rows, kv_heads, share, together):
    tiling = choose_tiling(rows * kv_heads, 128, torch.bfloat16, torch.device("cuda"))
    shape = (rows, kv_heads, 4, 128)
    long_step(shape, 131072, share, together, torch.bfloat16, "cuda", tiling)


if __name__ == "__main__":
    scripts = {"interpret": lambda: report_each(CASES, check), "compile": compile_kernels}
    scripts[sys.argv[1]]()
