"""prefix_rows against torch's flash attention on one CUDA card, per key-query pair.

    python -m macbench.experiments.kernel_times.prefix_rows [--quick]

Needs a CUDA card. One to two dozen kernels are compiled; --quick times the default tilings only.
flash: causal prefill of the same queries, lower-right mask, GQA, keys contiguous [1, Hkv, N, d].
cudnn: the same without a mask (its fastest case), if there is such a backend.
Times are of one CUDA graph of several calls (no launch cost of the host), median over replays;
`eager` is the default tiling called from Python back to back.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from macbench.kernels import prefix_rows as P

BAND = 256
SHAPES = [  # n, N, Hq, Hkv, d
    (1024, 127 * 1024, 32, 8, 128),
    (1024, 32 * 1024, 32, 8, 128),
    (1024, 8 * 1024, 9, 3, 64),
    (1024, 32 * 1024, 9, 3, 64),
    (64, 127 * 1024, 32, 8, 128),
]
T = P.Tiling
VARIANTS = {
    64: [
        T(128, 64, 4, 3, 2),
        T(128, 64, 4, 4, 2),
        T(128, 64, 4, 2, 2),
        T(128, 128, 8, 3, 1),
        T(256, 64, 8, 3, 1),
        T(64, 64, 4, 3, 4),
        T(128, 128, 4, 3, 2),
    ],
    128: [
        T(128, 64, 8, 3, 1),
        T(128, 64, 8, 4, 1),
        T(128, 128, 8, 3, 1),
        T(128, 128, 8, 2, 1),
        T(64, 64, 4, 3, 2),
        T(128, 64, 8, 2, 1),
    ],
}


def timed(run, per: int, replays: int) -> float:
    """Milliseconds of one call of `run`, which makes `per` calls."""
    run()
    torch.cuda.synchronize()
    spans = []
    for _ in range(replays):
        a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        a.record()
        run()
        b.record()
        spans.append((a, b))
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in spans) / per


def graphed(call) -> float:
    call()  # compiles
    torch.cuda.synchronize()
    rough = timed(call, 1, 3)
    per = max(1, min(50, int(3 / rough)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(per):
            call()
    return timed(graph.replay, per, 15)


def compare(n: int, length: int, heads: int, kv: int, d: int, quick: bool, until: float) -> None:
    """One shape: flash, cudnn and every tiling, a line each."""
    card = torch.cuda.get_device_properties(0)
    pages = length // 16
    k, v = (torch.randn(pages, kv, 16, d, device="cuda").bfloat16() for _ in range(2))
    q = torch.randn(n, heads, d, device="cuda").bfloat16()
    position = torch.arange(length - n, length, device="cuda")
    ends = position + 1 - BAND
    zero = torch.zeros_like(ends)
    scale = d**-0.5
    lying = [x.transpose(0, 1).flatten(1, 2)[None].contiguous() for x in (k, v)]
    turned = q.transpose(0, 1)[None].contiguous()

    def flash():
        return torch.ops.aten._scaled_dot_product_flash_attention(
            turned,
            *lying,
            0.0,
            True,
            scale=scale,
        )

    def cudnn():
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return scaled_dot_product_attention(
                turned,
                *lying,
                scale=scale,
                enable_gqa=True,
            )

    def ours(tiling=None, ends=ends):
        return P.prefix_rows(q, k, v, length, zero, ends, scale, tiling)

    def line(what, ms, pairs, base):
        speed = 4 * d * pairs / ms / 1e9
        each = ms * 1e9 / pairs
        print(
            f"{n:5} {length:7} {f'{heads}/{kv}':>6} {d:4}  {what:34} {ms:9.4f} "
            f"{each:8.4f} {speed:8.1f} {base / each if base else 1:8.2f}",
            flush=True,
        )
        return each

    out, lse = ours(ends=position + 1)
    want = flash()
    print(
        f"      differs from flash by {(out - want[0][0].transpose(0, 1)).abs().max():.1e}, "
        f"lse {(lse - want[1][0].T[:n]).abs().max():.1e} (r = 0)"
    )
    causal, mine = int((position + 1).sum()) * heads, int(ends.sum()) * heads
    base = line("flash, causal", graphed(flash), causal, None)
    try:
        line("cudnn, no mask", graphed(cudnn), n * length * heads, base)
    except Exception as error:  # no such backend
        torch.cuda.synchronize()
        print(f"      cudnn: {type(error).__name__} {str(error)[:80]}")
    plain = P.default_tiling(torch.bfloat16, d)
    tiles = -(-n * (heads // kv) // plain.rows) * kv
    slots = card.multi_processor_count * plain.resident
    splits = P.choose_splits(tiles, -(-length // plain.tokens), slots)
    line(f"ours, default, splits {splits}", graphed(ours), mine, base)
    line("ours, default, eager", timed(lambda: [ours() for _ in range(20)], 20, 5), mine, base)
    if not quick:
        for other in sorted({1, max(1, splits - 1), splits + 1, 2 * splits} - {splits}):
            split = replace(plain, splits=other)
            ms = graphed(lambda tiling=split: ours(tiling))
            line(f"ours, default, splits {other}", ms, mine, base)
    if quick:
        return
    for tiling in VARIANTS[d]:
        if tiling == plain or time.time() > until:
            continue
        name = f"{tiling.rows}x{tiling.tokens} w{tiling.warps} s{tiling.stages} x{tiling.resident}"
        try:
            line(f"ours, {name}", graphed(lambda tiling=tiling: ours(tiling)), mine, base)
        except Exception as error:  # a tiling that does not fit
            print(f"      {name}: {type(error).__name__} {str(error)[:80]}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=55, help="variants stop then")
    options = parser.parse_args()
    began = time.time()
    torch.manual_seed(0)
    card = torch.cuda.get_device_properties(0)
    print(f"{card.name}, {card.multi_processor_count} SMs, torch {torch.__version__}", end=", ")
    print(f"triton {P.triton.__version__}, bf16, r = {BAND}")
    print(
        f"{'n':>5} {'N':>7} {'Hq/kv':>6} {'d':>4}  {'what':34} {'ms':>9} {'ps/pair':>8} "
        f"{'TFLOP/s':>8} {'vs flash':>8}"
    )
    for shape in SHAPES:
        compare(*shape, options.quick, began + options.seconds)
    print(f"{time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
