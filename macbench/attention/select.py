"""What selection methods share: top-k lists and how many distinct tokens a group loads."""

from __future__ import annotations

import torch
from torch import Tensor


def group_mean(scores: Tensor, kv_heads: int) -> Tensor:
    """[B, Hq, N] -> mean over each group's query heads, [B, Hkv, N]."""
    b, _, n = scores.shape
    return scores.view(b, kv_heads, -1, n).mean(2)


def shared_probability(scores: Tensor, lens: Tensor, kv_heads: int, backend: str) -> Tensor:
    """Logits [B, Hq, N], -inf beyond lens [B] -> mean probability over each group, [B, Hkv, N]."""
    if backend != "torch":
        from macbench.kernels.probability import probability

        return probability(scores, lens, kv_heads)
    # a masked key has probability 0, as has one that underflows: order it behind
    mean = group_mean(scores.softmax(-1), kv_heads)
    position = torch.arange(scores.shape[-1], device=scores.device)
    return mean.masked_fill(position >= lens[:, None, None], -1.0)


def best(
    scores: Tensor, counts: Tensor, most: int, kv_heads: int, backend: str
) -> tuple[Tensor, Tensor]:
    """The counts [B, H] items with the highest scores [B, H, n] of each list, at most `most`.

    -> item numbers [B, H, min(most, n)], a highest score of inf first, of which the first counts
    hold; and how many distinct items the lists of each KV head's group name, [B, Hkv]. Of equal
    scores the kernel takes the lower items, torch any.
    """
    size = scores.shape[-1]
    most = min(most, size)
    if backend != "torch":
        from macbench.kernels.select import select

        return select(scores, counts, most, kv_heads)
    chosen = scores.topk(most, dim=-1).indices
    return chosen, union(chosen, counts, size, kv_heads).sum(-1)


def union(chosen: Tensor, counts: Tensor, size: int, kv_heads: int) -> Tensor:
    """Which of `size` items a KV head's group loads when its heads choose for themselves.

    chosen [B, H, n] item numbers of which the first counts [B, H] hold -> bool [B, Hkv, size].
    """
    b, heads, n = chosen.shape
    valid = torch.arange(n, device=chosen.device) < counts[..., None]
    loaded = torch.zeros(b, heads, size, dtype=torch.int32, device=chosen.device)
    loaded.scatter_add_(2, chosen, valid.to(torch.int32))
    return loaded.view(b, kv_heads, heads // kv_heads, size).sum(2) > 0


def unroll(starts: Tensor, lengths: Tensor, at: Tensor) -> Tensor:
    """The items at [..., n] of runs laid end to end, where run i is starts[i], starts[i] + 1, …

    starts, lengths [..., m]; beyond the last item, the last.
    """
    ends = lengths.cumsum(-1)
    at = at.minimum(ends[..., -1:] - 1).clamp_min(0)
    run = torch.searchsorted(ends, at.contiguous(), right=True).clamp_max(ends.shape[-1] - 1)
    return starts.gather(-1, run) + at - (ends - lengths).gather(-1, run)
