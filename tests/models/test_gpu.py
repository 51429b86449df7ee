"""On a GPU: a step of every family waits for nothing and replays as a CUDA graph."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from macbench.models import Model, Source, load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_step_replays(zoo, family, dtype):
    model = Model(zoo.tiny(family).to("cuda", dtype), name=family, weights="random:7")
    assert model.capturable == (family != "qwen3_moe" or dtype == torch.bfloat16)
    if not model.capturable:
        pytest.skip("torch's grouped product needs bfloat16")
    model.prepare(128)
    regimes = torch.tensor([model.regime(20), model.regime(128)], device="cuda")

    def attend(layer, q_pre, q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2)

    def step(tokens, positions):
        return model.logits(model.forward(tokens, positions, regimes, attend))

    def inputs(seed):
        tokens = torch.cat((zoo.sequence(4, seed), zoo.sequence(4, seed + 1))).cuda()
        positions = torch.tensor([[0, 1, 2, 3], [90, 91, 92, 93]], device="cuda") + seed
        return tokens, positions

    tokens, positions = inputs(1)
    for _ in range(3):  # warm-up: kernels are chosen and built here
        step(tokens, positions)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(tokens, positions)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(tokens, positions)
    for seed in (1, 5, 9):
        fresh = inputs(seed)
        tokens.copy_(fresh[0])
        positions.copy_(fresh[1])
        graph.replay()
        torch.testing.assert_close(captured, step(*fresh), rtol=0, atol=0)


def test_folder_is_loaded_onto_the_gpu(zoo, family, tmp_path):
    zoo.tiny(family).save_pretrained(tmp_path)
    zoo.tokenizer(zoo.chat).save_pretrained(tmp_path)
    model = load(Source("mine", str(tmp_path), dtype="float32", device="cuda"))
    assert model.geometry.device.type == "cuda"
    tokens = zoo.sequence(30)
    expected = zoo.runner(zoo.model(family), [30]).feed(tokens)
    model.prepare(30)
    cache = zoo.cache(model.geometry.scale)
    positions = torch.arange(30, device="cuda")[None]
    regimes = torch.zeros(1, dtype=torch.long, device="cuda")
    hidden = model.forward(tokens.cuda(), positions, regimes, cache.attend)
    torch.testing.assert_close(model.logits(hidden).cpu(), expected, rtol=0, atol=1e-4)
