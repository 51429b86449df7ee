"""Choosing the next token: greedy, or seeded sampling that is the same for every method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from macbench.attention.rng import uniform
from macbench.errors import MacbenchError


@dataclass(frozen=True)
class Decoding:
    """temperature 0 is greedy; top_p and top_k (0: off) restrict a sampled choice."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise MacbenchError(
                f"decoding temperature={self.temperature}, top_p={self.top_p}, top_k={self.top_k}: "
                "use temperature >= 0, 0 < top_p <= 1, top_k >= 0."
            )


def choose(logits: Tensor, decoding: Decoding, keys: Tensor, made: Tensor) -> Tensor:
    """Next token of each row: logits [R, V], keys [R], made [R] tokens made so far -> [R].

    The noise depends on (key, made) only: rows of one sample draw alike, whatever their method.
    """
    if decoding.temperature == 0:
        return logits.argmax(-1)
    scaled = logits.float() / decoding.temperature
    if decoding.top_k:
        least = scaled.topk(min(decoding.top_k, scaled.shape[-1])).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    if decoding.top_p < 1:
        ordered, index = scaled.sort(descending=True)
        share = ordered.softmax(-1)
        beyond = share.cumsum(-1) - share >= decoding.top_p
        scaled = scaled.masked_fill(torch.zeros_like(beyond).scatter(1, index, beyond), -torch.inf)
    token = torch.arange(logits.shape[-1], device=logits.device)
    draw = uniform(keys[:, None], made[:, None], token).clamp_min(1e-9)
    return (scaled - (-draw.log()).log()).argmax(-1)
