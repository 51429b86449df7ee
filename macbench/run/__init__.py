"""A run: cells that share model, task and length decode together, and every answer is stored."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from macbench import tasks
from macbench.attention import Geometry, Method, create
from macbench.engine import Answer, Decoding, Engine, Request
from macbench.engine.backend import resolve
from macbench.errors import MacbenchError
from macbench.models import Model, Source, load, pick_device
from macbench.run.groups import Group, check_text, decoding, make_groups, prompt_sha, request
from macbench.run.resume import join, loaded, rest, saved
from macbench.run.rows import describe, identify, make_row, written
from macbench.score import after_run
from macbench.store.cell import Cell, cell_name, check_writable, open_cell

if TYPE_CHECKING:
    from macbench.config import MethodSpec, RunConfig
    from macbench.progress import Progress


OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed")


@dataclass
class Totals:
    """What a run did, for runs.jsonl."""

    backend: str  # what attended
    samples: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    steps: float = 0.0  # decode steps of all rows
    repeat_mismatch: int = 0  # re-decoded rows that differ from what is stored
    failed: list[str] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)  # their folders
    sharing: dict[str, float] = field(default_factory=dict)


def run(config: RunConfig, progress: Progress, sharing: bool = True) -> int:
    """Run what is missing of a configuration. Returns the exit code: 0, or 1 if a cell failed.

    sharing: on a CPU, also time what decoding all methods together saves (`Engine.sharing`; once,
    for as long as a dozen decode steps of every method).
    """
    began = time.time()
    backend = resolve(config.backend, pick_device(Source(**config.model).device))
    check_writable(config.out)
    model = load(Source(**config.model))
    check_text(model)
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
                floors[f"{spec.label} cannot be reached; it runs at its floor, {least}."] = None
            if spec.calibration:
                prompts = map(prompt_sha, group.requests)
                spec.calibration.check(model.weights, group.task_name, config.seed, prompts)
    for told in floors:
        progress.note(told)
    totals = Totals(backend)
    progress.start(sum(len(g.samples) for g in groups))
    halved: dict[int, int] = {}  # blocks that fitted, by tokens of a row
    for group in groups:
        sizes = [size for tokens, size in halved.items() if tokens <= group.tokens]
        first = min(sizes, default=config.block)
        size = run_group(config, model, group, totals, progress, sharing, first)
        if size < first:
            halved[group.tokens] = size
    progress.stop()
    record_run(config, totals, began)
    del model, groups  # a judge may need the memory
    after_run(config.task_knobs, config.out, totals.cells, progress)
    progress.stop()
    return 1 if totals.failed else 0


def reachable(
    spec: MethodSpec, geometry: Geometry, length: int, unreachable: str
) -> tuple[Method, float | None]:
    """The method at this length, and its floor where it has to run at it.

    A budget below the floor is refused, or with unreachable=floor raised to the floor.
    """
    method = create(spec.name, spec.knobs)
    method.check(geometry, length)
    floor = method.floor(geometry, length)
    knob = next((knob for knob in ("budget", "tokens") if knob in spec.knobs), None)
    if floor is None or knob is None or spec.knobs[knob] >= floor:
        return method, None
    if unreachable != "floor":
        raise MacbenchError(
            f"{spec.name}.{knob}={spec.knobs[knob]} is below what the method can reach at {length} "
            f"tokens, {floor:.1%}; ask for more, or add unreachable=floor to run it there."
        )
    return create(spec.name, {**spec.knobs, knob: min(1.0, floor)}), floor


def run_group(
    config: RunConfig,
    model: Model,
    group: Group,
    totals: Totals,
    progress: Progress,
    sharing: bool,
    size: int,
) -> int:
    """All cells of one (task, length), in blocks of `size`; rows are on disk after each block.

    Blocks of long answers also save them every `checkpoint` steps, and go on from what was saved.
    A block that does not fit into memory is halved. Returns the size that did.
    """
    with ExitStack() as stack:
        methods: list[Method] = []
        cells: list[Cell] = []
        for spec in config.cells:
            method, floor = reachable(spec, model.geometry, group.tokens, config.unreachable)
            if method in methods:  # such as two budgets below a floor, which `run` has said
                if floor is None:
                    progress.note(f"{spec.label} is the same as a method before it; it runs once.")
                continue
            identity = identify(config, model, group, spec, method)
            about = describe(config, model, group, spec, floor)
            parts = [model.name, group.task_name, str(group.length), spec.label]
            name = cell_name(parts, identity)
            methods.append(method)
            cells.append(stack.enter_context(open_cell(config.out, name, identity, about)))
            totals.cells.append(cells[-1].path.name)
            check_prompts(group, cells[-1])
        engine: Engine | None = None
        place = f"{group.task_name} at {group.length}"
        start = 0
        while start < len(group.samples):
            block = range(start, min(start + size, len(group.samples)))
            if all(group.samples[i].index in cell.rows for i in block for cell in cells):
                progress.advance(len(block), stored=True)
                start = block.stop
                continue
            try:
                if cut_off(config, group, block, cells):
                    engine = None  # give the memory back first
                    progress.note(f"{place}: goes on where it was cut")
                    for method, cell in zip(methods, cells, strict=True):
                        go_on(config, model, group, block, method, cell, totals)
                else:
                    if engine is None or engine.slots != len(block):
                        engine = None
                        engine = make_engine(
                            config, model, group, methods, len(block), totals.backend
                        )
                    answer(config, model, group, block, methods, cells, engine, totals, sharing)
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
            methods = [replace(m) for m in methods]  # type: ignore[type-var]  # without their memory
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            many = f"{len(block)} samples x {len(methods)} methods"
            if len(block) == 1:
                reason = (
                    f"out of memory at {group.length} tokens with {many}; run fewer methods at "
                    "once, or lower length="
                )
                for cell in cells:
                    cell.fail(reason)
                totals.failed.append(f"{place}: {reason}")
                progress.note(f"failed {place}: {reason}")
                return size
            size = (len(block) + 1) // 2
            progress.note(f"{place}: out of memory with {many}; goes on with blocks of {size}")
        for cell in cells:
            cell.finish()
    return size


def answer(
    config: RunConfig,
    model: Model,
    group: Group,
    block: range,
    methods: list[Method],
    cells: list[Cell],
    engine: Engine,
    totals: Totals,
    sharing: bool,
) -> None:
    """Answer a block and store what was answered."""
    requests = [group.requests[i] for i in block]
    keep_all = partial(keep, config, model, group, block, methods, engine.resident, cells)
    answers = engine.run(requests, config.checkpoint if long(config, requests) else 0, keep_all)
    totals.repeat_mismatch += differing(model, group, block, cells, answers)
    keep_all(answers)
    count(answers, totals)
    on_cpu = model.geometry.device.type == "cpu"  # a card: `macbench bench decode`
    if sharing and not totals.sharing and len(methods) > 1 and on_cpu:
        totals.sharing = engine.sharing(requests)


def long(config: RunConfig, requests: Sequence[Request]) -> bool:
    """Whether a block's answers are saved while they are written."""
    return 0 < config.checkpoint < max(r.max_new for r in requests)


