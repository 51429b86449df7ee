"""A run: cells that share model, task and length decode together, and every answer is stored."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from macbench import tasks
from macbench.engine import Engine
from macbench.engine.backend import resolve
from macbench.engine.memory import release
from macbench.models import Source, load, pick_device
from macbench.run.block import answer, cut_off, go_on
from macbench.run.cells import Cells, named, open_cells, reachable
from macbench.run.groups import make_engine, make_groups, prompt_sha
from macbench.run.totals import Totals
from macbench.score import after_run
from macbench.store.cell import check_writable

if TYPE_CHECKING:
    from macbench.config import RunConfig
    from macbench.progress import Progress

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed")


def run(config: RunConfig, progress: Progress, sharing: bool = True) -> int:
    """Run what is missing of a configuration. Returns the exit code: 0, or 1 if a cell failed.

    sharing: on a CPU, also time what decoding all methods together saves (`Engine.sharing`; once,
    for as long as a dozen decode steps of every method).
    """
    began = time.time()
    backend = resolve(config.backend, pick_device(Source(**config.model).device))
    check_writable(config.out)
    totals = Totals(backend)
    _decode(config, totals, progress, sharing)
    release()  # a judge may need the memory
    totals.write(config.out, began)
    after_run(config.task_knobs, config.out, totals.cells, progress)
    progress.stop()
    return 1 if totals.failed else 0


def _decode(config: RunConfig, totals: Totals, progress: Progress, sharing: bool) -> None:
    """Every group in turn. The model is nobody's when this returns."""
    model = load(Source(**config.model), reads=True)
    for length in config.lengths:
        model.prepare(length)
        for spec in config.cells if all(tasks.counts(t) == "row" for t in config.tasks) else ():
            reachable(spec, model.geometry, length, config.unreachable)
    groups = list(make_groups(config, model, progress))
    floors: dict[str, None] = {}  # what runs at its floor, said once
    for group in groups:
        model.prepare(group.tokens)
        for spec in config.cells:
            _, floor = reachable(spec, model.geometry, group.tokens, config.unreachable)
            if floor is not None:
                least = f"{100 * floor:.1f} % of bytes at {group.length} tokens"
                floors[f"{named(spec)} cannot be reached; it runs at its floor, {least}."] = None
            if spec.calibration:
                prompts = map(prompt_sha, group.requests)
                spec.calibration.check(model, group.task_name, config.seed, prompts)
    for told in floors:
        progress.note(told)
    progress.start(sum(len(g.samples) for g in groups))
    halved: dict[int, int] = {}  # blocks that fitted, by tokens of a row
    for group in groups:
        sizes = [size for tokens, size in halved.items() if tokens <= group.tokens]
        first = min(sizes, default=config.block)
        with ExitStack() as stack:
            cells = open_cells(stack, group, totals, progress)
            size = run_group(cells, progress, sharing, first)
        if size < first:
            halved[group.tokens] = size
    progress.stop()


def run_group(cells: Cells, progress: Progress, sharing: bool, size: int) -> int:
    """All cells of one (task, length), in blocks of `size`; rows are on disk after each block.

    A block that does not fit into memory is halved. Returns the size that did.
    """
    group, totals = cells.group, cells.totals
    place = f"{group.task_name} at {group.length}"
    engine: Engine | None = None
    start = 0
    while start < len(group.samples):
        block = range(start, min(start + size, len(group.samples)))
        if cells.stored(block):
            progress.advance(len(block), stored=True)
            start = block.stop
            continue
        try:
            if cut_off(cells, block):
                engine = None  # give the memory back first
                progress.note(f"{place}: goes on where it was cut")
                for m in range(len(cells.methods)):
                    go_on(cells, block, m)
            else:
                if engine is None or engine.slots != len(block):
                    engine = None
                    engine = make_engine(group, cells.methods, len(block))
                answer(cells, block, engine, sharing)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            engine = None
        else:
            totals.samples += len(block)
            progress.advance(len(block))
            start = block.stop
            continue
        # Out of memory; out of the handler too, whose traceback would hold what it could free.
        left = smaller(cells, place, len(block), progress)
        if not left:
            return size
        size = left
    for cell in cells.folders:
        cell.finish()
    return size


def smaller(cells: Cells, place: str, size: int, progress: Progress) -> int:
    """The block to try where one of `size` samples did not fit; 0 where none is left, and then the
    cells have failed."""
    cells.methods = [replace(m) for m in cells.methods]  # type: ignore[type-var]  # without memory
    release()
    many = f"{size} samples x {len(cells.methods)} methods"
    if size > 1:
        size = (size + 1) // 2
        progress.note(f"{place}: out of memory with {many}; goes on with blocks of {size}")
        return size
    reason = (
        f"out of memory at {cells.group.length} tokens with {many}; run fewer methods at once, or "
        "lower length="
    )
    indices = {sample.index for sample in cells.group.samples}
    for cell in cells.folders:
        if not cell.rows.keys() >= indices:  # what has all its answers did not fail
            cell.fail(reason)
    cells.totals.failed.append(f"{place}: {reason}")
    progress.note(f"failed {place}: {reason}")
    return 0


def out_of_memory(error: BaseException | None) -> bool:
    """Whether that is what is behind an error, as torch, Triton or a CUDA library says it."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if any(words in str(error).lower() for words in OUT_OF_MEMORY):
            return True
        error = error.__context__  # a graph that cannot be ended hides why
    return False
