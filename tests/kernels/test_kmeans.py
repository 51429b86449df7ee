"""Triton's k-means of a prompt: every iteration against Lloyd's in fp64, one at a time."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from unittest.mock import patch

import pytest
import torch
import triton_cases
from harness import allocate, cached, problem, start

pytest.importorskip("triton", reason="needs triton")

from macbench.attention import create
from macbench.attention.rng import uniform
from macbench.kernels import kmeans

KEY, LAYER, FIRST = 2**40 + 12345, 3, 10
KERNELS = "_split", "_rank", "_means", "_assign"
CARDS = triton_cases.HOPPER, triton_cases.AMPERE, triton_cases.ADA


@dataclass(frozen=True)
class Case:
    """blocks of `size` tokens, the last of `last`. kinds: points are so many and their negatives,
    as often each, so that sums are exact and centres lose their points; else all are unlike."""

    heads: int
    d: int
    size: int
    last: int
    blocks: int
    each: int
    dtype: str = "float32"
    iterations: int = 3
    kinds: int = 0

    def __str__(self) -> str:
        return "-".join(map(str, vars(self).values()))


CASES = [
    Case(2, 24, 48, 64, 2, 8),  # the last block is longer
    Case(1, 16, 264, 136, 2, 4, "float16"),  # more than a tile of points and centres; shorter
    Case(1, 24, 272, 64, 2, 4, kinds=4),
    Case(1, 40, 16, 16, 1, 16),  # a single cluster
]
BUILT = [
    Case(3, 64, 8192, 7936, 2, 16, "bfloat16"),
    Case(8, 128, 8192, 8192, 4, 16, "bfloat16"),
    Case(2, 80, 8192, 12288, 1, 16, "float16"),
    Case(1, 256, 8192, 8192, 1, 16),
]
ON_CARD = [
    *CASES,
    *(replace(case, iterations=10) for case in BUILT),
    Case(3, 64, 8192, 7936, 2, 16, "bfloat16", 10, kinds=63),
]


def data(case: Case, device: str):
    draw = torch.Generator().manual_seed(0)
    n, d = (case.blocks - 1) * case.size + case.last, case.d
    if case.kinds:
        kinds = torch.randint(-12, 13, (case.heads, case.kinds, d), generator=draw) / 8
        kinds = torch.cat((kinds, -kinds), 1)
        which = torch.stack([torch.randperm(n, generator=draw) % (2 * case.kinds) for _ in kinds])
        points = kinds.gather(1, which[..., None].expand(-1, -1, d))
    else:
        points = 3 + torch.randn(case.heads, n, d, generator=draw)
    values = torch.randn(case.heads, n, d, generator=draw)
    return points.to(device), values.to(device, getattr(torch, case.dtype))


def made(case: Case, points, values, iterations: int):
    cut = case.size, case.blocks, case.each
    return kmeans.clusters(points, values, KEY, LAYER, FIRST, *cut, iterations)


def label(members, counts, start: int, n: int, k: int):
    """What clusters a block's tokens are in, from lists of positions; None if these are none."""
    listed, sizes = members[start : start + n].long() - FIRST - start, counts.long()
    if not torch.equal(listed.sort().values, torch.arange(n, device=listed.device)):
        return None
    number = torch.arange(k, device=listed.device).repeat_interleave(sizes)
    if len(number) != n or ((listed[1:] < listed[:-1]) & (number[1:] == number[:-1])).any():
        return None
    return torch.empty_like(listed).index_put_((listed,), number)


def average(points, labels, k: int):
    sums = torch.zeros(k, points.shape[-1], dtype=torch.float64, device=points.device)
    counts = torch.bincount(labels, minlength=k)
    return sums.index_add_(0, labels, points.double()) / counts.clamp_min(1)[:, None], counts


