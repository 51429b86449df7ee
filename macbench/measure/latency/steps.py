"""The compared methods on one bank of sets, each as launches that a CUDA graph can hold.

A step writes the query into ring slot t mod K. Replayed, it would find that very query there, at
distance 0: every planned miss a hit. So `restore` puts back what the slot held; it runs between
replays, outside of what is timed.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from macbench.kernels import attend, mac
from macbench.kernels.paged import PAGE
from macbench.kernels.workspace import Tiling, Workspace, choose_tiling
from macbench.measure.latency.cases import Plan, Point
from macbench.measure.latency.data import Bank, ring
from macbench.measure.latency.reference import (
    Expected,
    Verdict,
    expected_full,
    expected_mac,
    judge_matches,
    judge_output,
    judge_row,
)

SCRATCH = 512 * 2**20  # bytes of FlashInfer's workspace


class Step(Protocol):
    """One method's decode step on every set of a bank."""

    kernels: int  # that depend on each other, of one step
    tiles: str  # what was tuned, for the record
    restores: bool  # whether a step must be undone before it is replayed

    def call(self, index: int) -> None:
        """The step on one set."""

    def restore(self, index: int) -> None:
        """As before the step, as far as the next one depends on it."""

    def check(self, index: int) -> Verdict:
        """The matches of the last step, which was on this set."""

    def judge(self, expected: Expected, index: int) -> Verdict:
        """All that the last step left, which was on this set."""

    def poison(self, index: int) -> None:
        """NaN wherever a step must write."""

    def expect(self, index: int) -> Expected:
        """The reference's answer on one set."""


def missing(method: str) -> str | None:
    """Why a method cannot run here."""
    if method.startswith("flashinfer") and find_spec("flashinfer") is None:
        return f"{method} is skipped: the package flashinfer is not installed."
    return None


def create(point: Point, bank: Bank, plan: Plan | None, sets: int, seed: int) -> Step:
    """The step of a point on the first `sets` sets of a bank of its shape."""
    if point.method in ("mac", "mac_launches"):
        assert plan is not None
        return MacStep(point, bank, plan, sets, seed)
    if point.method == "triton_full":
        return TritonFull(point, bank)
    return FlashInfer(bank, tensor_cores=point.method == "flashinfer_tc")


def tiling(point: Point, device: torch.device) -> Tiling:
    """The kernels' own choice, and what the point changes of it."""
    shape = point.shape
    dtype = getattr(torch, shape.dtype)
    chosen = choose_tiling(shape.batch * shape.kv_heads, shape.d, dtype, device)
    return replace(chosen, **dict(point.tiling))


def chunk(point: Point) -> int:
    """Dims of a ring query that lie together."""
    return point.chunk or mac.chunk_of(point.shape.d)


def _poison(work: Workspace) -> None:
    """Every float of a workspace NaN; the keys of the last matches name position 0."""
    for value in vars(work).values():
        if isinstance(value, Tensor) and value.is_floating_point():
            value.fill_(torch.nan)
    work.picked.zero_()


def _workspace(bank: Bank, tiles: Tiling) -> Workspace:
    shape = bank.shape
    return Workspace(
        shape.batch, shape.q_heads, shape.kv_heads, shape.d, bank.dtype, bank.device, tiles
    )


class MacStep:
    """MAC's step; a ring per set, one workspace for all, as layers have it."""

    kernels = 3
    restores = True

    def __init__(self, point: Point, bank: Bank, plan: Plan, sets: int, seed: int):
        assert point.reuse is not None
        self.bank, self.plan, self.reuse = bank, plan, point.reuse
        tiles, dims = tiling(point, bank.device), chunk(point)
        self.tiles = f"{tiles} chunk={dims}"
        self.rings = [
            mac.Ring(*ring(bank, i, self.reuse, plan, dims, seed + i)) for i in range(sets)
        ]
        self.slot = (bank.shape.context - 1) % self.reuse.K
        self.held = [r.queries[:, :, :, self.slot].clone() for r in self.rings]
        self.work = _workspace(bank, tiles)
        self.work.best.fill_(mac.threshold(self.reuse.tau, bank.shape.d)[1])
        self.aim = (bank.shape.context - 1 - plan.lag).to(bank.device)
        self.hit = plan.hit.to(bank.device)

    def call(self, index: int) -> None:
        layer = self.bank.layers[index]
        mac.step(
            self.work,
            self.rings[index],
            layer.q_pre,
            layer.q,
            layer.k,
            layer.v,
            self.bank.table,
            self.bank.lens,
            self.bank.scale,
            self.reuse.tau,
            self.reuse.r,
        )

    def match(self, index: int) -> None:
        """The step's first launch."""
        layer, held = self.bank.layers[index], self.rings[index]
        mac.match(self.work, held, layer.q_pre, self.bank.lens, self.reuse.tau)

    def attend(self, index: int) -> None:
        """Its second."""
        layer, held, bank = self.bank.layers[index], self.rings[index], self.bank
        attend.spans(
            self.work,
            layer.q,
            layer.k,
            layer.v,
            bank.table,
            bank.lens,
            bank.scale,
            rows=(held.lse, held.chain),
            threshold=mac.threshold(self.reuse.tau, bank.shape.d)[1],
            band=self.reuse.r,
        )

    def merge(self, index: int) -> None:
        """Its last."""
        layer, held = self.bank.layers[index], self.rings[index]
        mac.merge(self.work, held, layer.q_pre, self.bank.lens, self.reuse.tau, self.reuse.r)

    def restore(self, index: int) -> None:
        self.rings[index].queries[:, :, :, self.slot].copy_(self.held[index])

    def check(self, index: int) -> Verdict:
        hit, position, _ = mac.hits(self.work, self.reuse.tau)
        plan = Expected(self.work.output, hit=self.hit, position=self.aim)
        return Verdict(0.0, judge_matches(hit, position, plan))

    def judge(self, expected: Expected, index: int) -> Verdict:
        held, slot = self.rings[index], self.slot
        output = judge_output(self.work.output, expected)
        hit, position, _ = mac.hits(self.work, self.reuse.tau)
        written = held.queries[:, :, :, slot].flatten(2)
        faults = [
            judge_matches(hit, position, expected),
            output.note,
            judge_row(held.rows[:, :, slot], held.lse[:, :, slot], expected),
            "" if torch.equal(written, self.bank.layers[index].q_pre) else "query row not stored",
            "" if torch.equal(held.chain[:, :, slot] > 0, self.hit) else "chain depth wrong",
        ]
        return Verdict(output.error, "; ".join(filter(None, faults)))

    def poison(self, index: int) -> None:
        _poison(self.work)
        self.rings[index].rows[:, :, self.slot] = torch.nan

    def expect(self, index: int) -> Expected:
        held = self.rings[index]
        rows = (held.queries, held.rows, held.lse)
        return expected_mac(self.bank, index, self.reuse, self.plan, rows)


