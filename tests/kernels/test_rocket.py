"""RocketKV's Triton kernels: scores, bounds and choices as the torch method's."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import triton_cases
from harness import allocate, drive, problem

pytest.importorskip("triton", reason="needs triton")

from macbench.attention import Geometry, create
from macbench.attention.rocketkv import LINE, Plan
from macbench.kernels import rocket as rocket_module
from macbench.kernels import select as select_module

PAGE = 16
# rows of prompt, generated, plan: bounds of one channel, of half, of all; more asked for than
# held; nearly all generated; a chunk begins, goes on, is full
SMALL = (
    (60, 1, Plan(37, 20, 1, 1)),
    (500, 40, Plan(200, 61, 3, 11)),
    (300, 7, Plan(301 - 7, 1000, 2, 24)),
    (1, 23, Plan(1, 1, 5, 3)),
    (90, 2, Plan(90, 31, 4, 7)),
)
LONG = ((9000, 3, Plan(8500, 700, 1, 9)),)  # more chunks than one pass merges
UNEVEN = (  # programs with several blocks of chunks, with one, with none
    (5000, 2, Plan(2900, 300, 1, 9)),
    (9, 3, Plan(5, 4, 2, 24)),
    (700, 1, Plan(600, 77, 2, 11)),
)
LARGE = (
    (60000, 100, Plan(40000, 3000, 1, 20)),
    (131072, 1, Plan(52134, 6574, 2, 24)),
    (777, 64, Plan(500, 90, 3, 13)),
)


@dataclass(frozen=True)
class Case:
    kv_heads: int
    group: int
    d: int
    dtype: str = "float32"
    rows: tuple = SMALL
    programs: int = rocket_module.PROGRAMS
    line: int = LINE  # what the room for chunks is a multiple of

    def __str__(self) -> str:
        name = "-".join(map(str, (self.kv_heads, self.group, self.d, self.dtype)))
        return f"{name}-{self.rows[0][0]}"


CASES = [
    Case(2, 3, 64),
    Case(1, 1, 24, line=1),
    Case(1, 16, 40, "float16"),
    Case(2, 2, 128, "float16", SMALL[1:3]),
    Case(1, 2, 24, rows=LONG),
    Case(1, 2, 24, rows=UNEVEN, programs=15),
]
BUILT = [Case(3, 3, 64, "bfloat16"), Case(8, 4, 128, "bfloat16"), Case(1, 8, 256)]
ON_CARD = [*CASES, *BUILT, *(replace(case, rows=LARGE) for case in BUILT[:2])]
WHOLE = {"layers": 2, "budget": 0.4, "dense_layers": 1}, {"layers": 1, "budget": 0.1}


def state(case: Case, device: str):
    """A method in the middle of a decode, its view, and queries.

    All numbers are few eighths: sums are exact in any order, so equal chunks have equal scores,
    and there are many of them, as there are channels of equal size. Bounds that nothing holds are
    poison.
    """
    draw = torch.Generator(device).manual_seed(0)

    def eighths(*shape: int) -> torch.Tensor:
        drawn = torch.randint(-12, 13, shape, generator=draw, device=device)
        return (drawn / 8).to(getattr(torch, case.dtype))

    rows, heads, d = len(case.rows), case.kv_heads, case.d
    lens = torch.tensor([n + more for n, more, _ in case.rows], device=device)
    longest = int(lens.max())
    geometry = Geometry(
        1, heads * case.group, heads, d, d**-0.5, lens.device, eighths(1).dtype, lambda x, *_: x
    )
    method = create("rocketkv", {})
    method.allocate(geometry, rows, longest)
    method.plans = [p for *_, p in case.rows]
    sizes = [(n, p.kept, p.tokens, p.chunk, p.channels) for n, _, p in case.rows]
    method.sizes = torch.tensor(sizes, device=device).T.contiguous()
    grown = max(more for _, more, _ in case.rows)
    room = max(-(-(p.kept + grown) // p.chunk) for p in method.plans) + 3
    room = -(-room // case.line) * case.line
    kinds = eighths(rows, heads, 2 * d, 40)  # of chunks, most of which come often
    which = torch.randint(40, (rows, heads, 1, room), generator=draw, device=device)
    method.bounds = kinds.gather(-1, which.expand(-1, -1, 2 * d, -1))[None].contiguous()
    for row, (n, more, p) in enumerate(case.rows):
        filled = -(-(p.kept + more - 1) // p.chunk)
        method.bounds[0, row, :, :d, filled - 1 : filled] = 2  # the best come last
        method.bounds[0, row, :, d:, filled - 1 : filled] = -2
        method.bounds[0, row, :, :, filled:] = torch.nan
        for head in range(heads):
            stay = torch.randperm(n, generator=draw, device=device)[: p.kept].sort().values
            method.kept[0, row, head, : p.kept] = stay
    pages = -(-longest // PAGE)
    table = torch.randperm(rows * pages, generator=draw, device=device).view(rows, pages)
    pool = eighths(rows * pages, heads, PAGE, d)
    at = lens - 1
    key = pool[table.gather(1, at[:, None] // PAGE)[:, 0], :, at % PAGE]
    view = SimpleNamespace(
        k=[pool], table=table, lens=lens, grown=grown, newest_key=lambda layer: key
    )
    method.used = method._used(view)[:, None].expand(-1, heads).contiguous()
    return method, view, eighths(rows, heads * case.group, d)


def scored(method, view, q):
    """Tokens' scores on the kernels."""
    tokens = max(p.kept for p in method.plans) + view.grown
    own = method.bounds[0], view.k[0], view.table, view.lens, method.sizes, method.geometry.scale
    return rocket_module.token_scores(q, *own, method._chunks(view.grown), tokens)


