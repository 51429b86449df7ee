"""What the eviction methods mean: sets of kept positions, one head and one position at a time.

In fp64 numpy like `naive`, and sharing nothing with the code under test. A method is an object per
layer of one sequence; `step(t)` is called for every decoded position in order.
"""

from __future__ import annotations

import naive
import numpy as np


def probabilities(layer, t, head, positions):
    """Softmax of the query at t over the listed positions: {position: probability}."""
    positions = sorted(positions)
    weights = np.array([layer.logit(t, head, j) for j in positions])
    weights = np.exp(weights - weights.max())
    return dict(zip(positions, weights / weights.sum(), strict=True))


def heads_of(layer, g):
    return range(g * layer.group, (g + 1) * layer.group)


def best(scores, count):
    """The `count` positions of highest score in {position: score}; of equals, the lower ones."""
    return set(sorted(scores, key=lambda j: (-scores[j], j))[:count])


def smooth(scores, size, pool):
    """scores {position: score}, neighbours in the order of positions."""
    order, half, out = sorted(scores), size // 2, {}
    for i, j in enumerate(order):
        near = [scores[order[m]] for m in range(i - half, i + half + 1) if 0 <= m < len(order)]
        out[j] = max(near) if pool == "max" else sum(near) / size
    return out


def window_scores(layer, g, queries, kept, kernel, pool, group):
    """Of kept positions before the first of the queries, by what these pay them."""
    before = [j for j in kept if j < queries[0]]
    heads = []
    for head in heads_of(layer, g):
        total = dict.fromkeys(before, 0.0)
        for t in queries:
            paid = probabilities(layer, t, head, [j for j in kept if j <= t])
            for j in before:
                total[j] += paid[j]
        heads.append(total)
    join = max if group == "max" else sum
    return smooth({j: join(total[j] for total in heads) for j in before}, kernel, pool)


def ada_sizes(scores, base, alpha):
    """Tokens beside the window for each KV head of a layer, from their scores."""
    pairs = [(-s[j], g, j) for g, s in enumerate(scores) for j in s]
    won = [g for _, g, _ in sorted(pairs)[: base * len(scores)]]
    return [round(won.count(g) * (1 - alpha) + alpha * base) for g in range(len(scores))]


class SnapKV:
    """size: tokens this layer keeps of the prompt, window included."""

    def __init__(
        self,
        layer,
        size,
        window,
        kernel=7,
        pool="max",
        group="sum",
        ada=False,
        alpha=0.2,
        recompress=0,
    ):
        self.layer, self.size, self.window, self.recompress = layer, size, window, recompress
        self.score = (kernel, pool, group)
        heads = layer.k.shape[1]
        self.kept = [set(range(layer.length)) for _ in range(heads)]
        if layer.length > size:
            self._cut(layer.length, ada, alpha)

    def _cut(self, end, ada=False, alpha=0.0):
        queries = range(end - self.window, end)
        scores = [
            window_scores(self.layer, g, queries, sorted(kept), *self.score)
            for g, kept in enumerate(self.kept)
        ]
        base = self.size - self.window
        sizes = ada_sizes(scores, base, alpha) if ada else [base] * len(scores)
        self.kept = [best(s, n) | set(queries) for s, n in zip(scores, sizes, strict=True)]

    def step(self, t):
        for kept in self.kept:
            kept.add(t)
        sets = [set(kept) for kept in self.kept for _ in range(self.layer.group)]
        step = naive.selected(self.layer, t, sets)
        done = t + 1 - self.layer.length
        if self.recompress and done % self.recompress == 0 and len(self.kept[0]) > self.size:
            self._cut(t + 1)
        return step


class TOVA:
    def __init__(self, layer, size, per_kv_head=False):
        self.layer, self.size = layer, size
        kv, every = layer.k.shape[1], range(layer.q.shape[1])
        self.shared = [heads_of(layer, g) for g in range(kv)] if per_kv_head else [every]
        self.kept = [set(range(layer.length)) for _ in self.shared]
        for i in range(len(self.kept)):
            while len(self.kept[i]) > size:  # by the last query over all tokens, so never changing
                paid = self._paid(i, layer.length - 1, range(layer.length))
                self.kept[i] = best(paid, size)

    def _paid(self, i, t, positions):
        heads = self.shared[i]
        paid = [probabilities(self.layer, t, head, positions) for head in heads]
        return {j: sum(p[j] for p in paid) / len(heads) for j in positions}

    def step(self, t):
        sets = [set()] * self.layer.q.shape[1]
        for i, heads in enumerate(self.shared):
            self.kept[i].add(t)
            for head in heads:
                sets[head] = set(self.kept[i])
            if len(self.kept[i]) > self.size:
                paid = self._paid(i, t, self.kept[i])
                self.kept[i].remove(min(paid, key=lambda j: (paid[j], -j)))
        return naive.selected(self.layer, t, sets)


class H2O:
    def __init__(self, layer, size, normalise=False):
        self.layer, self.size, self.normalise = layer, size, normalise
        self.scores = []
        for g in range(layer.k.shape[1]):
            scores = dict.fromkeys(range(layer.length), 0.0)
            for t in range(layer.length):
                self._add(scores, g, t, range(t + 1))
            self.scores.append(scores)
        for scores in self.scores:
            self._evict(scores, layer.length)

    def _add(self, scores, g, t, positions):
        for head in heads_of(self.layer, g):
            for j, p in probabilities(self.layer, t, head, positions).items():
                scores[j] += p / self.layer.group

    def _evict(self, scores, seen):
        """The prompt at once or a step's own token: lowest first, recent ones never."""

        def rank(j):
            return scores[j] / (seen - j if self.normalise else 1), -j

        while len(scores) > self.size:
            del scores[min((j for j in scores if j < seen - self.size // 2), key=rank)]

    def step(self, t):
        for g, scores in enumerate(self.scores):
            scores[t] = 0.0
            self._add(scores, g, t, list(scores))
        sets = [set(scores) for scores in self.scores for _ in range(self.layer.group)]
        step = naive.selected(self.layer, t, sets)
        step.meta_bytes = [4 * len(scores) for scores in self.scores]
        for scores in self.scores:
            self._evict(scores, t + 1)
        return step
