"""The launches of a step, one by one: how often each kernel runs and how long it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Row = dict[str, Any]


def launches(
    replay: Callable[[], object],
    before: Callable[[int], None],
    done: int,
    count: int,
    device: torch.device,
) -> list[Row]:
    """Of `count` replays, each after before(steps done): every kernel's name, launches and us a
    step, the longest first. Profiled steps are a little slower than timed ones; on a CPU these are
    torch's operators."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        for turn in range(count):
            before(done + turn)
            replay()
        if cuda:
            torch.cuda.synchronize()
    events = seen.key_averages()
    time = "self_device_time_total" if cuda else "self_cpu_time_total"
    rows = [
        {"launch": e.key, "a_step": e.count / count, "us_step": getattr(e, time) / count}
        for e in events
    ]
    return sorted((row for row in rows if row["us_step"]), key=lambda row: -row["us_step"])
