"""How far a method drifts from full attention: step by step, and over the text it has written.

In every n-th decode step each layer's attention output is compared with exact attention on the same
query and cache; the method never sees the comparison. Such steps run eagerly between the replays
of a captured graph. Afterwards one exact pass over prompt and answer says how likely full attention
finds the tokens that the method chose, and which it would have chosen itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from macbench.engine.cache import PagedCache
from macbench.engine.prefill import prefill

if TYPE_CHECKING:
    from macbench.engine.view import View
    from macbench.measure.trace import Trace
    from macbench.models import Model

CHUNK = 4096  # tokens of the exact pass that go through the model at once
HEADS = 256  # positions whose logits are held at once


class Audit:
    """Sums over the decode of a block, on the device, per row [R] (`decode.Rows`)."""

    def __init__(self, every: int, rows: int, device: torch.device):
        self.every = every
        self.on = False  # whether this step is compared
        self.sums = {
            name: torch.zeros(rows, dtype=torch.float64, device=device)
            for name in ("audited", "chosen", "loglik")  # steps compared, tokens, their ln p
        }

    def due(self, done: int) -> bool:
        """Whether the step after `done` steps is compared."""
        self.on = done % self.every == 0
        return self.on

    def compare(self, layer: int, q: Tensor, out: Tensor, view: View, trace: Trace) -> None:
        """The error of out [B, Hq, d] goes into the trace, 0 in steps that are not compared."""
        error = relative(out, view.exact(layer, q)[0]) if self.on else 0
        trace.add(layer, "error", error)

    def count(self, logits: Tensor, token: Tensor, live: Tensor, emitted: Tensor) -> None:
        """End of a step: logits [R, V], token [R] chosen; live, emitted [R] bool."""
        if self.on:
            self.sums["audited"] += live
        self.sums["chosen"] += emitted
        self.sums["loglik"] += torch.where(emitted, log_likelihood(logits, token), 0)

    def fetch(self, row: int) -> dict[str, float]:
        """The row's sums; "error" is in the trace."""
        return {name: value[row].item() for name, value in self.sums.items()}


def relative(out: Tensor, exact: Tensor) -> Tensor:
    """||out - exact|| / ||exact|| of vectors [..., d] -> [...]."""
    out, exact = out.float(), exact.float()
    least = torch.finfo(torch.float32).tiny
    return (out - exact).norm(dim=-1) / exact.norm(dim=-1).clamp_min(least)


def log_likelihood(logits: Tensor, token: Tensor) -> Tensor:
    """ln of the softmax of logits [..., V] at token [...]: before temperature and cuts."""
    logits = logits.float()
    return logits.gather(-1, token[..., None]).squeeze(-1) - logits.logsumexp(-1)


@torch.inference_mode()
def full_attention(
    model: Model, prompt: Sequence[int], said: Sequence[int], last: int, regime: int
) -> tuple[int, float]:
    """Full attention on the same text: of the last `last` tokens said, how many it would have
    chosen greedily, and ln of the probability that it gives all of them."""
    if not last:
        return 0, 0.0
    device = model.geometry.device
    fed = torch.tensor([*prompt, *said[:-1]], device=device)
    wanted = torch.tensor(said[-last:], device=device)
    cache = PagedCache(model.geometry, 1, 0, len(fed), 0)
    listening = _Listening(model, last, len(fed))
    prefill(cast("Model", listening), cache, 0, fed, regime, CHUNK, 0)
    agreed, total = 0, 0.0
    for hidden, token in zip(
        torch.cat(listening.heard).split(HEADS), wanted.split(HEADS), strict=True
    ):
        logits = model.logits(hidden)
        agreed += int((logits.argmax(-1) == token).sum())
        total += float(log_likelihood(logits, token).double().sum())
    return agreed, total


class _Listening:
    """A model for `prefill` that keeps the hidden states of the last positions."""

    def __init__(self, model: Model, last: int, length: int):
        self.model, self.geometry = model, model.geometry
        self.first = length - last  # position of the first one kept
        self.heard: list[Tensor] = []  # [n, hidden] each

    def forward(self, tokens: Tensor, positions: Tensor, regimes: Tensor, attend: Any) -> Tensor:
        hidden = self.model.forward(tokens, positions, regimes, attend)
        skip = max(self.first - int(positions[0, 0]), 0)
        self.heard.append(hidden[0, skip:])
        return hidden


def summary(reads: dict[str, Any], every: int, full: tuple[int, float]) -> dict[str, Any]:
    """A row's audit from its sums and what `full_attention` said of its tokens.

    error: relative L2, mean over compared steps, layers and heads. agreement: share of tokens that
    full attention chooses, too. loglik, full_loglik: ln p of all of them, by the method and by full
    attention. The first token where it came from the exact prefill is none of them.
    """
    agreed, loglik = full
    steps, tokens = reads["audited"], reads["chosen"]
    errors = [error for layer in reads.get("error", ()) for error in layer]
    return {
        "every": every,
        "steps": steps,
        "error": sum(errors) / (steps * len(errors)) if steps else None,
        "tokens": tokens,
        "agreement": agreed / tokens if tokens else None,
        "loglik": reads["loglik"],
        "full_loglik": loglik,
    }
