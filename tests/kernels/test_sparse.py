"""The Triton kernels inside single methods against these methods' torch code, and whole methods on
Triton against themselves on torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from unittest.mock import patch

import pytest
import torch
import triton_cases
from harness import drive, problem
from torch import Tensor
from torch.testing import assert_close

pytest.importorskip("triton", reason="needs triton")

from macbench.attention import create
from macbench.attention.kept import Kept, lowest
from macbench.attention.quantise import Packed
from macbench.attention.rng import uniform
from macbench.attention.select import shared_probability
from macbench.kernels import draws as draws_module
from macbench.kernels import kept as kept_module
from macbench.kernels import labels as labels_module
from macbench.kernels import probability as probability_module
from macbench.kernels import weights as weights_module


@dataclass(frozen=True)
class Draws:
    kv_heads: int
    size: int
    lens: tuple[int, ...]
    layer: int
    sink: int
    recent: int

    def __str__(self) -> str:
        return "draws-" + "-".join(map(str, vars(self).values()))


DRAWS = [
    Draws(2, 1500, (1500, 3, 1200), 0, 4, 64),
    Draws(3, 40, (40, 1), 29, 0, 0),
    Draws(1, 1024, (1000,), 1, 1, 1),
]


def rows_of(case: Draws, device: str):
    """Keys, steps and lens of every row; keys use all of 63 bits."""
    draw = torch.Generator().manual_seed(case.layer)
    n = len(case.lens)
    key = torch.randint(2**62, (n,), generator=draw) * 2 + 1
    step = torch.randint(10**6, (n,), generator=draw)
    kept = torch.randint(1, case.size, (n,), generator=draw)
    lens = torch.tensor(case.lens)
    return [x.to(device) for x in (key, step, lens, kept)]


def drawn(case: Draws, rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    key, step, lens, kept = rows
    heads, size = case.kv_heads, case.size
    return draws_module.draws(
        key, step, lens, kept, case.layer, heads, size, case.sink, case.recent
    )


def wrong_draws(case: Draws, device: str = "cpu") -> str | None:
    rows = rows_of(case, device)
    key, step, _, kept = rows
    ours, counts = drawn(case, rows)
    position = torch.arange(case.size, device=device)
    head = torch.arange(case.kv_heads, device=device)[:, None]
    want = uniform(key[:, None, None], step[:, None, None], case.layer, head, position)
    for row, length in enumerate(case.lens):
        want[row, :, : case.sink] = 2.0
        want[row, :, max(length - case.recent, 0) :] = 2.0
        want[row, :, length:] = -1.0
        if counts[row].tolist() != [min(length, int(kept[row]))] * case.kv_heads:
            return f"row {row}: {counts[row].tolist()} to read"
    return None if torch.equal(ours, want) else "draws differ"


@dataclass(frozen=True)
class Paid:
    """Lists of up to `size` tokens; shared: one for all heads of a row."""

    kv_heads: int
    group: int
    d: int
    size: int
    shared: bool = False
    dtype: str = "float32"

    def __str__(self) -> str:
        return "paid-" + "-".join(map(str, vars(self).values()))


PAID = [
    Paid(2, 3, 24, 300),
    Paid(3, 3, 64, 150, True),
    Paid(1, 16, 32, 90, False, "float16"),
    Paid(2, 1, 128, 1),
]


def listed(case: Paid, device: str):
    """Queries, scattered pages, lists as they lie in longer ones (int32), and their counts."""
    draw = torch.Generator().manual_seed(case.size)
    dtype = getattr(torch, case.dtype)
    pages = -(-case.size // 16) + 2
    keys = torch.randn(3 * pages, case.kv_heads, 16, case.d, generator=draw).to(dtype)
    q = torch.randn(3, case.kv_heads * case.group, case.d, generator=draw).to(dtype)
    table = torch.randperm(3 * pages, generator=draw).view(3, pages)
    lists = 1 if case.shared else case.kv_heads
    order = torch.rand(3, lists, 16 * pages, generator=draw).argsort(-1).int()
    tokens = torch.full((3, lists, case.size + 40), 2**30, dtype=torch.int32)
    counts = torch.randint(1, case.size + 1, (3, lists), generator=draw)
    counts[0, 0], counts[1, 0] = case.size, 1
    for row in range(3):
        for head in range(lists):
            count = int(counts[row, head])
            tokens[row, head, :count] = order[row, head, :count]
    return [x.to(device) for x in (q, keys, table, tokens, counts)]


def paid(case: Paid, given: list[Tensor], lse: Tensor) -> Tensor:
    q, keys, table, tokens, counts = given
    tokens = tokens[..., : case.size]
    return weights_module.weights(q, keys, table, tokens, counts, lse, 0.3)


def wrong_paid(case: Paid, device: str = "cpu") -> str | None:
    given = listed(case, device)
    q, keys, table, tokens, counts = given
    lists, group = counts.shape[1], case.group
    each = case.kv_heads // lists
    exact: dict[tuple[int, int], Tensor] = {}
    lse = torch.empty(q.shape[:2], device=device)
    for row in range(3):
        for head in range(case.kv_heads * group):
            list_ = head // group // each
            own = tokens[row, list_, : counts[row, list_]].long()
            k = keys[table[row, own // 16], head // group, own % 16].double()
            logits = 0.3 * k @ q[row, head].double()
            lse[row, head] = logits.logsumexp(0)
            exact[row, list_] = exact.get((row, list_), 0) + logits.softmax(0)
    ours = paid(case, given, lse)
    for (row, list_), want in exact.items():
        count = len(want)
        assert_close(ours[row, list_, :count].double(), want, rtol=1e-4, atol=1e-6)
        if ours[row, list_, count:].any():
            return "something is paid behind a list"
    return None


@dataclass(frozen=True)
class Shared:
    kv_heads: int
    group: int
    lens: tuple[int, ...]

    def __str__(self) -> str:
        return "shared-" + "-".join(map(str, vars(self).values()))


SHARED = [
    Shared(2, 3, (3000, 1, 2049)),  # a block of one head, and of a group, and less
    Shared(1, 16, (700,)),
    Shared(3, 1, (33, 5)),
    Shared(1, 2, (70000,)),  # more blocks than are merged at once
]


def wrong_shared(case: Shared, device: str = "cpu") -> str | None:
    draw = torch.Generator().manual_seed(0)
    shape = (len(case.lens), case.kv_heads * case.group, max(case.lens) + 9)
    scores = 5 * torch.randn(shape, generator=draw).to(device)
    scores[..., 0] = -300  # underflows
    lens = torch.tensor(case.lens, device=device)
    position = torch.arange(shape[-1], device=device)
    scores.masked_fill_(position >= lens[:, None, None], -torch.inf)
    ours = shared_probability(scores, lens, case.kv_heads, "triton")
    want = shared_probability(scores.double(), lens, case.kv_heads, "torch")
    assert_close(ours.double(), want, rtol=1e-5, atol=1e-12)
    return None


@dataclass(frozen=True)
class Evict:
    """Steps on lists of up to `most` tokens, of which `limit` stay."""

    rows: int
    heads: int
    most: int
    limit: int
    group: int = 0  # 0: no sums
    normalise: bool = False

    def __str__(self) -> str:
        return "evict-" + "-".join(map(str, vars(self).values()))


EVICT = [
    Evict(3, 2, 60, 40),
    Evict(2, 1, 60, 59),
    Evict(2, 1, 3000, 2900),  # more than a block
    Evict(3, 2, 60, 40, 3),
    Evict(2, 2, 3000, 2900, 1, True),
    Evict(44, 3, 9, 5, 2),  # more lists than a program appends to
]


class Now:
    """What `Kept.append` needs of a view."""

    def __init__(self, lens: Tensor, live: Tensor, grown: int):
        self.lens, self.live, self.grown = lens, live, grown


def wrong_evictions(case: Evict, device: str = "cpu") -> str | None:
    """Some steps of `Kept` with the methods' torch code, and the kernels beside it."""
    draw = torch.Generator().manual_seed(case.most)
    g = replace(problem().geometry, layers=1, device=torch.device(device))
    ours = Kept(replace(g, backend="triton"), case.rows, case.heads, case.most)
    want = Kept(g, case.rows, case.heads, case.most)
    lens = torch.full((case.rows,), case.most + 100, device=device)
    first = case.limit - 2
    for kept in (ours, want):
        order = torch.Generator().manual_seed(1)
        for slot in range(case.rows):
            tokens = torch.rand(case.heads, case.most + 100, generator=order).argsort(-1)
            kept.start(0, slot, tokens[:, :first].to(device), first, case.most)
    sums = torch.rand(case.rows, case.heads, case.most, generator=draw).to(device)
    sums_ours, index = sums.clone(), torch.arange(case.most, device=device)
    limit = torch.full((case.rows,), case.limit, device=device)
    limit[0] -= 1
    recent = torch.full((case.rows,), case.limit // 2, device=device)
    live = torch.ones(case.rows, dtype=torch.bool, device=device)
    for step in range(3):
        live[1] = step < 1
        lens += live
        view = Now(lens, live, step + 1)
        tokens, counts = want.append(0, view)
        lists, held = ours.append(0, view)
        if not (torch.equal(lists.long(), tokens) and torch.equal(held, counts)):
            return f"step {step}: lists differ after appending"
        size = tokens.shape[-1]
        paid = torch.rand(case.rows, case.heads, size, generator=draw)
        paid = ((8 * paid).round() / 8).to(device)  # ties
        paid.masked_fill_(index[:size] >= counts[..., None], 0)
        state = ours.tokens[0], ours.held[0]
        ranks, along = paid, ()
        if case.group:
            sums.scatter_(-1, counts[..., None] - 1, 0)
            sums[..., :size] += paid / case.group
            ranks, along, seen = sums[..., :size], (sums,), lens[:, None, None]
            if case.normalise:
                ranks = ranks / (seen - tokens).clamp_min(1)
            ranks = ranks.masked_fill(tokens >= seen - recent[:, None, None], torch.inf)
            more = sums_ours, recent, case.group, case.normalise
            kept_module.drop(*state, paid, lens, limit, *more)
        else:
            kept_module.drop(*state, paid, lens, limit)
        ranks = ranks.masked_fill(index[:size] >= counts[..., None], torch.inf)
        want.drop(0, lowest(ranks, tokens), limit, *along)
        if not torch.equal(ours.held, want.held):
            return f"step {step}: lengths differ after dropping"
        real = index < want.held[0][..., None]
        if not torch.equal(ours.tokens[0][real], want.tokens[0][real]):
            return f"step {step}: lists differ after dropping"
        assert_close(sums_ours[real], sums[real], rtol=1e-6, atol=1e-6)
    return None


@dataclass(frozen=True)
class Labels:
    """Labels of r of the d channels; lens up to size; about so many programs, if not the usual."""

    kv_heads: int
    group: int
    d: int
    r: int
    bits: int
    size: int
    dtype: str = "float32"
    programs: int = 0

    def __str__(self) -> str:
        return "labels-" + "-".join(map(str, vars(self).values()))


LABELS = [
    Labels(2, 3, 64, 32, 2, 300),
    Labels(2, 1, 32, 16, 4, 140),
    Labels(1, 16, 24, 12, 4, 140),
    Labels(1, 2, 32, 8, 8, 140),
    Labels(2, 3, 64, 32, 16, 300),
    Labels(1, 4, 40, 10, 16, 140, "float16"),
    Labels(1, 4, 64, 32, 4, 140, "float16"),
    Labels(1, 9, 16, 4, 2, 70),  # a byte a label
    Labels(1, 4, 128, 64, 4, 140),  # more than the four words that are multiplied together
    Labels(1, 2, 64, 64, 8, 140),
    Labels(2, 2, 128, 64, 2, 600, "float16", 9),  # programs of several tiles, the last with fewer
    Labels(1, 2, 32, 16, 16, 600, "float32", 4),
]


def labelled(case: Labels, device: str):
    """Queries, a cache, channels, and the labels of all keys but the newest, which are random."""
    draw = torch.Generator().manual_seed(case.r)
    dtype, heads = getattr(torch, case.dtype), case.kv_heads
    pages = -(-case.size // 16)
    q = torch.randn(3, heads * case.group, case.d, generator=draw).to(dtype)
    keys = torch.randn(3 * pages, heads, 16, case.d, generator=draw).to(dtype)
    keys[:, :, 3] = keys[:, :, 3, :1]  # a constant key has codes of no width
    table = torch.randperm(3 * pages, generator=draw).view(3, pages)
    lens = torch.tensor([case.size, case.size // 2 // 16 * 16 + 4, 1])
    channels = torch.rand(3, heads, case.d, generator=draw).argsort(-1)[..., : case.r].contiguous()
    lying = keys[table].transpose(1, 2).flatten(2, 3)  # [3, Hkv, T, d]
    own = lying.gather(-1, channels[:, :, None].expand(-1, -1, lying.shape[2], -1))
    g = replace(problem().geometry, layers=1, kv_heads=heads, dtype=dtype, device=lying.device)
    packed = None
    if case.bits < 16:  # on the CPU: torch on a card rounds a division by a constant differently
        packed = Packed.zeros(g, 3, lying.shape[2], case.r, case.bits, (1, case.r))
        for row in range(3):
            packed.start(0, row, own[row])
        codes, scale, low = (part.to(device) for part in packed.parts)
        packed = replace(packed, codes=codes, scale=scale, low=low)
    return *(x.to(device) for x in (q, keys, table, lens, channels, own)), packed


def parts_of(packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
    codes, scale, low = (part[0] for part in packed.parts)
    return codes, scale, low


def scored(case: Labels, q, channels, labels, keys, table, lens) -> Tensor:
    given = q, channels, labels, case.bits, keys, table, lens, 0.3, case.size
    with patch.object(labels_module, "PROGRAMS", case.programs or labels_module.PROGRAMS):
        return labels_module.label_scores(*given)


def wrong_labels(case: Labels, device: str = "cpu") -> str | None:
    q, keys, table, lens, channels, own, packed = labelled(case, device)
    exact = (own,) if packed is None else parts_of(packed)
    want = own if packed is None else packed.read(0, 0, own.shape[2])
    parts, rows = tuple(part.clone() for part in exact), torch.arange(3, device=device)
    for part in parts:
        part[rows, :, lens - 1] = 77
    ours = scored(case, q, channels, parts[0] if packed is None else parts, keys, table, lens)
    for part, whole in zip(parts, exact, strict=True):
        for row in range(3):
            if not torch.equal(part[row, :, : lens[row]], whole[row, :, : lens[row]]):
                return f"row {row}: the newest label differs"
    few = q.gather(-1, channels.repeat_interleave(case.group, 1)).double()
    logits = 0.3 * torch.einsum(
        "bhr,bhtr->bht", few, want.double().repeat_interleave(case.group, 1)
    )
    for row in range(3):
        n = int(lens[row])
        assert_close(ours[row, :, :n].double(), logits[row, :, :n], rtol=1e-5, atol=1e-4)
        if not (ours[row, :, n:] == -torch.inf).all():
            return f"row {row}: a score behind its tokens"
    return None


@dataclass(frozen=True)
class Whole:
    """A method over a few steps, its lists and reads too."""

    method: str
    knobs: tuple[tuple[str, object], ...]

    def __str__(self) -> str:
        return "-".join([self.method, *(f"{name}={value}" for name, value in self.knobs)])


def whole(method: str, **knobs: object) -> Whole:
    return Whole(method, tuple(knobs.items()))


WHOLE = [
    whole("random", tokens=0.5, sink=2, recent=5),
    whole("h2o", budget=0.4),
    whole("h2o", budget=1.0),
    whole("tova", budget=0.4),
    whole("tova", budget=0.4, per_kv_head=True),
    whole("snapkv", budget=0.4, window=4, ada=True),
    whole("oracle_topk", tokens=0.3),
    whole("oracle_topk", tokens=0.3, shared=False),
    whole("double_sparsity", dense_layers=0, budget=0.6),
    whole("double_sparsity", dense_layers=0, budget=0.9, bits=16, shared=True),
]


def wrong_whole(case: Whole, device: str = "cpu") -> str | None:
    given = problem(3, (49, 22), steps=3, layers=1, d=16, group=3).to(torch.float32)
    records = []
    for backend in ("torch", "triton"):
        geometry = replace(given.geometry, backend=backend)
        records.append(
            drive(create(case.method, dict(case.knobs)), replace(given, geometry=geometry))
        )
    plain, ours = records
    assert_close(ours.tensor(), plain.tensor(), rtol=1e-4, atol=1e-5)
    for a, b in zip(ours.counts, plain.counts, strict=True):
        for name in b:
            if not torch.equal(a[name], b[name]):
                return f"{name} differ"
    return None


CHECKS: dict[type, Callable[..., str | None]] = {
    Draws: wrong_draws,
    Paid: wrong_paid,
    Shared: wrong_shared,
    Evict: wrong_evictions,
    Labels: wrong_labels,
    Whole: wrong_whole,
}
CASES = [*DRAWS, *PAID, *SHARED, *EVICT, *LABELS]
LARGE_PAID = [
    Paid(8, 4, 128, 26000, False, "bfloat16"),
    Paid(3, 3, 64, 1640, True, "bfloat16"),
]
LARGE_LABELS = [
    Labels(8, 4, 128, 64, 2, 30000, "bfloat16"),
    Labels(3, 3, 64, 32, 4, 8000, "bfloat16"),
    Labels(3, 3, 64, 32, 16, 8000, "bfloat16"),
]
LARGE = [  # on a card only
    Draws(8, 131072, (131072, 70000, 131071), 31, 4, 64),
    *LARGE_PAID,
    Shared(8, 4, (131072, 100000)),
    Evict(80, 8, 26000, 25900, 4),
    *LARGE_LABELS,
]


def check(case, device: str = "cpu") -> str | None:
    return CHECKS[type(case)](case, device)


def build() -> None:
    kernels = (
        (draws_module, "_draws"),
        (weights_module, "_weights"),
        (probability_module, "_masses"),
        (probability_module, "_probability"),
        (kept_module, "_append"),
        (labels_module, "_labels"),
        (kept_module, "_drop"),
    )
    with triton_cases.recorded(*kernels) as launches:
        drawn(DRAWS[0], rows_of(DRAWS[0], "cpu"))
        for some in LARGE_PAID:
            small = replace(some, size=200)
            given = listed(small, "cpu")
            paid(small, given, torch.zeros(given[0].shape[:2]))
        probability_module.probability(torch.zeros(2, 9, 9000), torch.ones(2).long(), 3)
        for case in LARGE_LABELS:
            labelling = replace(case, size=40)
            q, keys, table, lens, channels, own, packed = labelled(labelling, "cpu")
            scored(
                labelling,
                q,
                channels,
                own if packed is None else parts_of(packed),
                keys,
                table,
                lens,
            )
        rows = torch.ones(2, dtype=torch.int64)
        tokens, held = torch.zeros(2, 3, 50, dtype=torch.int32), torch.ones(2, 3, dtype=torch.int64)
        sums = torch.zeros(2, 3, 50)
        kept_module.append(tokens, held, rows, rows.bool(), 40)
        kept_module.drop(tokens, held, sums[..., :40].contiguous(), rows, rows)
        kept_module.drop(tokens, held, sums[..., :40].contiguous(), rows, rows, sums, rows, 3, True)
    for number, launch in enumerate(launches):
        fine = triton_cases.fits(triton_cases.build(*launch), 2)
        triton_cases.report(f"{launch[0].fn.__name__} {number}", fine)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return triton_cases.interpret(__file__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("case", CASES + WHOLE, ids=str)
def test_a_kernel_does_what_the_torch_code_does(interpreted, case):
    assert interpreted[str(case)] is None


def test_the_kernels_compile_for_a_card(tmp_path):
    fine = triton_cases.compiled(__file__, tmp_path)
    assert fine and all(fine.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("case", [*CASES, *LARGE], ids=str)
def test_a_kernel_does_what_the_torch_code_does_on_a_card(case):
    assert check(case, "cuda") is None


if __name__ == "__main__":
    purposes = {
        "interpret": lambda: triton_cases.report_each(CASES + WHOLE, check),
        "compile": build,
    }
    purposes[sys.argv[1]]()
