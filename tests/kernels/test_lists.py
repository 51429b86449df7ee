"""The Triton kernels that choose what to attend to: scores of pages and keys, and the best."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import triton_cases
from torch import Tensor

pytest.importorskip("triton", reason="needs triton")

from macbench.kernels import logits as logits_module
from macbench.kernels import quest as quest_module
from macbench.kernels import select as select_module

PAGE = 16


@dataclass(frozen=True)
class Best:
    """size items a list, of which at most `most` are asked for; scores of a kind in `KINDS`."""

    rows: int
    group: int  # lists of a KV head
    kv_heads: int
    size: int
    most: int
    kind: str = "mixed"

    def __str__(self) -> str:
        return "best-" + "-".join(map(str, vars(self).values()))


@dataclass(frozen=True)
class Scores:
    kv_heads: int
    group: int
    d: int
    dtype: str = "float32"

    def __str__(self) -> str:
        return "scores-" + "-".join(map(str, vars(self).values()))


BEST = [
    Best(2, 3, 2, 300, 40),
    Best(1, 1, 3, 5000, 700),
    Best(1, 3, 1, 13000, 9000),
    Best(1, 2, 1, 70000, 500),
    Best(2, 4, 1, 33, 33),
    Best(1, 2, 1, 1, 1),
    Best(1, 1, 2, 4096, 4096),
    Best(1, 2, 1, 8192, 1600),  # one chunk
    Best(1, 2, 1, 8193, 8193),  # several, of which the last has one item, all, or all but one
    Best(1, 1, 2, 12288, 2500),
    Best(1, 1, 2, 12287, 12287),
    Best(1, 1, 2, 3000, 1000, "near"),
    Best(1, 2, 1, 300, 100, "equal"),
    Best(1, 2, 1, 9000, 5000, "equal"),  # all are gathered, and chosen by their numbers
    Best(1, 1, 3, 9000, 3000, "few"),
    Best(1, 1, 3, 9000, 9000, "few"),
    Best(1, 2, 1, 9000, 3000, "near"),
    Best(1, 1, 2, 9000, 6000, "zeros"),
    Best(1, 2, 1, 13000, 5000, "steps"),  # no item of most chunks is like the last one chosen
    Best(1, 1, 2, 13000, 3000, "negative"),
]
SCORES = [Scores(2, 3, 64), Scores(1, 4, 24), Scores(2, 1, 128), Scores(1, 2, 32, "float16")]
LARGE = Best(3, 4, 8, 131072, 6000)  # on a card only
BUILT = [Scores(3, 3, 64, "bfloat16"), Scores(8, 4, 128, "bfloat16")]


def mixed(scores: Tensor) -> None:
    """Full of ties, infinities and both zeros."""
    size = scores.shape[-1]
    scores[..., ::7] = 0.5
    scores[..., 1::9] = 0.0
    scores[..., 2::9] = -0.0
    scores[..., size - size // 9 :] = -torch.inf
    scores[:, 0, size // 2] = torch.inf


def few(scores: Tensor) -> None:
    """All but some -inf."""
    item = torch.arange(scores.shape[-1], device=scores.device)
    scores.masked_fill_(item % 11 > 0, -torch.inf)


def steps(scores: Tensor) -> None:
    """Chunk by chunk another power of two, the least first and the largest in the middle."""
    chunk = torch.arange(scores.shape[-1], device=scores.device) // select_module.CHUNK
    scores.copy_((2.0 ** -(chunk - 2).abs()) * (1 + scores.sigmoid() / 2))


KINDS: dict[str, Callable[[Tensor], object]] = {
    "mixed": mixed,
    "few": few,
    "steps": steps,
    "equal": lambda scores: scores.fill_(-3.25),
    "near": lambda scores: scores.mul_(1e-4).add_(100),  # alike in many bits
    "zeros": lambda scores: scores.mul_(0.0),  # of both signs
    "negative": lambda scores: scores.abs_().neg_(),
}


def lists(case: Best, device: str):
    """Scores of the case's kind, and counts from nothing to all that is asked for."""
    draw = torch.Generator(device).manual_seed(0)
    heads = case.kv_heads * case.group
    scores = torch.randn(case.rows, heads, case.size, generator=draw, device=device)
    KINDS[case.kind](scores)
    shape = (case.rows, heads)
    counts = torch.randint(case.most + 1, shape, generator=draw, device=device)
    counts[0, 0], counts[-1, -1] = 0, case.most
    return scores, counts


