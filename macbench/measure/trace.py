"""What a decode read and what a method did, counted on the device.

`attend` writes one step's figures of one layer; `commit` adds them, for live rows only, once per
step. Everything is fetched once per block of samples, so no step waits for the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

BUCKETS = 32  # of decode steps, however many there are


class Trace:
    """Sums over committed steps, per statistic a tensor [layers, rows, heads] (float64).

    span: decode steps at most; `over_steps` cuts them into BUCKETS of `width` steps. Memory does
    not grow with the steps.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        q_heads: int,
        kv_heads: int,
        device: torch.device,
        span: int = 1,
    ):
        self.shape = (layers, rows)
        self.width = -(-span // BUCKETS)
        self.counts: dict[str, Tensor] = {}
        self.heads = {"q": q_heads, "kv": kv_heads}
        self.device = device
        self.now: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.steps = torch.zeros(rows, dtype=torch.float64, device=device)
        self.context = torch.zeros(rows, dtype=torch.float64, device=device)

    def read(self, layer: int | slice, view, head_tokens, kv_tokens, meta_bytes=0) -> None:
        """One layer's reads in this step, or all layers' (`slice(None)`, layers first).

        head_tokens [B, Hq]: keys each query head attends freshly. kv_tokens [B, Hkv]: distinct
        tokens whose K and V a KV head loads (K or V alone counts half). meta_bytes [B, Hkv]:
        persistent metadata read, less what tokens take less than in the cache where they are
        compressed. Anything that broadcasts is accepted.
        """
        self.add(layer, "head_tokens", head_tokens)
        self.add(layer, "kv_tokens", kv_tokens, heads="kv")
        self.add(layer, "meta_bytes", meta_bytes, heads="kv")

    def add(self, layer: int | slice, name: str, value, heads: str = "q") -> None:
        """A further statistic of this step, [B, Hq] (or [B, Hkv] with heads="kv")."""
        if name not in self.now:
            shape = (*self.shape, self.heads[heads])
            self.now[name] = torch.zeros(shape, dtype=torch.float64, device=self.device)
            self.sums[name] = torch.zeros_like(self.now[name])
        self.now[name][layer] = value

    def tally(self, layer: int | slice, view, name: str, bins: Tensor, size: int, where: Tensor):
        """Add this step to a histogram [layers, rows, size]: heads in bins [B, Hq] where it holds.

        All layers at once with `slice(None)`, layers first. Finished rows do not count.
        """
        if name not in self.counts:
            shape = (*self.shape, size)
            self.counts[name] = torch.zeros(shape, dtype=torch.int64, device=self.device)
        held = (where & view.live[:, None]).long()
        self.counts[name][layer].scatter_add_(-1, bins.long().clamp(0, size - 1), held)

    def over_steps(self, layer: int | slice, view, name: str, value: Tensor) -> None:
        """Count value [B, Hq] (bool) by when in the decode it held."""
        bins = (view.step // self.width)[:, None].expand(value.shape)
        self.tally(layer, view, name, bins, BUCKETS, value)

    def commit(self, view) -> None:
        """End of a decode step: add what was written, for rows that are still live."""
        for name, value in self.now.items():  # a finished row's figures may be anything, even NaN
            self.sums[name] += torch.where(view.live[None, :, None], value, 0)
        self.steps += view.live
        self.context += torch.where(view.live, view.lens, 0)

    def fetch(self, row: int) -> dict:
        """The row's sums as plain numbers: {"steps", "context", name: [layers][heads]}, and where
        something was tallied "histograms": {name: [layers][bins]} and "width" (steps a bucket)."""
        counts = {name: value[:, row].tolist() for name, value in self.counts.items()}
        tallied = {"histograms": counts, "width": self.width} if counts else {}
        return {
            "steps": self.steps[row].item(),
            "context": self.context[row].item(),
            **{name: value[:, row].tolist() for name, value in self.sums.items()},
            **tallied,
        }
