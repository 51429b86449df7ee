"""Exact prefill of one prompt in chunks, straight into its run of cache pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from macbench.engine.cache import PagedCache

if TYPE_CHECKING:
    from macbench.models import Model

Observe = Callable[[int, Tensor, Tensor, Tensor, int], None]  # layer, q_pre, q, keys, start


def prefill(
    model: Model,
    cache: PagedCache,
    slot: int,
    tokens: Tensor,
    regime: int,
    chunk: int,
    keep: int,
    observe: Observe | None = None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Write the K/V of tokens [N] into the slot's pages.

    Returns the last position's hidden state [hidden] and, per layer, the last `keep` queries before
    and after RoPE, [min(keep, N), Hq, d]. Memory is linear in N: a chunk attends to all before it
    under the lower-right causal mask.
    """
    geometry = model.geometry
    length = len(tokens)
    kept: list[list[Tensor]] = [[torch.empty(0)] * geometry.layers for _ in range(2)]

    def attend(layer: int, q_pre: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache.write_prompt(layer, slot, start, k[0], v[0])
        for store, new in zip(kept, (q_pre[0], q[0]), strict=True):
            if keep and start + len(new) > length - keep:
                new = new[max(length - keep - start, 0) :]
                store[layer] = torch.cat([store[layer].to(new), new]) if len(store[layer]) else new
        end = start + q.shape[1]
        keys, values = cache.prompt(layer, slot, end)
        if observe is not None:
            observe(layer, q_pre[0], q[0], keys, start)
        causal = (
            {"is_causal": True}
            if start == 0
            else {"attn_mask": causal_lower_right(end - start, end)}
        )
        out = scaled_dot_product_attention(
            q.transpose(1, 2),
            keys[None],
            values[None],
            scale=geometry.scale,
            enable_gqa=True,
            **causal,
        )
        return out.transpose(1, 2)

    hidden = torch.empty(0)
    regimes = torch.tensor([regime], device=tokens.device)
    for start in range(0, length, chunk):
        part = tokens[start : start + chunk]
        position = torch.arange(start, start + len(part), device=tokens.device)
        hidden = model.forward(part[None], position[None], regimes, attend)
    return hidden[0, -1], kept[0], kept[1]