def wrong(case: Case, device: str = "cpu") -> str | None:
    points, values = data(case, device)
    steps = [made(case, points, values, i + 1) for i in range(case.iterations)]
    empty = 0
    for head in range(case.heads):
        for block in range(case.blocks):
            start, n = block * case.size, case.size if block + 1 < case.blocks else case.last
            k, offset = n // case.each, start // case.each
            x = points[head, start : start + n].double()
            x = x - points[head].double().mean(0)
            position = FIRST + start + torch.arange(n, device=device)
            draws = uniform(torch.tensor(KEY, device=device), LAYER, head, position)
            centres = x[draws.argsort(stable=True)[:k]]
            number = torch.arange(k, device=device)
            for i, (_, counts, members, _) in enumerate(steps):
                labels = label(members[head], counts[head, offset : offset + k], start, n, k)
                if labels is None:
                    return f"iteration {i}: no clusters of this block's tokens"
                apart = torch.cdist(x, centres, compute_mode="donot_use_mm_for_euclid_dist") ** 2
                own = apart.gather(1, labels[:, None])
                size = x.square().sum(-1).max() + centres.square().sum(-1).max()
                if (own > apart.amin(1, keepdim=True) + 2e-6 * size).any():
                    return f"iteration {i}: a token is not in the nearest cluster"
                if case.kinds and ((apart == own).int().argmax(1) < labels).any():
                    return f"iteration {i}: of equal centres not the first is taken"
                centres, counts = average(x, labels, k)
                lost = counts == 0
                empty += int(lost.sum())
                key = torch.tensor(KEY, device=device)
                anew = (uniform(key, LAYER, head, FIRST + start, i, number) * n).long()
                centres = torch.where(lost[:, None], x[anew], centres)
            keys, _, _, means = (part[head, offset : offset + k] for part in steps[-1])
            for ours, of in ((keys, points), (means, values)):
                want = average(of[head, start : start + n], labels, k)[0]
                torch.testing.assert_close(ours.double(), want, rtol=1e-5, atol=2e-6)
    if case.kinds and not empty:
        return "no centre lost its points"
    again = made(case, points, values, case.iterations)
    if not all(map(torch.equal, again, steps[-1])):
        return "a second run differs"
    return None


def wrong_parts() -> str | None:
    """Parts in bf16 hold fp32 numbers to the last bit."""
    x = torch.randn(2, 37, 24, generator=torch.Generator().manual_seed(0)) * 10
    parts = torch.empty(3, 2, 37, 32, dtype=torch.bfloat16)
    middle = torch.zeros(2, 24)
    kmeans._split[(3, 2)](x, middle, parts, *x.stride()[:2], 37, D=24, DIMS=32, POINTS=16)
    if (parts[..., 24:] != 0).any():
        return "padding is not 0"
    return None if torch.equal(parts[..., :24].double().sum(0), x.double()) else "bits are lost"


def wrong_prompt(replacement: bool) -> str | None:
    """A method's clusters of prompts of 1 to 5 blocks, two at a time on kernels."""
    knobs = {"per_cluster": 4, "interval": 8, "sink": 2, "replacement": replacement}
    case = problem(lengths=(12, 90, 107, 180), layers=1, d=24).to(torch.float32)
    kept = []
    with patch.multiple("macbench.attention.multipole", BLOCK=32, TOGETHER=2):
        for backend in ("torch", "triton"):
            method = create("multipole", knobs)
            allocate(method, case)
            method.geometry = replace(case.geometry, backend=backend)
            start(method, case, cached(case))
            kept.append(method._kept())
    for ours, want in zip(*kept, strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-5)
    return None if want.any() else "there are no clusters"


def build() -> None:
    own = [(kmeans, name) for name in KERNELS]
    for case in BUILT:
        n = (case.blocks - 1) * case.size + case.last
        points = torch.empty(case.heads, n, case.d, device="meta")
        most = []
        for card in CARDS:
            with triton_cases.recorded(*own, card=card) as launches:
                made(case, points, points.to(getattr(torch, case.dtype)), 1)
            built = [triton_cases.build(*launch, card) for launch in launches]
            most.append(max(each.metadata.shared for each in built) <= 1024 * card.shared)
        triton_cases.report(case, most)


def interpret() -> None:
    triton_cases.report_each(CASES, wrong)
    triton_cases.report_each([True, False], wrong_prompt)
    triton_cases.report_each(["parts"], lambda _: wrong_parts())


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return triton_cases.interpret(__file__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("case", [*CASES, True, False, "parts"], ids=str)
def test_clusters_are_lloyds(interpreted, case):
    assert interpreted[str(case)] is None


def test_the_kernels_compile_for_cards(tmp_path):
    told = triton_cases.compiled(__file__, tmp_path)
    assert told == {str(case): [True] * len(CARDS) for case in BUILT}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("case", ON_CARD, ids=str)
def test_clusters_on_a_card_are_lloyds(case):
    assert wrong(case, "cuda") is None


if __name__ == "__main__":
    {"interpret": interpret, "compile": build}[sys.argv[1]]()