def cut_off(config: RunConfig, group: Group, block: range, cells: list[Cell]) -> bool:
    """Whether a block's answers were saved and not finished."""
    if not long(config, [group.requests[i] for i in block]):
        return False
    return any(group.samples[i].index in cell.partial for i in block for cell in cells)


def check_prompts(group: Group, cell: Cell) -> None:
    """Refuse to go on with a cell that answered other prompts: data may have come since."""
    for sample, asked in zip(group.samples, group.requests, strict=True):
        row = cell.rows.get(sample.index)
        if row is not None and row["prompt_sha"] != prompt_sha(asked):
            raise MacbenchError(
                f"{cell.path} answered another prompt than sample {sample.id} has now, so the "
                "task's data have changed; choose another out= or move that folder away."
            )


def out_of_memory(error: BaseException | None) -> bool:
    """Whether that is what is behind an error, as torch, Triton or a CUDA library says it."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if any(words in str(error).lower() for words in OUT_OF_MEMORY):
            return True
        error = error.__context__  # a graph that cannot be ended hides why
    return False


def make_engine(
    config: RunConfig,
    model: Model,
    group: Group,
    methods: Sequence[Method],
    slots: int,
    backend: str,
    made: int = 0,
) -> Engine:
    """made: tokens of an answer that its request's prompt holds already, at most."""
    return Engine(
        model,
        methods,
        slots=slots,
        max_prompt=max(len(r.tokens) for r in group.requests),
        max_new=max(r.max_new for r in group.requests),
        max_hold=max(r.hold for r in group.requests),
        decoding=Decoding(**decoding(config, group.task)),
        backend=backend,
        max_made=made,
        audit=config.audit,
    )


