"""What the methods mean, one head and one position at a time, in fp64 numpy.

Written to be read and to share nothing with the code under test: every attention is a softmax over
an explicit list of positions, every cost the size of an explicit set of positions. Arrays of one
layer of one sequence are [T, heads, d]; query head h reads KV head h // G.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np


def attend(q, k, v, positions, scale):
    """Softmax attention of one query [d] over the listed positions of k, v [T, d] -> o, lse."""
    positions = list(positions)
    if not positions:
        return np.zeros_like(q), -math.inf
    logits = np.array([scale * float(q @ k[j]) for j in positions])
    top = logits.max()
    weights = np.exp(logits - top)
    out = sum(w * v[j] for w, j in zip(weights, positions, strict=True)) / weights.sum()
    return out, top + math.log(weights.sum())


def merge(a, b):
    """The summary of two disjoint key sets from their summaries (o, lse)."""
    (o1, l1), (o2, l2) = a, b
    if l1 == -math.inf:
        return b
    if l2 == -math.inf:
        return a
    top = max(l1, l2)
    w1, w2 = math.exp(l1 - top), math.exp(l2 - top)
    return (w1 * o1 + w2 * o2) / (w1 + w2), top + math.log(w1 + w2)


@dataclass
class Layer:
    """One layer of one sequence, as far as it is known: arrays [T, heads, d] over all positions."""

    q_pre: np.ndarray
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    length: int  # of the prompt
    scale: float
    itemsize: int

    @property
    def group(self):
        return self.q.shape[1] // self.k.shape[1]

    @property
    def d(self):
        return self.q.shape[2]

    def attend(self, t, head, positions):
        g = head // self.group
        return attend(self.q[t, head], self.k[:, g], self.v[:, g], positions, self.scale)

    def logit(self, t, head, j):
        return self.scale * float(self.q[t, head] @ self.k[j, head // self.group])


def layer(problem, slot, number):
    """The `Layer` of a harness problem."""
    s = problem.sequences[slot]
    arrays = [getattr(s, n)[number].double().numpy() for n in ("q_pre", "q", "k", "v")]
    return Layer(*arrays, s.length, problem.geometry.scale, problem.geometry.dtype.itemsize)


@dataclass
class Step:
    """One decode step of one layer: per query head the output and the positions attended freshly;
    per KV head what it loads (token positions; half tokens where only K is scored)."""

    out: list = field(default_factory=list)
    fresh: list = field(default_factory=list)  # per query head: set of positions
    kv_tokens: list = field(default_factory=list)
    meta_bytes: list = field(default_factory=list)

    @property
    def head_tokens(self):
        return [len(positions) for positions in self.fresh]


def unions(sets, group):
    """Union of the sets of each group's query heads."""
    return [set().union(*sets[g : g + group]) for g in range(0, len(sets), group)]


def selected(layer, t, chosen):
    """A step that attends each query head exactly to its chosen positions, loading the union."""
    step = Step()
    for head, positions in enumerate(chosen):
        step.out.append(layer.attend(t, head, sorted(positions))[0])
        step.fresh.append(set(positions))
    step.kv_tokens = [len(loaded) for loaded in unions(step.fresh, layer.group)]
    step.meta_bytes = [0] * len(step.kv_tokens)
    return step


def full(layer, t):
    return selected(layer, t, [range(t + 1)] * layer.q.shape[1])


def streaming(layer, t, kept, sink):
    """The first `sink` and the last kept - sink positions."""
    recent = kept - sink
    positions = {j for j in range(t + 1) if j < sink or j > t - recent}
    return selected(layer, t, [positions] * layer.q.shape[1])


def oracle_topk(layer, t, kept, shared):
    """The `kept` positions of highest probability; all keys are read to know them."""
    heads, group = layer.q.shape[1], layer.group
    probability = []
    for head in range(heads):
        weights = np.exp([layer.logit(t, head, j) for j in range(t + 1)])
        probability.append(weights / weights.sum())
    if shared:
        for g in range(0, heads, group):
            mean = sum(probability[g : g + group]) / group
            probability[g : g + group] = [mean] * group
    best = [set(sorted(range(t + 1), key=lambda j: -p[j])[:kept]) for p in probability]
    step = selected(layer, t, best)
    step.kv_tokens = [(t + 1 + used) / 2 for used in step.kv_tokens]
    return step


