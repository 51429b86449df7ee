"""Multipole Attention (Hooper et al., arXiv 2506.13059): near clusters exactly, far ones by their
centroids.

The prompt's keys, but for `sink` first tokens and the last [interval, 2 interval), are clustered
per KV head by k-means (Euclidean, `iterations` Lloyd iterations, random points as seeds, blocks of
8192 tokens on their own) after they are turned back to position 0; a cluster keeps its mean key,
mean value and number of tokens n_i. A step rotates the query to the fixed position 2048 and has a
logit l_i for each centroid; a cluster's score is exp(l_i) / sum_j n_j exp(l_j), summed over the
group. In order of score, whole clusters are chosen as long as their tokens number T or fewer: those
whose score lies strictly above that of the first one that does not fit. Exact attention to the
sinks, the recent buffer and the tokens of chosen clusters; with `replacement` every other cluster
is one more entry of the softmax, of logit l_i, weight n_i and value its mean. When the buffer holds
2 interval tokens, its older half becomes clusters of its own.

Read per KV head: 1 / per_cluster of the clustered tokens times d b (2 d b with replacement) + 4
bytes of centroids and counts; sink + (1 to 2) interval + at most T tokens. T follows from the
budget and the buffer at the prompt's end, with half a cluster more, which stays unused on average;
data decide how much of T whole clusters fill, which is why there is no `predicted`.
Differs from the authors' code: draws are seeded; tokens are listed by cluster instead of labelled;
if all clusters fit, all are chosen (theirs leaves the last); new clusters are refined among their
own tokens, by 4 iterations, not within the last block; behind a prompt of fewer than 2048 tokens
queries are rotated to its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from macbench.attention import kmeans
from macbench.attention.base import Method
from macbench.attention.budget import check_share
from macbench.attention.rng import uniform
from macbench.attention.select import unroll
from macbench.attention.summary import merge
from macbench.attention.unrotate import Unrotate
from macbench.errors import MacbenchError
from macbench.kernels import paged
from macbench.kernels.paged import wide

BLOCK = 8192  # prompt tokens clustered together; up to half as many more or fewer in the last block
QUERY = 2048  # where queries are rotated to for the centroids, if the prompt reaches so far
TOGETHER = 4  # blocks in the kernels' memory at a time
LATER = 4  # iterations while decoding


@dataclass
class Multipole(Method):
    """budget: byte budget aimed at; per_cluster: tokens of a cluster on average (its inverse is the
    authors' f); interval: a multiple of it."""

    name: ClassVar[str] = "multipole"
    # 2: logits of centroids where rotary embeddings scale or switch; T by the prompt's own buffer
    version: ClassVar[int] = 2
    budget: float = 0.2
    per_cluster: int = 16
    interval: int = 128
    sink: int = 10
    iterations: int = 10
    replacement: bool = True

    def __post_init__(self) -> None:
        check_share("multipole.budget", self.budget)
        if self.per_cluster < 1 or self.interval < 1 or self.interval % self.per_cluster:
            raise MacbenchError(
                f"multipole.interval={self.interval} must be a multiple of multipole.per_cluster="
                f"{self.per_cluster}; clusters are made of whole intervals."
            )
        if self.sink < 0 or self.iterations < 1:
            raise MacbenchError(
                f"multipole.sink={self.sink} must not be negative and multipole.iterations="
                f"{self.iterations} at least 1."
            )

    def _far(self, tokens):
        """Intervals that are clustered when so many tokens were seen: all but 1 to 2 of them."""
        far = (tokens - self.sink) // self.interval - 1
        return max(far, 0) if isinstance(far, int) else far.clamp_min(0)

    @property
    def each(self) -> int:
        """Clusters of an interval."""
        return self.interval // self.per_cluster

    def _cluster_bytes(self, geometry) -> int:
        return geometry.head_dim * geometry.dtype.itemsize * (1 + self.replacement) + 4

    def _least(self, geometry, length: int) -> float:
        """Tokens' worth of bytes that are read whatever T is."""
        far = self._far(length)
        clusters = far * self.each * self._cluster_bytes(geometry) / geometry.token_bytes
        return length - far * self.interval + clusters

    def floor(self, geometry, length):
        return min(1.0, self._least(geometry, length) / length)

    def tokens(self, geometry, length: int) -> int:
        """T for a prompt of this length: the cluster that does not fit leaves half of its tokens
        unused on average, which are added."""
        left = self.budget * length - self._least(geometry, length)
        return max(int(left + self.per_cluster / 2), 0)

    def allocate(self, geometry, slots, max_tokens):
        self.geometry = geometry
        device, dtype, d = geometry.device, geometry.dtype, geometry.head_dim
        lead = (geometry.layers, slots, geometry.kv_heads)
        far = self._far(max_tokens)
        clusters = far * self.each
        self.keys = torch.zeros(*lead, clusters, d, dtype=dtype, device=device)
        self.values = torch.zeros(
            *lead, clusters if self.replacement else 0, d, dtype=dtype, device=device
        )
        self.counts = torch.zeros(*lead, clusters, dtype=torch.int32, device=device)
        # positions, cluster after cluster
        self.members = torch.zeros(*lead, far * self.interval, dtype=torch.int32, device=device)
        self.most = [0] * slots  # T; the host's copy shapes the lists
        self.limit = torch.zeros(slots, dtype=torch.int64, device=device)
        self.first = [0] * slots  # tokens of the prompt
        self.prompted = torch.zeros(slots, dtype=torch.int64, device=device)  # its intervals
        self.key = torch.zeros(slots, dtype=torch.int64, device=device)
        self.unrotate = Unrotate(geometry)
        self.query = torch.zeros(slots, dtype=torch.int64, device=device)
        self.regime = torch.zeros(slots, dtype=torch.int64, device=device)
        # the turn of a row's queries, for the kernels, and the tokens that a step attends to
        self.turn = torch.zeros(2, slots, d, dtype=torch.float32, device=device)
        self.used = torch.zeros(lead, dtype=torch.int64, device=device)
        held = (self.keys, self.values, self.counts, self.members, self.turn, self.used)
        return sum(x.numel() * x.itemsize for x in held) // slots

    def begin(self, layer, slot, prompt, view):
        far = self._far(prompt.length)
        if layer == 0:
            self.most[slot] = self.tokens(self.geometry, prompt.original)
            if self.budget >= 1:
                self.most[slot] = prompt.length + prompt.max_new
            self.limit[slot], self.prompted[slot] = self.most[slot], far
            self.first[slot], self.key[slot] = prompt.length, prompt.key
            self.query[slot], self.regime[slot] = min(QUERY, prompt.original), prompt.regime
            turn = self.unrotate.turn(self.query[slot, None], self.regime[slot, None])
            self.turn[:, slot] = torch.cat(turn)
        if not far:
            return
        knobs = self.per_cluster, self.interval, self.sink, self.iterations, self.replacement
        made = prompt.once(
            ("clusters", layer, *knobs), lambda: self._prompt_clusters(layer, slot, prompt, view)
        )
        for kept, new in zip(self._kept(), made, strict=True):
            kept[layer, slot, :, : new.shape[1]] = new

    def _prompt_clusters(self, layer, slot, prompt, view):
        """What `_kept` is to hold of a prompt's clusters: [Hkv, clusters or tokens, …] each."""
        keys, values = view.prompt(layer, slot, prompt.length)
        head = torch.arange(len(keys), device=keys.device)[:, None]
        whole = self._far(prompt.length) * self.interval
        size = max(BLOCK // self.interval, 1) * self.interval
        blocks = max((whole + size // 2) // size, 1)
        kernels = self.geometry.backend != "torch"
        together = TOGETHER if kernels else 1
        made = []
        for i in range(0, blocks, together):
            count = min(together, blocks - i)
            first = self.sink + i * size
            end = self.sink + whole if i + count == blocks else first + count * size
            position = torch.arange(first, end, device=keys.device)
            points = self.unrotate(keys[:, first:end], position, self.regime[slot])
            v = values[:, first:end]
            if kernels:
                from macbench.kernels.kmeans import clusters

                v = v if self.replacement else None
                draws, per = (prompt.key, layer, first), self.per_cluster
                made.append(clusters(points, v, *draws, size, count, per, self.iterations))
            else:
                draws = self.key[slot], layer, head, position
                made.append(self._clusters(*draws, points, v, self.iterations))
        return [torch.cat(parts, 1) for parts in zip(*made, strict=True)]

    def _kept(self):
        kept = (self.keys, self.counts, self.members)
        return (*kept, self.values) if self.replacement else kept

    def _clusters(self, key, layer, head, position, points, values, iterations):
        """Of tokens at position [..., n] with points (their keys at position 0) and values
        [..., n, d]: for each cluster its mean key and number of tokens, positions in the order of
        clusters, and mean values."""
        n = points.shape[-2]
        k = n // self.per_cluster
        draw = uniform(key, layer, head, position)
        seeds = draw.argsort(dim=-1, stable=True)[..., :k]

        def again(i):
            number = torch.arange(k, device=points.device)
            return (uniform(key, layer, head, position[..., :1], i, number) * n).long()

        labels = kmeans.cluster(points, seeds, iterations, again)
        centres, counts = kmeans.means(points, labels, k)
        order = labels.argsort(dim=-1, stable=True)
        members = position.expand(order.shape).gather(-1, order)
        if not self.replacement:
            return centres, counts, members
        return centres, counts, members, kmeans.means(wide(values), labels, k)[0]

    def attend(self, layer, q_pre, q, view, trace):
        size = self._far(view.bound - 1) * self.each
        if size == 0:
            self.used[layer] = view.lens[:, None]
            return view.exact(layer, q)[0]
        if self.geometry.backend != "torch":
            return self._attend_on_kernels(layer, q_pre, q, view, size)
        far = self._far(view.lens - 1)  # [B] intervals clustered before this token came
        counts = self.counts[layer, ..., :size].long()
        number = torch.arange(size, device=q.device)
        counts = counts.masked_fill(number >= self.each * far[:, None, None], 0)
        logits = self._logits(layer, q_pre, counts)
        chosen, order = self._choose(logits, counts)
        lengths = (counts * chosen).gather(-1, order)
        exact = self._exact(layer, q, far, counts, order, lengths, view)
        if not self.replacement:
            return exact[0]
        rest = ((counts > 0) & ~chosen)[:, :, None]
        values = wide(self.values[layer, :, :, :size])
        out, lse = paged.softmax_attend(logits, rest.expand(logits.shape), values)
        return merge(exact, (out.flatten(1, 2), lse.flatten(1, 2)))[0]

    def _attend_on_kernels(self, layer, q_pre, q, view, size):
        from macbench.kernels import multipole

        sizes = multipole.Sizes(self.sink, self.interval, self.each)
        used, scale = self.used[layer], self.geometry.scale
        turn = (*self.turn, self.unrotate.partner)
        keys, counts, lens = self.keys[layer], self.counts[layer], view.lens
        choice = multipole.choose(
            q_pre, turn, keys, counts, lens, self.limit, used, sizes, scale, size
        )
        values = self.values[layer] if self.replacement else None
        width = self._width(view)
        tokens, rest = multipole.read(choice, self.members[layer], values, lens, sizes, width)
        exact = view.exact(layer, q, tokens=tokens, counts=used)
        return exact[0] if rest is None else multipole.merge(exact, rest, q)

    def _width(self, view):
        """Tokens that a row attends to exactly, at most."""
        clustered = self._far(view.bound - 1) * self.interval
        return self.sink + 2 * self.interval + min(max(self.most), clustered)

    def _logits(self, layer, q_pre, counts):
        """log n_i + l_i: each cluster as one entry, [B, Hkv, G, clusters]; -inf of empty ones."""
        turned = self.geometry.rotate(wide(q_pre), self.query, self.regime)
        keys = self.keys[layer, :, :, : counts.shape[-1]]
        logits = paged.logits(turned, keys, self.geometry.scale)
        return logits + counts.to(logits.dtype).log()[:, :, None]

    def _choose(self, logits, counts):
        """Which clusters are attended exactly [B, Hkv, clusters], and their order by score."""
        lse = logits.logsumexp(-1, keepdim=True)
        mass = (logits - lse.masked_fill(lse.isneginf(), 0)).exp()
        score = mass.sum(2) / counts.clamp_min(1)
        score = score.masked_fill(counts == 0, -1.0)
        ranked = score.sort(dim=-1, descending=True, stable=True)
        order = ranked.indices
        over = counts.gather(-1, order).cumsum(-1) > self.limit[:, None, None]
        refused = ranked.values.gather(-1, over.int().argmax(-1, keepdim=True))
        refused = torch.where(over.any(-1, keepdim=True), refused, -1.0)
        return score > refused, order

    def _exact(self, layer, q, far, counts, order, lengths, view):
        """Sinks, buffer and the first lengths [B, Hkv, clusters] tokens of ordered clusters."""
        near = view.lens - far * self.interval  # [B] sinks and buffer
        place = torch.arange(self._width(view), device=q.device)
        starts = (counts.cumsum(-1) - counts).gather(-1, order)
        at = (place - near[:, None])[:, None].expand(*order.shape[:2], -1)
        member = unroll(starts, lengths, at).clamp_max(self.members.shape[-1] - 1)
        listed = self.members[layer].gather(-1, member).long()
        first = torch.where(place < self.sink, place, place + far[:, None] * self.interval)
        tokens = torch.where(at < 0, first[:, None], listed)
        tokens = tokens.minimum(view.lens[:, None, None] - 1)
        used = self.used[layer] = near[:, None] + lengths.sum(-1)
        return view.exact(layer, q, tokens=tokens, counts=used)

    def settle(self, view, trace):
        meta = self._far(view.lens - 1)[:, None] * self.each * self._cluster_bytes(self.geometry)
        own = self.used.repeat_interleave(self.geometry.group, 2)
        trace.read(slice(None), view, head_tokens=own, kv_tokens=self.used, meta_bytes=meta)
        self._grow(view)

    def _grow(self, view):
        """Cluster the older half of a full buffer. In torch it is done again at every step until
        the buffer is full again, and comes out the same: shapes do not depend on lengths."""
        if all(self._far(n + view.grown) == self._far(n) for n in self.first):
            return
        far = self._far(view.lens)
        newest = (far - 1).clamp_min(0)
        position = self.sink + newest[:, None] * self.interval
        position = position + torch.arange(self.interval, device=far.device)
        if self.geometry.backend != "torch":
            from macbench.kernels import cluster

            if cluster.fits(self.interval, self.geometry.head_dim):
                return self._grow_on_kernels(position, view)
        row = torch.arange(len(far), device=far.device)
        listed = position.minimum(view.lens[:, None] - 1)[:, None]
        listed = listed.expand(-1, self.geometry.kv_heads, -1)
        keys, values = (  # [B, layers, Hkv, interval, d]
            torch.stack([paged.take_tokens(pool, view.table, listed) for pool in pools], 1)
            for pools in (view.k, view.v)
        )
        key, layer, head = (
            self.key[:, None, None, None],
            torch.arange(keys.shape[1], device=far.device)[:, None, None],
            torch.arange(keys.shape[2], device=far.device)[:, None],
        )
        position = position[:, None, None]
        points = self.unrotate(keys, position, self.regime[:, None, None, None])
        made = self._clusters(key, layer, head, position, points, values, LATER)
        grown = far > self.prompted  # else the newest interval is the prompt's own
        for kept, new in zip(self._kept(), made, strict=True):
            blocks = kept.unflatten(3, (-1, new.shape[3]))
            where = grown.view(-1, *[1] * (new.dim() - 1))
            old = blocks[:, row, :, newest]
            blocks[:, row, :, newest] = torch.where(where, new.to(kept.dtype), old)

    def _grow_on_kernels(self, position, view):
        """position [B, interval] of the newest interval that is clustered, or is to be."""
        from macbench.kernels.cluster import cluster

        regime = self.regime[:, None].expand(position.shape)
        turned = self.unrotate.turn(position.flatten(), regime.flatten())
        cos, sin = (part.view(*position.shape, -1) for part in turned)
        turn = cos, sin, self.unrotate.partner
        for layer in range(self.geometry.layers):
            cluster(
                layer,
                view.k[layer],
                view.v[layer],
                view.table,
                view.lens,
                self.prompted,
                self.key,
                turn,
                self.keys[layer],
                self.counts[layer],
                self.members[layer],
                self.values[layer] if self.replacement else None,
                self.sink,
                self.interval,
                self.each,
                LATER,
            )
