"""Decode steps through compiled pieces: transformers' logits, one compilation for all layers."""

from __future__ import annotations

import shutil
from functools import cache

import pytest
import torch

from macbench.models import Model, compiled
from macbench.models.adapter import fuse

LIMIT = 1e-5  # largest absolute difference of logits
PIECES = 3


@pytest.fixture
def traced(monkeypatch) -> list:
    """What is compiled, in a list; it then runs as it was traced, operation by operation."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    original = compiled._pieces
    monkeypatch.setattr(compiled, "_pieces", cache(lambda options: original(options, keep)))
    return graphs


def stepping(model: Model) -> Model:
    """The model with `step` in the place of `forward`, for the runner's one-token chunks."""
    model.around = "compiled"
    model.forward = model.step
    return model


def compare(zoo, family: str, model: Model, steps: int) -> None:
    """Rows of two lengths, prefilled, then `steps` steps, against transformers' own forward."""
    long, short = zoo.sequence(50 + steps, 1), zoo.sequence(20 + steps, 2)
    run = zoo.runner(model, [50 + steps, 20 + steps])
    run.feed(long[:, :50], row=0)
    run.feed(short[:, :20], row=1)
    stepping(model)
    said = [
        run.feed(torch.cat((long[:, 50 + i : 51 + i], short[:, 20 + i : 21 + i])))
        for i in range(steps)
    ]
    ours, lm = torch.cat(said, dim=1), zoo.tiny(family)
    for row, (tokens, length) in enumerate(((long, 50), (short, 20))):
        theirs = lm(input_ids=tokens).logits[0, length:]
        assert theirs.std() > 0.1
        assert (ours[row] - theirs).abs().max().item() < LIMIT


@pytest.mark.parametrize("fused", [False, True])
@torch.inference_mode()
def test_steps_say_what_transformers_says_and_layers_share_a_compilation(
    zoo, family, fused, traced
):
    model = zoo.model(family)
    fuse(model, fused)
    compare(zoo, family, model, 3)
    assert len(traced) == PIECES  # none for a further layer or step
    zoo.runner(model, [9]).feed(zoo.sequence(1))
    assert len(traced) == 2 * PIECES  # one row: other shapes


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("name", ["qwen3", "glm4"])
@torch.inference_mode()
def test_inductor_says_the_same(zoo, name):
    model = zoo.model(name)
    fuse(model)
    compare(zoo, name, model, 2)


@torch.inference_mode()
def test_many_numbers_of_rows_are_compiled_in_one_process(zoo, traced):
    model = stepping(zoo.model("llama"))
    model.prepare(16)
    for rows in range(1, 12):  # torch itself gives up after 8

        def attend(layer, q_pre, q, k, v):
            return q

        tokens, zero = torch.full((rows, 1), 5), torch.zeros(rows, dtype=torch.long)
        model.step(tokens, zero[:, None], zero, attend)
    assert len(traced) == 11 * PIECES


def test_a_model_on_a_cpu_is_not_compiled(zoo):
    assert zoo.model("llama").around == "eager"


def test_fused_weights_are_the_modules_own(zoo, family):
    model, plain = zoo.model(family), zoo.tiny(family)
    names = list(plain.state_dict())
    tokens = zoo.sequence(12)
    before = zoo.runner(model, [12]).feed(tokens)
    fuse(model)
    assert list(model.lm.state_dict()) == names
    attention = model.base.layers[0].self_attn
    if hasattr(attention, "q_proj"):
        whole = attention.qkv_weight.untyped_storage()
        for part in (attention.q_proj, attention.k_proj, attention.v_proj):
            assert part.weight.untyped_storage().data_ptr() == whole.data_ptr()
    changed = {name: 0.5 * value for name, value in plain.state_dict().items()}
    model.lm.load_state_dict(changed)  # reaches the fused matrix
    assert (zoo.runner(model, [12]).feed(tokens) - before).abs().max() > 100 * LIMIT
    model.lm.load_state_dict(plain.state_dict())
    for on in (True, False, True):
        fuse(model, on)
        again = zoo.runner(model, [12]).feed(tokens)
        assert (again - before).abs().max() < LIMIT


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("around", ["compiled", "tuned"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "glm4"])
@torch.inference_mode()
def test_a_compiled_step_replays_on_a_card(zoo, name, around, rows):
    """In fp32: what the modules say, waiting for nothing, and the same again from a graph."""
    model = Model(zoo.tiny(name).to("cuda"), name=name, weights="random:7")
    model.prepare(128)
    model.around = around
    regimes = torch.zeros(rows, dtype=torch.long, device="cuda")
    positions = torch.arange(rows, device="cuda")[:, None]
    tokens = torch.full((rows, 1), 5, device="cuda")

    def attend(layer, q_pre, q, k, v):
        group = q.shape[2] // k.shape[2]
        return q_pre * (1 + layer) + q + (k * v).repeat_interleave(group, 2)

    inputs = tokens, positions, regimes, attend
    model.step(*inputs)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.step(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = model.step(*inputs)
    for more in (0, 7):
        positions.add_(more)
        tokens.add_(more)
        graph.replay()
        expected = model.forward(*inputs)
        torch.testing.assert_close(captured, expected, rtol=1e-4, atol=1e-4)
