"""A row beside others: held tokens of different numbers, and MAC."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from macbench.attention import create
from macbench.engine import Engine

MAC = {"tau": 0.3, "K": 32, "r": 8}
METHODS = [
    ("full", {}),
    ("mac", MAC),
    ("quest", {"budget": 0.9, "dense_layers": 1}),
    ("streaming_llm", {"budget": 0.3}),
    ("oracle_topk", {"tokens": 0.2}),
    ("random", {"tokens": 0.6, "recent": 16}),
]


def run(model, method, requests):
    longest = max(len(r.tokens) for r in requests)
    most, hold = max(r.max_new for r in requests), max(r.hold for r in requests)
    name, knobs = method
    engine = Engine(model, [create(name, knobs)], len(requests), longest, most, max_hold=hold)
    return engine.run(requests)[0]


@pytest.mark.parametrize("name, knobs", METHODS)
def test_a_long_prompt_beside_a_long_question(model, ask, name, knobs):
    """As with hold=question: the block takes more steps than its longest row has left."""
    requests = ask(90, 85, max_new=8)
    requests[1] = replace(requests[1], hold=60)
    together = run(model, (name, knobs), requests)
    for request, beside in zip(requests, together, strict=True):
        assert run(model, (name, knobs), [request])[0].tokens == beside.tokens


def test_mac_does_not_depend_on_the_batch(model, ask):
    """Every token comes several times: in layer 0 the query before RoPE is the token's alone, and
    which of the equal rows comes nearest must not be left to rounding."""
    words = torch.Generator().manual_seed(0)
    lengths = [40 + 7 * row for row in range(9)]
    text = [
        replace(r, tokens=torch.randint(12, (n,), generator=words).tolist())
        for n, r in zip(lengths, ask(*lengths, max_new=12), strict=True)
    ]
    beside = run(model, ("mac", MAC), text)
    for request, other in zip(text, beside, strict=True):
        alone = run(model, ("mac", MAC), [request])[0]
        assert torch.tensor(alone.reads["hit"]).sum() > 10
        assert other.tokens == alone.tokens and other.reads["gap"] == alone.reads["gap"]
