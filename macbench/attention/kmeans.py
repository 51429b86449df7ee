"""Lloyd's algorithm for a batch of point sets, the same on every run: no sum depends on an order
that a device chooses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def means(points: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Mean [..., k, d] and number [..., k] of the points [..., n, d] of each label [..., n]."""
    label = torch.arange(k, device=labels.device)[:, None]
    members = (labels[..., None, :] == label).to(points.dtype)
    counts = members.sum(-1)
    return members @ points / counts.clamp_min(1)[..., None], counts.long()


def cluster(
    points: Tensor, seeds: Tensor, iterations: int, again: Callable[[int], Tensor]
) -> Tensor:
    """Labels [..., n] of points [..., n, d] after `iterations` from centres at the points seeds
    [..., k]. A centre that loses all its points starts anew at a point of again(i) [..., k], but
    not after the last iteration."""
    d, k = points.shape[-1], seeds.shape[-1]
    points = points - points.mean(-2, keepdim=True)  # distances are differences of large numbers

    def at(index: Tensor) -> Tensor:
        return points.gather(-2, index[..., None].expand(*index.shape, d))

    centres = at(seeds)
    for i in range(iterations):
        # squared distances, less the square of the point, which all centres share
        apart = centres.square().sum(-1)[..., None, :] - 2 * (points @ centres.transpose(-1, -2))
        labels = apart.argmin(-1)
        if i + 1 < iterations:
            centres, counts = means(points, labels, k)
            centres = torch.where((counts == 0)[..., None], at(again(i)), centres)
    return labels
