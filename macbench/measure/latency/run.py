"""Points on one card: gate, time, check again, record. Points of one shape share its cache."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from macbench.measure.latency import steps
from macbench.measure.latency.cases import (
    FULL,
    LAUNCHES,
    Plan,
    Point,
    Shape,
    Volume,
    full_volume,
    mac_volume,
    plan,
)
from macbench.measure.latency.clock import Replay, Timer
from macbench.measure.latency.data import Bank, bank
from macbench.measure.latency.floor import Machine
from macbench.measure.latency.record import Record, Row, identity
from macbench.measure.latency.reference import Expected, Verdict

SETS = 60  # at batch 1, where one step is far smaller than the L2 cache
COLD = 5  # L2 caches' worth that a rotation touches, if memory allows; below 3 it is not cold
COMPARED = ("mac", "triton_full")  # with FlashInfer
SCANNED = 0.5  # share of the ring that the match reads at least
RESERVE = 3 * 2**30  # bytes for the reference, FlashInfer's workspaces and what is captured


@dataclass(frozen=True)
class Options:
    """replays: timed, of every point; seed: of data and plans; run, code: see `record`."""

    replays: int
    seed: int
    run: str
    code: str


@dataclass
class Bench:
    """What one process measures with."""

    record: Record
    timer: Timer
    machine: Machine
    device: torch.device
    options: Options
    say: Callable[[str], None]

    def run(self, points: Sequence[Point]) -> bool:
        """Measure what is missing. Whether every point that could run was right."""
        gone = {point.method: steps.missing(point.method) for point in points}
        for why in filter(None, gone.values()):
            self.say(why)
        points = [point for point in points if not gone[point.method]]
        good = True
        for shape in dict.fromkeys(point.shape for point in points):
            mine = [point for point in points if point.shape == shape]
            good &= self._shape(shape, mine)
        return good

    def _shape(self, shape: Shape, points: list[Point]) -> bool:
        """The points of one shape. Full attention comes first: the ratios need this run's times."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        todo = [point for point in points if not self._known(point)]
        if any(point.reuse for point in todo):
            todo = [point for point in points if point.method in FULL or point in todo]
        todo.sort(key=lambda point: (*FULL, "mac", "mac_launches").index(point.method))
        plans = {p: plan(shape, p.reuse, self.options.seed) for p in todo if p.reuse}
        wanted = [self._sets(point, plans.get(point)) for point in todo]
        if not todo:
            return True
        ring = max((_ring_bytes(shape, point) for point in todo), default=0)
        room = (self._free() - RESERVE) // (shape.cache_bytes + ring)
        if room < 1:
            self.say(
                f"{_title(shape)}: skipped, one set of {(shape.cache_bytes + ring) / 2**30:.0f} "
                "GiB does not fit in the GPU's memory."
            )
            return True
        sets = min(max(wanted), room)
        try:
            data = bank(shape, sets, self.device, self.options.seed)
        except torch.OutOfMemoryError:
            self.say(f"{_title(shape)}: skipped, {sets} sets do not fit in the GPU's memory.")
            return True
        good, full = True, dict[str, float]()
        for point, want in zip(todo, wanted, strict=True):
            rows = self._point(point, data, plans.get(point), min(want, sets), full)
            for row in rows:
                self.record.add(row)
                self.say(_line(row))
                good &= row["ok"]
                if row["ok"] and point.method in FULL:
                    full[point.method] = row["us_median"]
        return good

    def _known(self, point: Point) -> bool:
        names = LAUNCHES if point.method == "mac_launches" else (point.method,)
        keys = [identity(point, self.options.seed, name) for name in names]
        device, code = self.machine.device, self.options.code
        return all(self.record.has(key, device, code) for key in keys)

    def _point(
        self,
        point: Point,
        data: Bank,
        hits: Plan | None,
        sets: int,
        full: dict[str, float],
    ) -> list[Row]:
        """Rows of a point; none, and a line why, where it cannot run here."""
        try:
            return self._measure(point, data, hits, sets, full)
        except torch.OutOfMemoryError:
            why = "the GPU's memory is full."
        except Exception as error:
            if type(error).__name__ != "OutOfResources":  # Triton's, of a tile too large
                raise
            why = str(error)
        self.say(f"{_title(point.shape)} {point.method}: skipped, {why}")
        return []

    def _measure(
        self,
        point: Point,
        data: Bank,
        hits: Plan | None,
        sets: int,
        full: dict[str, float],
    ) -> list[Row]:
        step = steps.create(point, data, hits, sets, self.options.seed)
        expected = step.expect(0)
        step.poison(0)
        step.call(0)
        gate = step.judge(expected, 0)
        step.restore(0)
        names = LAUNCHES if point.method == "mac_launches" else (point.method,)
        volume = self._volume(point, hits)
        rows = []
        for name in names:
            row = identity(point, self.options.seed, name)
            row |= self._about(point, hits, sets, volume)
            if not gate.ok:
                rows.append(row | _red(gate))
                continue
            one: steps.Step = step
            bytes_ = volume.total
            if name in LAUNCHES:
                assert isinstance(step, steps.MacStep)
                one = steps.MacPart(step, name)
                bytes_ = getattr(volume, name.removeprefix("mac_"))
            timed, after = self._time(one, sets, expected, whole=one is step)
            row |= {"kernels": one.kernels, "tiles": one.tiles, "bytes": bytes_}
            row |= {"floor_us": self.machine.floor(bytes_, one.kernels)}
            row |= {"cold_us": self.machine.cold_floor(bytes_, one.kernels)}
            if after.ok:
                row |= timed | _ratios(row | timed, full if point.method in COMPARED else {})
                row |= {"ok": True, "error": gate.error}
            else:
                row |= _red(after)
            rows.append(row)
        return rows

    def _time(
        self, step: steps.Step, sets: int, expected: Expected, whole: bool
    ) -> tuple[Row, Verdict]:
        """Times and sensors of a step, and whether it was still right at the end."""
        for i in range(sets):  # nothing may be compiled while it is captured
            step.call(i)
            verdict = step.check(i)
            step.restore(i)
            if not verdict.ok:
                return {}, Verdict(verdict.error, f"set {i}: {verdict.note}")
        replays = [self.timer.capture(partial(step.call, i)) for i in range(sets)]
        after: list[Replay] = []
        if step.restores:
            after = [self.timer.capture(partial(step.restore, i)) for i in range(sets)]
        times = sorted(self.timer.time(replays, after, self.options.replays))
        last = step.check((len(times) - 1) % sets)
        sensors = self.timer.sensors(replays, after)
        row = {
            "us_median": statistics.median(times),
            "us_p10": times[round(0.1 * (len(times) - 1))],
            "us_p90": times[round(0.9 * (len(times) - 1))],
            "n": len(times),
            **sensors,
        }
        if not last.ok:
            return row, Verdict(last.error, f"after the last replay: {last.note}")
        for i in range(sets) if whole else ():
            if i == 0:
                step.poison(0)
            replays[i]()
            verdict = step.judge(expected, 0) if i == 0 else step.check(i)
            step.restore(i)
            if not verdict.ok:
                return row, Verdict(verdict.error, f"replay of set {i}: {verdict.note}")
        return row, last

    def _about(self, point: Point, hits: Plan | None, sets: int, volume: Volume) -> Row:
        machine, options = self.machine, self.options
        row: Row = {"sets": sets, "cold": sets * _touched(point, volume) >= 3 * machine.l2}
        row |= {"device": machine.device, "run": options.run, "code": options.code}
        row |= {"bandwidth_gbs": machine.bandwidth / 1000, "launch_us": machine.launch}
        if hits is not None:
            groups = hits.hit.view(point.shape.batch, point.shape.kv_heads, -1).all(-1)
            row["group_hit"] = groups.float().mean().item()
        return row

    def _volume(self, point: Point, hits: Plan | None) -> Volume:
        if point.reuse is None or hits is None:
            return full_volume(point.shape)
        return mac_volume(point.shape, point.reuse, hits)

    def _sets(self, point: Point, hits: Plan | None) -> int:
        """Buffers in rotation: the L2 cache must have forgotten a set when its turn comes."""
        touched = _touched(point, self._volume(point, hits))
        least = SETS if point.shape.batch == 1 else 2
        return max(least, math.ceil(COLD * self.machine.l2 / touched))

    def _free(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return RESERVE + 2**30


def _touched(point: Point, volume: Volume) -> float:
    """Bytes that a step moves at least, where its scan rejects all it can."""
    easy = point.reuse is not None and point.reuse.ring != "worst"
    return volume.total - (volume.ring * (1 - SCANNED) if easy else 0)


def _ring_bytes(shape: Shape, point: Point) -> int:
    """Of one set: queries, rows, lse and chain."""
    if point.reuse is None:
        return 0
    return shape.batch * shape.q_heads * point.reuse.K * (2 * shape.vector + 8)


def _red(verdict: Verdict) -> Row:
    """A row that failed holds no time: nothing may be made of it."""
    return {"ok": False, "error": verdict.error, "note": verdict.note}


def _ratios(row: Row, full: dict[str, float]) -> Row:
    time = row["us_median"]
    answer = {"over_floor": time / row["floor_us"], "over_cold": time / row["cold_us"]}
    for name in ("flashinfer_tc", "flashinfer_cc"):
        if name in full:
            answer |= {f"{name}_us": full[name], f"vs_{name}": full[name] / time}
    return answer


def _title(shape: Shape) -> str:
    return f"{shape.layout} d {shape.d} batch {shape.batch} context {shape.context}"


def _line(row: dict[str, Any]) -> str:
    """A row as it is told while the run goes on."""
    parts = [f"{row['layout']} batch {row['batch']} context {row['context']} {row['method']}"]
    if row["hit"] is not None:
        lag = row["lag"] or "uniform"
        parts.append(f"hit {row['hit']:g} {row['pattern']} {row['ring']} lag {lag} K {row['K']}")
        parts.append(f"r {row['r']}")
    if row["tiling"]:
        parts.append(row["tiling"])
    if not row["ok"]:
        return f"{' '.join(parts)}: FAILED, {row['note']}"
    tail = f"{row['us_median']:.1f} us, {row['over_floor']:.2f} x floor"
    if row.get("vs_flashinfer_tc"):
        tail += f", {row['vs_flashinfer_tc']:.2f} x as fast as flashinfer_tc"
    return f"{' '.join(parts)}: {tail}"
