"""KIVI (Liu et al., arXiv 2402.02750): the whole cache, most of it in 2 or 4 bits.

Keys (after RoPE) are quantised per channel in groups of consecutive tokens, values per token in
groups of consecutive channels. The newest tokens stay exact: keys until a block of `residual` is
full, which is then quantised at once; of values always the last `residual`. A step attends first
and quantises afterwards; the prefill is exact.

Read per KV head: with e = d bits / 8 + 4 d / group_size bytes per quantised K or V, e K + e V and
the exact rest, where K = (S - 1) - (S - 1) mod residual and V = S - 1 - residual. Every token is
read, so the token budget is 1; the byte budget is what a compressed token takes, scales and minima
included. Differs from the authors' code: codes are rounded against the stored fp16 scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from macbench.attention.base import Method
from macbench.attention.quantise import Packed, check_bits
from macbench.attention.summary import merge
from macbench.errors import MacbenchError
from macbench.kernels import paged

CHUNK = 8192  # tokens that are restored at once, about


@dataclass
class Kivi(Method):
    """bits: of a code; group_size: numbers that share a scale; residual: newest tokens kept exact
    (a multiple of group_size; at least the context: nothing is quantised)."""

    name: ClassVar[str] = "kivi"
    bits: int = 4
    group_size: int = 32
    residual: int = 128

    def __post_init__(self) -> None:
        check_bits("kivi.bits", self.bits)
        if self.group_size < 1 or self.residual < 1 or self.residual % self.group_size:
            raise MacbenchError(
                f"kivi.residual={self.residual} must be a multiple of kivi.group_size="
                f"{self.group_size}; keys are quantised in whole groups."
            )

    def check(self, geometry, length):
        d = geometry.head_dim
        if d % self.group_size or d * self.bits % 8:
            raise MacbenchError(
                f"kivi.group_size={self.group_size} must divide the head's {d} channels and "
                f"kivi.bits={self.bits} fill whole bytes of them."
            )

    def floor(self, geometry, length):
        return self.predicted(geometry, length, length)

    def predicted(self, geometry, length, tokens):
        keys, values = self._packed(torch.tensor(tokens - 1))
        saved = (keys + values).item() * self._saved(geometry)
        return 1 - saved / (tokens * geometry.token_bytes)

    def _saved(self, geometry) -> int:
        """Bytes that a quantised K or V of one token takes less."""
        d = geometry.head_dim
        return d * geometry.dtype.itemsize - d * self.bits // 8 - 4 * d // self.group_size

    def allocate(self, geometry, slots, max_tokens):
        self.geometry = geometry
        d, tokens = geometry.head_dim, -(-max_tokens // self.residual) * self.residual
        shape = (geometry, slots, tokens, d, self.bits)
        self.keys = Packed.zeros(*shape, (self.group_size, 1))
        self.values = Packed.zeros(*shape, (1, self.group_size))
        return (self.keys.bytes + self.values.bytes) // slots

    def _packed(self, tokens):
        """How many first keys and values are quantised of `tokens` that were attended before."""
        return tokens - tokens % self.residual, (tokens - self.residual).clamp_min(0)

    def begin(self, layer, slot, prompt, view):
        keys, values = view.prompt(layer, slot, prompt.length)  # [Hkv, N, d]
        n, m = self._packed(torch.tensor(prompt.length))
        if n:
            self.keys.start(layer, slot, keys[:, :n])
        if m:
            self.values.start(layer, slot, values[:, :m])

    def attend(self, layer, q_pre, q, view, trace):
        if self.geometry.backend != "torch":
            return self._attend(layer, q, view)
        keys, values = self._packed(view.lens - 1)
        out = self._window(layer, q, keys, values, view)
        step = max(CHUNK // self.group_size, 1) * self.group_size
        size = max(view.bound - 1 - self.residual, 0)
        for start in range(0, size, step):
            end = min(start + step, size)
            k, v = (packed.read(layer, start, end) for packed in (self.keys, self.values))
            held = torch.arange(start, end, device=q.device) < values[:, None]
            held = held[:, None, None]
            out = merge(out, paged.attend(q, k, v, held, self.geometry.scale))
        return out[0]

    def _attend(self, layer, q, view):
        from macbench.kernels import packed

        return packed.attend(
            q,
            self.keys.layer(layer),
            self.values.layer(layer),
            self.bits,
            view.k[layer],
            view.v[layer],
            view.table,
            view.lens,
            self.residual,
            self.geometry.scale,
            view.bound,
        )

    def _window(self, layer, q, keys, values, view):
        """Attention to the tokens whose values are exact; the keys of some are not."""
        token = values[:, None] + torch.arange(self.residual + 1, device=q.device)
        held = token < view.lens[:, None]
        token = token.minimum(view.lens[:, None] - 1)[:, None]
        token = token.expand(-1, self.geometry.kv_heads, -1)
        k, v = (paged.take_tokens(x[layer], view.table, token) for x in (view.k, view.v))
        packed = (token < keys[:, None, None])[..., None]
        k = torch.where(packed, self.keys.gather(layer, token), paged.wide(k))
        return paged.attend(q, k, v, held[:, None, None], self.geometry.scale)

    def settle(self, view, trace):
        """Quantise what this step made old. The last full block of keys is done again at every
        step until the next one is full, and comes out the same: shapes do not depend on lengths."""
        g, lens = self.geometry, view.lens
        keys, values = self._packed(lens - 1)
        saved = ((keys + values) * self._saved(g))[:, None]
        trace.read(
            slice(None),
            view,
            head_tokens=lens[:, None],
            kv_tokens=lens[:, None],
            meta_bytes=-saved,
        )
        if g.backend != "torch":
            self._settle(view)
            return
        keys, values = self._packed(lens)
        block = (keys // self.residual - 1).clamp_min(0)  # what is not a full block is not read
        token = block[:, None] * self.residual + torch.arange(self.residual, device=lens.device)
        self.keys.write(slice(None), block, self._cached(view.k, token, view))
        token = (values - 1).clamp_min(0)
        self.values.write(slice(None), token, self._cached(view.v, token[:, None], view))

    def _settle(self, view):
        from macbench.kernels import pack

        rows = view.table, view.lens
        for layer in range(self.geometry.layers):
            keys, values = self.keys.layer(layer), self.values.layer(layer)
            pack.block(view.k[layer], *rows, keys, self.bits, self.residual)
            pack.token(view.v[layer], *rows, values, self.bits, behind=self.residual)

    def _cached(self, pools, token, view):
        """What the pools of all layers hold at positions [B, n], [B, layers, Hkv, n, d]."""
        token = token.minimum(view.lens[:, None] - 1)[:, None]
        token = token.expand(-1, self.geometry.kv_heads, -1)
        return torch.stack([paged.take_tokens(pool, view.table, token) for pool in pools], 1)

    def capacity(self, slot, tokens):
        return (tokens % self.residual + min(tokens, self.residual)) / 2

    def witness(self, totals):
        return totals["meta_bytes"] < 0
