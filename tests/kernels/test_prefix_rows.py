"""The Triton kernel of prefix rows against its torch reference.

Why this file is a script too: `triton_cases`.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

pytest.importorskip("triton", reason="needs triton")

from triton_cases import assert_as_exact, build, compiled, fits, interpret, recorded, report

from macbench.kernels import paged
from macbench.kernels import prefix_rows as triton_rows


@dataclass(frozen=True)
class Case:
    """The last n queries of a prompt; wild: ranges of any kind; views: strided queries."""

    n: int
    length: int
    kv_heads: int
    group: int
    d: int
    r: int = 0
    sink: int = 0
    dtype: str = "float32"
    rows: int = 32
    tokens: int = 32
    splits: int | None = None
    wild: bool = False
    views: bool = False

    def __str__(self) -> str:
        plain = Case(0, 0, 0, 0, 0)
        named = asdict(self).items()
        return "-".join(f"{k}={v}" for k, v in named if v != getattr(plain, k))


CASES = [
    Case(33, 100, 1, 1, 16),
    Case(33, 100, 2, 3, 16, splits=3),
    Case(21, 200, 2, 4, 64, r=40, sink=4, tokens=64),
    Case(40, 200, 1, 3, 64, r=7, sink=37, splits=2, views=True),
    Case(50, 50, 1, 4, 16, r=20, sink=4),  # 20 empty rows, then rows of sink only
    Case(50, 50, 2, 3, 16, r=49, rows=16, tokens=16, splits=4),  # one row has one key
    Case(16, 16, 1, 3, 16, r=16),  # every row empty
    Case(3, 0, 1, 2, 16),
    Case(1, 300, 3, 3, 16, rows=16, tokens=128, splits=2),
    Case(5, 90, 1, 3, 16, tokens=16, splits=9),  # more parts than some tiles have keys
    Case(37, 130, 2, 3, 16, wild=True),
    Case(37, 130, 1, 4, 16, wild=True, splits=3, tokens=16, views=True),
    Case(33, 100, 2, 3, 64, r=9, dtype="float16"),
    Case(40, 200, 1, 4, 64, r=7, sink=5, splits=3, dtype="float16", views=True),
    Case(37, 130, 1, 1, 16, wild=True, dtype="float16"),
    Case(33, 100, 1, 3, 24, r=9, sink=4, splits=2),  # heads of no power of two
    Case(21, 130, 2, 1, 40, wild=True, splits=3, views=True),
    Case(17, 60, 1, 2, 8, r=5),
]
COMPILED = [(64, 3, 3), (128, 8, 4)]  # d, Hkv, G


def problem(case: Case, device: str = "cpu"):
    """q [n, Hq, d], a run of pages of K and of V, starts and ends [n]."""
    draw = torch.Generator(device).manual_seed(1)
    dtype = getattr(torch, case.dtype)

    def normal(*shape):
        return torch.randn(shape, generator=draw, device=device).to(dtype)

    heads = case.kv_heads * case.group
    q = normal(heads, case.n, case.d).transpose(0, 1)
    q = q if case.views else q.contiguous()
    position = torch.arange(case.length - case.n, case.length, device=device)
    ends = (position + 1 - case.r).clamp_min(0)
    starts = ends.clamp_max(case.sink)
    if case.wild:  # unordered, beyond both ends of the prompt, every third one empty
        draws = [
            torch.randint(low, low + 80, (case.n,), generator=draw, device=device)
            for low in (-40, case.length - 40)
        ]
        flip = torch.arange(case.n, device=device) % 3 == 1
        starts, ends = (torch.where(flip, *pair).int() for pair in (draws[::-1], draws))
    used = min(max(int(ends.max()), 0), case.length)
    pools = []
    for _ in range(2):
        pool = normal(case.length // 16 + 5, case.kv_heads, 16, case.d)
        run = pool[2 : 2 + -(-case.length // 16)]
        pool[:2] = pool[2 + len(run) :] = torch.nan
        for token in range(used, 16 * len(run)):  # nothing beyond the last end may be used
            run[token // 16, :, token % 16] = torch.nan
        pools.append(run)
    return q, *pools, starts, ends


def tokens(run: torch.Tensor, length: int) -> torch.Tensor:
    """A run of pages as [Hkv, length, d] in fp64."""
    return run.transpose(0, 1).flatten(1, 2)[:, :length].double().nan_to_num()


def reference(q, k, v, length, starts, ends, scale):
    k, v = (tokens(x, length) for x in (k, v))
    if not length:
        return torch.zeros_like(q, dtype=k.dtype), torch.full_like(q[..., 0], -torch.inf).double()
    return paged.prefix_rows(q.double(), k, v, starts, ends, scale)


def distance(result, want) -> tuple[float, float]:
    """Largest errors of o and lse; infinite where only one is empty, or one is not a number."""
    (out, lse), (right, level) = result, want
    empty = level == -torch.inf
    same = torch.equal(lse == -torch.inf, empty) and not out[empty].any() and not out.isnan().any()
    if not same:
        return torch.inf, torch.inf
    apart = (lse - level).masked_fill(empty, 0.0).abs().nan_to_num(torch.inf)
    return (out - right).abs().max().item(), apart.max().item()


def run_cases() -> None:
    torch.use_deterministic_algorithms(True)  # so that what `empty` gives is not a number
    for case in CASES:
        q, k, v, starts, ends = problem(case)
        shape = triton_rows.Tiling(rows=case.rows, tokens=case.tokens, splits=case.splits)
        scale = 1.3 * case.d**-0.5
        result = triton_rows.prefix_rows(q, k, v, case.length, starts, ends, scale, shape)
        assert {x.dtype for x in result} == {torch.float32}
        errors = distance(result, reference(q, k, v, case.length, starts, ends, scale))
        report(case, errors)


def compile_kernels() -> None:
    for d, kv_heads, group in COMPILED:
        shape = triton_rows.default_tiling(torch.bfloat16, d)
        q = torch.empty(64, kv_heads * group, d, dtype=torch.bfloat16, device="meta")
        run = torch.empty(10, kv_heads, 16, d, dtype=torch.bfloat16, device="meta")
        ends = torch.empty(64, dtype=torch.int64, device="meta")
        with recorded((triton_rows, "_rows"), (triton_rows, "_merge")) as launches:
            triton_rows.prefix_rows(q, run, run, 160, ends, ends, 0.1)
        built = build(*launches[0])
        ptx = built.asm["ptx"]
        copies = [line for line in ptx.splitlines() if "shared.global" in line]
        facts = {
            "wgmma": "wgmma.mma_async" in ptx and "mma.sync" not in ptx,
            "wide copies": bool(copies) and all("cp.async.cg" in c for c in copies),
            "fits": fits(built, shape.resident),
        }
        report(d, facts)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return interpret(__file__, tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return compiled(__file__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_agree_with_the_reference(interpreted, case):
    out, lse = interpreted[str(case)]
    assert out < (2e-6 if case.dtype == "float32" else 1e-3)
    assert lse < 2e-6


@pytest.mark.parametrize("d", [d for d, _, _ in COMPILED])
def test_bf16_kernels_use_hopper_tensor_cores(built, d):
    """Compiled for sm_90: warp-group products, 16-byte copies, and the shared memory suffices."""
    assert built[str(d)] == {"wgmma": True, "wide copies": True, "fits": True}


def test_keys_are_shared_where_programs_alone_leave_the_card_idle():
    assert triton_rows.choose_splits(256, 2000, 132) == 1  # two waves, 97% full
    assert triton_rows.choose_splits(72, 128, 264) == 3
    assert triton_rows.choose_splits(16, 2000, 132) * 16 >= 0.9 * 132
    assert triton_rows.choose_splits(1, 1, 132) == triton_rows.choose_splits(5, 0, 132) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("group", [3, 4, 8])
@pytest.mark.parametrize("splits", [None, 1, 5])
def test_rows_are_as_exact_as_plain_attention_on_a_card(dtype, d, group, splits):
    """At most twice the error of torch's attention in the same 16-bit type."""
    case = Case(1024, 4090, 2, group, d, r=256, sink=4, dtype=dtype)
    q, k, v, starts, ends = problem(case, "cuda")
    shape = replace(triton_rows.default_tiling(q.dtype, d), splits=splits)
    scale = d**-0.5
    result = triton_rows.prefix_rows(q, k, v, case.length, starts, ends, scale, shape)
    want = reference(q, k, v, case.length, starts, ends, scale)
    position = torch.arange(case.length, device="cuda")
    mask = (position >= starts[:, None]) & (position < ends[:, None])
    keys, values = (tokens(x, case.length).to(q.dtype)[None] for x in (k, v))
    plain = scaled_dot_product_attention(
        q.transpose(0, 1)[None], keys, values, attn_mask=mask, scale=scale, enable_gqa=True
    )
    assert_as_exact([result[0] - want[0]], [plain[0].transpose(0, 1) - want[0]])
    assert distance(result, want)[1] < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_agree_with_the_reference_on_a_card(case):
    """The interpreter's cases with the tiles that a card would get."""
    q, k, v, starts, ends = problem(case, "cuda")
    scale = 1.3 * case.d**-0.5
    result = triton_rows.prefix_rows(q, k, v, case.length, starts, ends, scale)
    out, lse = distance(result, reference(q, k, v, case.length, starts, ends, scale))
    assert out < (1e-5 if case.dtype == "float32" else 2e-3)
    assert lse < 1e-4


if __name__ == "__main__":
    {"interpret": run_cases, "compile": compile_kernels}[sys.argv[1]]()
