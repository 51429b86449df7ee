"""Graph replay on a stream that never waits for the host, and what the card's sensors say."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Protocol

import torch

SLEEP = 20_000_000  # cycles, some 10 ms: a burst is queued before its first replay starts
BURST = 100  # replays queued at once
QUERY = "uuid,clocks.sm,clocks.mem,power.draw"

Replay = Callable[[], object]


class Timer(Protocol):
    """How steps are timed. The tests put another one in its place."""

    def capture(self, call: Callable[[], object]) -> Replay:
        """The launches of a call, as something to replay."""

    def time(
        self, replays: list[Replay], after: list[Replay], count: int, warm: float = 0.03
    ) -> list[float]:
        """us of `count` replays, in rotation over the sets."""

    def sensors(self, replays: list[Replay], after: list[Replay]) -> dict[str, float | None]:
        """sm_mhz, mem_mhz and power_w while the replays go on."""


class CudaTimer:
    """CUDA graphs between events, queued behind a sleeping kernel."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.uuid = str(getattr(torch.cuda.get_device_properties(), "uuid", ""))

    def capture(self, call: Callable[[], object]) -> Replay:
        """The call must have run before: nothing may be compiled while it is captured."""
        graph = torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            graph.capture_begin()
            try:
                call()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self.stream)
        return graph.replay

    def time(
        self, replays: list[Replay], after: list[Replay], count: int, warm: float = 0.03
    ) -> list[float]:
        """Whole rotations for at least `warm` seconds first, so that no set is used twice within
        one rotation. after[i], where there is one, follows every replay of i, untimed."""
        order = list(zip(replays, after or [_idle] * len(replays), strict=True))
        began = time.perf_counter()
        while True:
            for replay, undo in order:
                replay()
                undo()
            torch.cuda.synchronize()
            if time.perf_counter() - began >= warm:
                break
        times: list[float] = []
        while len(times) < count:
            events = []
            torch.cuda._sleep(SLEEP)
            for turn in range(len(times), min(len(times) + BURST, count)):
                replay, undo = order[turn % len(order)]
                pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                pair[0].record()
                replay()
                pair[1].record()
                undo()
                events.append(pair)
            torch.cuda.synchronize()
            times += [1000 * begin.elapsed_time(end) for begin, end in events]
        return times

    def steps(
        self, replay: Replay, before: Callable[[int], None], done: int, count: int
    ) -> list[float]:
        """us of `count` replays of a step that goes on from the one before it; before(n), untimed,
        is what the host does once n steps are done. None of them runs more than once."""
        times: list[float] = []
        while len(times) < count:
            events = []
            torch.cuda._sleep(SLEEP)
            for turn in range(len(times), min(len(times) + BURST, count)):
                before(done + turn)
                pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                pair[0].record()
                replay()
                pair[1].record()
                events.append(pair)
            torch.cuda.synchronize()
            times += [1000 * begin.elapsed_time(end) for begin, end in events]
        return times

    def sensors(self, replays: list[Replay], after: list[Replay]) -> dict[str, float | None]:
        """What nvidia-smi reads under this very load; None where there is none."""
        names = ("sm_mhz", "mem_mhz", "power_w")
        command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
        order = list(zip(replays, after or [_idle] * len(replays), strict=True))
        try:
            asked = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError:
            return dict.fromkeys(names)
        until = time.perf_counter() + 5
        while asked.poll() is None and time.perf_counter() < until:
            for replay, undo in order[:20]:
                replay()
                undo()
            torch.cuda.synchronize()
        if asked.poll() is None:
            asked.kill()
        lines = [line.split(", ") for line in asked.communicate()[0].splitlines()]
        own = [line for line in lines if self.uuid and self.uuid in line[0]] or lines
        values = own[0][1:] if own else []
        return dict.fromkeys(names) | dict(zip(names, map(_number, values), strict=False))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return None


def _idle() -> None:
    pass
