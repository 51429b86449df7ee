"""The Triton kernel of the cache append against the two indexed assignments that it replaces."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
import torch
import triton_cases

pytest.importorskip("triton", reason="needs triton")

from macbench.kernels import append as module


@dataclass(frozen=True)
class Case:
    """fused: k and v are parts of one product of all heads, as a projection gives them."""

    tokens: int
    kv_heads: int
    d: int
    dtype: str = "float32"
    fused: bool = False

    def __str__(self) -> str:
        return "-".join(map(str, vars(self).values()))


CASES = [
    Case(1, 8, 128),
    Case(5, 3, 64, fused=True),
    Case(7, 1, 16, "float16"),
    Case(4, 2, 24, "float16", fused=True),
]
BUILT = [Case(9, 3, 64, "bfloat16", True), Case(1, 8, 128, "bfloat16")]


def problem(case: Case, device: str = "cpu"):
    draw = torch.Generator(device).manual_seed(0)
    dtype = getattr(torch, case.dtype)

    def normal(*shape):
        return torch.randn(shape, generator=draw, device=device).to(dtype)

    pools = [normal(12, case.kv_heads, 16, case.d) for _ in range(2)]
    if case.fused:
        whole = normal(case.tokens, 4 + 2 * case.kv_heads, case.d)
        k, v = whole[:, 4:].chunk(2, 1)
    else:
        k, v = (normal(case.tokens, case.kv_heads, case.d) for _ in range(2))
    pages = torch.randperm(12, generator=draw, device=device)[: case.tokens]
    offsets = torch.randint(16, (case.tokens,), generator=draw, device=device)
    return *pools, pages, offsets, k, v


def differs(case: Case, device: str = "cpu") -> str | None:
    """None where the kernel leaves both pools as the assignments do, bit by bit."""
    k_pool, v_pool, pages, offsets, k, v = problem(case, device)
    want = k_pool.clone(), v_pool.clone()
    want[0][pages, :, offsets], want[1][pages, :, offsets] = k, v
    module.append(k_pool, v_pool, pages, offsets, k, v)
    same = torch.equal(k_pool, want[0]) and torch.equal(v_pool, want[1])
    return None if same else "pools differ"


def build() -> None:
    for case in BUILT:
        with triton_cases.recorded((module, "_append")) as launches:
            module.append(*problem(case))
        (launch,) = launches
        triton_cases.report(case, "st.global" in triton_cases.build(*launch).asm["ptx"])


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return triton_cases.interpret(__file__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernel_writes_what_the_assignments_write(interpreted, case):
    assert interpreted[str(case)] is None


def test_the_kernel_compiles_for_a_card(tmp_path):
    assert triton_cases.compiled(__file__, tmp_path) == {str(case): True for case in BUILT}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("case", CASES + BUILT, ids=str)
def test_the_kernel_writes_the_same_on_a_card(case):
    assert differs(case, "cuda") is None


if __name__ == "__main__":
    purposes = {
        "interpret": lambda: triton_cases.report_each(CASES, differs),
        "compile": build,
    }
    purposes[sys.argv[1]]()