class MacPart:
    """One launch of MAC's step, alone; what the ones before it leave must be there.

    A whole step resets the keys of its matches, after which every head is a miss. So the match is
    run first, and attend and merge, which leave its keys or their copies alone, after it.
    """

    kernels = 1

    def __init__(self, whole: MacStep, name: str):
        self.whole, self.name, self.tiles = whole, name, whole.tiles
        self.restores = name == "mac_merge"
        self.call = getattr(whole, name.removeprefix("mac_"))
        self.restore, self.poison = whole.restore, whole.poison
        self.expect, self.judge = whole.expect, whole.judge

    def check(self, index: int) -> Verdict:
        if self.name == "mac_match":
            self.whole.attend(index)  # it copies the keys to where they are read
        return self.whole.check(index)


class _Full:
    """Attention to everything, into `output`."""

    restores = False
    tiles = ""
    output: Tensor
    bank: Bank

    def restore(self, index: int) -> None:
        pass

    def check(self, index: int) -> Verdict:
        return Verdict(0.0)

    def judge(self, expected: Expected, index: int) -> Verdict:
        return judge_output(self.output, expected)

    def expect(self, index: int) -> Expected:
        return expected_full(self.bank, index)


class TritonFull(_Full):
    """The kernel that MAC attends with, over whole sequences."""

    kernels = 2

    def __init__(self, point: Point, bank: Bank):
        tiles = tiling(point, bank.device)
        self.bank, self.tiles = bank, str(tiles)
        self.work = _workspace(bank, tiles)
        self.output = self.work.output

    def call(self, index: int) -> None:
        layer, bank = self.bank.layers[index], self.bank
        attend.attend(self.work, layer.q, layer.k, layer.v, bank.table, bank.lens, bank.scale)

    def poison(self, index: int) -> None:
        _poison(self.work)


class FlashInfer(_Full):
    """FlashInfer's paged decode, planned once: the plan is no part of what is timed."""

    kernels = 1  # a second one merges where it splits sequences; the floor does without

    def __init__(self, bank: Bank, tensor_cores: bool):
        import flashinfer

        shape, device = bank.shape, bank.device
        self.bank, self.tiles = bank, f"flashinfer {flashinfer.__version__}"
        pages = bank.table.shape[1]
        indptr = pages * torch.arange(shape.batch + 1, dtype=torch.int32, device=device)
        last = torch.full_like(bank.lens, (shape.context - 1) % PAGE + 1)
        indices = bank.table.flatten()
        self.output = torch.empty_like(bank.layers[0].q)
        self.wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            torch.zeros(SCRATCH, dtype=torch.uint8, device=device),
            "HND",
            use_cuda_graph=True,
            use_tensor_cores=tensor_cores,
            paged_kv_indptr_buffer=indptr.clone(),
            paged_kv_indices_buffer=indices.clone(),
            paged_kv_last_page_len_buffer=last.clone(),
        )
        self.wrapper.plan(
            indptr,
            indices,
            last,
            shape.q_heads,
            shape.kv_heads,
            shape.d,
            PAGE,
            q_data_type=bank.dtype,
            kv_data_type=bank.dtype,
        )

    def call(self, index: int) -> None:
        layer = self.bank.layers[index]
        self.wrapper.run(layer.q, (layer.k, layer.v), out=self.output)

    def poison(self, index: int) -> None:
        self.output.fill_(torch.nan)
