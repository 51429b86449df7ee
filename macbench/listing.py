"""What there is to run: `macbench list`."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from typing import Any

from macbench import presets

Row = dict[str, Any]
LENGTH = 8192  # at which the least budget of a method is told, of the embedded model
SIZES = (30, 9, 3, 64)  # its layers, query heads, KV heads and head dimension
LEAST = 1e-9  # a budget below every floor


def models() -> list[Row]:
    found = {name: presets.read("model", name) for name in presets.models()}
    return [
        {**model, "name": name, "about": f"{model['init']} of {model['source']}"}
        for name, model in found.items()
    ]


def tasks() -> list[Row]:
    from macbench import tasks

    return [{"name": name, "about": ""} for name in tasks.names()]


def methods() -> list[Row]:
    """Every method and variant; knobs hold the defaults, of a variant only what differs.

    paper: arXiv number, None for controls without one. least: the smallest byte budget it can
    reach at LENGTH tokens of the embedded model, None where only data could tell.
    """
    from macbench.attention import METHODS

    rows = []
    for name, variants in presets.methods().items():
        about = (sys.modules[METHODS[name].__module__].__doc__ or "").strip()
        paper = re.search(r"arXiv (\d{4}\.\d{5})", about)
        common = {
            "about": about.split("\n")[0],
            "control": METHODS[name].control,
            "paper": paper[1] if paper else None,
        }
        for each in [name, *(f"{name}/{variant}" for variant in variants)]:
            knobs = presets.read("method", each)
            least = least_budget(name, {**presets.read("method", name), **knobs})
            rows.append({"name": each, **common, "least": least, "knobs": knobs})
    return rows


def least_budget(name: str, knobs: Row) -> float | None:
    import torch

    from macbench.attention import METHODS, Geometry, create

    shape = Geometry(*SIZES, 1.0, torch.device("cpu"), torch.bfloat16, lambda x, _: x)
    known = {field.name for field in fields(METHODS[name])}  # type: ignore[arg-type]
    method = create(name, {**knobs, **dict.fromkeys({"budget", "tokens"} & known, LEAST)})
    floor = method.floor(shape, LENGTH)
    return method.predicted(shape, LENGTH, LENGTH) if floor is None else floor


def text(rows: list[Row]) -> str:
    """For reading: a line per row, and its knobs."""
    from macbench.checks import show

    width, lines = max(len(row["name"]) for row in rows), []
    for row in rows:
        lines.append(f"{row['name']:{width}}  {row['about']}".rstrip())
        if "least" in row:
            paper = f"arXiv {row['paper']}" if row["paper"] else "no paper"
            least = "as data decide" if row["least"] is None else _percent(row["least"])
            told = f"{paper}; smallest byte budget: {least}"
            lines.append(f"{'':{width}}  {told} ({LENGTH // 1024}K tokens of smollm2)")
        for knob, value in row.get("knobs", {}).items():
            lines.append(f"{'':{width}}    {row['name'].partition('/')[0]}.{knob}={show(value)}")
    return "\n".join(lines)


def _percent(share: float) -> str:
    return "below 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"
