"""Methods at matched byte budgets: a table per benchmark and length, a row per method, a column per
budget that was asked for.

Two questions are answered of every cell, both paired with full attention, or with another row
(`--against`), on the same samples: is it different (the tests of `macbench.measure.stats`, Holm
over the table), and is it not worse by more than a margin fixed beforehand (the lower end of the
one-sided 95 % interval of the difference lies above -margin). No difference found is not the
second: a table says neither where samples are few. A cell stands in the column of what was asked,
whatever it read; where that is not what was asked, or where it answered fewer samples than others
did, the cell says so.
"""

from __future__ import annotations

from math import inf
from typing import Any

import pandas as pd

from macbench.errors import MacbenchError, nearest
from macbench.measure.stats import samples_to_exclude, samples_to_see
from macbench.store import Results
from macbench.tables.blocks import FULL, Block, Grid, better, fewer, summarise
from macbench.tables.line import Line, different
from macbench.tables.report import bracket, drop_empty, ends, p_value, percent, plus_minus, render

MARGINS = {"ruler": 0.01, "longbench_v2": 0.02}  # of a difference that would matter
MARGIN = 0.03  # elsewhere
POINT = 0.01
OFF = 0.05  # of the budget asked for, relative: no longer matched
KEPT = (  # notes of a block that hold for its comparison, too
    *("noise floor:", "control:", "failed:", "resumed:", "left out:", "versions:"),
    *("calibrated elsewhere:", "seeds:", "never acted:", "not finished:"),
)
SET = "no budget asked"  # the column of what ran as its knobs were set: full, MAC with a tau


def table(
    results: Results,
    format: str = "text",
    margin: float | None = None,
    bandwidth: float | None = None,
    against: str = FULL,
) -> str:
    """The comparison as text, md, latex or csv (tidy, fractions).

    margin: share of the scale, None: the family's. bandwidth: bytes per second at which a step
    reads; with it a method's own prefill seconds become tokens after which they are paid back.
    against: the label of the method that the others are tested against.
    """
    if margin is not None and not 0 < margin < 1:
        raise MacbenchError(f"--margin {100 * margin:g}: give points between 0 and 100.")
    if bandwidth is not None and not 0 < bandwidth < inf:
        raise MacbenchError(f"--bandwidth {bandwidth / 1e9:g}: give GB/s above 0.")
    blocks = summarise(results, against)
    labels = [*dict.fromkeys(line.label for block in blocks for line in block.lines)]
    if against not in {FULL, *labels}:
        raise MacbenchError(f"--against '{against}' is no row here: {nearest(against, labels)}")
    margins = [margin or MARGINS.get(block.family, MARGIN) for block in blocks]
    if format == "csv":
        rows = [
            row
            for block, own in zip(blocks, margins, strict=True)
            for row in _rows(block, own, bandwidth)
        ]
        return pd.DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\n")
    for block, own in zip(blocks, margins, strict=True):
        block.grids = [_table(block, own), _tests(block), _power(block, own)]
        block.grids += [_budgets(block), _costs(block, bandwidth)]
        block.grids = [grid for grid in block.grids if len(grid) > 1]
        block.notes = _notes(block, own, bandwidth)
    return render(blocks, format)


def not_worse(line: Line, margin: float) -> bool:
    """Whether it is shown that the method loses no more than `margin` against the other."""
    return line.versus is not None and line.versus.least > -margin


def matched(line: Line) -> bool | None:
    """Whether it reads what was asked; None where nothing was, and at a method's floor."""
    asked, read = line.plan.asked, line.budgets.byte if line.budgets else None
    if asked is None or read is None or line.plan.floor is not None:
        return None
    return abs(read - asked) <= OFF * asked


def pays_after(line: Line, bandwidth: float | None) -> float | None:
    """Generated tokens whose saved reads take as long as the method's own work on the prompt did;
    infinite where more is read, None of full attention and where it was not measured."""
    plan, budgets = line.plan, line.budgets
    if bandwidth is None or plan.begin_s is None or budgets is None or budgets.byte in (None, 1):
        return None
    assert budgets.byte is not None
    saved = (1 - budgets.byte) * plan.step_bytes / bandwidth
    return plan.begin_s / saved if saved > 0 else float("inf")


