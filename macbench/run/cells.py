"""The cells of a group: every method at a budget that it can reach, with its folder."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from macbench.attention import Geometry, Method, create
from macbench.errors import MacbenchError
from macbench.run.groups import Group, prompt_sha
from macbench.run.rows import describe, identify
from macbench.run.totals import Totals
from macbench.store.cell import Cell, cell_name, open_cell

if TYPE_CHECKING:
    from macbench.config import MethodSpec
    from macbench.progress import Progress


@dataclass
class Cells:
    """A group with its methods and their folders, in one order, and what it adds up to."""

    group: Group
    totals: Totals
    methods: list[Method] = field(default_factory=list)
    folders: list[Cell] = field(default_factory=list)

    def stored(self, block: range) -> bool:
        """Whether every cell has every answer of a block."""
        indices = [self.group.samples[i].index for i in block]
        return all(index in cell.rows for index in indices for cell in self.folders)


def open_cells(stack: ExitStack, group: Group, totals: Totals, progress: Progress) -> Cells:
    """The folders stay locked until the stack is left."""
    cells, config, model = Cells(group, totals), group.config, group.model
    for spec in config.cells:
        method, floor = reachable(spec, model.geometry, group.tokens, config.unreachable)
        if method in cells.methods:  # such as two budgets below a floor, which `run` has said
            if floor is None:
                progress.note(f"{spec.label} is the same as a method before it; it runs once.")
            continue
        identity = identify(group, spec, method)
        about = describe(group, spec, floor)
        name = cell_name([model.name, group.task_name, str(group.length), spec.label], identity)
        folder = stack.enter_context(open_cell(config.out, name, identity, about))
        cells.methods.append(method)
        cells.folders.append(folder)
        totals.cells.append(folder.path.name)
        check_prompts(group, folder)
        folder.expect(sample.index for sample in group.samples)
    return cells


def reachable(
    spec: MethodSpec, geometry: Geometry, length: int, unreachable: str
) -> tuple[Method, float | None]:
    """The method at this length, and its floor where it has to run at it.

    A budget below the floor is refused, or with unreachable=floor raised to the floor.
    """
    method = create(spec.name, spec.knobs)
    method.check(geometry, length)
    floor, knob = method.floor(geometry, length), share_knob(spec)
    if floor is None or knob is None or spec.knobs[knob] >= floor:
        return method, None
    if unreachable != "floor":
        raise MacbenchError(
            f"{spec.name}.{knob}={spec.knobs[knob]} is below what the method can reach at {length} "
            f"tokens, {floor:.1%}; ask for more, or add unreachable=floor to run it there."
        )
    return create(spec.name, {**spec.knobs, knob: min(1.0, floor)}), floor


def share_knob(spec: MethodSpec) -> str | None:
    """What a method calls the share that it is asked to read."""
    return next((knob for knob in ("budget", "tokens") if knob in spec.knobs), None)


def named(spec: MethodSpec) -> str:
    """The label, with the share that is asked for also where it is the default."""
    knob = share_knob(spec)
    if knob is None or f" {knob}=" in spec.label:
        return spec.label
    return f"{spec.label} {knob}={spec.knobs[knob]}"


def check_prompts(group: Group, cell: Cell) -> None:
    """Refuse to go on with a cell that answered other prompts: data may have come since."""
    for sample, asked in zip(group.samples, group.requests, strict=True):
        row = cell.rows.get(sample.index)
        if row is not None and row["prompt_sha"] != prompt_sha(asked):
            raise MacbenchError(
                f"{cell.path} answered another prompt than sample {sample.id} has now, so the "
                "task's data have changed; choose another out= or move that folder away."
            )
