"""What a decode read and what a method did, counted on the device.

`attend` writes one step's figures of one layer; `commit` adds them, for live rows only, once per
step. Everything is fetched once per block of samples, so no step waits for the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

HEAD = ("head_tokens",)  # per query head
KV = ("kv_tokens", "meta_bytes")  # per KV head


class Trace:
    """Sums over committed steps, per statistic a tensor [layers, rows, heads] (float64)."""

    def __init__(self, layers: int, rows: int, q_heads: int, kv_heads: int, device: torch.device):
        self.shape = (layers, rows)
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
        persistent metadata read. Anything that broadcasts is accepted.
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

    def commit(self, view) -> None:
        """End of a decode step: add what was written, for rows that are still live."""
        for name, value in self.now.items():  # a finished row's figures may be anything, even NaN
            self.sums[name] += torch.where(view.live[None, :, None], value, 0)
        self.steps += view.live
        self.context += torch.where(view.live, view.lens, 0)

    def fetch(self, row: int) -> dict:
        """The row's sums as plain numbers: {"steps", "context", name: [layers][heads]}."""
        return {
            "steps": self.steps[row].item(),
            "context": self.context[row].item(),
            **{name: value[:, row].tolist() for name, value in self.sums.items()},
        }
