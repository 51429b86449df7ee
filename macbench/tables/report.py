"""The tables of a results folder, as text, markdown, LaTeX or CSV."""

from __future__ import annotations

import io
import re
import shutil
import sys
from typing import Any

import pandas as pd

from macbench.errors import MacbenchError, nearest
from macbench.measure.budget import Budgets
from macbench.measure.stats import Interval
from macbench.store import Results
from macbench.tables.blocks import Block, Grid, summarise


def table(results: Results, format: str = "text") -> str:
    """The results as text (rich where stdout is a terminal), md, csv (tidy, fractions) or latex."""
    blocks = summarise(results)
    return _csv(blocks) if format == "csv" else render(blocks, format)


def render(blocks: list[Block], format: str) -> str:
    """Blocks as text, md or latex."""
    draw = {"text": _text, "md": _markdown, "latex": _latex}
    if format not in draw:
        raise MacbenchError(f"table format '{format}': {nearest(format, ['csv', *draw])}")
    return "\n\n".join(draw[format](block) for block in blocks) + "\n"


def _main_grid(block: Block) -> Grid:
    header = ["method", "n", "accuracy", "vs full", "p", "p Holm", "same"]
    header += ["head", "token", "byte", "resident", "asked", "acceptance"]
    grid = [header]
    for line in block.lines:
        v, b = line.versus, line.budgets
        shares = [b.head, b.token, b.byte, b.resident] if b else [None] * 4
        grid.append(
            [
                f"{line.label} ({', '.join(line.marks)})" if line.marks else line.label,
                str(line.n),
                plus_minus(line.accuracy),
                bracket(v.difference) if v else "-",
                p_value(v.p if v else None),
                p_value(line.holm),
                percent(line.same),
                *map(percent, shares),
                line.asked or "-",
                percent(line.acceptance),
            ]
        )
    return drop_empty(grid)


def _task_grid(block: Block) -> Grid:
    names = sorted({task for line in block.lines for task in line.tasks})
    marked = {task: " (embedded)" if task in block.embedded else "" for task in names}
    grid = [["accuracy", *(task.rpartition("/")[2] + marked[task] for task in names)]]
    for line in block.lines:
        accuracies = [line.tasks[task].accuracy if task in line.tasks else None for task in names]
        grid.append([line.label, *map(plus_minus, accuracies)])
    return grid


def _parts_grid(block: Block) -> Grid:
    """The family's own figures: shares in %, counts as they are."""
    labels = list(dict.fromkeys(label for line in block.lines for label, _, _ in line.parts))
    grid = [["breakdown, %", *labels]]
    for line in block.lines:
        values = {label: value for label, value, _ in line.parts}
        found = [values.get(label) for label in labels]
        grid.append([line.label, *(str(v) if isinstance(v, int) else percent(v) for v in found)])
    return drop_empty(grid)


def _drift_grid(block: Block) -> Grid:
    grid = [["audit", "n", "error, %", "agreement, %", "ln p - full's"]]
    for line in block.lines:
        if d := line.drift:
            loglik = "-" if d.loglik is None else f"{d.loglik:+.4f}"
            grid.append([line.label, str(d.n), percent(d.error), percent(d.agreement), loglik])
    return grid


def drop_empty(grid: Grid) -> Grid:
    """Without the columns that say nothing in any row."""
    kept = [i for i in range(len(grid[0])) if any(row[i] != "-" for row in grid[1:])]
    return [[row[i] for i in kept] for row in grid]


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def plus_minus(value: Interval | None) -> str:
    return "-" if value is None else f"{100 * value.mean:.1f} +- {100 * value.half_width:.1f}"


def bracket(value: Interval) -> str:
    mean, low, high = (f"{100 * x + 0.0:+.1f}" for x in (value.mean, value.low, value.high))
    return f"{mean} [{low}, {high}]"


def p_value(p: float | None) -> str:
    return "-" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _grids(block: Block) -> list[Grid]:
    if block.grids is not None:
        return block.grids
    tasks, parts = _task_grid(block), _parts_grid(block)
    more = [tasks] if len(tasks[0]) > 2 else []
    drift = _drift_grid(block)
    more += [parts] if len(parts[0]) > 1 else []
    return [_main_grid(block), *more, *([drift] if len(drift) > 1 else [])]


