"""The same step in plain fp32 torch, and the comparison that comes before any timing.

The cache is read in pieces of a row's tokens, so that 128K tokens fit beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from macbench.kernels.paged import PAGE, softmax_attend, wide
from macbench.measure.latency.cases import Plan, Reuse
from macbench.measure.latency.data import Bank

PIECE = 1024  # pages
# Largest relative L2 error of a head. Rounding gives 0.002 to 0.003 in bf16; a forgotten chunk of
# keys gives more than 0.03 at any context up to 256K.
LIMIT = {torch.bfloat16: 0.01, torch.float16: 0.003, torch.float32: 1e-4}
LSE_LIMIT = 1e-3

Summary = tuple[Tensor, Tensor]  # o [..., d], natural-log lse [...]


@dataclass(frozen=True)
class Verdict:
    """Of a gate: error is the largest relative L2 error of a head's output; note: what is wrong."""

    error: float
    note: str = ""

    @property
    def ok(self) -> bool:
        return not self.note


@dataclass(frozen=True)
class Expected:
    """What a step gives: out [B, Hq, d]; of MAC also the new row, its lse, who hit and whence."""

    out: Tensor
    row: Tensor | None = None
    lse: Tensor | None = None
    hit: Tensor | None = None
    position: Tensor | None = None


def joined(parts: list[Summary]) -> Summary:
    """Summaries of disjoint keys as one."""
    outs, sums = (torch.stack(part) for part in zip(*parts, strict=True))
    lse = sums.logsumexp(0)
    weights = torch.where(sums == -torch.inf, 0.0, (sums - lse).exp())
    return (weights[..., None] * outs).sum(0), lse


def summaries(bank: Bank, index: int, starts: Tensor, split: int) -> tuple[Summary, Summary]:
    """Attention of every head over its keys [start, split), and over [split, context).

    starts [B, Hq], on the CPU.
    """
    shape, layer = bank.shape, bank.layers[index]
    heads = (shape.kv_heads, shape.group)
    before, behind = [], []
    for b, own in enumerate(starts.view(shape.batch, *heads)):
        q = (wide(layer.q[b]) * bank.scale).view(*heads, shape.d)
        start = own.to(bank.device)[..., None]
        empty = torch.zeros_like(q), torch.full_like(q[..., 0], -torch.inf)
        first, last = [empty], [empty]
        for page in range(int(own.min()) // PAGE, bank.table.shape[1], PIECE):
            pages = bank.table[b, page : page + PIECE].long()
            keys, values = (
                wide(pool[pages]).transpose(0, 1).flatten(1, 2) for pool in (layer.k, layer.v)
            )
            scores = torch.matmul(q, keys.transpose(-1, -2))
            position = page * PAGE + torch.arange(keys.shape[1], device=bank.device)
            prefix = (position >= start) & (position < split)
            first.append(softmax_attend(scores, prefix, values))
            if page * PAGE + keys.shape[1] > split:
                tail = (position >= split) & (position < shape.context)
                last.append(softmax_attend(scores, tail, values))
        before.append(joined(first))
        behind.append(joined(last))
    return _rows(before), _rows(behind)


def _rows(parts: list[Summary]) -> Summary:
    """One summary [Hkv, G] per row -> [B, Hq]."""
    out, lse = (torch.stack(part).flatten(1, 2) for part in zip(*parts, strict=True))
    return out, lse


def matched(queries: Tensor, q_pre: Tensor, t: int, radius: float) -> tuple[Tensor, Tensor]:
    """queries [B, Hq, d / C, K, C] against q_pre [B, Hq, d] -> hit, and the nearest position."""
    K = queries.shape[3]
    slot = torch.arange(K, device=queries.device)
    position = t - 1 - (t - 1 - slot) % K
    hits, nearest = [], []
    for rows, q in zip(queries, q_pre, strict=True):
        apart = wide(rows.transpose(1, 2).flatten(2)) - wide(q)[:, None]
        distance = apart.square().sum(-1).sqrt().masked_fill(position < 0, torch.inf)
        least = distance.min(-1)
        hits.append(least.values < radius)
        nearest.append(position[least.indices])
    return torch.stack(hits), torch.stack(nearest)


def expected_full(bank: Bank, index: int = 0) -> Expected:
    """Attention to everything."""
    zeros = torch.zeros(bank.shape.batch, bank.shape.q_heads, dtype=torch.int64)
    (out, _), _ = summaries(bank, index, zeros, bank.shape.context)
    return Expected(out)


def expected_mac(
    bank: Bank, index: int, reuse: Reuse, plan: Plan, ring: tuple[Tensor, Tensor, Tensor]
) -> Expected:
    """One MAC step; ring: queries, rows, lse. The matches are computed, not taken from the plan."""
    queries, rows, lse = ring
    layer, shape = bank.layers[index], bank.shape
    t = shape.context - 1
    hit, position = matched(queries, layer.q_pre, t, reuse.radius(shape.d))
    split = max(shape.context - reuse.r, 0)  # E(t)
    starts = torch.where(hit, (position + 1 - reuse.r).clamp_min(0), 0).cpu()
    fresh, tail = summaries(bank, index, starts, split)
    at = (position % reuse.K)[..., None]
    level = lse.gather(2, at).squeeze(-1).masked_fill(~hit, -torch.inf)
    reused = wide(rows.gather(2, at[..., None].expand(-1, -1, -1, shape.d)).squeeze(2)), level
    row = joined([reused, fresh])
    planned = plan.hit.to(hit.device)
    aim = t - plan.lag.to(hit.device)
    if not (torch.equal(hit, planned) and torch.equal(position[hit], aim[planned])):
        raise AssertionError("the ring does not give the planned matches")
    return Expected(joined([row, tail])[0], row[0], row[1], hit, position)


def apart(found: Tensor, right: Tensor) -> float:
    """Largest relative L2 error of a head; infinite where a number is missing."""
    found = wide(found)
    error = (found - right).norm(dim=-1) / right.norm(dim=-1).clamp_min(1e-20)
    return error.nan_to_num(torch.inf).max().item()


def judge_output(out: Tensor, expected: Expected) -> Verdict:
    """The output of any method."""
    error = apart(out, expected.out)
    limit = LIMIT[out.dtype]
    return Verdict(error, "" if error <= limit else f"output off by {error:.2g} (limit {limit})")


def judge_matches(hit: Tensor, position: Tensor, expected: Expected) -> str:
    """What is wrong with the matches; empty if nothing is."""
    assert expected.hit is not None and expected.position is not None
    wrong = int((hit != expected.hit).sum())
    if wrong:
        return f"{wrong} of {hit.numel()} heads decided otherwise"
    moved = int((position != expected.position)[expected.hit].sum())
    return f"{moved} heads matched another position" if moved else ""


def judge_row(row: Tensor, lse: Tensor, expected: Expected) -> str:
    """What is wrong with the ring's new row; empty if nothing is."""
    assert expected.row is not None and expected.lse is not None
    error, limit = apart(row, expected.row), LIMIT[row.dtype]
    if error > limit:
        return f"new row off by {error:.2g} (limit {limit})"
    off = (lse - expected.lse).abs().nan_to_num(torch.inf).max().item()
    return f"lse of the new row off by {off:.2g}" if off > LSE_LIMIT else ""
