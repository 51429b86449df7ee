"""Multipole's Triton kernels: clusters, tokens and outputs as the torch method's."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
import triton_cases
from harness import allocate, drive, problem

pytest.importorskip("triton", reason="needs triton")

from macbench.attention import Geometry, create
from macbench.kernels import cluster as cluster_module
from macbench.kernels import multipole as multipole_module
from macbench.kernels import paged

PAGE = 16
NOWHERE = -(2**20)
KINDS = 12
SINK, INTERVAL, PER_CLUSTER = 3, 32, 4
# rows of tokens, and T: nothing is clustered yet; one interval; no cluster fits; some do; all do
SMALL = ((40, 100), (99, 20), (170, 0), (300, 61), (231, 9999))
LONG = ((33000, 5000),)  # more clusters than a program holds or merges at once
LARGE = ((60000, 3000), (131072, 20000), (777, 90))


@dataclass(frozen=True)
class Case:
    kv_heads: int
    group: int
    d: int
    dtype: str = "float32"
    replacement: bool = True
    rows: tuple = SMALL

    def __str__(self) -> str:
        parts = self.kv_heads, self.group, self.d, self.dtype, self.replacement, self.rows[-1][0]
        return "-".join(map(str, parts))


@dataclass(frozen=True)
class Buffer:
    """Tokens that become clusters."""

    kv_heads: int
    d: int
    dtype: str = "float32"
    interval: int = 32
    per_cluster: int = 4
    sink: int = 3
    kinds: int = 16

    def __str__(self) -> str:
        return "buffer-" + "-".join(map(str, vars(self).values()))


BUFFERS = [
    Buffer(2, 24),
    Buffer(1, 64, "float16", 24, 2, 0, kinds=9999),
    Buffer(1, 16, "float32", 128, 16, 10, kinds=12),
]
CASES = [
    Case(2, 3, 64),
    Case(1, 1, 24, replacement=False),
    Case(1, 16, 40, "float16"),
    Case(2, 2, 128, "float16", rows=SMALL[2:]),
    Case(1, 2, 16, rows=LONG),
]
BUILT = [
    Case(3, 3, 64, "bfloat16"),
    Case(8, 4, 128, "bfloat16"),
    Case(1, 8, 256),
    Case(2, 4, 80, "float16", False),
]
ON_CARD = [*CASES, *BUILT, *(replace(case, rows=LARGE) for case in BUILT[:2])]
SHAPE = "lengths", "steps", "layers", "regime"
WHOLE = (
    {"budget": 0.7, "lengths": (40, 97), "steps": 12, "layers": 1},  # buffers become clusters
    {"budget": 0.6, "replacement": False, "lengths": (150, 5), "steps": 3},
    {"budget": 1.0, "lengths": (130,), "steps": 2, "regime": 1},
)


def quarters(x, positions, regimes=None):
    """Halves of all but the last two channels are turned by right angles, which is exact."""
    left, right, rest = x.split([(x.shape[-1] - 2) // 2, (x.shape[-1] - 2) // 2, 2], -1)
    turns = [(left, right), (-right, left), (-left, -right), (right, -left)]
    turned = torch.stack([torch.cat((*pair, rest), -1) for pair in turns])
    return turned[positions % 4, torch.arange(len(x), device=x.device)]


def state(case: Case, device: str):
    """A method in the middle of a decode, its view, and queries.

    There are few kinds of clusters, of whose keys and queries all products and sums are exact: so
    scores are the same or far apart, whatever rounds how. What no cluster holds yet is poison.
    """
    draw = torch.Generator().manual_seed(0)  # what is chosen is the same on every device
    fill = torch.Generator(device).manual_seed(0)
    dtype = getattr(torch, case.dtype)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=fill, device=device).to(dtype)

    def eighths(*shape: int) -> torch.Tensor:
        return (torch.randint(-12, 13, shape, generator=draw) / 8).to(device, dtype)

    rows, heads, d = len(case.rows), case.kv_heads, case.d
    lens = torch.tensor([n for n, _ in case.rows], device=device)
    longest = int(lens.max())
    geometry = Geometry(1, heads * case.group, heads, d, 0.125, lens.device, dtype, quarters)
    knobs = {"sink": SINK, "interval": INTERVAL, "per_cluster": PER_CLUSTER}
    method = create("multipole", {**knobs, "replacement": case.replacement})
    method.allocate(geometry, rows, longest + 2 * INTERVAL)
    method.most = [limit for _, limit in case.rows]
    method.limit[:] = torch.tensor(method.most)
    method.query[:] = torch.arange(rows) * 97
    method.turn[:] = torch.stack(method.unrotate.turn(method.query, method.regime))
    room = method.keys.shape[3]
    # pairs of clusters: their keys, and how many of their tokens the first has, even all of them
    which = torch.randint(KINDS, (rows, heads, room // 2), generator=draw).to(device)
    part = torch.randint(1, 2 * PER_CLUSTER + 1, (KINDS,), generator=draw).to(device)
    counts = torch.stack((part, 2 * PER_CLUSTER - part), 1)
    method.keys[0] = eighths(KINDS, 2, d)[which].flatten(2, 3)
    method.counts[0] = counts[which].flatten(2, 3)
    method.values.copy_(normal(*method.values.shape))
    method.members.fill_(NOWHERE)
    for row, (n, _) in enumerate(case.rows):
        tokens = method._far(n - 1) * INTERVAL
        clusters = tokens // PER_CLUSTER
        method.keys[:, row, :, clusters:] = torch.nan
        method.values[:, row, :, clusters:] = torch.nan
        method.counts[:, row, :, clusters:] = 7
        for head in range(heads):
            order = torch.randperm(tokens, generator=draw).to(device)
            method.members[0, row, head, :tokens] = SINK + order
    pages = -(-longest // PAGE)
    table = torch.randperm(rows * pages, generator=draw).to(device).view(rows, pages)
    k, v = ([normal(rows * pages, heads, PAGE, d)] for _ in range(2))
    seen = {}

    def exact(layer, q, tokens, counts):
        seen.update(tokens=tokens, counts=counts.clone())
        return paged.attend_tokens(q, k[0], v[0], table, tokens, counts, geometry.scale)

    view = SimpleNamespace(table=table, lens=lens, bound=longest, exact=exact, seen=seen)
    shape = rows, heads * case.group, d
    return method, view, eighths(*shape), normal(*shape)


def attended(method, view, queries, backend: str):
    """One step: output, and the set of tokens that every list names."""
    method.geometry = replace(method.geometry, backend=backend)
    out = method.attend(0, *queries, view, None)
    tokens, counts = view.seen["tokens"], view.seen["counts"]
    assert torch.equal(method.used[0], counts)
    lists = zip(tokens.flatten(0, 1).tolist(), counts.flatten().tolist(), strict=True)
    return out, tokens, [sorted(listed[:count]) for listed, count in lists]


def wrong(case: Case, device: str = "cpu") -> str | None:
    method, view, *queries = state(case, device)
    found = differs(method, view, queries)
    if found:
        return found
    # as many tokens as a list has chosen of them still fit
    near = view.lens - method._far(view.lens - 1) * INTERVAL
    method.limit[:] = method.used[0, :, 0] - near
    found = differs(method, view, queries)
    return found and f"where the limit is reached: {found}"


def differs(method, view, queries) -> str | None:
    # the torch method reads what it masks: no poison for it
    poisoned = method.keys, method.values, method.members
    method.keys, method.values = method.keys.nan_to_num(0), method.values.nan_to_num(0)
    method.members = method.members.clamp_min(0)
    want, _, lists = attended(method, view, queries, "torch")
    method.keys, method.values, method.members = poisoned
    ours, tokens, own = attended(method, view, queries, "triton")
    if (tokens < 0).any() or (tokens >= view.lens[:, None, None]).any():
        return "an entry of a list is no position"
    for at, (one, other) in enumerate(zip(own, lists, strict=True)):
        if one != other:
            return f"list {at}: {len(one)} tokens, not the torch method's {len(other)}"
        if len(set(one)) != len(one):
            return f"list {at} names a token twice"
    if not any(set(range(SINK, SINK + INTERVAL)) & set(listed) for listed in own):
        return "nothing was chosen"
    exact = method.geometry.dtype == torch.float32
    close = {"rtol": 1e-4, "atol": 1e-5} if exact else {"rtol": 0, "atol": 0.02}
    torch.testing.assert_close(ours.to(want.dtype), want, **close)
    return None


def wrong_decode(knobs: dict) -> str | None:
    """All steps of a decode, chosen on kernels, attended in torch."""
    knobs = dict(knobs)
    names = {name: knobs.pop(name) for name in SHAPE if name in knobs}
    case = problem(**{"layers": 2, "group": 3, "d": 24} | names).to(torch.float32)
    knobs |= {"per_cluster": 4, "interval": 8, "sink": 2, "iterations": 3}
    want, method = drive(create("multipole", knobs), case), create("multipole", knobs)
    allocate(method, case)
    method.geometry = replace(case.geometry, backend="triton")
    ours = drive(method, case, allocated=True)
    torch.testing.assert_close(ours.tensor(), want.tensor(), rtol=1e-4, atol=1e-5)
    for one, other in zip(ours.counts, want.counts, strict=True):
        for name, value in other.items():
            if not torch.equal(one[name], value):
                return name
    return None


def buffered(case: Buffer, device: str):
    """A method whose rows' buffers are full, one interval more or less, and not quite; its view."""
    draw = torch.Generator().manual_seed(0)
    lens = torch.tensor([case.sink + n * case.interval for n in (2, 3, 5, 5)], device=device)
    lens[3] -= 1
    rows, heads, d, longest = len(lens), case.kv_heads, case.d, int(lens.max())
    dtype = getattr(torch, case.dtype)
    shape = 2, 2 * heads, heads, d, d**-0.5
    geometry = Geometry(*shape, lens.device, dtype, quarters)
    knobs = {name: getattr(case, name) for name in ("sink", "interval", "per_cluster")}
    method = create("multipole", knobs)
    method.allocate(geometry, rows, longest + 2 * case.interval)
    method.first, method.prompted[2] = [0] * rows, 4  # that interval is the prompt's
    method.key[:] = torch.arange(rows) * 12345
    method.regime[:] = torch.arange(rows) % 2
    pages = -(-longest // PAGE)
    table = torch.randperm(rows * pages, generator=draw).to(device).view(rows, pages)
    # of few kinds, so that seeds are equal and centres lose all their points; means are exact
    kinds = torch.randint(-12, 13, (case.kinds, heads, d), generator=draw).to(device) / 8
    which = torch.randint(case.kinds, (2, rows, pages * PAGE), generator=draw).to(device)
    position = torch.arange(pages * PAGE, device=device).expand(which.shape)
    k = quarters(kinds[which].flatten(0, 2), position.flatten()).to(dtype)
    k = k.view(2, rows, pages, PAGE, heads, d).transpose(3, 4)
    pools = torch.randn(2, 2, rows * pages, heads, PAGE, d, generator=draw).to(device)
    k_pool, v = pools.to(dtype)
    k_pool[:, table] = k
    view = SimpleNamespace(k=k_pool, v=v, table=table, lens=lens, grown=longest)
    return method, view


def wrong_clusters(case: Buffer, device: str = "cpu") -> str | None:
    method, view = buffered(case, device)
    made = {}
    for backend in ("torch", "triton"):
        method.geometry = replace(method.geometry, backend=backend)
        for kept in method._kept():
            kept.fill_(77)
        method._grow(view)
        made[backend] = [kept.clone() for kept in method._kept()]
    each = method.each
    for row, (intervals, grown) in enumerate(((0, True), (1, True), (3, False), (2, False))):
        for one, other in zip(made["triton"], made["torch"], strict=True):
            size = one.shape[3] // (method.keys.shape[3] // each)
            new = slice(intervals * size, (intervals + 1) * size)
            if not grown and (one[:, row] != 77).any():
                return f"row {row} has new clusters"
            if grown:
                torch.testing.assert_close(one[:, row], other[:, row], rtol=2e-3, atol=1e-4)
                if (one[:, row, :, new] == 77).all():
                    return f"row {row} has no new clusters"
    return None


def build() -> None:
    names = ("_logits", "_choose", "_read", "_merge")
    for case in BUILT:
        with triton_cases.recorded(*((multipole_module, name) for name in names)) as launches:
            for rows in (SMALL, LONG) if case is BUILT[0] else (SMALL,):
                method, view, *queries = state(replace(case, rows=rows), "cpu")
                method.geometry = replace(method.geometry, backend="triton")
                view.exact = lambda layer, q, tokens, counts: (q, q[..., 0].float())
                method.attend(0, *queries, view, None)
        with triton_cases.recorded((cluster_module, "_cluster")) as grown:
            buffer = Buffer(case.kv_heads, case.d, case.dtype, 128, 16, 10)
            method, view = buffered(buffer, "cpu")
            method.geometry = replace(method.geometry, backend="triton")
            method._grow(view)
        built = [triton_cases.build(*launch) for launch in launches + grown]
        triton_cases.report(case, all(triton_cases.fits(each, 1) for each in built))


def interpret() -> None:
    triton_cases.report_each(CASES, wrong)
    triton_cases.report_each(BUFFERS, wrong_clusters)
    triton_cases.report_each(WHOLE, wrong_decode)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return triton_cases.interpret(__file__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("case", [*CASES, *BUFFERS, *WHOLE], ids=str)
def test_steps_are_the_torch_methods(interpreted, case):
    assert interpreted[str(case)] is None


def test_the_kernels_compile_for_a_card(tmp_path):
    assert triton_cases.compiled(__file__, tmp_path) == {str(case): True for case in BUILT}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("case", [*ON_CARD, *BUFFERS], ids=str)
def test_steps_on_a_card_are_the_torch_methods(case):
    assert (wrong_clusters if isinstance(case, Buffer) else wrong)(case, "cuda") is None


if __name__ == "__main__":
    {"interpret": interpret, "compile": build}[sys.argv[1]]()
