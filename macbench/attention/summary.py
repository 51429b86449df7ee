"""Attention summaries: what merging and removing key sets does to (o, lse).

A summary of a key set is the softmax-normalised output `o` [..., d] over it and the natural-log
sum of exponentials `lse` [...] of its scaled logits. The empty set is `lse = -inf` (with o = 0).
"""

from __future__ import annotations

import torch
from torch import Tensor

Summary = tuple[Tensor, Tensor]


def merge(a: Summary, b: Summary) -> Summary:
    """The summary of the union of two disjoint key sets (paper 3.1; log-domain weights)."""
    (o1, l1), (o2, l2) = a, b
    lse = torch.logaddexp(l1, l2)
    empty = lse.isneginf()
    safe = lse.masked_fill(empty, 0)
    w1 = (l1 - safe).exp().unsqueeze(-1)
    w2 = (l2 - safe).exp().unsqueeze(-1)
    return w1 * o1 + w2 * o2, lse


def remove(whole: Summary, part: Summary) -> Summary:
    """The summary of `whole` without `part`, a subset of it: the inverse of `merge`.

    Cancels when `part` carries nearly all the mass; MAC therefore never subtracts.
    """
    (o, lse), (o1, l1) = whole, part
    share = (l1 - lse).exp()  # mass of the part
    rest = (1 - share).clamp_min(0)
    gone = (rest <= 1e-7) | lse.isneginf()
    left = (o - share.unsqueeze(-1) * o1) / rest.masked_fill(gone, 1).unsqueeze(-1)
    left = left.masked_fill(gone.unsqueeze(-1), 0)
    return left, (lse + rest.log()).masked_fill(gone, -torch.inf)


def select(condition: Tensor, a: Summary, b: Summary) -> Summary:
    """a where condition [...] holds, else b."""
    return torch.where(condition.unsqueeze(-1), a[0], b[0]), torch.where(condition, a[1], b[1])