def wrong(case: Case, device: str = "cpu") -> str | None:
    with patch.object(rocket_module, "PROGRAMS", case.programs):
        return differs(case, device)


def differs(case: Case, device: str) -> str | None:
    method, view, q = state(case, device)
    before = method.bounds.clone()
    want = method._chosen(0, q, view)
    after, method.bounds = method.bounds, before.clone()
    ours = method._chosen_on_kernels(0, q, view)
    if not torch.equal(method.bounds.nan_to_num(999), after.nan_to_num(999)):
        return "bounds differ"
    if (ours < 0).any() or (ours >= view.lens[:, None, None]).any():
        return "an entry of a list is no position"
    for row, used in enumerate(method.used[:, 0].tolist()):
        for head in range(case.kv_heads):
            chosen = ours[row, head, :used].tolist()
            if len(set(chosen)) != used or set(chosen) != set(want[row, head, :used].tolist()):
                return f"row {row}, head {head}: choices differ"
    method.bounds = before
    scores = scored(method, view, q)
    chunk, channels = method.sizes[3:]
    held = method._held(view)[:, None]
    number = torch.arange(method._chunks(view.grown), device=device)
    counts = (held - number * chunk[:, None]).clamp_min(0).minimum(chunk[:, None])
    chunks = method._scores(0, q, counts, channels)
    token = torch.arange(scores.shape[-1], device=device)
    place = (token // chunk[:, None]).clamp_max(chunks.shape[-1] - 1)[:, None]
    want = chunks.gather(-1, place.expand(scores.shape)).where(token < held[:, None], -1.0)
    torch.testing.assert_close(scores, want, rtol=1e-4, atol=1e-9)
    return None


def wrong_decode(knobs: dict) -> str | None:
    """All steps of a decode, chosen on kernels, attended in torch."""
    knobs = dict(knobs)
    case = problem(lengths=(120, 97), steps=9, layers=knobs.pop("layers"), group=3, d=24)
    case = case.to(torch.float32)
    knobs |= {"window": 4, "kernel": 5}
    want, method = drive(create("rocketkv", knobs), case), create("rocketkv", knobs)
    allocate(method, case)
    method.geometry = replace(case.geometry, backend="triton")
    ours = drive(method, case, allocated=True)
    torch.testing.assert_close(ours.tensor(), want.tensor(), rtol=1e-4, atol=1e-5)
    for one, other in zip(ours.counts, want.counts, strict=True):
        for name, value in other.items():
            if not torch.equal(one[name], value):
                return name
    return None


def build() -> None:
    kernels = (
        (rocket_module, "_logits"),
        (rocket_module, "_means"),
        (rocket_module, "_positions"),
        (select_module, "_select"),
    )
    for case in BUILT:
        with triton_cases.recorded(*kernels) as launches:
            method, view, q = state(case, "cpu")
            method._chosen_on_kernels(0, q, view)
        built = [triton_cases.build(*launch) for launch in launches]
        wide = "cp.async.cg" in built[0].asm["ptx"]  # bounds are loaded 16 bytes at a time
        triton_cases.report(case, wide and all(triton_cases.fits(each, 2) for each in built))


def interpret() -> None:
    torch.use_deterministic_algorithms(True)  # what nothing has written is NaN
    triton_cases.report_each(CASES, wrong)
    triton_cases.report_each(WHOLE, wrong_decode)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return triton_cases.interpret(__file__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("case", [*CASES, *WHOLE], ids=str)
def test_choices_are_the_torch_methods(interpreted, case):
    assert interpreted[str(case)] is None


def test_the_kernels_compile_for_a_card(tmp_path):
    assert triton_cases.compiled(__file__, tmp_path) == {str(case): True for case in BUILT}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("case", ON_CARD, ids=str)
def test_choices_on_a_card_are_the_torch_methods(case):
    assert wrong(case, "cuda") is None


if __name__ == "__main__":
    {"interpret": interpret, "compile": build}[sys.argv[1]]()
