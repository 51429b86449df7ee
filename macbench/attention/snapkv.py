"""SnapKV (Li et al., arXiv 2404.14469) and Ada-KV (Feng et al., arXiv 2407.11550): of the prompt,
the tokens its last queries attend to.

After the exact prefill each KV head scores the prompt's tokens by the attention that the last
`window` queries pay them (softmax over all keys, summed over these queries), smooths the scores by
pooling over `kernel` neighbours and keeps the best together with the window, C tokens in all. What
is generated is appended and never evicted.

Read per KV head: C + g tokens, C = budget * N of a prompt of N, at least window + 1; no metadata.
The achieved budget (C + g) / (N + g) therefore drifts up with every token g generated; with
`recompress=n` the last `window` queries choose C tokens anew after every n steps (a decoding
wrapper, not part of SnapKV), and it stays between C and C + n.

ada=true shares a layer's budget among its (local) KV heads: a head's number n_h of the best
Hkv (C - window) pairs of head and token decides, (1 - alpha) n_h + alpha (C - window) beside the
window.

Differs from the authors' code: KV heads are never repeated. They store and select for each query
head on its own, G times what they claim; here a group shares one set, chosen by its heads' summed
(group=sum) or highest (group=max) probability. Ties keep the lower position.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from macbench.attention.base import Lists, Method, Needs
from macbench.attention.budget import check_share
from macbench.attention.kept import Kept
from macbench.attention.observed import best, first, ordered, ranked, smoothed, window_scores
from macbench.errors import MacbenchError


@dataclass
class SnapKV(Method):
    """budget: share of the prompt's tokens kept, window included; recompress: 0 for never."""

    name: ClassVar[str] = "snapkv"
    version: ClassVar[int] = 2  # 2: when a continued answer is cut with `recompress`
    budget: float = 0.2
    window: int = 32
    kernel: int = 7
    pool: str = "max"
    group: str = "sum"
    ada: bool = False
    alpha: float = 0.2
    recompress: int = 0

    def __post_init__(self) -> None:
        check_share(f"{self.name}.budget", self.budget)
        for knob, fine, rule in (
            ("window", self.window >= 1, "keep at least 1"),
            ("kernel", self.kernel >= 1 and self.kernel % 2 == 1, "it must be odd"),
            ("pool", self.pool in ("max", "avg"), "choose max or avg"),
            ("group", self.group in ("sum", "max"), "choose sum or max"),
            ("alpha", 0 <= self.alpha <= 1, "it must lie in [0, 1]"),
            ("recompress", self.recompress >= 0, "use 0 for never"),
        ):
            if not fine:
                raise MacbenchError(f"{self.name}.{knob}={getattr(self, knob)}: {rule}.")
        if self.recompress and self.ada:
            raise MacbenchError(
                f"{self.name}.recompress={self.recompress} works without ada only: "
                f"leave {self.name}.ada=false."
            )
        self.needs = Needs(prompt_queries=self.window)

    def sizes(self, layers: int, length: int) -> list[int]:
        """Tokens that each layer keeps of a prompt of `length`, at most (mean over KV heads)."""
        return [max(int(self.budget * length), self.window + 1)] * layers

    def floor(self, geometry, length):
        least = replace(self, budget=1e-9).sizes(geometry.layers, length)
        return sum(min(size, length) for size in least) / (geometry.layers * length)

    def predicted(self, geometry, length, tokens):
        """With `ada` but for rounding; with `recompress` of the first step only."""
        if self.budget >= 1:
            return 1.0
        if self.recompress and tokens > length + 1:
            return None
        first = sum(min(size, length) for size in self.sizes(geometry.layers, length))
        return (first / geometry.layers + tokens - length) / tokens

    def allocate(self, geometry, slots, max_tokens):
        self.geometry = geometry
        self.kept = Kept(geometry, slots, geometry.kv_heads, max_tokens)
        self.length = [1] * slots
        self.mean = [[1.0] * slots for _ in range(geometry.layers)]  # tokens kept of the prompt
        if not self.recompress:
            return 0
        self.goal = [[1] * slots for _ in range(geometry.layers)]
        # tokens that a live row held after its last cut, and steps that a continued one came late
        self.count = [[1] * slots for _ in range(geometry.layers)]
        self.late = [0] * slots
        shape = (geometry.layers, slots, self.window, geometry.q_heads, geometry.head_dim)
        self.queries = torch.zeros(shape, dtype=geometry.dtype, device=geometry.device)
        return self.queries.numel() * self.queries.itemsize // slots

    def begin(self, layer, slot, prompt, view):
        decoded = prompt.decoded  # an answer that goes on keeps what it had appended
        if self.recompress:
            decoded %= self.recompress
        goal = self.sizes(self.geometry.layers, prompt.original)[layer]
        size, whole = goal + decoded, prompt.length
        if self.budget >= 1:
            goal = size = whole + prompt.max_new
        counts = min(size, whole)
        if size >= whole:
            tokens = torch.arange(whole, device=view.lens.device)
            tokens = tokens.expand(self.geometry.kv_heads, -1)
        else:

            def keys():
                return view.prompt(layer, slot, whole)[0]

            vote = self.window, self.kernel, self.pool, self.group, decoded
            scores, order = ranked(prompt, layer, keys, self.geometry, *vote)
            if self.ada:
                all_heads = prompt.once(
                    ("all heads", layer, *vote),
                    lambda: ordered(scores[:, : whole - self.window].flatten()),
                )
                counts = self._shares(all_heads, size - self.window)
                # the longest list; on a card at most that, without waiting for it
                most = int(counts.max()) if self.geometry.backend == "torch" else len(order) * size
                tokens = ragged(order[:, :most], counts)
            else:
                tokens = first(order, size)
        self.kept.start(layer, slot, tokens, counts, whole + prompt.max_new)
        self.length[slot] = whole
        self.mean[layer][slot] = counts if isinstance(counts, int) else counts.double().mean()
        if self.recompress:
            last = prompt.q[layer][-self.window :]
            self.queries[layer, slot, self.window - len(last) :] = last
            self.goal[layer][slot], self.count[layer][slot] = goal, tokens.shape[-1] - decoded
            self.late[slot] = decoded

    def _shares(self, order, base):
        """Ada-KV: tokens of each KV head [Hkv], window included, from the order of all heads'
        tokens before it, [Hkv * n]."""
        heads = self.geometry.kv_heads
        head = torch.arange(heads, device=order.device)[:, None]
        won = (order[: heads * base] // (len(order) // heads) == head).sum(-1)
        return (won * (1 - self.alpha) + self.alpha * base).round().long() + self.window

    def between(self, view, done):
        if not self.recompress or not done:
            return
        due = [slot for slot, late in enumerate(self.late) if (done + late) % self.recompress == 0]
        for layer in range(self.geometry.layers) if due else ():
            self._recompress(layer, view, due)

    def attend(self, layer, q_pre, q, view, trace):
        tokens, counts = self.kept.append(layer, view)
        if self.recompress:
            recent = self.queries[layer]
            recent.copy_(torch.cat((recent[:, 1:], q[:, None].to(recent.dtype)), 1))
        return view.exact(layer, q, tokens=tokens, counts=counts)[0]

    def lists(self, lens):
        first = self.kept.first
        if self.ada or self.recompress or any(layer != first[0] for layer in first):
            return None
        grown = zip(first[0], lens, self.length, strict=True)
        return Lists([min(n, k + n - start) for k, n, start in grown], 1, self.geometry.kv_heads)

    def settle(self, view, trace):
        held = self.kept.held
        own = held.repeat_interleave(self.geometry.group, -1)
        trace.read(slice(None), view, head_tokens=own, kv_tokens=held)

    def _recompress(self, layer, view, due):
        """Back to the size that the prompt was cut to, by the last queries. The host knows how
        many tokens the lists of a live row hold; what becomes of a finished row's is no matter."""
        kept, count = self.kept, self.count[layer]
        longest = kept.tokens[layer, ..., : max(count) + self.recompress].long()
        keys = view.keys(layer, longest)
        for slot in due:
            goal = self.goal[layer][slot]
            count[slot] += self.recompress
            if count[slot] <= goal:
                continue
            held, g = keys[slot, :, : count[slot]], self.geometry
            q = self.queries[layer, slot]
            scores = window_scores(q, held, g.scale, self.group, g.backend)
            scores = smoothed(scores, self.window, self.kernel, self.pool)
            tokens = longest[slot].gather(-1, best(scores, goal))
            kept.tokens[layer, slot, :, :goal] = tokens
            kept.held[layer, slot] = count[slot] = goal

    def capacity(self, slot, tokens):
        grown = tokens - self.length[slot]
        kept = [float(layer[slot]) + grown for layer in self.mean]
        if self.recompress:  # the most that is held, just before the lists are cut
            most = [layer[slot] + self.recompress for layer in self.goal]
            kept = [min(pair) for pair in zip(kept, most, strict=True)]
        return min(sum(kept) / len(kept), tokens)


def ragged(order: Tensor, counts: Tensor) -> Tensor:
    """The first counts [H] positions of an order [H, n], ascending; what follows is no list's."""
    beyond = torch.arange(order.shape[-1], device=order.device) >= counts[:, None]
    tokens = order.masked_fill(beyond, torch.iinfo(order.dtype).max).sort(-1).values
    return tokens.where(~beyond, 0)
