"""What there is to run: `macbench list`."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from textwrap import fill
from typing import TYPE_CHECKING, Any

from macbench import presets
from macbench.checks import show

if TYPE_CHECKING:
    from macbench.attention import Geometry

Row = dict[str, Any]
LENGTH = 8192  # at which the least budget of a method is told, of the embedded model
SIZES = (30, 9, 3, 64)  # its layers, query heads, KV heads and head dimension
LEAST = 1e-9  # a budget below every floor


def models() -> list[Row]:
    found = {name: presets.read("model", name) for name in presets.models()}
    return [{**model, "name": name, "about": _about(model)} for name, model in found.items()]


def _about(model: Row) -> str:
    if model["init"] == "random":
        return f"random weights, configuration {model['source']}: for `macbench bench` only"
    adapter = model.get("adapter")
    return model["source"] + (f", adapter {adapter}" if adapter else "")


def tasks() -> list[Row]:
    from macbench import tasks

    return [{"name": name, "about": ""} for name in tasks.names()]


def methods() -> list[Row]:
    """Every method and variant; knobs hold the defaults, of a variant only what differs.

    paper: arXiv number, None for controls without one. least: the smallest byte budget it can
    reach at LENGTH tokens of the embedded model, None where only data could tell.
    """
    from macbench.config import method_class

    rows = []
    for name, variants in presets.methods().items():
        found = method_class(name)
        about = (sys.modules[found.__module__].__doc__ or "").strip()
        paper = re.search(r"arXiv (\d{4}\.\d{5})", about)
        common = {
            "about": " ".join(about.split("\n\n")[0].split()),
            "control": found.control,
            "paper": paper[1] if paper else None,
        }
        for each in [name, *(f"{name}/{variant}" for variant in variants)]:
            knobs = presets.read("method", each)
            least = least_budget(name, {**presets.read("method", name), **knobs})
            rows.append({"name": each, **common, "least": least, "knobs": knobs})
    return rows


def least_budget(name: str, knobs: Row) -> float | None:
    from macbench.attention import METHODS, create

    known = {field.name for field in fields(METHODS[name])}  # type: ignore[arg-type]
    method = create(name, {**knobs, **dict.fromkeys({"budget", "tokens"} & known, LEAST)})
    floor = method.floor(shape(), LENGTH)
    return method.predicted(shape(), LENGTH, LENGTH) if floor is None else floor


def shape() -> Geometry:
    """The embedded model's, with a cache of 2 bytes a number."""
    import torch

    from macbench.attention import Geometry

    return Geometry(*SIZES, 1.0, torch.device("cpu"), torch.bfloat16, lambda x, _: x)


def text(rows: list[Row]) -> str:
    """For reading: a line per row; of methods a block per method."""
    if "least" not in rows[0]:
        width = max(len(row["name"]) for row in rows)
        return "\n".join(f"{row['name']:{width}}  {row['about']}".rstrip() for row in rows)
    blocks = [
        f"Smallest byte budgets: at {LENGTH // 1024}K tokens of smollm2, with a cache of 2 bytes a "
        "number."
    ]
    for row in rows:
        family, _, variant = row["name"].partition("/")
        least = "as data decide" if row["least"] is None else f"{100 * row['least']:.3g} %"
        knobs = " ".join(f"{family}.{knob}={show(value)}" for knob, value in row["knobs"].items())
        if variant:
            blocks[-1] += f"\n  {row['name']} ({least}): {knobs}"
            continue
        paper = f"arXiv {row['paper']}" if row["paper"] else "no paper"
        parts = [row["about"], f"{paper}; smallest byte budget: {least}", knobs]
        blocks.append("\n  ".join([family, *(fill(p, 98, subsequent_indent="  ") for p in parts)]))
    return "\n\n".join(blocks)
