"""Paged attention in Triton over whole rows and over lists, against fp64 key by key.

Why this file is a script too: `triton_cases`.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

pytest.importorskip("triton", reason="needs triton")

from triton_cases import (
    SMS,
    assert_as_exact,
    asynchronous,
    build,
    compiled,
    fits,
    interpret,
    recorded,
    report,
    report_each,
)

from macbench.kernels import attend, paged
from macbench.kernels.workspace import Tiling, Workspace, choose_tiling

KERNELS = [(attend, "_attend"), (attend, "_finish")]
AWAY = 10**6  # names no page, and no token
BOUNDS = {"float32": (2e-6, 5e-6), "float16": (2e-3, 5e-6)}  # of outputs and of lse


@dataclass(frozen=True)
class Case:
    """Rows of these lengths. listed: None, "pages" or "tokens"; each: one list per query head."""

    name: str
    lens: tuple[int, ...]
    kv_heads: int = 2
    group: int = 2
    d: int = 16
    dtype: str = "float32"
    listed: str | None = None
    each: bool = False
    most: int = 5  # pieces of a list
    index: str = "int64"  # dtype of table, lens, lists and counts
    programs: int = 4
    tokens: int = 32
    weight: int = 1
    partials: int = 4
    more: int = 16
    split: int = 1

    def __str__(self) -> str:
        return self.name

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group

    @property
    def spans(self) -> int:
        return self.heads if self.each else self.kv_heads

    @property
    def piece(self) -> int:
        return 1 if self.listed == "tokens" else paged.PAGE

    @property
    def tiling(self) -> Tiling:
        names = ("programs", "tokens", "weight", "partials", "more", "split")
        return Tiling(**{n: getattr(self, n) for n in names})


CASES = [
    Case("rows", (70, 33, 16, 1)),
    Case("an empty row", (20, 0, 37), group=3, tokens=16, programs=7, partials=1, more=1),
    Case("only empty rows", (0, 0)),
    Case("fewer programs than rows", (70, 20, 5), d=64, programs=1, tokens=64),
    Case("more programs than work", (10, 18), kv_heads=1, group=1, programs=16, tokens=64),
    Case("one head", (300,), kv_heads=1, group=1, programs=6, partials=2, more=2, weight=3),
    Case("heads of 24", (70, 20), d=24, split=2),
    Case("tokens of heads of 40", (100, 37), d=40, listed="tokens", each=True, most=45),
    Case("fp16 rows", (150, 31), 1, 8, 64, "float16", programs=3, split=2, index="int32"),
    Case("pages", (100, 37), group=3, listed="pages"),
    Case("many parts of pages", (310,), 1, 4, listed="pages", most=18, tokens=16, programs=9,
         partials=1, split=4),
    Case("fp16 pages", (100, 48), 2, 4, 64, "float16", "pages", tokens=64, index="int32"),
    Case("tokens", (100, 37), listed="tokens", most=45),
    Case("fp16 tokens", (100, 37), 1, 8, dtype="float16", listed="tokens", most=40, tokens=16),
    Case("pages per head", (100, 37), group=4, listed="pages", each=True, programs=5),
    Case("tokens per head", (60, 30), group=3, listed="tokens", each=True, most=20, programs=3),
    Case("fp16 pages per head", (90,), 2, 4, 64, "float16", "pages", True, tokens=16,
         partials=1),
]  # fmt: skip


class Given:
    """Random pools, rows of scattered pages, and lists of them.

    What must not be read at all is not a number or names no page. What is read and masked, keys
    behind the end in a page, is large.
    """

    def __init__(self, case: Case, device: str = "cpu", seed: int = 0):
        self.case = case
        draw = torch.Generator().manual_seed(seed)
        dice = torch.Generator(device).manual_seed(seed)
        dtype, index = getattr(torch, case.dtype), getattr(torch, case.index)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=dice, device=device).to(dtype)

        lens = [max(n - 3 * seed, 0) for n in case.lens]
        rows, width = len(lens), max(1, -(-max(case.lens) // 16) + 1)
        used = [-(-n // 16) for n in lens]
        order = torch.randperm(sum(used) + 2, generator=draw)
        self.q = normal(rows, case.heads, case.d)
        self.k, self.v = (normal(len(order), case.kv_heads, 16, case.d) for _ in range(2))
        table = torch.full((rows, width), AWAY)
        for row, (n, mine) in enumerate(zip(lens, order.split([*used, 2]), strict=False)):
            table[row, : len(mine)] = mine
            for pool in (self.k, self.v):
                if n % 16:
                    pool[mine[-1], :, n % 16 :] = 300
        for pool in (self.k, self.v):
            pool[order[-2:]] = torch.nan
        self.table, self.lens = table.to(device, index), torch.tensor(lens).to(device, index)
        self.lists = self.counts = None
        self.scale = 1.3 * case.d**-0.5
        self.keys: list[list[Tensor]] = []  # by row and span: positions in the order of the list
        lists = torch.full((rows, case.spans, case.most), AWAY)
        counts = torch.zeros(rows, case.spans, dtype=torch.int64)
        for row, n in enumerate(lens):
            self.keys.append([])
            for span in range(case.spans):
                positions = torch.arange(n)
                if case.listed:
                    # tokens: also some behind the end, in the row's last page
                    names = used[row] if case.listed == "pages" else 16 * used[row]
                    count = int(torch.randint(min(names, case.most) + 1, (), generator=draw))
                    if span == row:
                        count = (0, min(names, case.most))[row % 2]
                    chosen = torch.randperm(names, generator=draw)[:count]
                    lists[row, span, :count], counts[row, span] = chosen, count
                    positions = chosen[:, None] * case.piece + torch.arange(case.piece)
                    positions = positions.flatten()
                self.keys[-1].append(positions[positions < n].to(device))
        if case.listed:
            self.lists, self.counts = lists.to(device, index), counts.to(device, index)

    def gathered(self, row: int, head: int) -> tuple[Tensor, Tensor]:
        """Keys and values [n, d] that a query head attends to."""
        at = self.keys[row][head * self.case.spans // self.case.heads]
        pages, group = self.table[row].long()[at // 16], head // self.case.group
        return self.k[pages, group, at % 16], self.v[pages, group, at % 16]

    def reference(self) -> tuple[Tensor, Tensor]:
        """o [B, Hq, d] and natural-log lse [B, Hq] in fp64; of no keys 0 and -inf."""
        outs, levels = [], []
        for row in range(len(self.q)):
            for head in range(self.case.heads):
                k, v = (x.double() for x in self.gathered(row, head))
                logits = k @ self.q[row, head].double() * self.scale
                outs.append(logits.softmax(0) @ v)
                levels.append(logits.logsumexp(0))
        return torch.stack(outs).view(self.q.shape), torch.stack(levels).view(self.q.shape[:2])

    def plain(self) -> Tensor:
        """o by torch's attention in the dtype of the data."""
        outs = []
        for row in range(len(self.q)):
            for head in range(self.case.heads):
                k, v = (x[None, None] for x in self.gathered(row, head))
                q = self.q[row, head][None, None, None]
                some = k.shape[2] > 0
                out = scaled_dot_product_attention(q, k, v, scale=self.scale) if some else 0 * q
                outs.append(out.flatten())
        return torch.stack(outs).view(self.q.shape)

    def run(self, work: Workspace, **into: Tensor) -> Tensor:
        args = (self.q, self.k, self.v, self.table, self.lens, self.scale)
        return attend.attend(work, *args, self.lists, self.counts, self.case.piece, **into)


