"""A block of samples: answered by all methods at once, or continued, and stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from macbench.attention import Method
from macbench.engine import Answer, Engine, Request
from macbench.run.cells import Cells
from macbench.run.groups import Group, make_engine, prompt_sha, request
from macbench.run.resume import join, loaded, rest, saved
from macbench.run.rows import make_row, written


def answer(cells: Cells, block: range, engine: Engine, sharing: bool) -> None:
    """Answer a block and store what was answered. Long answers are also saved every `checkpoint`
    steps while they grow."""
    group, totals = cells.group, cells.totals
    requests = [group.requests[i] for i in block]
    everyone = range(len(cells.methods))
    keep_all = partial(keep, cells, block, everyone, engine.resident)
    every = group.config.checkpoint if long(group, requests) else 0
    answers = engine.run(requests, every, keep_all)
    totals.repeat_mismatch += differing(cells, block, answers)
    keep_all(answers)
    totals.count(answers)
    on_cpu = group.model.geometry.device.type == "cpu"  # a card: `macbench bench decode`
    if sharing and not totals.sharing and len(cells.methods) > 1 and on_cpu:
        totals.sharing = engine.sharing(requests)


def long(group: Group, requests: Sequence[Request]) -> bool:
    """Whether a block's answers are saved while they are written."""
    return 0 < group.config.checkpoint < max(r.max_new for r in requests)


def cut_off(cells: Cells, block: range) -> bool:
    """Whether a block's answers were saved and not finished."""
    group = cells.group
    if not long(group, [group.requests[i] for i in block]):
        return False
    return any(group.samples[i].index in cell.partial for i in block for cell in cells.folders)


def go_on(cells: Cells, block: range, m: int) -> None:
    """The answers of a block that cell m lacks, each from where it was last saved."""
    group, cell = cells.group, cells.folders[m]
    left = [i for i in block if group.samples[i].index not in cell.rows]
    if not left:
        return
    before = [
        loaded(cell.partial.get(group.samples[i].index), prompt_sha(group.requests[i]))
        for i in left
    ]
    requests = [rest(group.requests[i], b) for i, b in zip(left, before, strict=True)]
    made = max(r.made for r in requests)
    engine = make_engine(group, [cells.methods[m]], len(left), made)

    def keep_whole(answers: list[list[Answer]]) -> None:
        whole = [join(b, a) for b, a in zip(before, answers[0], strict=True)]
        keep(cells, left, [m], engine.resident, [whole])

    answers = engine.run(requests, group.config.checkpoint, keep_whole)
    cells.totals.count(answers)
    keep_whole(answers)


def differing(cells: Cells, block: Sequence[int], answers: list[list[Answer]]) -> int:
    """How many decoded answers differ from what is stored of them."""
    found = 0
    for cell, said in zip(cells.folders, answers, strict=True):
        for i, answer in zip(block, said, strict=True):
            sample = cells.group.samples[i]
            old = cell.rows.get(sample.index)
            if old is not None:
                before = old["extra"].get("first", old)["output"]
                found += before != written(cells.group.model, sample, answer)
    return found


def keep(
    cells: Cells,
    block: Sequence[int],
    which: Sequence[int],
    resident: Sequence[int],
    answers: list[list[Answer]],
) -> None:
    """Score and append the rows that these cells lack; what still grows is saved as far as it is.
    resident: bytes held by each one's method."""
    group = cells.group
    for m, held, said in zip(which, resident, answers, strict=True):
        cell, method, growing = cells.folders[m], cells.methods[m], []
        lacking = [i for i in block if group.samples[i].index not in cell.rows]
        ended = {i: a for i, a in zip(block, said, strict=True) if i in lacking and a.stopped}
        second = ask_again(group, method, ended)
        for slot, i in enumerate(block):
            sample, answer = group.samples[i], said[slot]
            if i not in lacking:
                continue
            if not answer.stopped:
                growing.append(saved(sample.index, prompt_sha(group.requests[i]), answer))
                continue
            row = make_row(group, i, method, held, slot, answer)
            row |= second.get(i, {})
            cell.append(row, {"index": sample.index, "id": sample.id, **answer.reads})
        cell.save_partial(growing)


def ask_again(group: Group, method: Method, ended: dict[int, Answer]) -> dict[int, dict[str, Any]]:
    """What the second answers change in the rows of a task that asks twice (`follow_up`).

    What a row has read is that of its first answer, over the long prompt.
    """
    model = group.model
    if not hasattr(group.task, "follow_up"):
        return {}
    said = {i: written(model, group.samples[i], answer) for i, answer in ended.items()}
    asked = {i: group.task.follow_up(group.samples[i], said[i]) for i in ended}
    asked = {i: sample for i, sample in asked.items() if sample is not None}
    if not asked:
        return {}
    samples, name = [*asked.values()], f"{group.task_name}/second"
    requests = [request(group.config, model, name, sample) for sample in samples]
    small = replace(group, samples=samples, requests=requests)
    engine = make_engine(small, [replace(method)], len(samples))  # type: ignore[type-var]
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
