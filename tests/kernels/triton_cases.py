"""Triton kernels in tests: cases under the interpreter, and compiling for a card that is not there.

TRITON_INTERPRET is read where a kernel is defined, and a kernel so defined cannot be compiled. So
a test file is also a script, started once for each purpose (`script`); it prints one JSON object a
case (`report`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class Card:
    """major, minor: compute capability. shared: KB of shared memory that a program may have."""

    name: str
    major: int
    minor: int
    multi_processor_count: int
    shared: int


HOPPER = Card("H200", 9, 0, 132, 227)
AMPERE = Card("A100", 8, 0, 108, 163)
ADA = Card("L40S", 8, 9, 142, 99)
SMS = HOPPER.multi_processor_count
KINDS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}


def spread(errors: Tensor) -> tuple[float, float]:
    """Root mean square and maximum."""
    errors = errors.double()
    return errors.square().mean().sqrt().item(), errors.abs().max().item()


def assert_as_exact(ours: Sequence[Tensor], plain: Sequence[Tensor]) -> None:
    """Errors to attention in fp64, in parts: at most twice those of torch's attention in the same
    16-bit type, in the mean square of every part and in the maximum over all of them."""
    for own, reference in zip(ours, plain, strict=True):
        assert spread(own)[0] <= 2 * spread(reference)[0]
    most, bound = (max(spread(part)[1] for part in parts) for parts in (ours, plain))
    assert most <= 2 * bound


def report(case: object, facts: object) -> None:
    print(json.dumps([str(case), facts]), flush=True)


def report_each(cases: Iterable, check: Callable[[Any], None]) -> None:
    """Reports None for a case that passes its check, else how it failed."""
    for case in cases:
        try:
            report(case, check(case))
        except Exception:
            report(case, traceback.format_exc())


def script(file: str, purpose: str, folder: Path, **env: str) -> dict[str, Any]:
    """What `file`, run for this purpose, reports of its cases. folder: Triton's cache."""
    here = Path(__file__).parent
    path = [str(here), str(here.with_name("attention")), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "TRITON_CACHE_DIR": str(folder), **env}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    done = subprocess.run(
        [sys.executable, file, purpose], env=env, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


def interpret(file: str, folder: Path) -> dict[str, Any]:
    import triton

    if [int(x) for x in triton.__version__.split("+")[0].split(".")[:3]] < [3, 7, 1]:
        pytest.skip("triton's interpreter has no loops over run-time bounds before 3.7.1")
    return script(file, "interpret", folder, TRITON_INTERPRET="1")


def compiled(file: str, folder: Path) -> dict[str, Any]:
    return script(file, "compile", folder, TRITON_INTERPRET="0")


class Recorder:
    """In a kernel's place: keeps what it is launched with."""

    def __init__(self, kernel, launches: list):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.launches.append((self.kernel, args, kwargs))


@contextmanager
def recorded(*kernels: tuple[Any, str], card: Card = HOPPER):
    """The launches of these kernels, (module, name) each, as on this card; they are not made.

    Tensors may be of the device `meta`.
    """
    launches: list[tuple] = []
    with ExitStack() as stack:
        stack.enter_context(patch("torch.cuda.get_device_properties", lambda device: card))
        for module, name in kernels:
            recorder = Recorder(getattr(module, name), launches)
            stack.enter_context(patch.object(module, name, recorder))
        yield launches


def build(kernel, args: tuple, kwargs: dict, card: Card = HOPPER):
    """A recorded launch compiled for a card, with the hints that the JIT would give."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    signature, constants, hints = {}, {}, {}
    for at, parameter in enumerate(kernel.params):
        name, value = parameter.name, values.pop(parameter.name)
        if parameter.is_constexpr:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = KINDS[value.dtype]
            hints[at,] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                hints[at,] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    return triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints),
        target=GPUTarget("cuda", 10 * card.major + card.minor, 32),
        options={name: value for name, value in values.items() if value is not None},
    )


def asynchronous(built) -> bool:
    """Whether what goes from the card's memory to shared memory does so 16 bytes at a time and is
    not waited for: a loop that Triton does not pipeline has other copies, or none."""
    copies = [line for line in built.asm["ptx"].splitlines() if "shared.global" in line]
    return bool(copies) and all("cp.async.cg" in line for line in copies)


def fits(built, resident: int) -> bool:
    """Whether a multiprocessor's shared memory holds so many programs (1 KB each is reserved)."""
    return resident * (built.metadata.shared + 1024) <= 228 * 1024