def _table(block: Block, margin: float) -> Grid:
    """Rows are methods, columns budgets asked for. What ran at its floor answers for every budget
    below it."""
    asked = [line.plan.asked for line in block.lines]
    columns = [None] * (None in asked) + sorted({share for share in asked if share is not None})
    header = ["score", *(SET if share is None else f"{100 * share:g} %" for share in columns)]
    cells = [_cell(line, block, margin) for line in block.lines]
    rows: dict[str, dict[float | None, str]] = {}
    for line, cell in zip(block.lines, cells, strict=True):
        mine = rows.setdefault(line.plan.row + (" (control)" if line.control else ""), {})
        share = line.plan.asked
        mine[share] = f"{mine[share]}; {cell}" if share in mine else cell
    for line, cell in zip(block.lines, cells, strict=True):
        if line.plan.floor is not None:
            mine = rows[line.plan.row + (" (control)" if line.control else "")]
            for share in columns:
                if share is not None and share < line.plan.floor:
                    mine.setdefault(share, cell)
    return [header, *([name, *(own.get(c, "-") for c in columns)] for name, own in rows.items())]


def _cell(line: Line, block: Block, margin: float) -> str:
    """Such as "61.2 +- 4.0 at 20.3 %, n", and "9 of 13 tasks (83.7)" where it answered fewer."""
    if line.accuracy is None:
        return "failed" if any(mark.startswith("failed") for mark in line.marks) else "no sample"
    read = line.budgets.byte if line.budgets else None
    sign = "min " if line.plan.floor is not None else "~" if matched(line) is False else ""
    marks = "n" * not_worse(line, margin) + "d" * different(line) + "!" * better(line, block)
    some, v = fewer(line, block), line.versus
    if some and v and v.n == line.n:
        some += f" ({100 * v.full:.1f})"
    parts = [plus_minus(line.accuracy) + ("" if read is None else f" at {sign}{100 * read:.1f} %")]
    return ", ".join([*parts, *filter(None, [marks, some])])


def _tests(block: Block) -> Grid:
    grid = [
        [f"vs {block.against}", "n", "difference", "at least", "worse", "better", "p", "p Holm"]
    ]
    for line in block.lines:
        if v := line.versus:
            least = f"{100 * v.least:+.1f}"
            counts = [str(v.worse), str(v.better), p_value(v.p), p_value(line.holm)]
            grid.append([line.label, str(v.n), bracket(v.difference), least, *counts])
    return grid


def _power(block: Block, margin: float) -> Grid:
    grid = [["samples", "n", "changed, %", "n for 1 point", f"n for margin {100 * margin:g}"]]
    for line in block.lines:
        if v := line.versus:
            sizes = ["-" if n is None else str(n) for n in _sizes(v.discordance, margin)]
            grid.append([line.label, str(v.n), percent(v.discordance), *sizes])
    return grid


def _sizes(discordance: float, margin: float) -> tuple[int | None, int | None]:
    """Samples for a point and for the margin; none where nothing changed, so nothing is known."""
    if discordance == 0:
        return None, None
    return samples_to_see(POINT, discordance), samples_to_exclude(margin, discordance)


def _budgets(block: Block) -> Grid:
    grid = [["budget", "asked, %", "planned, %", "read, %", "p10, p50, p90", "held, %"]]
    for line in block.lines:
        plan = line.plan
        if b := line.budgets:
            spread = ", ".join(f"{100 * x:.1f}" for x in plan.spread) if plan.spread else "-"
            asked, planned, read = map(percent, (plan.asked, plan.planned, b.byte))
            grid.append([line.label, asked, planned, read, spread, percent(b.resident)])
    return drop_empty(grid)


def _costs(block: Block, bandwidth: float | None) -> Grid:
    grid = [["cost", "own prefill, s", "of prefill, %", "pays after tokens"]]
    for line in block.lines:
        own, after = line.plan.begin_s, pays_after(line, bandwidth)
        if own is None:
            continue
        share = own / line.plan.prefill_s if line.plan.prefill_s else None
        told = "-" if after is None else "never" if after == float("inf") else f"{after:.0f}"
        grid.append([line.label, f"{round(own, 3):g}", percent(share), told])
    return drop_empty(grid) if len(grid) > 1 else grid


