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
from macbench.attention.budget import check_dense, check_least, check_share
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
        check_dense(self, geometry)
        if geometry.head_dim % 2:
            raise MacbenchError(
                f"twilight keeps two 4-bit codes in a byte, so heads of {geometry.head_dim} "
                "channels do not work; choose another method."
            )

    def allocate(self, geometry, slots, max_tokens):
        self.geometry = geometry
        d = geometry.head_dim
        # of every layer's last step: tokens of each list, distinct tokens and pages of a KV head
        self.kept, self.loaded, self.pages = ([torch.empty(0)] * geometry.layers for _ in range(3))
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
        if layer < self.dense_layers:
            return view.exact(layer, q)[0]
        if layer == self.dense_layers and self.base == "quest":  # once a step, for all layers
            most, heads = self.candidates // PAGE, self._lists
            self.listed = held(view)[:, None].clamp_max(most).expand(-1, heads).contiguous()
        choose = self._choose if self.geometry.backend == "torch" else self._choose_in_kernels
        chosen, self.kept[layer], self.loaded[layer] = choose(layer, q, view)
        return view.exact(layer, q, tokens=chosen, counts=self.kept[layer])[0]

    def settle(self, view, trace):
        g, lens, dense = self.geometry, view.lens[:, None], self.dense_layers
        trace.read(slice(dense), view, head_tokens=lens, kv_tokens=lens)
        if dense >= g.layers:
            return
        kept, loaded = torch.stack(self.kept[dense:]), torch.stack(self.loaded[dense:])
        meta = lens * self._estimate_bytes
        if self.base == "quest":
            full = held(view)[:, None]
            empty = full * PAGE - lens  # the newest page may not be full
            tokens = torch.stack(self.pages[dense:]) * PAGE - empty
            bounds = torch.where(full > self.candidates // PAGE, full * g.token_bytes, 0)
            meta = bounds + tokens * self._estimate_bytes
        trace.read(
            slice(dense, None),
            view,
            head_tokens=kept.repeat_interleave(g.q_heads // self._lists, -1),
            kv_tokens=loaded,
            meta_bytes=meta,
        )

    @property
    def _lists(self) -> int:
        """Lists of a row."""
        return self.geometry.kv_heads if self.shared else self.geometry.q_heads

    @property
    def _estimate_bytes(self) -> int:
        return self.geometry.head_dim * BITS // 8 + 4

    def _choose(self, layer, q, view):
        """Tokens [B, H, n] of which the first counts [B, H] are attended; how many distinct ones a
        KV head loads."""
        g, lens = self.geometry, view.lens[:, None]
        self.keys.write(layer, view.lens - 1, view.newest_key(layer)[:, :, None])
        if self.base == "quest":
            pages = self._candidates(layer, q, view)
            tokens, listed = self._tokens(pages, self.listed, view)
            logits = paged.logits(q, self.keys.gather(layer, tokens), g.scale)
        else:
            token = torch.arange(view.bound, device=q.device)
            tokens = token.expand(len(q), self._lists, -1)
            listed = (token < lens)[:, None].expand(tokens.shape)
            logits = self._logits(layer, q, view.bound)
        chosen, counts = self._prune(logits, tokens, listed)
        return chosen, counts, union(chosen, counts, view.bound, g.kv_heads).sum(-1)

    def _choose_in_kernels(self, layer, q, view):
        """The same."""
        from macbench.kernels import estimate, nucleus, pack

        g, keys = self.geometry, self.keys.layer(layer)
        pack.token(view.k[layer], view.table, view.lens, keys, BITS)
        pages = counts = None
        if self.base == "quest":
            pages, counts = self._candidates(layer, q, view), self.listed
        logits = estimate.logits(q, keys, BITS, view.lens, g.scale, view.bound, pages, counts)
        logits = logits.unflatten(1, (self._lists, -1))
        return nucleus.nucleus(logits, self.p, g.kv_heads, view.bound, pages)

    def _candidates(self, layer, q, view):
        """The best pages [B, H, n], of which the first self.listed [B, H] hold tokens."""
        g = self.geometry
        scores = self.bounds.scores(layer, q, view, self.shared)
        most = self.candidates // PAGE
        pages, self.pages[layer] = best(scores, self.listed, most, g.kv_heads, g.backend)
        return pages

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
