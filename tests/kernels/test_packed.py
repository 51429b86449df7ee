"""The Triton kernels over vectors in few bits: written, attended to, and estimated from."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
import triton_cases
from torch import Tensor

pytest.importorskip("triton", reason="needs triton")

from macbench.attention import Geometry, create
from macbench.attention.quantise import Packed
from macbench.kernels import estimate as estimate_module
from macbench.kernels import pack as pack_module
from macbench.kernels import packed as packed_module
from macbench.kernels import paged

PAGE = paged.PAGE
CLOSE = {  # of products; sums are fp32
    "float32": {"rtol": 1e-5, "atol": 2e-5},
    "float16": {"rtol": 2e-3, "atol": 4e-3},
    "bfloat16": {"rtol": 1e-2, "atol": 1e-2},  # what is given back has 8 bits
}


@dataclass(frozen=True)
class Shape:
    """lens of the rows; tile: numbers that share a scale (logits: always a token's)."""

    bits: int
    kv_heads: int
    group: int
    d: int
    tile: int
    lens: tuple[int, ...]
    residual: int = 8
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{type(self).__name__}-" + "-".join(map(str, vars(self).values()))


class Attend(Shape):
    def wrong(self, device: str) -> str | None:
        given = Given(self, device)
        keys = given.packed((self.tile, 1), given.k)
        values = given.packed((1, self.tile), given.v)
        # read as KIVI's torch code reads them
        wide_k, wide_v = given.all_tokens(given.k), given.all_tokens(given.v)
        token = torch.arange(given.room)
        before = (given.lens.cpu() - 1).clamp_min(0)[:, None]
        old = token < before - before % self.residual
        wide_k = torch.where(old[:, None, :, None], keys.read(0, 0, given.room), wide_k)
        old = token < before - self.residual
        wide_v = torch.where(old[:, None, :, None], values.read(0, 0, given.room), wide_v)
        held = (token < given.lens.cpu()[:, None])[:, None, None]
        want, _ = paged.attend(given.q.cpu().double(), wide_k.double(), wide_v.double(), held, 0.3)
        parts = [[x.to(device) for x in packed.layer(0)] for packed in (keys, values)]
        pools = given.k, given.v, given.table
        size = int(given.lens.max())
        for programs in (packed_module.PROGRAMS, 1):  # a chunk each, or all in one
            with patch.object(packed_module, "PROGRAMS", programs):
                ours = packed_module.attend(
                    given.q, *parts, self.bits, *pools, given.lens, self.residual, 0.3, size
                )
            assert ours.dtype == given.q.dtype
            torch.testing.assert_close(ours.cpu().double(), want, **CLOSE[self.dtype])
        return None


class Logits(Shape):
    def wrong(self, device: str) -> str | None:
        given = Given(self, device)
        keys = given.packed((1, self.d), given.k)
        size = max(self.lens) - 1  # a bound may cut
        token = torch.arange(given.room)
        want = paged.logits(given.q.cpu().double(), keys.read(0, 0, given.room).double(), 0.3)
        want = want.flatten(1, 2).masked_fill(token >= given.lens.cpu()[:, None, None], -torch.inf)
        parts = [x.to(device) for x in keys.layer(0)]
        close = CLOSE["float32"]  # codes are exact in 16 bits
        ours = estimate_module.logits(given.q, parts, self.bits, given.lens, 0.3, size)
        torch.testing.assert_close(ours.cpu().double(), want[..., :size], **close)
        for heads in (self.kv_heads, self.kv_heads * self.group):
            shape = (len(self.lens), heads)
            scores = torch.rand(*shape, given.room // PAGE, generator=given.draw)
            pages = scores.argsort(-1)[..., :3]
            counts = torch.randint(4, shape, generator=given.draw)
            ours = estimate_module.logits(
                given.q,
                parts,
                self.bits,
                given.lens,
                0.3,
                size,
                pages.to(device),
                counts.to(device),
            )
            each = self.kv_heads * self.group // heads
            tokens = (pages[..., None] * PAGE + torch.arange(PAGE)).flatten(2)
            listed = (torch.arange(3) < counts[..., None]).repeat_interleave(PAGE, 2)
            own = want.gather(2, tokens.repeat_interleave(each, 1))
            own = own.masked_fill(~listed.repeat_interleave(each, 1), -torch.inf)
            torch.testing.assert_close(ours.cpu().double(), own, **close)
        return None


class Pack(Shape):
    """Bit by bit what a CPU writes, and nothing else."""

    def wrong(self, device: str) -> str | None:
        given = Given(self, device)
        rows = given.table, given.lens
        for tile in ((1, self.tile), (self.tile, 1)):
            want = given.packed(tile, given.k)
            ours = given.packed(tile)
            parts = tuple(x.to(device) for x in ours.layer(0))
            if tile[0] == 1:
                pack_module.token(given.k, *rows, parts, self.bits, behind=self.residual)
            else:
                pack_module.block(given.k, *rows, parts, self.bits, self.residual)
            written = [torch.zeros_like(x, dtype=torch.bool) for x in ours.layer(0)]
            for row, n in enumerate(self.lens):
                start, end = n - 1 - self.residual, n - self.residual
                if tile[0] > 1:
                    start, end = (n - self.residual, n) if n % self.residual == 0 else (0, 0)
                for flags, step in zip(written, (1, *tile[:1], *tile[:1]), strict=True):
                    if start >= 0:
                        flags[row, :, start // step : end // step] = True
            for name, own, part, there in zip(
                ("codes", "scale", "low"), parts, want.layer(0), written, strict=True
            ):
                if not torch.equal(own.cpu(), part * there):
                    return f"{tile}: {name}"
        return None


class Given:
    """q, shuffled pages, and packed vectors made from what lies on them."""

    def __init__(self, shape: Shape, device: str):
        self.shape, self.draw = shape, torch.Generator().manual_seed(0)
        rows, longest = len(shape.lens), max(shape.lens)
        unit = shape.residual * PAGE
        self.room = max(-(-longest // unit) * unit, 3 * unit if unit < 64 else unit)
        pages = rows * self.room // PAGE + 3
        dtype = getattr(torch, shape.dtype)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=self.draw).to(dtype).to(device)

        self.q = normal(rows, shape.kv_heads * shape.group, shape.d)
        self.k, self.v = (normal(pages, shape.kv_heads, PAGE, shape.d) for _ in range(2))
        order = torch.randperm(pages, generator=self.draw)[: pages - 3]
        self.table = order.view(rows, -1).to(device)
        self.lens = torch.tensor(shape.lens, device=device)

    def all_tokens(self, pool: Tensor) -> Tensor:
        """[B, Hkv, room, d] in fp32, on a CPU."""
        return pool[self.table].transpose(1, 2).flatten(2, 3).float().cpu()

    def packed(self, tile: tuple[int, int], pool: Tensor | None = None) -> Packed:
        """Every token of the pool, or room for them."""
        s, heads = self.shape, self.shape.kv_heads * self.shape.group
        device = torch.device("cpu")
        g = Geometry(1, heads, s.kv_heads, s.d, 0.3, device, torch.float32, rotate)
        made = Packed.zeros(g, len(s.lens), self.room, s.d, s.bits, tile)
        if pool is not None:
            for row, x in enumerate(self.all_tokens(pool)):
                made.start(0, row, x)
        return made


def rotate(x: Tensor, *_: Any) -> Tensor:
    return x


@dataclass(frozen=True)
class Whole:
    """A method that decodes in torch and in kernels: equal reads, outputs but for rounding."""

    method: str
    knobs: str
    group: int = 2
    d: int = 8

    def __str__(self) -> str:
        return "-".join(map(str, vars(self).values()))

    def wrong(self, device: str) -> str | None:
        from harness import drive, problem

        lengths = 47, 7  # a block is full after the first step
        case = problem(3, lengths, 3, layers=1, group=self.group, d=self.d).to(torch.float32)
        knobs = dict(pair.split("=") for pair in self.knobs.split())
        typed = {name: parsed(value) for name, value in knobs.items()}
        torch_, ours = (
            drive(
                create(self.method, typed),
                replace(case, geometry=replace(case.geometry, backend=backend)),
            )
            for backend in ("torch", "triton")
        )
        torch.testing.assert_close(ours.tensor(), torch_.tensor(), rtol=1e-4, atol=1e-5)
        for step, (a, b) in enumerate(zip(torch_.counts, ours.counts, strict=True)):
            for name in a:
                if not torch.equal(a[name], b[name]):
                    return f"step {step}: {name}"
        return None


def parsed(value: str) -> Any:
    if value in ("true", "false"):
        return value == "true"
    return value if value.isalpha() else float(value) if "." in value else int(value)


RAGGED = (16, 0, 37, 24)
CASES = [
    Attend(4, 2, 3, 64, 32, (150, 64, 1), 64),
    Attend(2, 1, 16, 24, 8, RAGGED),
    Attend(8, 2, 1, 24, 6, (6, 31, 12), 12),
    Attend(2, 2, 2, 16, 4, RAGGED, dtype="float16"),
    Attend(4, 1, 4, 128, 32, (200, 3), 32, "bfloat16"),
    Logits(4, 2, 3, 64, 64, (150, 64, 0)),
    Logits(2, 1, 2, 24, 24, (49, 16)),
    Logits(8, 1, 16, 16, 16, RAGGED),
    Logits(4, 2, 1, 32, 32, (33, 129), dtype="float16"),
    Pack(2, 2, 1, 24, 6, (*RAGGED, 9), 12),
    Pack(4, 1, 1, 64, 32, (64, 128, 3, 65), 64, "bfloat16"),
    Pack(8, 3, 1, 8, 8, RAGGED, dtype="float16"),
    Whole("kivi", "bits=4 group_size=4 residual=8"),
    Whole("kivi", "bits=2 group_size=8 residual=16", 3, 24),
    Whole("twilight", "p=0.6 candidates=32 dense_layers=0"),
    Whole("twilight", "p=0.8 candidates=32 dense_layers=0 shared=true", 3, 24),
    Whole("twilight", "p=0.85 base=all dense_layers=0"),
    Whole("twilight", "p=0.85 base=all dense_layers=0 shared=true", 4, 16),
]
BUILT = [(3, 3, 64, 32, 4), (8, 4, 128, 32, 2), (2, 16, 128, 128, 8)]  # heads, d, tile, bits
CARD = [
    Attend(4, 3, 3, 64, 32, (8000, 4097, 1, 300), 128),
    Attend(4, 3, 3, 64, 32, (8000, 4097, 1, 300), 128, "bfloat16"),
    Attend(2, 8, 4, 128, 32, (5000, 2), 128, "bfloat16"),
    Attend(8, 1, 16, 128, 64, (5000, 129), 128, "float16"),
    Attend(4, 1, 12, 256, 32, (3000, 40), 128, "bfloat16"),  # more than a warp
    Logits(4, 3, 3, 64, 64, (8000, 4097, 1), dtype="bfloat16"),
    Logits(4, 8, 4, 128, 128, (9000, 20), dtype="float16"),
    Pack(4, 3, 1, 64, 32, (2048, 1000, 129), 128, "bfloat16"),
    Pack(2, 8, 1, 128, 128, (1024, 1152), 128, "float16"),
]


def build() -> None:
    kernels = [
        (estimate_module, "_logits"),
        (packed_module, "_attend"),
        (packed_module, "_merge"),
        (pack_module, "_token"),
        (pack_module, "_block"),
    ]
    for kv_heads, group, d, tile, bits in BUILT:
        shape = Shape(bits, kv_heads, group, d, tile, (300, 128), 128, "bfloat16")
        given = Given(shape, "cpu")
        keys, values, whole = (given.packed(t).layer(0) for t in ((tile, 1), (1, tile), (1, d)))
        rows, q = (given.table, given.lens), given.q
        pages = torch.zeros(2, kv_heads * group, 8, dtype=torch.int64)
        with triton_cases.recorded(*kernels) as launches:
            packed_module.attend(q, keys, values, bits, given.k, given.v, *rows, 128, 0.1, 300)
            estimate_module.logits(q, whole, bits, given.lens, 0.1, 300)
            estimate_module.logits(q, whole, bits, given.lens, 0.1, 0, pages, pages[..., 0])
            pack_module.block(given.k, *rows, keys, bits, 128)
            pack_module.token(given.v, *rows, values, bits, 128)
        built = [triton_cases.build(*launch) for launch in launches]
        triton_cases.report(bits, all(triton_cases.fits(each, 2) for each in built))
    given = Given(Shape(4, 1, 12, 256, 32, (300, 128), 128, "float32"), "cpu")
    with triton_cases.recorded((estimate_module, "_logits")) as launches:
        estimate_module.logits(given.q, given.packed((1, 256)).layer(0), 4, given.lens, 0.1, 300)
    built = [triton_cases.build(*launch) for launch in launches]
    triton_cases.report("wide", all(triton_cases.fits(each, 1) for each in built))


def check(case, device: str = "cpu") -> str | None:
    return case.wrong(device)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return triton_cases.interpret(__file__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_equal_the_torch_code(interpreted, case):
    assert interpreted[str(case)] is None


def test_the_kernels_compile_for_a_card(tmp_path):
    names = [*(str(case[-1]) for case in BUILT), "wide"]
    assert triton_cases.compiled(__file__, tmp_path) == dict.fromkeys(names, True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("case", [c for c in CASES if not isinstance(c, Whole)] + CARD, ids=str)
def test_kernels_equal_the_torch_code_on_a_card(case):
    assert check(case, "cuda") is None


if __name__ == "__main__":
    purposes = {
        "interpret": lambda: triton_cases.report_each(CASES, check),
        "compile": build,
    }
    purposes[sys.argv[1]]()
