"""Twilight (Lin et al., arXiv 2502.02770): of many candidates, as few as hold a share p of mass.

Quest's best pages, `candidates` tokens of them, are a generous first choice (base=all: all tokens).
Their keys are read again in 4 bits (one scale and minimum per token) for estimated logits, and the
smallest set whose estimated softmax mass over the candidates reaches p is attended exactly.

Read per KV head of a sparse layer: page bounds (one token's worth per page; none with base=all or
where all tokens are candidates), d / 2 + 4 bytes for each candidate, and the tokens of the kept
set, both as unions over the group's query heads where each chooses for itself (shared=false, as the
authors do; with shared=true pages and tokens by the group's summed bounds and mean mass). The first
`dense_layers` layers read everything. The budget is an outcome of p. Differs from the authors'
code: KV heads are never repeated; the set is cut from sorted mass, theirs by bisection on a
threshold; what they report as budget is the kept tokens of a query head alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from macbench.attention.base import Method
from macbench.attention.budget import check_least, check_share
from macbench.attention.pages import PageBounds, held
from macbench.attention.quantise import Packed
from macbench.attention.select import best, union
from macbench.errors import MacbenchError
from macbench.kernels import paged
from macbench.kernels.paged import PAGE

BITS = 4
CHUNK = 8192  # keys that are restored at once


@dataclass
class Twilight(Method):
    """p: share of the estimated mass that is kept; candidates: tokens of the first choice."""

    name: ClassVar[str] = "twilight"
    # 2: candidates without mass at p = 1; no bounds where all tokens are candidates
    version: ClassVar[int] = 2
    p: float = 0.85
    candidates: int = 8192
    base: str = "quest"
    dense_layers: int = 2
    shared: bool = False

    def __post_init__(self) -> None:
        check_share("twilight.p", self.p)
        check_least(self, 0, "dense_layers")
        if self.base not in ("quest", "all"):
            raise MacbenchError(f"twilight.base={self.base} is unknown: choose quest or all.")
        if self.candidates < PAGE:
            raise MacbenchError(
                f"twilight.candidates={self.candidates} must be at least a page's {PAGE} tokens."
            )

    def check(self, geometry, length):
        if geometry.head_dim % 2:
            raise MacbenchError(
                f"twilight keeps two 4-bit codes in a byte, so heads of {geometry.head_dim} "
                "channels do not work; choose another method."
            )

    def allocate(self, geometry, slots, max_tokens):
        self.geometry = geometry
        d = geometry.head_dim
        self.keys = Packed.zeros(geometry, slots, max_tokens, d, BITS, (1, d))
        if self.base == "all":
            return self.keys.bytes // slots
        self.bounds = PageBounds(geometry, slots, max_tokens)
        return (self.keys.bytes + self.bounds.bytes) // slots

    def begin(self, layer, slot, prompt, view):
        if layer < self.dense_layers:
            return
        if self.base == "quest":
            self.bounds.start(layer, slot, prompt, view)
        keys, _ = view.prompt(layer, slot, prompt.length)
        self.keys.start(layer, slot, keys)

    def attend(self, layer, q_pre, q, view, trace):
        lens = view.lens[:, None]
        if layer < self.dense_layers:
            trace.read(layer, view, head_tokens=lens, kv_tokens=lens)
            return view.exact(layer, q)[0]
        choose = self._choose if self.geometry.backend == "torch" else self._choose_in_kernels
        chosen, counts, loaded, meta = choose(layer, q, view)
        own = counts.repeat_interleave(self.geometry.q_heads // counts.shape[1], 1)
        trace.read(layer, view, head_tokens=own, kv_tokens=loaded, meta_bytes=meta)
        return view.exact(layer, q, tokens=chosen, counts=counts)[0]

    @property
    def _estimate_bytes(self) -> int:
        return self.geometry.head_dim * BITS // 8 + 4

    def _choose(self, layer, q, view):
        """Tokens [B, H, n] of which the first counts [B, H] are attended; how many distinct ones a
        KV head loads; bytes read to know them."""
        g, lens = self.geometry, view.lens[:, None]
        self.keys.write(layer, view.lens - 1, view.newest_key(layer)[:, :, None])
        if self.base == "quest":
            pages, counts, meta = self._candidates(layer, q, view)
            tokens, listed = self._tokens(pages, counts, view)
            logits = paged.logits(q, self.keys.gather(layer, tokens), g.scale)
        else:
            token = torch.arange(view.bound, device=q.device)
            tokens = token.expand(len(q), g.kv_heads if self.shared else g.q_heads, -1)
            listed = (token < lens)[:, None].expand(tokens.shape)
            meta = lens * self._estimate_bytes
            logits = self._logits(layer, q, view.bound)
        chosen, counts = self._prune(logits, tokens, listed)
        return chosen, counts, union(chosen, counts, view.bound, g.kv_heads).sum(-1), meta

    def _choose_in_kernels(self, layer, q, view):
        """The same."""
        from macbench.kernels import nucleus, pack, packed

        g, keys = self.geometry, self.keys.layer(layer)
        pack.token(view.k[layer], view.table, view.lens, keys, BITS)
        if self.base == "quest":
            pages, counts, meta = self._candidates(layer, q, view)
        else:
            pages, counts, meta = None, None, view.lens[:, None] * self._estimate_bytes
        logits = packed.logits(q, keys, BITS, view.lens, g.scale, view.bound, pages, counts)
        heads = g.kv_heads if self.shared else g.q_heads
        logits = logits.unflatten(1, (heads, -1))
        return *nucleus.nucleus(logits, self.p, g.kv_heads, view.bound, pages), meta

    def _candidates(self, layer, q, view):
        """The best pages [B, H, n], of which the first counts [B, H] hold tokens; bytes read to
        know them and their keys."""
        most, g = self.candidates // PAGE, self.geometry
        scores, full = self.bounds.scores(layer, q, view, self.shared), held(view)[:, None]
        counts = full.clamp_max(most).expand(scores.shape[:2]).contiguous()
        pages, loaded = best(scores, counts, most, g.kv_heads, g.backend)
        empty = full * PAGE - view.lens[:, None]  # the newest page may not be full
        bounds = torch.where(full > most, full * g.token_bytes, 0)
        return pages, counts, bounds + (loaded * PAGE - empty) * self._estimate_bytes

    @staticmethod
    def _tokens(pages, counts, view):
        """Tokens of pages, and which of them exist, [B, H, n * 16]."""
        tokens = pages[..., None] * PAGE + torch.arange(PAGE, device=pages.device)
        place = torch.arange(pages.shape[-1], device=pages.device)
        listed = (place < counts[..., None])[..., None] & (tokens < view.lens[:, None, None, None])
        return tokens.flatten(2).minimum(view.lens[:, None, None] - 1), listed.flatten(2)

    def _logits(self, layer, q, size):
        """Estimated logits of every token, [B, Hkv, G, size]."""
        parts = [
            paged.logits(q, self.keys.read(layer, at, min(at + CHUNK, size)), self.geometry.scale)
            for at in range(0, size, CHUNK)
        ]
        return torch.cat(parts, -1)

    def _prune(self, logits, tokens, listed):
        """The fewest of the tokens [B, H, n] that hold a share p: a list of them, and how many.

        logits [B, H, Hq / H, n], or [B, Hkv, G, n] where H is Hq.
        """
        logits = logits.reshape(len(tokens), tokens.shape[1], -1, tokens.shape[-1])
        weights, total, _ = paged.softmax(logits, listed[:, :, None].expand(logits.shape))
        mass = (weights / total).mean(2).masked_fill(~listed, -1.0)  # behind those of mass 0
        mass, order = mass.sort(dim=-1, descending=True, stable=True)
        counts = listed.sum(-1)
        if self.p < 1:
            mass = mass.clamp_min(0)
            short = mass.cumsum(-1) - mass < self.p  # without this one
            counts = short.sum(-1).minimum(counts)
        return tokens.gather(-1, order), counts
