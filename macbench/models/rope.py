"""Rotary tables, indexed by regime and position.

transformers chooses the frequencies of a `longrope` model from the largest position in the call, so
a chunked prefill or a neighbouring row changes them. Here a row keeps one regime from its first
token to its last, and a step only gathers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def switch(config: PreTrainedConfig) -> int | None:
    """Tokens beyond which a row uses the second regime; None for models with one regime."""
    rope = config.rope_parameters
    return rope["original_max_position_embeddings"] if rope["rope_type"] == "longrope" else None


def tables(rotary: Any, max_tokens: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """cos and sin of positions 0..max_tokens-1: [2, regimes, max_tokens, rotary_dim].

    `rotary` is the model's rotary module. Its buffers are not used: casting a model casts them too.
    The frequencies are built again from the configuration, in float32, and only the finished
    tables take the model's dtype.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = rotary.config
    with torch.device("cpu"):
        fresh = type(rotary)(config)
        regimes = [(fresh.inv_freq, fresh.attention_scaling)]
        limit = switch(config)
        if limit is not None:
            longrope = ROPE_INIT_FUNCTIONS["longrope"]
            regimes.append(longrope(config, torch.device("cpu"), seq_len=limit + 1))
    positions = torch.arange(max_tokens, device=device, dtype=torch.float32)
    angles = torch.stack([torch.outer(positions, f.to(device)) for f, _ in regimes])
    angles = torch.cat((angles, angles), dim=-1)
    scaling = torch.tensor([s for _, s in regimes], device=device)[:, None, None]
    return torch.stack((angles.cos() * scaling, angles.sin() * scaling)).to(dtype)