def workspace(case: Case, tiling: Tiling, device: str = "cpu") -> Workspace:
    shape = (len(case.lens), case.heads, case.kv_heads, case.d)
    return Workspace(*shape, getattr(torch, case.dtype), device, tiling, case.spans)


def poison(work: Workspace) -> None:
    for x in vars(work).values():
        if torch.is_tensor(x):
            x.fill_(torch.nan if x.is_floating_point() else -12345)


def errors(given: Given, out: Tensor, lse: Tensor, rows=slice(None)) -> tuple[Tensor, Tensor]:
    """Of o and of lse of some rows. Without keys they must be exact, and nothing may be not a
    number."""
    want, level = (x[rows] for x in given.reference())
    out, lse = out[rows], lse[rows]
    empty = level == -torch.inf
    assert torch.equal(lse == -torch.inf, empty) and not out[empty].any()
    assert out.isfinite().all() and lse[~empty].isfinite().all()
    return out - want, (lse - level)[~empty]


def check(case: Case) -> None:
    """Twice in the same memory; the second time with other lens and lists, and output given."""
    work = workspace(case, case.tiling)
    bound, lse_bound = BOUNDS[case.dtype]
    for seed in (0, 1):
        given = Given(case, seed=seed)
        poison(work)
        into = {}
        if seed:
            into = {"output": torch.full_like(work.output, torch.nan)}
            into |= {"lse": torch.full_like(work.lse, torch.nan)}
        out = given.run(work, **into)
        assert out is into.get("output", work.output)
        apart, lse_apart = errors(given, out, into.get("lse", work.lse))
        assert (apart.abs() <= bound * (1 + out.abs())).all(), apart.abs().max()
        assert (lse_apart.abs() <= lse_bound).all(), lse_apart.abs().max()
        # with every other row finished: the rest is the same, and theirs finite
        live = torch.arange(len(case.lens)) % 2 == 1 - seed
        poison(work)
        out = given.run(work, live=live)
        assert out.isfinite().all() and not work.lse.isnan().any()
        apart, lse_apart = errors(given, out, work.lse, live)
        assert (apart.abs() <= bound * (1 + out[live].abs())).all(), apart.abs().max()
        assert (lse_apart.abs() <= lse_bound).all()


