"""A method in a block of results: its scores, budgets and plan, over tasks and seeds."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

import pandas as pd

from macbench import tasks as benchmarks
from macbench.measure.budget import Budgets, budgets, match_radius, mean_over_tasks
from macbench.measure.stats import Comparison, Interval, interval

LEVEL = 0.05  # of the tests, after Holm's correction
BUDGETS = ("budget=", "tokens=")  # words of a label that say what was asked for


@dataclass(frozen=True)
class Drift:
    """What an audit found; None where no step or token was audited."""

    n: int  # samples
    error: float | None  # relative L2 of attention outputs
    agreement: float | None  # share of tokens that full attention chooses, too
    loglik: float | None  # ln p - full attention's, per token


@dataclass(frozen=True)
class Plan:
    """What was asked of a method in one cell of a comparison, and what it cost to get ready."""

    row: str  # the label without the budget
    asked: float | None  # share: of bytes, of tokens where that is the knob; None: no such knob
    floor: float | None  # smallest reachable byte budget, where the method ran at it
    planned: float | None  # byte budget at the prompts' lengths, by the method's integers
    spread: tuple[float, float, float] | None  # 10th, 50th, 90th percentile of samples' budgets
    step_bytes: float  # full attention's reads of one step
    begin_s: float | None  # the method's own work on a prompt; None: not measured then
    prefill_s: float  # both medians over samples, the first of which compiles
    calibration: dict[str, Any] | None  # of `mac@FILE`: where its knobs were found


@dataclass
class OfTask:
    """A method on one task of a block."""

    n: int
    accuracy: Interval
    budgets: Budgets
    acceptance: float | None = None


@dataclass
class Line:
    """One method of a block. Shares and scores are fractions."""

    label: str
    control: bool
    marks: list[str]  # what a reader must know before trusting the numbers
    asked: str
    radius: float | None  # MAC's match radius
    n: int
    tasks: dict[str, OfTask]
    accuracy: Interval | None  # None where there is no sample
    versus: Comparison | None  # None for full itself and where there is nothing to pair with
    budgets: Budgets | None
    acceptance: float | None
    same: float | None  # share of samples whose answer is full attention's
    parts: list[tuple[str, float | int | None, int]]  # the family's own figures: of how many
    plan: Plan
    drift: Drift | None = None
    holm: float | None = None


def different(line: Line) -> bool:
    """Whether the method differs from the other, over the whole table."""
    return line.holm is not None and line.holm < LEVEL


def make_line(cells: pd.DataFrame, label: str, samples: pd.DataFrame, tasks: list[str]) -> Line:
    """Of a method's cells in a block and their samples. tasks: those of the whole block."""
    config = cells["config"].iloc[0]
    asked, radius = _asked(config)
    answered = [task for task in tasks if (samples["task"] == task).any()]
    failed = cells["failed"].notna().sum()
    marks = ["control"] if cells["control"].iloc[0] else []
    if failed:
        marks.append(f"failed: {failed} of {len(cells)} cells")
    if stopped := int((~cells["finished"] & cells["failed"].isna()).sum()):
        marks.append(f"not finished: {stopped} of {len(cells)} cells")
    if len(answered) < len(tasks):
        marks.append(f"{len(answered)} of {len(tasks)} tasks")
    if len(samples) and not samples["steps"].sum():
        marks.append("no scored step")
    elif len(samples) and not samples.loc[samples["steps"] > 0, "acted"].any():
        marks.append("never acted")
    per_task = {}
    for task in answered:
        own = samples[samples["task"] == task]
        accuracy = interval(own["score"], own["task"], own["cluster"])
        read = budgets(own, config["geometry"]["token_bytes"])
        per_task[task] = OfTask(len(own), accuracy, read)
    some = len(samples) > 0
    every: Any = samples.to_dict("records")
    return Line(
        label=label,
        control=bool(cells["control"].iloc[0]),
        marks=marks,
        asked=asked,
        radius=radius,
        n=len(samples),
        tasks=per_task,
        accuracy=(
            interval(samples["score"], samples["task"], samples["cluster"]) if some else None
        ),
        versus=None,
        budgets=mean_over_tasks([x.budgets for x in per_task.values()]) if some else None,
        acceptance=None,
        same=None,
        parts=benchmarks.breakdown(tasks[0], every) if some else [],
        plan=_plan(config, label, samples),
        drift=_drift([audit for audit in samples["audit"] if isinstance(audit, dict)]),
    )


def _plan(config: dict[str, Any], label: str, samples: pd.DataFrame) -> Plan:
    asked, token_bytes = config["asked"], config["geometry"]["token_bytes"]
    stepped = samples[samples["steps"] > 0]
    context = stepped["context_kv"].astype(float)
    read = (stepped["kv_tokens"] + stepped["meta_bytes"] / token_bytes) / context
    planned = samples.dropna(subset="planned").astype({"planned": float}).groupby("task")["planned"]
    steps = stepped.astype({"context_kv": float}).groupby("task")[["context_kv", "steps"]].sum()
    times = [time for time in samples["time"] if isinstance(time, dict)]
    begin = [time["begin_s"] for time in times if "begin_s" in time]
    return Plan(
        row=" ".join(word for word in label.split() if not word.startswith(BUDGETS)),
        asked=asked.get("budget", asked.get("tokens")),
        floor=config["floor"],
        planned=float(planned.mean().mean()) if len(planned) else None,
        spread=tuple(read.quantile([0.1, 0.5, 0.9])) if len(stepped) else None,  # type: ignore[arg-type]
        step_bytes=float((steps["context_kv"] / steps["steps"]).mean() * token_bytes)
        if len(stepped)
        else 0,
        begin_s=median(begin) if begin else None,
        prefill_s=median(time["prefill_s"] for time in times) if times else 0.0,
        calibration=config.get("calibration"),
    )


def _drift(audits: list[dict[str, Any]]) -> Drift | None:
    """Of rows' audits: errors weigh compared steps equally, the others tokens."""
    if not audits:
        return None
    stepped, spoken = ([a for a in audits if a[key]] for key in ("steps", "tokens"))
    steps, tokens = sum(a["steps"] for a in stepped), sum(a["tokens"] for a in spoken)
    return Drift(
        n=len(audits),
        error=sum(a["error"] * a["steps"] for a in stepped) / steps if steps else None,
        agreement=sum(a["agreement"] * a["tokens"] for a in spoken) / tokens if tokens else None,
        loglik=sum(a["loglik"] - a["full_loglik"] for a in spoken) / tokens if tokens else None,
    )


def _asked(config: dict[str, Any]) -> tuple[str, float | None]:
    """What the user asked, in the unit of the knob; MAC's match radius."""
    asked, radius = config["asked"], None
    parts = []
    if config["floor"] is not None:
        parts.append(f"min {100 * config['floor']:.1f} %")
    elif "budget" in asked:
        parts.append(f"{100 * asked['budget']:g} %")
    elif "tokens" in asked:
        parts.append(f"{100 * asked['tokens']:g} % of tokens")
    if isinstance(asked.get("tau"), list):
        parts.append("tau per layer")
    elif "tau" in asked:
        radius = match_radius(asked["tau"], config["geometry"]["head_dim"])
        parts.append(f"tau {asked['tau']:g} (radius {radius:.2f})")
    return ", ".join(parts), radius
