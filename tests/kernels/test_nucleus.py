"""Twilight's nucleus in Triton: the fewest items that hold a share of the mass."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from unittest.mock import patch

import pytest
import torch
import triton_cases
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="needs triton")

from macbench.kernels import nucleus as nucleus_module
from macbench.kernels import probability as probability_module
from macbench.kernels.paged import PAGE


@dataclass(frozen=True)
class Nucleus:
    """rows, KV heads, lists of each and query heads of a list; logits in steps of `grid`; the last
    list without a candidate if `empty`."""

    share: float
    rows: int
    kv_heads: int
    lists: int
    group: int
    size: int
    paged: bool = False
    grid: float = 0.0
    empty: bool = False

    def __str__(self) -> str:
        return "nucleus-" + "-".join(map(str, vars(self).values()))

    def wrong(self, device: str) -> str | None:
        draw = torch.Generator().manual_seed(0)
        heads = self.kv_heads * self.lists
        x = 2 * torch.randn(self.rows, heads, self.group, self.size, generator=draw)
        if self.grid:
            x = (x / self.grid).round() * self.grid
        gone = torch.rand(self.rows, heads, 1, self.size, generator=draw) < 0.2
        gone[..., 0] = False
        gone[-1, -1] |= self.empty
        x[..., 1::11] = -9e3  # no mass, but a candidate
        x = x.masked_fill(gone, -torch.inf)
        tokens = torch.arange(self.size).expand(self.rows, heads, -1)
        pages, bound = None, self.size
        if self.paged:
            many = 2 * self.size // PAGE
            bound = many * PAGE
            pages = torch.rand(self.rows, heads, many, generator=draw).argsort(-1)
            pages = pages[..., : self.size // PAGE]
            tokens = (pages[..., None] * PAGE + torch.arange(PAGE)).flatten(2)
            pages = pages.to(device)
        chosen, counts, loaded = (
            y.cpu()
            for y in nucleus_module.nucleus(x.to(device), self.share, self.kv_heads, bound, pages)
        )
        if chosen.min() < 0 or chosen.max() >= bound:
            return "an entry of a list is no token"
        mass = x.double().softmax(-1).mean(2)  # NaN where there is no candidate
        for row in range(self.rows):
            named: list[set[int]] = [set() for _ in range(self.kv_heads)]
            for head in range(heads):
                own, count = mass[row, head].tolist(), int(counts[row, head])
                there = [at for at in range(self.size) if not gone[row, head, 0, at]]
                order = sorted(there, key=lambda at: (-own[at], at))
                want = [int(tokens[row, head, at]) for at in sorted(order[:count])]
                if chosen[row, head, :count].tolist() != want:
                    return f"row {row}, list {head}: not the {count} first"
                if chosen[row, head, count:].any():
                    return f"row {row}, list {head}: not 0 behind"
                if not there:
                    continue
                held = sum(own[at] for at in order[:count])
                less = held - own[order[count - 1]]
                if self.share >= 1 and count < len(there):
                    return f"row {row}, list {head}: {count} of {len(there)}"
                if self.share < 1 and not held + 1e-5 >= self.share > less - 1e-5:
                    return f"row {row}, list {head}: {held} held, without the last {less}"
                named[head // self.lists] |= set(want)
            if loaded[row].tolist() != [len(own) for own in named]:
                return f"row {row}: {loaded[row].tolist()} loaded"
        return None


class Long(Nucleus):
    """The same, as if registers held few items and a tile fewer."""

    def __str__(self) -> str:
        return f"long-{super().__str__()}"

    def wrong(self, device: str) -> str | None:
        with patch.multiple(nucleus_module, HELD=128, TILE=128, CHUNK=256):
            return super().wrong(device)


class Equal:
    """Items of equal mass: exactly as many as hold the share, the first ones."""

    def __str__(self) -> str:
        return "nucleus-equal"

    def wrong(self, device: str) -> str | None:
        x = torch.full((1, 4, 1, 1536), -torch.inf, device=device)
        x[0, :2, 0, 256:1280] = 0.0  # of 2^-10 each, across warps
        x[0, 2, 0, 511:513] = x[0, 3, 0, 1535] = 0.0
        ends = {0.75: 1024, 0.75 + 2**-12: 1025, 2**-11: 257, 0.9999: 1280}
        for share, end in ends.items():
            chosen, counts, loaded = nucleus_module.nucleus(x, share, 2, 1536)
            some = 511 if share <= 0.5 else 512
            want = [list(range(256, end))] * 2 + [list(range(511, some + 1)), [1535]]
            if [own[:n].tolist() for own, n in zip(chosen[0], counts[0], strict=True)] != want:
                return f"{share}: {counts.tolist()}"
            if loaded.tolist() != [[end - 256, some - 511 + 2]]:
                return f"{share}: {loaded.tolist()} loaded"
        return None


class Small:
    """Any small shape."""

    def __str__(self) -> str:
        return "nucleus-any"

    def wrong(self, device: str) -> None:
        few = st.integers(1, 2)
        masses = st.one_of(  # of one head or two, whose sums do not depend on the order
            st.tuples(st.integers(1, 2), st.sampled_from([0.0, 0.5, 2.0])),
            st.tuples(st.integers(3, 5), st.just(0.0)),
        )

        @settings(max_examples=12, deadline=None, derandomize=True, database=None)
        @given(st.floats(0.01, 0.999), few, few, st.integers(1, 3), masses, st.data())
        def holds(share, rows, kv_heads, lists, group_grid, data):
            paged, empty = data.draw(st.booleans()), data.draw(st.booleans())
            size = data.draw(st.integers(1, 1200))
            size = -(-size // PAGE) * PAGE if paged else size
            shape = rows, kv_heads, lists, group_grid[0], size
            assert Nucleus(share, *shape, paged, group_grid[1], empty).wrong(device) is None

        holds()


CASES = [
    Nucleus(0.85, 2, 2, 3, 1, 96, paged=True),
    Nucleus(0.6, 1, 2, 1, 3, 300),
    Nucleus(0.5, 1, 1, 2, 1, 600, grid=1.0),
    Nucleus(0.7, 1, 1, 1, 1, 9000, grid=1.0),
    Nucleus(1.0, 1, 2, 2, 1, 64, paged=True),
    Nucleus(0.999999, 1, 1, 1, 2, 33),
    Nucleus(0.8, 1, 2, 2, 1, 1552, paged=True, grid=1.0),  # parts of 512, the last of 16
    Nucleus(1.0, 1, 1, 2, 1, 1100, empty=True),
    Nucleus(0.9, 1, 1, 1, 1, 16390, grid=0.5),  # 32 warps
    Long(0.85, 1, 2, 2, 3, 640, paged=True),
    Long(0.7, 1, 1, 2, 1, 900, grid=1.0),  # what shares its first bits takes several tiles
    Long(1.0, 1, 1, 2, 1, 300, empty=True),
    Equal(),
    Small(),
]
CARD = [
    Nucleus(0.85, 2, 3, 3, 1, 8192, paged=True),
    Nucleus(0.9, 1, 2, 1, 4, 40000),
    Nucleus(0.7, 1, 2, 2, 1, 20000, grid=0.5),
    Nucleus(0.8, 1, 2, 2, 1, 32768, paged=True),
    Nucleus(0.9, 1, 1, 2, 2, 131072),
    Nucleus(0.95, 1, 2, 1, 1, 140000, grid=0.25),
]


def build() -> None:
    kernels = [(nucleus_module, name) for name in ("_mass", "_nucleus")]
    with triton_cases.recorded((probability_module, "_masses"), *kernels) as launches:
        pages = torch.empty(1, 9, 512, dtype=torch.int64, device="meta")
        nucleus_module.nucleus(torch.empty(1, 9, 1, 8192, device="meta"), 0.9, 3, 32768, pages)
        nucleus_module.nucleus(torch.empty(1, 8, 1, 32768, device="meta"), 0.9, 2, 32768)
        nucleus_module.nucleus(torch.empty(1, 8, 4, 131072, device="meta"), 0.9, 8, 131072)
    built = [triton_cases.build(*launch) for launch in launches]
    triton_cases.report("nucleus", all(triton_cases.fits(each, 2) for each in built))


def check(case, device: str = "cpu") -> str | None:
    return case.wrong(device)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return triton_cases.interpret(__file__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_equal_the_definition(interpreted, case):
    assert interpreted[str(case)] is None


def test_the_kernels_compile_for_a_card(tmp_path):
    assert triton_cases.compiled(__file__, tmp_path) == {"nucleus": True}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("case", CASES + CARD, ids=str)
def test_kernels_equal_the_definition_on_a_card(case):
    assert check(case, "cuda") is None


if __name__ == "__main__":
    purposes = {
        "interpret": lambda: triton_cases.report_each(CASES, check),
        "compile": build,
    }
    purposes[sys.argv[1]]()
