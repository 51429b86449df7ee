"""What the prompt's last queries attend to: the scores by which eviction methods keep tokens.

SnapKV (arXiv 2404.14469), the methods built on it, TOVA and H2O rank keys by probabilities of exact
softmax attention, summed over some of the prompt's queries. Computed once per prompt and layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d, pad

from macbench.attention.base import Geometry, Prompt
from macbench.kernels.paged import wide

BLOCK = 2**25  # logits held at once


def received(q: Tensor, keys: Tensor, scale: float, backend: str = "torch") -> Tensor:
    """Attention every key gets from the last w queries of its sequence, summed over them.

    q [w, Hq, d] at the last w positions, keys [Hkv, N, d], w <= N -> [Hq, N] (fp32). Each query's
    probabilities are over all keys up to its own. Blocked: memory is linear in N.
    """
    if backend != "torch":
        from macbench.kernels.received import received as by_kernels

        return by_kernels(q, keys, scale)
    (w, q_heads, d), (kv_heads, length) = q.shape, keys.shape[:2]
    grouped = (wide(q) * scale).view(w, kv_heads, -1, d).permute(1, 2, 0, 3)  # [Hkv, G, w, d]
    sums = torch.zeros(
        kv_heads, q_heads // kv_heads, length, dtype=grouped.dtype, device=keys.device
    )
    block = max(1, BLOCK // (sums.shape[1] * length))
    for head in range(kv_heads):
        k = wide(keys[head]).T
        for at in range(0, w, block):
            part = grouped[head, :, at : at + block]
            n = part.shape[1]
            end = length - w + at + n  # the block's last query sees so many keys
            logits = part @ k[:, :end]
            later = torch.ones(n, n, dtype=torch.bool, device=keys.device).triu(1)
            logits[..., end - n :].masked_fill_(later, -torch.inf)
            sums[head, :, :end] += logits.softmax(-1).sum(1)
    return sums.flatten(0, 1)


def window_scores(
    q: Tensor, keys: Tensor, scale: float, group: str = "sum", backend: str = "torch"
) -> Tensor:
    """`received` of the keys before the window, [Hkv, N - w]: the sum (same order as the mean) or
    the maximum over a group's query heads."""
    before = received(q, keys, scale, backend)[:, : keys.shape[1] - len(q)]
    grouped = before.unflatten(0, (len(keys), -1))
    return grouped.amax(1) if group == "max" else grouped.sum(1)


def pooled(scores: Tensor, size: int, pool: str = "max") -> Tensor:
    """scores [H, n] smoothed along the sequence: the maximum or average (pool="avg"; what lies
    outside counts as 0) of `size` neighbours, an odd number."""
    if not scores.shape[-1]:
        return scores
    smooth = avg_pool1d if pool == "avg" else max_pool1d
    return smooth(scores[None], size, stride=1, padding=size // 2)[0]


def smoothed(scores: Tensor, window: int, kernel: int, pool: str) -> Tensor:
    """`pooled` scores [H, n] of the tokens before a window, and infinite ones of those in it."""
    return pad(pooled(scores, kernel, pool), (0, window), value=torch.inf)


def ordered(scores: Tensor) -> Tensor:
    """Positions of scores [..., n] from the highest down; of equals, the lower one first."""
    return scores.sort(dim=-1, descending=True, stable=True).indices


def first(order: Tensor, count: int) -> Tensor:
    """The first `count` positions of an order [..., n], ascending."""
    return order[..., :count].sort(-1).values


def best(scores: Tensor, count: int) -> Tensor:
    """Positions of the `count` highest of scores [..., n], ascending; of equals, the lower ones."""
    return first(ordered(scores), count)


def ranked(
    prompt: Prompt,
    layer: int,
    keys: Callable[[], Tensor],
    g: Geometry,
    window: int,
    kernel: int,
    pool: str,
    group: str,
    tail: int,
) -> tuple[Tensor, Tensor]:
    """What a prompt's last `window` queries make of its tokens: smoothed scores [Hkv, N] and the
    order of them [Hkv, N]. The window and the last `tail` positions come first, of infinite score.

    keys gives [Hkv, N, d]. Computed once for all methods and budgets that ask for the same.
    """

    def observed() -> Tensor:
        return window_scores(prompt.q[layer][-window:], keys(), g.scale, group, g.backend)

    def made() -> tuple[Tensor, Tensor]:
        scores = prompt.once(("window scores", layer, window, group), observed)
        scores = smoothed(scores, window, kernel, pool)
        scores[:, scores.shape[1] - tail :] = torch.inf
        return scores, ordered(scores)

    return prompt.once(("ranked", layer, window, kernel, pool, group, tail), made)
