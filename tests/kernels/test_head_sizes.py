"""Every method's kernels compile at head sizes and types that few models have, and for cards that
are smaller than the one they were measured on.

A method runs a prompt and two steps in which launches are recorded and not made; each is compiled
with the tiling that a card would get, and must not ask for more shared memory than there is.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
import triton_cases

pytest.importorskip("triton", reason="needs triton")

import triton
from harness import drive, problem
from triton_cases import ADA, AMPERE, HOPPER

from macbench import kernels
from macbench.attention import create
from macbench.kernels import workspace

METHODS = {
    "full": {},
    "mac": {"K": 512, "r": 64},
    "quest": {"budget": 0.3},
    "snapkv": {"budget": 0.3},
    "h2o": {"budget": 0.3},
    "tova": {"budget": 0.3},
    "streaming_llm": {"budget": 0.3},
    "rocketkv": {"budget": 0.3},
    "multipole": {"budget": 0.5},
    "twilight": {"candidates": 256},
    "double_sparsity": {"budget": 0.3, "group_factor": 2},
    "kivi": {"group_size": 16},
    "oracle_topk": {"tokens": 0.2},
    "random": {"tokens": 0.2},
}
# head size, type, query heads of a KV head, whether many rows decode together
CASES = [
    (HOPPER, 80, "bfloat16", 3, True),
    (HOPPER, 96, "float16", 1, False),
    (HOPPER, 256, "float32", 2, True),
    (AMPERE, 64, "bfloat16", 3, False),
    (ADA, 128, "bfloat16", 4, True),
]
LATER = {"_means", "_assign"}  # of kernels.kmeans, which on a CPU multiplies in fp32: test_kmeans


def every_kernel() -> list[tuple]:
    found = []
    for info in pkgutil.iter_modules(kernels.__path__):
        module = importlib.import_module(f"macbench.kernels.{info.name}")
        for name, value in vars(module).items():
            own = isinstance(value, triton.JITFunction) and value.__module__ == module.__name__
            found += [(module, name)] if own else []
    return found


def compile_steps(card: triton_cases.Card, d: int, dtype: str, group: int, many: bool) -> None:
    choose, cuda = workspace.choose_tiling, torch.device("cuda")

    def as_on_a_card(groups, d, dtype, _):
        return choose(64 if many else groups, d, dtype, cuda)

    case = problem(3, (700,), 2, layers=3, kv_heads=2, group=group, d=d)
    case = case.to(getattr(torch, dtype))
    case = replace(case, geometry=replace(case.geometry, backend="triton"))
    built = {}
    for method, knobs in METHODS.items():
        with (
            triton_cases.recorded(*every_kernel(), card=card) as launches,
            patch.object(workspace, "choose_tiling", as_on_a_card),
        ):
            drive(create(method, knobs), case)
        failed = {}
        for kernel, args, kwargs in launches:
            kinds = [getattr(x, "dtype", None) for x in args]
            same = kernel.__name__, str(kwargs), str(kinds)
            if same not in built:
                built[same] = triton_cases.build(kernel, args, kwargs, card).metadata.shared
            if built[same] > 1024 * card.shared and kernel.__name__ not in LATER:
                failed[kernel.__name__] = built[same]
        triton_cases.report(method, [len(launches) > 0, failed])


@pytest.mark.parametrize(
    "at", range(len(CASES)), ids=lambda at: f"{CASES[at][0].name} {CASES[at][1]}"
)
def test_every_method_compiles_for_a_card(tmp_path, at):
    told = triton_cases.script(__file__, str(at), tmp_path, TRITON_INTERPRET="0")
    assert told == {method: [True, {}] for method in METHODS}


if __name__ == "__main__":
    compile_steps(*CASES[int(sys.argv[1])])
