"""Methods at matched byte budgets: a table per benchmark and length, a row per method, a column per
budget that was asked for.

Two questions are answered of every cell, both paired with full attention on the same samples: is it
different (the tests of `macbench.measure.stats`, Holm over the table), and is it not worse by more
than a margin fixed beforehand (the lower end of the one-sided 95 % interval of the difference lies
above -margin). No difference found is not the second: a table says neither where samples are few.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from macbench.blocks import Block, Grid, Line, summarise
from macbench.errors import MacbenchError
from macbench.measure.stats import samples_to_exclude, samples_to_see
from macbench.report import bracket, drop_empty, ends, p_value, percent, plus_minus, render
from macbench.store import Results

MARGINS = {"ruler": 0.01, "longbench_v2": 0.02}  # of a difference that would matter
MARGIN = 0.03  # elsewhere
LEVEL = 0.05
POINT = 0.01
SET = "no budget asked"  # the column of what ran as its knobs were set: full, MAC with a tau


def table(
    results: Results,
    format: str = "text",
    margin: float | None = None,
    bandwidth: float | None = None,
) -> str:
    """The comparison as text, md, latex or csv (tidy, fractions).

    margin: share of the scale, None: the family's. bandwidth: bytes per second at which a step
    reads; with it a method's own prefill seconds become tokens after which they are paid back.
    """
    if margin is not None and not 0 < margin < 1:
        raise MacbenchError(f"--margin {100 * margin:g}: give points between 0 and 100.")
    if bandwidth is not None and bandwidth <= 0:
        raise MacbenchError(f"--bandwidth {bandwidth / 1e9:g}: give GB/s above 0.")
    blocks = summarise(results)
    margins = [margin or MARGINS.get(block.family, MARGIN) for block in blocks]
    if format == "csv":
        rows = [
            row
            for block, own in zip(blocks, margins, strict=True)
            for row in _rows(block, own, bandwidth)
        ]
        return pd.DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\n")
    for block, own in zip(blocks, margins, strict=True):
        block.grids = [_table(block, own), _tests(block, own), _costs(block, bandwidth)]
        block.grids = [grid for grid in block.grids if len(grid) > 1]
        block.notes = _notes(block, own, bandwidth)
    return render(blocks, format)


def not_worse(line: Line, margin: float) -> bool:
    """Whether it is shown that the method loses no more than `margin` against full attention."""
    return line.versus is not None and line.versus.least > -margin


def different(line: Line) -> bool:
    """Whether the method differs from full attention, over the whole table."""
    return line.holm is not None and line.holm < LEVEL


def better(line: Line) -> bool:
    """Significantly above full attention, which a method that reads less should not be."""
    return different(line) and line.versus is not None and line.versus.difference.mean > 0


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
    """Rows are methods, columns budgets asked for."""
    asked = [line.plan.asked for line in block.lines]
    columns = [None] * (None in asked) + sorted({share for share in asked if share is not None})
    header = ["score", *(SET if share is None else f"{100 * share:g} %" for share in columns)]
    rows: dict[str, dict[float | None, str]] = {}
    for line in block.lines:
        mine = rows.setdefault(line.plan.row + (" (control)" if line.control else ""), {})
        cell = _cell(line, margin)
        share = line.plan.asked
        mine[share] = f"{mine[share]}; {cell}" if share in mine else cell
    return [header, *([name, *(own.get(c, "-") for c in columns)] for name, own in rows.items())]


def _cell(line: Line, margin: float) -> str:
    """Such as "61.2 +- 4.0 at 20.3 %, n"."""
    if line.accuracy is None:
        return "failed"
    score = plus_minus(line.accuracy)
    read = line.budgets.byte if line.budgets else None
    least = "min " if line.plan.floor is not None else ""
    at = "" if read is None else f" at {least}{100 * read:.1f} %"
    marks = "n" * not_worse(line, margin) + "d" * different(line) + "!" * better(line)
    return score + at + (f", {marks}" if marks else "")


def _tests(block: Block, margin: float) -> Grid:
    header = ["vs full", "n", "difference", "at least", "worse", "better", "p", "p Holm"]
    header += ["changed, %", "n for 1 point", f"n for margin {100 * margin:g}"]
    grid = [header]
    for line in block.lines:
        if v := line.versus:
            counts = [str(v.worse), str(v.better), p_value(v.p), p_value(line.holm)]
            seen, shown = _sizes(v.discordance, margin)
            sizes = [percent(v.discordance), *("-" if n is None else str(n) for n in (seen, shown))]
            least = f"{100 * v.least:+.1f}"
            grid.append([line.label, str(v.n), bracket(v.difference), least, *counts, *sizes])
    return grid


def _sizes(discordance: float, margin: float) -> tuple[int | None, int | None]:
    """Samples for a point and for the margin; none where nothing changed, so nothing is known."""
    if discordance == 0:
        return None, None
    return samples_to_see(POINT, discordance), samples_to_exclude(margin, discordance)


def _costs(block: Block, bandwidth: float | None) -> Grid:
    header = ["cost", "asked, %", "planned, %", "read, %", "10th, 50th, 90th percentile"]
    header += ["held, %", "own prefill, s", "of prefill, %", "pays after tokens"]
    grid = [header]
    for line in block.lines:
        plan, b = line.plan, line.budgets
        if b is None:
            continue
        spread = ", ".join(f"{100 * x:.1f}" for x in plan.spread) if plan.spread else "-"
        own = plan.begin_s
        share = own / plan.prefill_s if own is not None and plan.prefill_s else None
        after = pays_after(line, bandwidth)
        row = [*map(percent, (plan.asked, plan.planned, b.byte)), spread, percent(b.resident)]
        row += ["-" if own is None else f"{own:.3g}", percent(share)]
        row += ["-" if after is None else "never" if after == float("inf") else f"{after:.0f}"]
        grid.append([line.label, *row])
    return drop_empty(grid)


def _notes(block: Block, margin: float, bandwidth: float | None) -> list[str]:
    notes = [
        "score: mean over tasks, % +- half of its 95 % interval, at the bytes it read, % of full "
        "attention's, metadata included; columns: the budget asked for (of tokens, where that is "
        "the knob). min: the method's floor, above what was asked.",
        f"n: not worse than full attention by more than {100 * margin:g} points (one-sided 95 % of "
        "the paired difference, each cell by itself). d: different from full attention (McNemar or "
        "sign-flip by clusters, p after Holm over this table < 0.05). Without a mark the samples "
        "do not tell; that is not equality.",
        "at least: lower end of that one-sided interval. changed: samples whose score changed, of "
        "graded scores the mean square change. n for 1 point: samples with which a difference of a "
        "point would be found (80 % power, two-sided 5 %), and with which an equal method would "
        "get its n.",
    ]
    if any(line.plan.planned is not None or line.plan.spread for line in block.lines):
        notes.append(
            "planned: what the method's integers give at the prompts' lengths; read: over the "
            "whole decode, rows growing; percentiles: of the samples' own shares."
        )
    if any(line.plan.begin_s is not None for line in block.lines):
        after = (
            f"; pays after: tokens whose saved reads at {bandwidth / 1e9:g} GB/s take as long"
            if bandwidth
            else "; with --bandwidth GB/s also the tokens after which that is paid back"
        )
        notes.append(f"own prefill: seconds a method works on a prompt, mean{after}.")
    flagged = [line.label for line in block.lines if better(line)]
    if flagged:
        notes.append(f"! {', '.join(flagged)}: better than full attention; look for a bug first.")
    rest = ("noise floor:", "control:", "failed:", "resumed:", "left out:", "versions:")
    return [*notes, *(note for note in block.notes if note.startswith(rest))]


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
        }
        if b:
            row |= {"byte_budget": b.byte, "token_budget": b.token, "resident": b.resident}
        if plan.spread:
            row |= dict(zip(("byte_p10", "byte_p50", "byte_p90"), plan.spread, strict=True))
        if line.accuracy:
            row |= ends("score", line.accuracy)
        if v:
            seen, shown = _sizes(v.discordance, margin)
            row |= ends("difference", v.difference)
            row |= {"difference_least": v.least, "margin": margin}
            row |= {"not_worse": not_worse(line, margin), "different": different(line)}
            row |= {"better": better(line), "p": v.p, "p_holm": line.holm, "test": v.test}
            row |= {"lost": v.worse, "won": v.better, "pairs": v.n, "changed": v.discordance}
            row |= {"n_for_a_point": seen, "n_for_the_margin": shown}
        row |= {"own_prefill_s": plan.begin_s, "prefill_s": plan.prefill_s}
        row |= {"pays_after": pays_after(line, bandwidth)}
        rows.append(row)
    return rows
