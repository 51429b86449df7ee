"""What a prompt's keys received, as torch sums it and as two launches do, on one CUDA card.

    python -m macbench.experiments.kernel_times.received

Milliseconds of one layer, mean of a few calls; `exp floor`: the exponentials alone, one a pair of
query and key and launch, at the rate of an H200's special function units (3.7e12 a second).
"""

import torch
from triton.runtime.errors import OutOfResources

from macbench.attention.observed import received as plain
from macbench.kernels.received import Tiling, received

SHAPES = [  # Hq, Hkv, d, keys, queries
    (9, 3, 64, 16384, 16384),
    (9, 3, 64, 16384, 4096),
    (32, 8, 128, 32768, 32768),
    (32, 8, 128, 32768, 4096),
    (9, 3, 64, 16384, 32),
    (32, 8, 128, 131072, 32),
]
TILINGS = [
    Tiling(),
    Tiling(stages=3),
    Tiling(rows=256, warps=8, resident=2),
    Tiling(columns=128, resident=2),
]


def milliseconds(call, times: int) -> float:
    call()
    torch.cuda.synchronize()
    a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    a.record()
    for _ in range(times):
        call()
    b.record()
    torch.cuda.synchronize()
    return a.elapsed_time(b) / times


def compare(heads: int, kv: int, d: int, keys: int, queries: int) -> None:
    q = torch.randn(queries, heads, d, device="cuda").bfloat16()
    k = torch.randn(kv, keys, d, device="cuda").bfloat16()
    scale = d**-0.5
    pairs = heads * (queries * keys - queries * queries // 2)
    apart = (received(q, k, scale) - plain(q, k, scale)).abs().max().item()
    print(
        f"{heads}/{kv} d{d} N{keys} w{queries}: "
        f"old {milliseconds(lambda: plain(q, k, scale), 3):.3f} ms, "
        f"new {milliseconds(lambda: received(q, k, scale), 10):.3f}, "
        f"exp floor {2 * pairs / 3.7e12 * 1e3:.3f}, apart {apart:.1e}",
        flush=True,
    )
    for tiling in TILINGS if queries > 32 else ():
        for parts in (None, 1):
            each = Tiling(**{**vars(tiling), "parts": parts})
            try:
                ms = milliseconds(lambda each=each: received(q, k, scale, each), 5)
            except OutOfResources:  # a card with less shared memory
                continue
            print(f"   {ms:.3f} {each}", flush=True)


if __name__ == "__main__":
    for shape in SHAPES:
        compare(*shape)
