"""What both benches do: words to options, a book of rows with the card's speed, a table."""

from __future__ import annotations

import io
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macbench import presets
from macbench.errors import MacbenchError, nearest
from macbench.overrides import instead_of_key

if TYPE_CHECKING:
    from macbench.measure.latency.clock import CudaTimer
    from macbench.measure.latency.floor import Machine
    from macbench.measure.latency.record import Record

LEFT = ("model", "method", "launch", "note")  # columns of words


def options(what: str, given: dict[str, Any]) -> dict[str, Any]:
    """Defaults of `bench WHAT`, under the preset that is taken out of `given` if there is one."""
    values = presets.read("bench", what)
    preset = given.pop("preset", None)
    if preset is None:
        return values
    known = presets.names("bench", what)
    if preset not in known:
        raise MacbenchError(f"unknown preset '{preset}': {nearest(str(preset), known)}")
    return values | {"name": preset} | presets.read("bench", f"{what}/{preset}")


def read_words(words: Sequence[str], options_for: Callable[[str], list[str]]) -> dict[str, Any]:
    """Options of the command line. options_for(key): the names among which a key must be."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (equals and key) or key[0] in "+~":
            raise MacbenchError(f"'{word}' is not an option; write key=value, as in batch=[1,16].")
        known = ["preset", *options_for(key)]
        if key not in known:
            raise MacbenchError(f"unknown option '{key}': {instead_of_key(key, known)}")
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException as error:
            raise MacbenchError(
                f"'{word}' cannot be read; write key=value or key=[a,b]."
            ) from error
        if override.is_sweep_override():
            raise MacbenchError(f"{word}: write the list {key}=[{value}].")
        given[key] = override.value()
    return given


def combinations(values: dict[str, Any], keys: list[str]) -> list[dict[str, Any]]:
    """One dictionary of these keys for every combination of their values, lists or not."""
    for key in keys:
        if values[key] == []:
            raise MacbenchError(f"{key} is empty; give at least one value.")
    lists = [values[key] if isinstance(values[key], list) else [values[key]] for key in keys]
    return [dict(zip(keys, combination, strict=True)) for combination in product(*lists)]


def check_machine() -> None:
    """Refuse to begin where nothing can be timed."""
    import torch

    from macbench.engine.backend import runs_kernels

    if not torch.cuda.is_available() or not runs_kernels(torch.device("cuda")):
        raise MacbenchError(
            "bench times kernels on an NVIDIA GPU of compute capability 8.0 or newer and none was "
            "found here; the other commands of macbench need none."
        )
    if find_spec("triton") is None:
        raise MacbenchError("bench needs triton and it is not installed; pip install triton.")


def open_book(
    what: str, out: str, name: str | None, columns: dict[str, str] | None = None
) -> tuple[Record, Callable[[str], None]]:
    """The rows of OUT/NAME.parquet, and what tells the user how far the run is."""
    from macbench.measure.latency.record import COLUMNS, Record
    from macbench.progress import Progress
    from macbench.store.cell import check_writable

    folder = Path(out).expanduser()
    check_writable(folder)
    return Record(folder, name or what, columns or COLUMNS), Progress().note


def begin(
    what: str, words: Sequence[str], book: Record, say: Callable[[str], None]
) -> tuple[CudaTimer, Machine, str]:
    """Measure the card and note the run in the book: timer, card, when it began."""
    from macbench.environment import environment
    from macbench.measure.latency.clock import CudaTimer
    from macbench.measure.latency.machine import measure

    timer = CudaTimer()
    machine = measure(timer)
    say(
        f"{machine.device}: reads {machine.bandwidth / 1e6:.3f} TB/s over "
        f"{machine.read_bytes / 2**30:.0f} GiB, {machine.launch:.2f} us for an empty graph"
    )
    began = time.strftime("%Y-%m-%dT%H:%M:%S")
    book.describe(
        {
            "run": began,
            "command": shlex.join(["macbench", "bench", what, *words]),
            "environment": environment(),
            "machine": {field.name: getattr(machine, field.name) for field in fields(machine)},
        }
    )
    return timer, machine, began


def draw(
    cells: list[dict[str, str]], header: Sequence[str], lines: Sequence[str], notes: Sequence[str]
) -> str:
    """A table of the columns that are not empty, and lines below it, in colours and within the
    width of the terminal where stdout is one."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else 10_000
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width)
    drawn = Table(box=box.SIMPLE, show_edge=False)
    used = [name for name in header if any(cell[name] for cell in cells)]
    for name in used:
        drawn.add_column(Text(name), justify="left" if name in LEFT else "right")
    for cell in cells:
        drawn.add_row(*(Text(cell[name]) for name in used))
    console.print(drawn, "\n")
    for line in lines:
        console.print(Text(line))
    for note in notes:
        console.print(Text(note, style="dim"))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())