COMPILED = {  # name: (kv heads, group, d, rows, dtype, listed, per query head)
    "small model": (3, 3, 64, 1, torch.bfloat16, None, False),
    "one row": (8, 4, 128, 1, torch.bfloat16, None, False),
    "many rows": (8, 4, 128, 64, torch.bfloat16, None, False),
    "pages": (8, 4, 128, 64, torch.bfloat16, "pages", False),
    "tokens": (8, 4, 128, 1, torch.bfloat16, "tokens", False),
    "tokens of many rows": (8, 4, 128, 64, torch.bfloat16, "tokens", False),
    "pages per head": (3, 3, 64, 16, torch.bfloat16, "pages", True),
    "tokens per head": (3, 3, 64, 16, torch.float16, "tokens", True),
    "large heads": (4, 2, 256, 16, torch.bfloat16, None, False),
    "tokens of large heads": (4, 2, 256, 1, torch.bfloat16, "tokens", False),
    "fp32": (8, 4, 128, 8, torch.float32, "pages", False),
    "large heads in fp32": (4, 2, 256, 16, torch.float32, "tokens", False),
}


def compile_kernels() -> None:
    """The launches of one call, with the tilings that a card would get."""

    def empty(*shape: int, of: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    long = torch.int64
    for name, (kv_heads, group, d, rows, dtype, listed, each) in COMPILED.items():
        heads = kv_heads * group
        spans = heads if each else kv_heads
        lists = (empty(rows, spans, 512, of=long), empty(rows, spans, of=long))
        with recorded(*KERNELS) as launches:
            tiling = choose_tiling(rows * spans, d, dtype, torch.device("cuda"))
            shape = (rows, heads, kv_heads, d)
            work = Workspace(*shape, dtype, "meta", tiling, spans)
            attend.attend(
                work,
                empty(rows, heads, d, of=dtype),
                *(empty(640, kv_heads, 16, d, of=dtype) for _ in range(2)),
                empty(rows, 640, of=long),
                empty(rows, of=long),
                0.1,
                *(lists if listed else ()),
                piece=1 if listed == "tokens" else paged.PAGE,
                live=empty(rows, of=torch.bool),
            )
        facts = {}
        for kernel, args, kwargs in launches:
            made, own = build(kernel, args, kwargs), kernel.__name__ == "_attend"
            resident = math.ceil(tiling.programs / SMS) if own else 1
            facts[kernel.__name__] = fits(made, resident) and (asynchronous(made) or not own)
        report(name, facts)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return interpret(__file__, tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return compiled(__file__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_equals_the_reference(interpreted, case):
    failure = interpreted[str(case)]
    assert failure is None, failure


@pytest.mark.parametrize("name", COMPILED)
def test_kernels_compile_for_hopper(built, name):
    """And the shared memory holds as many programs as the tiling launches at once, whose keys and
    values come while others are multiplied."""
    assert built[name] == {"_attend": True, "_finish": True}


LENS = (4090, 1000, 17, 2500)
SMALL = Case("bf16 3x3x64", LENS, 3, 3, 64, "bfloat16")
LARGE = Case("bf16 2x4x128", LENS, 2, 4, 128, "bfloat16")
WIDE = Case("fp16 1x8x128", LENS, 1, 8, 128, "float16")
CARD = [
    SMALL,
    LARGE,
    WIDE,
    replace(SMALL, name="bf16 3x3x64 pages", listed="pages", most=64),
    replace(LARGE, name="bf16 2x4x128 tokens", listed="tokens", most=512),
    replace(LARGE, name="bf16 2x4x128 pages per head", listed="pages", each=True, most=64),
    replace(WIDE, name="fp16 1x8x128 tokens per head", listed="tokens", each=True, most=512),
    replace(LARGE, name="many rows", lens=(*range(40, 2000, 64), 20000)),
    replace(LARGE, name="128K", lens=(131072, 99999, 50001, 3)),
]


def card_tiling(case: Case, device: str = "cuda") -> Tiling:
    dtype = getattr(torch, case.dtype)
    return choose_tiling(len(case.lens) * case.spans, case.d, dtype, torch.device(device))


@pytest.mark.gpu
@pytest.mark.parametrize("case", CARD, ids=str)
def test_as_exact_as_plain_attention_on_a_card(case, device="cuda"):
    """At most twice the error of torch's attention in the same 16-bit type, in every row."""
    given = Given(case, device)
    work = workspace(case, card_tiling(case, device), device)
    poison(work)
    apart, lse_apart = errors(given, given.run(work), work.lse)
    plain = given.plain() - given.reference()[0]
    assert_as_exact(apart, plain)
    assert lse_apart.abs().max() < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("case", [LARGE, CARD[4]], ids=str)
@pytest.mark.parametrize("pdl", [True, False])
def test_a_captured_call_replays(case, pdl):
    """Poisoned between replays, and fed other queries, lens and lists: bitwise what a call gives.

    A call does not wait for the card.
    """
    tiling = replace(card_tiling(case), pdl=pdl)
    work, other = (workspace(case, tiling, "cuda") for _ in range(2))
    pair = [Given(case, "cuda", seed) for seed in (0, 1)]
    held = Given(case, "cuda")
    for given in pair:
        given.k, given.v, given.table = held.k, held.v, held.table
    rows = len(case.lens)
    flags = torch.ones(rows + 1, dtype=torch.bool, device="cuda")
    live = flags[1:]  # at an odd address, as a method's part of all rows' flags may be
    pair[0].run(work, live=live)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held.run(other, live=live)
    for finished, given in ((), pair[0]), ((0, 2), pair[1]), ((1,), pair[0]), ((), pair[1]):
        live.fill_(True)
        live[list(finished)] = False
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            given.run(work, live=live)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for name in ("q", "lens", *(("lists", "counts") if case.listed else ())):
            getattr(held, name).copy_(getattr(given, name))
        poison(other)
        graph.replay()
        assert torch.equal(other.output, work.output) and torch.equal(other.lse, work.lse)
        apart, lse_apart = errors(given, work.output, work.lse, live)
        assert apart.abs().max() < 0.05 and lse_apart.abs().max() < 1e-3
        assert work.output.isfinite().all()


if __name__ == "__main__":
    scripts = {"interpret": lambda: report_each(CASES, check), "compile": compile_kernels}
    scripts[sys.argv[1]]()
