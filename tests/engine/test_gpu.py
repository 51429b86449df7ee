"""Every method on a GPU: the CPU's tokens in fp32, and no wait for the host inside `attend`."""

from __future__ import annotations

import pytest
import torch

from macbench.attention import create
from macbench.engine import Engine, Request
from macbench.models import Source, load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

METHODS = [
    ("full", {}),
    ("full", {"passes": 2}),
    ("mac", {"tau": 0.3, "K": 64, "r": 16}),
    ("mac", {"tau": 0.3, "K": 64, "r": 16, "match": "random_lag"}),
    ("mac", {"tau": 0.3, "K": 64, "r": 16, "match": "previous", "sink": 4}),
    ("quest", {"budget": 0.9, "dense_layers": 1}),
    ("quest", {"budget": 0.9, "dense_layers": 1, "shared": True}),
    ("streaming_llm", {"budget": 0.3}),
    ("oracle_topk", {"tokens": 0.2}),
    ("random", {"tokens": 0.5}),
]


def answers(device: str, guard: bool = False):
    torch.manual_seed(0)
    model = load(Source("tiny", "tiny-llama", init="random", dtype="float32", device="cpu"))
    moved = load(Source("tiny", "tiny-llama", init="random", dtype="float32", device=device))
    moved.lm.load_state_dict(model.lm.state_dict())  # random weights depend on where they are drawn
    methods = [create(name, knobs) for name, knobs in METHODS]
    if guard:
        for method in methods:
            method.attend = strict(method.attend)
    engine = Engine(moved, methods, slots=2, max_prompt=300, max_new=24)
    draw = torch.Generator().manual_seed(1)
    requests = [
        Request(torch.randint(moved.vocab, (n,), generator=draw).tolist(), 24, key=n)
        for n in (300, 171)
    ]
    return engine.run(requests)


def strict(attend):
    def guarded(*args):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return attend(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return guarded


def test_a_gpu_gives_the_tokens_and_reads_of_a_cpu():
    for (name, knobs), cpu, gpu in zip(METHODS, answers("cpu"), answers("cuda"), strict=True):
        for a, b in zip(cpu, gpu, strict=True):
            assert a.tokens == b.tokens, (name, knobs)
            for stat in ("head_tokens", "kv_tokens", "meta_bytes"):
                torch.testing.assert_close(
                    torch.tensor(a.reads[stat]), torch.tensor(b.reads[stat]), rtol=0.02, atol=2
                )


def test_no_method_waits_for_the_host_inside_a_step():
    answers("cuda", guard=True)