def wrong_choice(case: Best, device: str = "cpu") -> str | None:
    scores, counts = lists(case, device)
    chosen, loaded = select_module.select(scores, counts, case.most, case.kv_heads)
    if chosen.min() < 0 or chosen.max() >= case.size:
        return "an entry of a list is no item"
    for row in range(case.rows):
        named: list[set[int]] = [set() for _ in range(case.kv_heads)]
        for head in range(case.kv_heads * case.group):
            own, count = scores[row, head].tolist(), int(counts[row, head])
            order = sorted(range(case.size), key=lambda item: (-own[item], item))
            want = sorted(order[:count], reverse=True)
            if chosen[row, head, :count].tolist() != want:
                return f"row {row}, list {head}"
            named[head // case.group] |= set(want)
        if loaded[row].tolist() != [len(items) for items in named]:
            return f"row {row}: {loaded[row].tolist()} loaded"
    return None


def cache(case: Scores, device: str):
    """A query of three rows, shuffled pages, and lens at the first, a middle and a page's last."""
    draw = torch.Generator(device).manual_seed(0)
    dtype = getattr(torch, case.dtype)

    def normal(*shape):
        return torch.randn(shape, generator=draw, device=device).to(dtype)

    keys = normal(40, case.kv_heads, PAGE, case.d)
    table = torch.randperm(40, generator=draw, device=device)[:36].view(3, 12)
    lens = torch.tensor([33, 160, 181], device=device)
    return normal(3, case.kv_heads * case.group, case.d), keys, table, lens


def bounds(case: Scores, device: str):
    low = torch.randn(3, case.kv_heads, 14, case.d, device=device).to(getattr(torch, case.dtype))
    return low, low + 1


def wrong_scores(case: Scores, device: str = "cpu") -> str | None:
    q, keys, table, lens = cache(case, device)
    close = (
        {"rtol": 1e-5, "atol": 1e-4}
        if case.dtype == "float32"
        else {"rtol": 2e-3, "atol": 0.02}  # sums in fp32
    )
    size = 12
    for shared in (False, True):
        low, high = bounds(case, device)
        want_low, want_high = low.clone(), high.clone()
        for row in range(3):
            page, offset = divmod(int(lens[row]) - 1, PAGE)
            key = keys[table[row, page], :, offset]
            fresh = offset == 0
            own = want_low[row, :, page], want_high[row, :, page]
            want_low[row, :, page] = key if fresh else torch.minimum(own[0], key)
            want_high[row, :, page] = key if fresh else torch.maximum(own[1], key)
        ours = quest_module.page_scores(q, low, high, keys, table, lens, size, shared)
        if not (torch.equal(low, want_low) and torch.equal(high, want_high)):
            return "bounds differ"
        grouped = q.double().view(3, case.kv_heads, case.group, 1, case.d)
        ends = [x[:, :, None, :size].double() * grouped for x in (want_low, want_high)]
        want = torch.maximum(*ends).sum(-1)
        want = want.sum(2) if shared else want.flatten(1, 2)
        for row in range(3):
            newest = (int(lens[row]) - 1) // PAGE
            want[row, :, newest], want[row, :, newest + 1 :] = torch.inf, -torch.inf
        torch.testing.assert_close(ours.double(), want, **close)
    ours = logits_module.logits(q, keys, table, lens, 0.3, size * PAGE)
    for row in range(3):
        own = keys[table[row]].transpose(0, 1).flatten(1, 2).repeat_interleave(case.group, 0)
        want = (own.double() * q[row, :, None].double()).sum(-1) * 0.3
        want[:, lens[row] :] = -torch.inf
        torch.testing.assert_close(ours[row].double(), want, **close)
    return None


def build() -> None:
    kernels = (
        (select_module, "_select"),
        (select_module, "_count"),
        (select_module, "_place"),
        (quest_module, "_bounds"),
        (logits_module, "_logits"),
    )
    for case in BUILT:
        with triton_cases.recorded(*kernels) as launches:
            q, keys, table, lens = cache(case, "cpu")
            quest_module.page_scores(q, *bounds(case, "cpu"), keys, table, lens, 12, False)
            logits_module.logits(q, keys, table, lens, 0.3, 192)
            for best in BEST[:3]:
                scores, counts = lists(best, "cpu")
                select_module.select(scores, counts, best.most, best.kv_heads)
        built = [triton_cases.build(*launch) for launch in launches]
        triton_cases.report(case, all(triton_cases.fits(each, 2) for each in built))


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return triton_cases.interpret(__file__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("case", BEST + SCORES, ids=str)
def test_choices_and_scores(interpreted, case):
    assert interpreted[str(case)] is None


def test_the_kernels_compile_for_a_card(tmp_path):
    assert triton_cases.compiled(__file__, tmp_path) == {str(case): True for case in BUILT}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("case", [*BEST, LARGE, *SCORES, *BUILT], ids=str)
def test_choices_and_scores_on_a_card(case):
    assert check(case, "cuda") is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_captured_choices_replay():
    """Lists of several chunks: what a replay starts from, it sets itself."""
    from macbench.kernels.nucleus import nucleus

    def chosen(scores):
        best = select_module.select(scores, counts, 3000, 2)
        return *best, *nucleus(scores[:, :, None], 0.6, 2, 9000)

    draw = torch.Generator("cuda").manual_seed(0)
    given = [torch.randn(2, 6, 9000, generator=draw, device="cuda") for _ in range(3)]
    counts = torch.tensor([[3000, 17, 0, 2999, 1, 1200]] * 2, device="cuda")
    scores = given[0].clone()
    chosen(scores)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours = chosen(scores)
    for each in (*given, given[1]):
        scores.copy_(each)
        graph.replay()
        for one, other in zip(ours, chosen(each), strict=True):
            assert torch.equal(one, other)


def check(case: Best | Scores, device: str = "cpu") -> str | None:
    return (wrong_choice if isinstance(case, Best) else wrong_scores)(case, device)


if __name__ == "__main__":
    purposes = {
        "interpret": lambda: triton_cases.report_each(BEST + SCORES, check),
        "compile": build,
    }
    purposes[sys.argv[1]]()
