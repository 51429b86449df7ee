"""What methods derive from one prompt together is what each derives alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from harness import allocate, cached, observe, problem, start
from torch import Tensor

from macbench.attention import Prompt, create

# of each family, a usual method, and others that differ from it in a budget or in what is shared
FAMILIES: dict[str, tuple[dict[str, Any], ...]] = {
    "mac": ({"K": 16, "r": 4}, {"tau": 0.3}, {"K": 24}, {"r": 8}, {"match_on": "post_rope"}),
    "quest": ({"budget": 0.5, "dense_layers": 0}, {"budget": 0.8}, {"shared": True}),
    "snapkv": (
        {"budget": 0.5, "window": 8, "kernel": 3},
        {"budget": 0.7},
        {"kernel": 5},
        {"pool": "avg"},
        {"group": "max"},
        {"window": 4},
        {"ada": True},
        {"ada": True, "budget": 0.7},
    ),
    "pyramidkv": ({"budget": 0.5, "window": 8, "kernel": 3}, {"budget": 0.7}),
    "rocketkv": ({"budget": 0.6, "window": 8, "kernel": 3}, {"budget": 0.8}, {"kernel": 5}),
    "double_sparsity": (
        {"budget": 0.5, "dense_layers": 0},
        {"budget": 0.7},
        {"bits": 8},
        {"bits": 16},
        {"group_factor": 2},
    ),
    "tova": ({"budget": 0.5}, {"budget": 0.7}, {"per_kv_head": True}),
    "h2o": ({"budget": 0.5}, {"budget": 0.7}, {"normalise": True}),
}


def held(thing) -> dict[str, Any]:
    """Every tensor and number that a method keeps, by name."""
    found: dict[str, Any] = {}
    for name, value in vars(thing).items():
        if isinstance(value, Tensor | int | list):
            found[name] = value
        elif type(value).__module__.startswith("macbench.attention."):
            found |= {f"{name}.{inner}": x for inner, x in held(value).items()}
    return found


def same(a, b) -> bool:
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Tensor):
        return a.shape == b.shape and torch.equal(a.nan_to_num(7e4), b.nan_to_num(7e4))
    return a == b


@pytest.mark.parametrize("decoded", [0, 7])
def test_methods_that_begin_together_have_what_each_has_alone(decoded):
    """As the engine lets them begin: layer by layer, one after the other, on one prompt."""
    case = problem(lengths=(90,), layers=2, group=2, d=32)
    case = replace(case, sequences=[replace(one, decoded=decoded) for one in case.sequences])
    chosen = [
        (name, usual | other)
        for name, (usual, *others) in FAMILIES.items()
        for other in ({}, *others)
    ]
    together, alone = ([create(*own) for own in chosen] for _ in range(2))
    view, s = cached(case), case.sequences[0]
    queries = (list(x[:, : s.length]) for x in (s.q_pre, s.q))
    prompt = Prompt(s.length, case.steps, s.length, s.key, *queries, decoded=s.decoded)
    first: dict[type, Any] = {}  # which of each kind watches the prefill
    for method in together:
        allocate(method, case)
        if method.needs.observe:
            first.setdefault(type(method), method)
    borrowers = set()
    for layer in range(2):
        for method in first.values():
            observe(method, layer, 0, s)
        for method in together:
            prompt.borrowed = []
            method.begin(layer, 0, prompt, view)
            borrowers |= {method.name} if prompt.borrowed else set()
        prompt.shared.clear()
    assert borrowers == {*FAMILIES}
    for (name, knobs), method, other in zip(chosen, together, alone, strict=True):
        allocate(other, case)
        start(other, case, view)
        ours, theirs = held(method), held(other)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert same(value, theirs[key]), f"{name} {knobs}: {key}"
