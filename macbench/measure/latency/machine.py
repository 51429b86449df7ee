"""The card's own speed, measured in the same run: reads, large and small, and an empty kernel."""

from __future__ import annotations

import statistics
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.measure.latency.clock import Replay, Timer
from macbench.measure.latency.floor import Machine

MOST = 8 * 2**30  # bytes of the read that gives the bandwidth
SIZES = (*(2**power for power in range(21, 31)), 2**32)  # bytes of the cold reads
COLD = 6  # L2 sizes between two reads of the same bytes
TILES = ((4096, 4), (8192, 8))  # elements of a block, warps
WAVES = (4, 8, 0)  # programs per multiprocessor; 0: one program per block


@triton.jit
def _read(data, out, blocks, BLOCK: tl.constexpr):
    """Exclusive or of all elements, by strided blocks: nothing but reading."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    lane = tl.arange(0, BLOCK)
    here = data + program.to(tl.int64) * BLOCK + lane
    mixed = tl.zeros([BLOCK], tl.int32)
    for _ in range(program, blocks, programs):
        mixed ^= tl.load(here)
        here += programs.to(tl.int64) * BLOCK
    tl.store(out + program, tl.xor_sum(mixed, 0))


@triton.jit
def _nothing(out):
    pass


def measure(timer: Timer) -> Machine:
    """Some seconds, and a buffer of 8 GiB (less where less is free) for as long."""
    properties = torch.cuda.get_device_properties()
    l2 = getattr(properties, "L2_cache_size", None) or 50 * 2**20
    free = torch.cuda.mem_get_info()[0]
    size = min(MOST, free // 4 // 2**30 * 2**30)
    data = torch.zeros(max(size, 2**30) // 4, dtype=torch.int32, device="cuda")
    out = torch.zeros(data.numel() // TILES[0][0], dtype=torch.int32, device="cuda")
    _nothing[(1,)](out)
    empty = timer.capture(lambda: _nothing[(1,)](out))
    launch = statistics.median(timer.time([empty], [], 100))
    cores = properties.multi_processor_count
    held = data.numel() * 4
    cold = [(n, _fastest(timer, data, out, n, cores, l2)) for n in SIZES if n <= held // 2]
    whole = _fastest(timer, data, out, held, cores, l2)
    return Machine(
        device=properties.name,
        bandwidth=held / (whole - launch),
        read_bytes=held,
        launch=launch,
        cold=tuple(cold),
        l2=l2,
    )


def _fastest(timer: Timer, data: Tensor, out: Tensor, size: int, cores: int, l2: int) -> float:
    """us of the fastest way to read `size` bytes that are not in the L2 cache."""
    sets = max(1, min(data.numel() * 4 // size, COLD * l2 // size + 1))
    best = float("inf")
    for block, warps in TILES:
        blocks = size // 4 // block
        for grid in {min(blocks, wave * cores) or blocks for wave in WAVES}:
            replays: list[Replay] = []
            for part in data[: sets * size // 4].view(sets, -1):
                call = partial(_read[(grid,)], part, out, blocks, BLOCK=block, num_warps=warps)
                if not replays:
                    call()
                replays.append(timer.capture(call))
            best = min(best, statistics.median(timer.time(replays, [], max(12, sets), 0.003)))
    return best
