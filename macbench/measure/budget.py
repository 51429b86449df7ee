"""What a cell's decode read, as shares of full attention's reads, and how often MAC reused.

Of a task every figure is a sum over scored steps, layers and heads of all samples, divided by the
same sum of its denominator: long answers weigh more than short ones, and samples without a scored
step nothing. Tasks weigh equally, as they do in a score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

KV_STATS = ("kv_tokens", "meta_bytes", "group_hit")  # counted per KV head; others per query head


@dataclass(frozen=True)
class Budgets:
    """Shares of full attention; what is read is None where no step was scored."""

    head: float | None  # keys a query head attends freshly
    token: float | None  # distinct K/V tokens a KV head loads
    byte: float | None  # those bytes plus the metadata read: the currency of matching
    resident: float  # bytes held, mean over samples


def budgets(samples: pd.DataFrame, token_bytes: int) -> Budgets:
    """Budgets of rows of samples.jsonl.

    token_bytes: bytes of one token's K and V in one KV head of one layer.
    """
    resident = float(samples["resident"].mean())
    if not samples["steps"].sum():
        return Budgets(None, None, None, resident)
    total = samples[["head_tokens", "kv_tokens", "meta_bytes", "context_head", "context_kv"]].sum()
    full = total["context_kv"] * token_bytes
    return Budgets(
        head=float(total["head_tokens"] / total["context_head"]),
        token=float(total["kv_tokens"] / total["context_kv"]),
        byte=float((total["kv_tokens"] * token_bytes + total["meta_bytes"]) / full),
        resident=resident,
    )


def mean_over_tasks(tasks: Sequence[Budgets]) -> Budgets:
    """The mean of tasks' budgets; of what is read over those that had a scored step."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    return Budgets(
        head=mean([task.head for task in tasks]),
        token=mean([task.token for task in tasks]),
        byte=mean([task.byte for task in tasks]),
        resident=sum(task.resident for task in tasks) / len(tasks),
    )


def acceptance(layers: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """MAC's reuse, one row per value of the columns `by` (one row in all without them).

    layers: long form (`store.Results.layers`). Columns of the answer: acceptance = hits per query
    head and step; distance (L2), gap (m - p, tokens) and depth (hops): means over hits; skip:
    E(p)/m, mean over steps, a miss counting 0; group_hit: share of KV-head steps in which the whole
    group hit (absent with `by` naming heads: KV heads are not query heads). No rows where nothing
    counted hits.
    """
    if "hit" not in layers:
        return pd.DataFrame()
    layers = layers[layers["steps"] > 0].assign(all=0)
    keys = [*by] or ["all"]
    names = ["steps", "hit", "distance", "gap", "depth", "skip"]
    heads = layers[(layers["kind"] == "q") & layers["hit"].notna()].groupby(keys)[names].sum()
    answer = pd.DataFrame({"acceptance": heads["hit"] / heads["steps"]})
    for name in ("distance", "gap", "depth"):
        answer[name] = heads[name] / heads["hit"].where(heads["hit"] > 0)
    answer["skip"] = heads["skip"] / heads["steps"]
    if "head" not in by:
        groups = layers[(layers["kind"] == "kv") & layers["group_hit"].notna()]
        sums = groups.groupby(keys)[["steps", "group_hit"]].sum()
        answer["group_hit"] = sums["group_hit"] / sums["steps"]
    return answer


def match_radius(tau: float, head_dim: int) -> float:
    """L2 distance below which MAC accepts a match: sqrt(2 d) (1 - tau)."""
    return math.sqrt(2 * head_dim) * (1 - tau)
