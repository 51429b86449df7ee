"""Multipole's clusters of one layer of a prompt, in torch and on kernels, on one CUDA card.

python -m macbench.experiments.kernel_times.kmeans
"""

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from macbench.attention import Geometry, Prompt, create

SHAPES = [(3, 64, 16384), (8, 128, 32768)]  # KV heads, d, tokens


def rope(x, positions, regimes=None):
    half = x.shape[-1] // 2
    angle = positions[:, None, None].float() * 1e4 ** (-torch.arange(half, device=x.device) / half)
    a, b = x.float().split(half, -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def compare(heads: int, d: int, tokens: int):
    """Prints a line for each backend; returns a call that clusters once more, on kernels."""
    card = torch.device("cuda")
    geometry = Geometry(1, heads, heads, d, d**-0.5, card, torch.bfloat16, rope)
    method: Any = create("multipole", {})
    method.allocate(geometry, 1, tokens + 256)
    method.key[:] = 5
    # about what keys look like: 600 directions with noise and a bias, rotated
    kinds = 2 * torch.randn(600, heads, d, device=card)
    k = kinds[torch.randint(600, (tokens,), device=card)]
    k = (k + torch.randn(tokens, heads, d, device=card) + 2).bfloat16()
    k = rope(k, torch.arange(tokens, device=card)).transpose(0, 1).contiguous()
    v = torch.randn(heads, tokens, d, device=card).bfloat16()
    view, prompt = SimpleNamespace(prompt=lambda *_: (k, v)), Prompt(tokens, 1, tokens, 5)

    def call():
        return method._prompt_clusters(0, 0, prompt, view)

    found = {}
    for backend in ("torch", "triton"):
        method.geometry = replace(geometry, backend=backend)
        found[backend] = call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, began = torch.cuda.memory_allocated(), time.perf_counter()
        for _ in range(5):
            again = call()
        issued = time.perf_counter() - began
        torch.cuda.synchronize()
        ms = (time.perf_counter() - began) / 5 * 1e3
        peak = (torch.cuda.max_memory_allocated() - before) >> 20
        same = all(map(torch.equal, again, found[backend]))
        print(
            f"{heads} x {d}, {tokens}: {backend} {ms:.2f} ms a layer "
            f"(host {issued / 5 * 1e3:.2f}), peak {peak} MB, repeats bitwise: {same}",
            flush=True,
        )
    (_, counts, listed), (_, others, places) = found["torch"], found["triton"]
    print(
        f"clusters with equal counts: {(counts == others).float().mean().item()}",
        f"tokens listed at the same place: {(listed == places).float().mean().item()}",
    )
    return call


if __name__ == "__main__":
    for shape in SHAPES:
        call = compare(*shape)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    table = seen.key_averages()
    print(table.table(sort_by="cuda_time_total", row_limit=12, max_name_column_width=50))
