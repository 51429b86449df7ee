"""Attention that a prompt's keys get, by Triton kernels, against fp64 query by query.

Why this file is a script too: `triton_cases`.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace

import pytest
import torch
import triton_cases
from torch import Tensor

pytest.importorskip("triton", reason="needs triton")

from macbench.attention import Geometry, create
from macbench.attention import observed as reference
from macbench.kernels import received as module


@dataclass(frozen=True)
class Case:
    """The last w queries of a prompt. sharp: what logits of about one are multiplied by."""

    w: int
    length: int
    kv_heads: int
    group: int
    d: int
    dtype: str = "float32"
    rows: int = 0  # of tiles; 0: what a card would get
    columns: int = 16
    parts: int | None = None
    sharp: float = 1.0

    def __str__(self) -> str:
        plain = Case(0, 0, 0, 0, 0)
        named = asdict(self).items()
        return "-".join(f"{k}={v}" for k, v in named if v != getattr(plain, k))

    @property
    def scale(self) -> float:
        return self.sharp * self.d**-0.5

    @property
    def tiling(self) -> module.Tiling:
        usual = module.default_tiling(getattr(torch, self.dtype), self.d)
        if not self.rows:
            return replace(usual, parts=self.parts)
        return replace(usual, rows=self.rows, columns=self.columns, parts=self.parts)


CASES = [
    Case(50, 50, 2, 3, 16),
    Case(64, 64, 1, 2, 16, rows=16, parts=1),  # whole tiles only
    Case(37, 61, 1, 3, 24, rows=16),
    Case(23, 70, 2, 1, 40, rows=32, parts=3, sharp=40),
    Case(1, 45, 1, 8, 16, rows=16, parts=2),
    Case(40, 45, 1, 2, 16, rows=16, columns=32, parts=9),  # more parts than some tiles have work
    Case(33, 33, 1, 1, 8, rows=32, parts=2, sharp=300),
    Case(45, 60, 1, 2, 64, "float16", rows=32),
    Case(1, 1, 1, 2, 16, rows=16),
]
SMALL, LLAMA = Case(4096, 4096, 3, 3, 64, "bfloat16"), Case(2048, 2048, 8, 4, 128, "bfloat16")
BUILT = [
    Case(32, 8192, 8, 4, 128, "bfloat16"),  # a window
    SMALL,
    LLAMA,
    replace(SMALL, d=96),
    replace(SMALL, d=256),
    replace(LLAMA, dtype="float16", sharp=20),
]
ON_CARD = [
    *CASES,
    *BUILT,
    replace(SMALL, w=1000, length=9011),
    replace(SMALL, w=1000, length=9011, parts=7),
    replace(SMALL, w=1111, length=1111, d=24, sharp=8),
    replace(LLAMA, w=32, length=131072),
    replace(LLAMA, w=700, length=40001, kv_heads=1, group=8),
    replace(SMALL, w=1500, length=2222, dtype="float32"),
    replace(LLAMA, w=333, length=1200, dtype="float32"),
]


def problem(case: Case, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """q [w, Hq, d] and keys [Hkv, N, d], strided; around them is what may not be used."""
    draw = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=device).to(getattr(torch, case.dtype))

    q = normal(case.kv_heads * case.group, case.w + 3, case.d)
    keys = normal(case.kv_heads, case.length + 5, case.d)
    keys[:, 0] *= 3  # a key that many queries pay, or none
    q[:, case.w :], keys[:, case.length :] = torch.nan, torch.nan
    return q[:, : case.w].transpose(0, 1), keys[:, : case.length]


def naive(case: Case, q: Tensor, keys: Tensor) -> Tensor:
    sums = torch.zeros(q.shape[1], case.length, dtype=torch.float64, device=q.device)
    for head in range(q.shape[1]):
        for i in range(case.w):
            seen = case.length - case.w + i + 1
            logits = keys[head // case.group, :seen].double() @ q[i, head].double() * case.scale
            sums[head, :seen] += logits.softmax(0)
    return sums


def ours(case: Case, q: Tensor, keys: Tensor) -> Tensor:
    """What the kernels say: the same twice, and each query pays 1 in all."""
    sums = module.received(q, keys, case.scale, case.tiling)
    assert sums.dtype == torch.float32
    assert torch.equal(sums, module.received(q, keys, case.scale, case.tiling))
    paid = sums.double().sum(-1)
    torch.testing.assert_close(paid, torch.full_like(paid, case.w), rtol=1e-4, atol=0)
    return sums


def check(case: Case) -> None:
    """Logits are sums in fp32, wrong by some 1e-7 of the largest there are."""
    q, keys = problem(case)
    bound = 2e-6 * max(case.sharp, 1)
    torch.testing.assert_close(
        ours(case, q, keys).double(), naive(case, q, keys), rtol=bound, atol=bound
    )


def observing(backend: str, cuts: tuple[int, ...], case: Case, device: str) -> Tensor:
    """H2O's scores of a prompt that comes in chunks, [Hkv, N]."""
    q, keys = problem(case, device)
    heads = case.kv_heads * case.group
    geometry = Geometry(
        1, heads, case.kv_heads, case.d, case.scale, q.device, q.dtype, lambda x, *_: x
    )
    method = create("h2o", {"budget": 0.5})
    method.allocate(replace(geometry, backend=backend), 1, case.length)
    for start, end in zip((0, *cuts), (*cuts, case.length), strict=True):
        chunk = q[start:end].contiguous()
        method.observe(0, 0, chunk, chunk, keys[:, :end], start)
    return method.sums[0, 0]


