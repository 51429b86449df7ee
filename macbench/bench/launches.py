"""The launches of a step, one by one: how often each kernel runs and how long it takes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Row = dict[str, Any]

WIDE = 100  # letters of a name: C++'s go on for hundreds
SPACES = re.compile(r"^void |\b(at|native|std|c10|cublasLt)::|\(anonymous namespace\)::")


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
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for event in events:
        times[short(event.key)] += getattr(event, time)
        counts[short(event.key)] += event.count
    return [
        {"launch": name, "a_step": counts[name] / count, "us_step": us / count}
        for name, us in times.most_common()
        if us
    ]


def short(name: str) -> str:
    """A kernel's name without namespaces, cut where it grows long; what then is alike is one."""
    return SPACES.sub("", name)[:WIDE]