def quest(layer, t, pages, shared, page=16):
    """The newest page and the pages - 1 others whose box of keys bounds q.k highest. Where all are
    read there is nothing to choose, and no box is looked at."""
    heads, group = layer.q.shape[1], layer.group
    held = [list(range(a, min(a + page, t + 1))) for a in range(0, t + 1, page)]
    bounds = []
    for head in range(heads):
        q, k = layer.q[t, head], layer.k[:, head // group]
        bounds.append(
            [
                sum(
                    max(q[c] * min(k[j, c] for j in tokens), q[c] * max(k[j, c] for j in tokens))
                    for c in range(layer.d)
                )
                for tokens in held
            ]
        )
    if shared:
        for g in range(0, heads, group):
            bounds[g : g + group] = [np.sum(bounds[g : g + group], axis=0)] * group
    chosen = []
    for score in bounds:
        order = sorted(range(len(held) - 1), key=lambda i: -score[i])
        chosen.append({j for i in [*order[: pages - 1], len(held) - 1] for j in held[i]})
    step = selected(layer, t, chosen)
    boxes = len(held) if pages < len(held) else 0
    step.meta_bytes = [boxes * 2 * layer.d * layer.itemsize] * len(step.kv_tokens)
    return step


def half(x):
    return float(np.float16(np.float32(x)))  # torch rounds a double in two steps


def restored(numbers, bits):
    """A group after it was stored in `bits` bits with an fp16 scale and minimum."""
    low = half(min(numbers))
    scale = half((max(numbers) - low) / (2**bits - 1))
    if scale == 0:
        return [low] * len(numbers)
    codes = [min(max(round((x - low) / scale), 0), 2**bits - 1) for x in numbers]
    return [code * scale + low for code in codes]


@dataclass
class Row:
    """What MAC keeps of the query at one position, for one head."""

    query: np.ndarray
    o: np.ndarray
    lse: float
    chain: int = 0  # hops since a row was last exact


@dataclass
class MacStep(Step):
    hit: list = field(default_factory=list)
    p: list = field(default_factory=list)  # the matched position, where there is one
    distance: list = field(default_factory=list)
    depth: list = field(default_factory=list)


class NaiveMac:
    """MAC on one layer of one sequence. rows[h][x] is the row of head h at position x; the ring is
    the rule that only the last K positions may be looked at."""

    def __init__(
        self,
        layer,
        tau,
        K,
        r,
        amend=True,
        match="nearest",
        match_on="pre_rope",
        refresh_every=0,
        refresh_mixed_groups=False,
        max_chain=None,
        sink=0,
        min_context=0,
    ):
        self.layer, self.K, self.r, self.sink = layer, K, r if amend else 0, sink
        self.radius = math.sqrt(2 * layer.d) * (1 - tau)
        self.match, self.match_on = match, match_on
        self.refresh_every, self.refresh_mixed_groups = refresh_every, refresh_mixed_groups
        self.max_chain, self.min_context = max_chain, min_context
        self.heads = layer.q.shape[1]
        self.rows = [{} for _ in range(self.heads)]
        self.steps = 0
        for x in range(max(layer.length - K, 0), layer.length):
            for head in range(self.heads):
                o, lse = layer.attend(x, head, range(min(sink, self.end(x)), self.end(x)))
                self.rows[head][x] = Row(self.matched(x, head), o, lse)

    def end(self, x):
        """E(x): the row of position x covers the keys before E(x)."""
        return max(x + 1 - self.r, 0)

    def matched(self, x, head):
        return (self.layer.q_pre if self.match_on == "pre_rope" else self.layer.q)[x, head]

    def find(self, t, head):
        """(p, distance) of the row this head reuses, or None."""
        rows = self.rows[head]
        if t < self.min_context:
            return None
        if self.match == "previous":
            exact = self.refresh_every and (self.steps + 1) % self.refresh_every == 0
            best = None if exact else (0.0, t - 1)
        else:
            query = self.matched(t, head)
            ring = range(max(0, t - self.K), t)
            away = {x: float(np.linalg.norm(query - rows[x].query)) for x in ring}
            least = min(away.values(), default=math.inf)
            rounding = 1e-5 * np.linalg.norm(query)  # closer than this are equals: the oldest
            equals = [x for x in ring if away[x] <= least + rounding]
            best = (least, min(equals)) if least < self.radius else None
        if best is None or best[1] not in rows:
            return None
        row = rows[best[1]]
        if row.lse == -math.inf or (self.max_chain is not None and row.chain >= self.max_chain):
            return None
        return best[1], best[0]

    def step(self, t):
        found = [self.find(t, head) for head in range(self.heads)]
        if self.refresh_mixed_groups:
            for g in range(0, self.heads, self.layer.group):
                if None in found[g : g + self.layer.group]:
                    found[g : g + self.layer.group] = [None] * self.layer.group
        step, e = MacStep(), self.end(t)
        for head, match in enumerate(found):
            if match is None:
                begin = min(self.sink, e)
                summary = self.layer.attend(t, head, range(begin, e))
                chain = 0
            else:
                old = self.rows[head][match[0]]
                begin = self.end(match[0])
                band = self.layer.attend(t, head, range(begin, e))
                summary = merge((old.o, old.lse), band)
                chain = old.chain + 1
            self.rows[head][t] = Row(self.matched(t, head), *summary, chain)
            first = range(min(self.sink, begin))
            tail = range(e, t + 1)
            out = merge(summary, self.layer.attend(t, head, first))
            step.out.append(merge(out, self.layer.attend(t, head, tail))[0])
            step.fresh.append({*first, *range(begin, e), *tail})
            step.hit.append(match is not None)
            step.p.append(match and match[0])
            step.distance.append(match[1] if match else 0)
            step.depth.append(chain)
        step.kv_tokens = [len(loaded) for loaded in unions(step.fresh, self.layer.group)]
        size = self.layer.d * self.layer.itemsize
        scanned = 0 if self.match == "previous" or t < self.min_context else self.K * size
        row = size + 4  # o and lse of the reused row
        step.meta_bytes = [self.layer.group * (scanned + row)] * len(step.kv_tokens)
        self.steps += 1
        return step
