"""The Triton kernels inside single methods against these methods' torch code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import triton_cases

pytest.importorskip("triton", reason="needs triton")

from macbench.attention.rng import uniform
from macbench.kernels import draws as draws_module


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


def wrong_draws(case: Draws, device: str = "cpu") -> str | None:
    key, step, lens, kept = rows_of(case, device)
    ours, counts = draws_module.draws(
        key, step, lens, kept, case.layer, case.kv_heads, case.size, case.sink, case.recent
    )
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


CHECKS: dict[type, Callable[..., str | None]] = {Draws: wrong_draws}
CASES = [*DRAWS]
LARGE = [Draws(8, 131072, (131072, 70000, 131071), 31, 4, 64)]  # on a card only


def check(case, device: str = "cpu") -> str | None:
    return CHECKS[type(case)](case, device)


def build() -> None:
    kernels = ((draws_module, "_draws"),)
    with triton_cases.recorded(*kernels) as launches:
        for case in DRAWS:
            key, step, lens, kept = rows_of(case, "cpu")
            draws_module.draws(
                key, step, lens, kept, case.layer, case.kv_heads, case.size, case.sink, case.recent
            )
    for number, launch in enumerate(launches):
        fine = triton_cases.fits(triton_cases.build(*launch), 2)
        triton_cases.report(f"{launch[0].fn.__name__} {number}", fine)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    return triton_cases.interpret(__file__, tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("case", CASES, ids=str)
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
        "interpret": lambda: triton_cases.report_each(CASES, check),
        "compile": build,
    }
    purposes[sys.argv[1]]()