def _text(block: Block) -> str:
    """Plain, or in colours and within the width of the terminal where stdout is one."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else 10_000
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width)
    console.print(Text(block.title, style="bold"), "\n")
    for header, *rows in (part for grid in _grids(block) for part in _fit(grid, width)):
        drawn = Table(box=box.SIMPLE, show_edge=False)
        for i, name in enumerate(header):
            drawn.add_column(Text(name), justify="right" if i else "left", no_wrap=i > 0)
        for row in rows:
            drawn.add_row(*map(Text, row))
        console.print(drawn, "\n")
    for note in block.notes:
        console.print(Text(note, style="dim"))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _fit(grid: Grid, width: int) -> list[Grid]:
    """The grid in parts that fit the width, each with the first column: nothing is clipped."""
    size = [max(len(row[i]) for row in grid) + 3 for i in range(len(grid[0]))]
    parts, room = [[0]], width - size[0]
    for i in range(1, len(size)):
        if size[i] > room and len(parts[-1]) > 1:
            parts, room = [*parts, [0]], width - size[0]
        parts[-1].append(i)
        room -= size[i]
    return [[[row[i] for i in part] for row in grid] for part in parts]


def _markdown(block: Block) -> str:
    parts = [f"**{block.title}**"]
    for header, *rows in _grids(block):
        rule = ["---"] + ["---:"] * (len(header) - 1)
        cells = [[cell.replace("|", r"\|") for cell in row] for row in (header, rule, *rows)]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in cells))
    parts.append("\n".join(f"- {note}" for note in block.notes))
    return "\n\n".join(parts).replace("+-", "±")


def _latex(block: Block) -> str:
    """booktabs tables; the title and the notes are comments of the source."""
    parts = [f"% {block.title}"]
    for grid in _grids(block):
        header, *rows = (" & ".join(map(_tex, row)) + r" \\" for row in grid)
        parts += [
            rf"\begin{{tabular}}{{l{'r' * (len(grid[0]) - 1)}}}",
            r"\toprule",
            header,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    return "\n".join([*parts, *(f"% {note}" for note in block.notes)])


def _tex(cell: str) -> str:
    for special in "&%_#$":
        cell = cell.replace(special, "\\" + special)
    cell = cell.replace("+-", r"$\pm$").replace("<", "$<$").replace("~", r"$\sim$")
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", cell)  # a minus, not a hyphen


def _csv(blocks: list[Block]) -> str:
    """One row per method and task, and one with task=all: means over tasks, and tests."""
    rows: list[dict[str, Any]] = []
    for block in blocks:
        for line in block.lines:
            fixed = {
                **block.about,
                "method": line.label,
                "marks": "; ".join(line.marks),
                "asked": line.asked,
                "radius": line.radius,
            }
            source = "embedded" if block.embedded else ""
            pooled: dict[str, Any] = {"task": "all", "source": source, "n": line.n}
            if line.accuracy:
                pooled |= ends("accuracy", line.accuracy)
            if v := line.versus:
                pooled |= ends("difference", v.difference)
                pooled |= {"p": v.p, "p_holm": line.holm, "test": v.test, "pairs": v.n}
                pooled |= {"worse": v.worse, "better": v.better, "same": line.same}
            if line.budgets:
                pooled |= shares(line.budgets)
            pooled["acceptance"] = line.acceptance
            if d := line.drift:
                pooled |= {"error": d.error, "agreement": d.agreement, "loglik": d.loglik}
            pooled["noise_floor"] = block.noise[0] if block.noise else None
            rows.append(fixed | pooled)
            for task, of in line.tasks.items():
                source = "embedded" if task in block.embedded else ""
                own = {"task": task, "source": source, "n": of.n, "acceptance": of.acceptance}
                rows.append(fixed | own | ends("accuracy", of.accuracy) | shares(of.budgets))
            for label, value, n in line.parts:
                rows.append(fixed | {"task": "all", "figure": label, "value": value, "n": n})
    return pd.DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\n")


def shares(b: Budgets) -> dict[str, float | None]:
    return {
        "head_budget": b.head,
        "token_budget": b.token,
        "byte_budget": b.byte,
        "resident": b.resident,
    }


def ends(name: str, value: Interval) -> dict[str, float]:
    return {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