def go_on(
    config: RunConfig,
    model: Model,
    group: Group,
    block: range,
    method: Method,
    cell: Cell,
    totals: Totals,
) -> None:
    """The answers of a block that a cell lacks, each from where it was last saved."""
    left = [i for i in block if group.samples[i].index not in cell.rows]
    if not left:
        return
    before = [
        loaded(cell.partial.get(group.samples[i].index), prompt_sha(group.requests[i]))
        for i in left
    ]
    requests = [rest(group.requests[i], b) for i, b in zip(left, before, strict=True)]
    made = max(r.made for r in requests)
    engine = make_engine(config, model, group, [method], len(left), totals.backend, made)

    def keep_whole(answers: list[list[Answer]]) -> None:
        whole = [join(b, a) for b, a in zip(before, answers[0], strict=True)]
        keep(config, model, group, left, [method], engine.resident, [cell], [whole])

    answers = engine.run(requests, config.checkpoint, keep_whole)
    count(answers, totals)
    keep_whole(answers)


def differing(
    model: Model,
    group: Group,
    block: Sequence[int],
    cells: Sequence[Cell],
    answers: list[list[Answer]],
) -> int:
    """How many decoded answers differ from what is stored of them."""
    found = 0
    for cell, said in zip(cells, answers, strict=True):
        for i, answer in zip(block, said, strict=True):
            sample = group.samples[i]
            old = cell.rows.get(sample.index)
            if old is not None:
                before = old["extra"].get("first", old)["output"]
                found += before != written(model, sample, answer)
    return found


def count(answers: list[list[Answer]], totals: Totals) -> None:
    """Add a decoded block to the totals."""
    totals.steps += sum(answer.reads["steps"] for said in answers for answer in said)
    totals.prefill_s += sum(a.prefill_s for a in answers[0])
    totals.decode_s += answers[0][0].decode_s


def keep(
    config: RunConfig,
    model: Model,
    group: Group,
    block: Sequence[int],
    methods: Sequence[Method],
    resident: Sequence[int],
    cells: Sequence[Cell],
    answers: list[list[Answer]],
) -> None:
    """Score and append the rows that are missing; what still grows is saved as far as it is."""
    for m, cell in enumerate(cells):
        growing = []
        lacking = [i for i in block if group.samples[i].index not in cell.rows]
        ended = {i: a for i, a in zip(block, answers[m], strict=True) if i in lacking and a.stopped}
        second = ask_again(config, model, group, methods[m], ended)
        for slot, i in enumerate(block):
            sample, answer = group.samples[i], answers[m][slot]
            if i not in lacking:
                continue
            if not answer.stopped:
                growing.append(saved(sample.index, prompt_sha(group.requests[i]), answer))
                continue
            row = make_row(config, model, group, i, methods[m], resident[m], slot, answer)
            row |= second.get(i, {})
            cell.append(row, {"index": sample.index, "id": sample.id, **answer.reads})
        cell.save_partial(growing)


def ask_again(
    config: RunConfig, model: Model, group: Group, method: Method, ended: dict[int, Answer]
) -> dict[int, dict[str, Any]]:
    """What the second answers change in the rows of a task that asks twice (`follow_up`).

    What a row has read is that of its first answer, over the long prompt.
    """
    if not hasattr(group.task, "follow_up"):
        return {}
    said = {i: written(model, group.samples[i], answer) for i, answer in ended.items()}
    asked = {i: group.task.follow_up(group.samples[i], said[i]) for i in ended}
    asked = {i: sample for i, sample in asked.items() if sample is not None}
    if not asked:
        return {}
    samples, name = [*asked.values()], f"{group.task_name}/second"
    requests = [request(config, model, name, sample) for sample in samples]
    small = replace(group, samples=samples, requests=requests)
    engine = make_engine(config, model, small, [replace(method)], len(samples), config.backend)  # type: ignore[type-var]
    rows = {}
    for (i, sample), answer in zip(asked.items(), engine.run(requests)[0], strict=True):
        output, first = written(model, sample, answer), ended[i]
        score = group.task.score(sample, output)
        about = {"output": said[i], "new_tokens": len(first.tokens), "stopped": first.stopped}
        rows[i] = {
            "output": output,
            "new_tokens": len(answer.tokens),
            "stopped": answer.stopped,
            "score": score.value,
            "details": score.details,
            "extra": {**sample.extra, "first": about},
            "time": {
                "prefill_s": first.prefill_s + answer.prefill_s,
                "begin_s": first.begin_s,
                "decode_s": first.decode_s + answer.decode_s,
            },
        }
    return rows


def record_run(config: RunConfig, totals: Totals, began: float) -> None:
    """Append what this invocation did to OUT/runs.jsonl: times, sharing, memory, failures."""
    line = {
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "wall_s": round(time.time() - began, 2),
        "peak_bytes": peak_memory(),
        **asdict(totals),
    }
    with Path(config.out, "runs.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def peak_memory() -> int:
    """Bytes: of the GPU where one was used, else of the process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