OBSERVED = replace(CASES[0], w=41, length=41)


def check_h2o(case: Case = OBSERVED, cuts: tuple[int, ...] = (17, 32), device="cpu") -> None:
    plain, scores = (observing(backend, cuts, case, device) for backend in ("torch", "triton"))
    torch.testing.assert_close(scores, plain, rtol=1e-4, atol=1e-5)


def run_cases() -> None:
    torch.use_deterministic_algorithms(True)  # what nothing has written is NaN
    triton_cases.report_each(CASES, check)
    triton_cases.report_each(["h2o"], lambda _: check_h2o())


def compile_kernels() -> None:
    for case in BUILT:
        heads, kind = case.kv_heads * case.group, getattr(torch, case.dtype)
        q = torch.empty(case.w, heads, case.d, dtype=kind, device="meta")
        keys = torch.empty(case.kv_heads, case.length, case.d, dtype=kind, device="meta")
        with triton_cases.recorded((module, "_levels"), (module, "_sums")) as launches:
            module.received(q, keys, case.scale)
        facts = {}
        for kernel, args, kwargs in launches:
            built = triton_cases.build(kernel, args, kwargs)
            ptx = built.asm["ptx"]
            facts[kernel.__name__] = {
                "wgmma": "wgmma.mma_async" in ptx and "mma.sync" not in ptx,
                "wide copies": triton_cases.asynchronous(built),
                "fits": triton_cases.fits(built, case.tiling.resident),
            }
        triton_cases.report(case, facts)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return triton_cases.interpret(__file__, tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return triton_cases.compiled(__file__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("case", [*CASES, "h2o"], ids=str)
def test_sums_equal_the_naive_ones(interpreted, case):
    failure = interpreted[str(case)]
    assert failure is None, failure


@pytest.mark.parametrize("case", BUILT, ids=str)
def test_kernels_compile_for_hoppers_tensor_cores(built, case):
    """Warp-group products, 16-byte copies, and the shared memory suffices."""
    fine = {"wgmma": True, "wide copies": True, "fits": True}
    assert built[str(case)] == {"_levels": fine, "_sums": fine}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("case", ON_CARD, ids=str)
def test_sums_on_a_card_are_the_torch_ones(case):
    """And a call does not wait for the card."""
    q, keys = problem(case, "cuda")
    ours(case, q, keys)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sums = module.received(q, keys, case.scale, case.tiling)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    want = reference.received(q.double().contiguous(), keys.double(), case.scale)
    bound = 2e-5 * max(case.sharp, 1)
    torch.testing.assert_close(sums.double(), want, rtol=bound, atol=bound)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("case", [OBSERVED, SMALL, LLAMA], ids=str)
def test_h2o_scores_on_a_card_are_the_torch_ones(case):
    check_h2o(case, (case.length // 3, case.length // 2), "cuda")


if __name__ == "__main__":
    {"interpret": run_cases, "compile": compile_kernels}[sys.argv[1]]()
