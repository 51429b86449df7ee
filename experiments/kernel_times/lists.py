"""Attention over lists in Llama-3.1-8B's shape, 20 % of 8 rows of 32K, on one CUDA card.

    python -m macbench.experiments.kernel_times.lists [only KIND]

Microseconds of one layer (best of five replays of a CUDA graph over four layers' pools, three
times), beside what the listed keys and values take at an H200's 4.7 TB/s; then tilings. `only KIND`
makes three steps of one kind and stops, for a profiler.
"""

import itertools
import sys
from dataclasses import replace

import torch
from triton.runtime.errors import OutOfResources

from macbench.kernels import attend
from macbench.kernels.workspace import Workspace, choose_tiling

ROWS, HEADS, KV, D, LENGTH, LAYERS = 8, 32, 8, 128, 32768, 4
LISTED = LENGTH // 5 // 16 * 16
KINDS = ("pages", "tokens64", "tokens32", "window64")  # the number: bits of an entry


def listed(kind: str, heads: int, random: torch.Generator):
    """Entries [ROWS, heads, n], how many, tokens an entry."""
    card = random.device
    if kind == "pages":
        order = torch.rand(ROWS, heads, LENGTH // 16, device=card, generator=random).argsort(-1)
        return order[..., : LISTED // 16].sort(-1).values.int(), LISTED // 16, 16
    if kind.startswith("window"):
        tokens = torch.arange(LENGTH - LISTED, LENGTH, device=card).expand(ROWS, heads, -1)
    else:
        order = torch.rand(ROWS, heads, LENGTH, device=card, generator=random).argsort(-1)
        tokens = order[..., :LISTED].sort(-1).values
    tokens = tokens.contiguous()
    return tokens.int() if kind.endswith("32") else tokens, LISTED, 1


class Layers:
    """Pools of a few layers, so that none is found in the card's cache."""

    def __init__(self):
        card = torch.device("cuda")
        self.random = torch.Generator(card).manual_seed(0)
        pages = ROWS * LENGTH // 16

        def draw(*shape):
            return torch.randn(shape, device=card, dtype=torch.bfloat16, generator=self.random)

        self.pools = [[draw(pages, KV, 16, D) for _ in range(2)] for _ in range(LAYERS)]
        self.table = torch.arange(pages, device=card).view(ROWS, -1).int()
        self.lens = torch.full((ROWS,), LENGTH, device=card, dtype=torch.int64)
        self.q = draw(ROWS, HEADS, D)

    def step(self, kind: str, tiling, heads: int = KV):
        """A call that attends to every layer once; it has run."""
        entries, n, piece = listed(kind, heads, self.random)
        card = self.q.device
        counts = torch.full((ROWS, heads), n, device=card, dtype=torch.int32)
        work = Workspace(ROWS, HEADS, KV, D, self.q.dtype, card, tiling, heads)

        def call():
            for k, v in self.pools:
                attend.attend(
                    *(work, self.q, k, v, self.table, self.lens, 0.088, entries, counts, piece)
                )

        call()
        torch.cuda.synchronize()
        return call


def microseconds(step) -> float:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):
            step()
    graph.replay()
    spans = []
    for _ in range(5):
        a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        a.record()
        graph.replay()
        b.record()
        torch.cuda.synchronize()
        spans.append(a.elapsed_time(b))
    return min(spans) * 1000 / 3 / LAYERS


def main() -> None:
    layers = Layers()
    base = choose_tiling(ROWS * KV, D, torch.bfloat16, layers.q.device)
    if sys.argv[1:2] == ["only"]:
        step = layers.step(sys.argv[2], base)
        step()
        torch.cuda.synchronize()
        return
    sms = torch.cuda.get_device_properties(layers.q.device).multi_processor_count
    moved = ROWS * LISTED * D * 4 / 4.7e6
    for kind in KINDS:
        print(f"{kind} {microseconds(layers.step(kind, base)):.1f} us, bytes {KV * moved:.1f} us")
    each = choose_tiling(ROWS * HEADS, D, torch.bfloat16, layers.q.device)
    us = microseconds(layers.step("tokens32", each, HEADS))
    print(f"per query head, tokens32 {us:.1f} us, bytes {HEADS * moved:.1f}", flush=True)
    for programs, tokens, stages in itertools.product((2, 3, 4), (32, 64, 128), (2, 3, 4)):
        tiling = replace(base, programs=sms * programs, tokens=tokens, stages=stages, registers=168)
        try:
            us = microseconds(layers.step("tokens64", tiling))
        except OutOfResources:  # a card with less shared memory
            continue
        print(
            f"tokens64 programs {programs}x{sms} tokens {tokens} stages {stages} "
            f"registers 168: {us:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