def _notes(block: Block, margin: float, bandwidth: float | None) -> list[str]:
    lines = block.lines
    other = "full attention" if block.against == FULL else block.against
    notes = [
        "score: mean over tasks, % +- half of its 95 % interval, at the bytes it read, % of full "
        "attention's, metadata included; columns: the budget asked for (of tokens, where that is "
        "the knob)."
    ]
    if any(line.plan.floor is not None for line in lines):
        notes.append(
            "min: it ran at its floor, the least that it plans for a prompt, which is above what "
            "was asked."
        )
    if any(line.n and fewer(line, block) for line in lines):
        notes.append(
            "k of n: so many samples, or tasks, were answered, of those of the row that has most; "
            f"in brackets what {block.against} has on the same."
        )
    if off := [line for line in lines if matched(line) is False]:
        tuned = [line.plan.calibration for line in off if line.plan.calibration]
        if len(tuned) < len(off):
            mend = "macbench calibrate finds the knob that reads what is asked"
        elif all(abs(found["checked"] / found["budget"] - 1) <= OFF for found in tuned):
            mend = "these samples are not like those that it was calibrated on"
        else:
            mend = "calibration came no nearer"
        notes.append(
            f"~: what was read is more than {100 * OFF:g} % of it off what was asked, so compare "
            f"it by what was read; {mend}."
        )
    if any(line.versus for line in lines):
        points = f"{100 * margin:g} point{'' if margin == POINT else 's'}"
        notes += [
            f"n: not worse than {other} by more than {points} (one-sided 95 % of the paired "
            f"difference, each cell by itself). d: different from {other} (McNemar or "
            "sign-flip by clusters, p after Holm over this table < 0.05). Without a mark the "
            "samples do not tell; that is not equality.",
            "at least: lower end of that one-sided interval. worse, better: samples.",
            "changed: samples whose score changed, of graded scores the mean square change; it is "
            "taken as it was seen here. n for 1 point: samples with which a difference of a point "
            "would be found (80 % power, two-sided 5 %). n for margin: samples with which a "
            f"method as good as {other} would get its n (80 % power).",
        ]
    elif any(line.n for line in lines if line.label == block.against):
        notes.append(f"no other row has a sample that {other} answered, too, so no tests.")
    else:
        notes.append(
            f"no sample of {other} here to pair with, so no tests; run it with the same options "
            "into this folder."
        )
    if any(line.plan.planned is not None or line.plan.spread for line in lines):
        notes.append(
            "planned: what the method's integers give at the prompts' lengths; read: over the "
            "whole decode, rows growing; p10, p50, p90: percentiles of the samples' own shares."
        )
    if any(line.plan.begin_s is not None for line in lines):
        after = (
            f"; pays after: tokens whose saved reads at {bandwidth / 1e9:g} GB/s take as long"
            if bandwidth
            else "; with --bandwidth GB/s also the tokens after which that is paid back"
        )
        where = "on the machine that ran it"
        notes.append(f"own prefill: seconds a method worked on a prompt, median, {where}{after}.")
    for line in lines:
        if marks := ", ".join(mark for mark in line.marks if mark != "control"):
            notes.append(f"mind {line.label}: {marks}.")
    if flagged := [line.label for line in lines if better(line, block)]:
        notes.append(f"! {', '.join(flagged)}: better than full attention; look for a bug first.")
    return [*notes, *(note for note in block.notes if note.startswith(KEPT))]


def _rows(block: Block, margin: float, bandwidth: float | None) -> list[dict[str, Any]]:
    """A tidy row per line of the block."""
    rows = []
    for line in block.lines:
        plan, v, b = line.plan, line.versus, line.budgets
        row: dict[str, Any] = {
            **block.about,
            "benchmark": block.family,
            "method": plan.row,
            "label": line.label,
            "marks": "; ".join(line.marks),
            "asked": plan.asked,
            "floor": plan.floor,
            "planned": plan.planned,
            "n": line.n,
            "against": block.against,
        }
        if b:
            row |= {"byte_budget": b.byte, "token_budget": b.token, "resident": b.resident}
            row |= {"matched": matched(line)}
        if plan.spread:
            row |= dict(zip(("byte_p10", "byte_p50", "byte_p90"), plan.spread, strict=True))
        if line.accuracy:
            row |= ends("score", line.accuracy)
        if v:
            seen, shown = _sizes(v.discordance, margin)
            row |= ends("difference", v.difference)
            row |= {"difference_least": v.least, "margin": margin}
            row |= {"not_worse": not_worse(line, margin), "different": different(line)}
            row |= {
                "better": better(line, block),
                "p": v.p,
                "p_holm": line.holm,
                "test": v.test,
            }
            row |= {"lost": v.worse, "won": v.better, "pairs": v.n, "changed": v.discordance}
            row |= {"n_for_a_point": seen, "n_for_the_margin": shown}
        row |= {"own_prefill_s": plan.begin_s, "prefill_s": plan.prefill_s}
        row |= {"pays_after": pays_after(line, bandwidth)}
        rows.append(row)
    return rows
