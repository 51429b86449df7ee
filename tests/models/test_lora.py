"""Adapters: merged they are the low-rank maps applied, and only on the weights they belong to."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from macbench.errors import MacbenchError
from macbench.models import Source, load, lora
from macbench.models.source import Place, identity

RANK, SCALE = 4, 2.0


@pytest.fixture
def base(zoo, tmp_path):
    """Folder of a tiny Llama, and what identifies its weights."""
    lm = zoo.tiny("llama")
    lm.save_pretrained(tmp_path / "base")
    zoo.tokenizer(None).save_pretrained(tmp_path / "base")
    return tmp_path / "base", identity(Place(tmp_path / "base")), lm


def adapter(lm, seed=0):
    draws = torch.Generator().manual_seed(seed)
    layers = lm.model.layers
    tensors = {lora.FINAL: torch.rand(48, generator=draws) + 0.5}
    for name in lora.NORMS:
        tensors[name] = torch.rand(len(layers), 48, generator=draws) + 0.5
    for name, place in lora.LINEARS.items():
        out, width = layers[0].get_submodule(place).weight.shape
        tensors[f"{name}.A"] = torch.randn(len(layers), RANK, width, generator=draws) / 8
        tensors[f"{name}.B"] = torch.randn(len(layers), out, RANK, generator=draws) / 8
    return {name: t.bfloat16().float() for name, t in tensors.items()}


def about(base, **changed):
    fields = {"base": base, "rope_theta": 5e5, "window": 2048, "rank": RANK, "scale": SCALE}
    return lora.About(**(fields | {"seed": 1, "steps": 2, "recipe": "0"} | changed))


def apply_beside(lm, tensors):
    """The oracle: every linear map keeps its weight and adds scale * B (A x) in a hook."""
    for i, layer in enumerate(lm.model.layers):
        for name, place in lora.LINEARS.items():
            a, b = tensors[f"{name}.A"][i], tensors[f"{name}.B"][i]

            def add(module, args, out, a=a, b=b):
                return out + SCALE * F.linear(F.linear(args[0], a), b)

            layer.get_submodule(place).register_forward_hook(add)
        for name, place in lora.NORMS.items():
            layer.get_submodule(place).weight.data = tensors[name][i]
    lm.model.norm.weight.data = tensors[lora.FINAL]


def test_merged_equals_the_maps_applied_beside_the_base(base, tmp_path):
    folder, weights, lm = base
    tensors = adapter(lm)
    checksum = lora.save(tmp_path / "a.safetensors", tensors, about(weights))
    model = load(Source("x", str(folder), device="cpu", adapter=str(tmp_path / "a.safetensors")))
    assert model.weights == f"{weights}+sha256:{checksum}"
    assert model.max_length == 2048
    assert model.lm.config.rope_parameters["rope_theta"] == 5e5

    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    config.rope_parameters = {**config.rope_parameters, "rope_theta": 5e5}
    beside = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    apply_beside(beside, tensors)
    tokens = torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(3))
    merged = AutoModelForCausalLM.from_config(config)
    merged.load_state_dict(plain.state_dict())
    lora.merge(merged, lora.read(str(tmp_path / "a.safetensors")))
    with torch.no_grad():
        expected = beside(tokens).logits
        assert torch.allclose(merged(tokens).logits, expected, atol=2e-4, rtol=1e-3)
        assert not torch.allclose(plain(tokens).logits, expected, atol=0.1)
    ours, theirs = model.lm.state_dict(), merged.state_dict()
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight), name
    assert torch.equal(ours["model.embed_tokens.weight"], plain.model.embed_tokens.weight)


def test_refuses_other_weights(base, tmp_path):
    folder, _, lm = base
    lora.save(tmp_path / "a.safetensors", adapter(lm), about("sha256:" + "0" * 64))
    with pytest.raises(MacbenchError, match="belongs to weights sha256:0000"):
        load(Source("x", str(folder), device="cpu", adapter=str(tmp_path / "a.safetensors")))


def test_identity_follows_the_adapter(base, tmp_path):
    folder, weights, lm = base
    names = set()
    for seed in (0, 1):
        path = tmp_path / f"{seed}.safetensors"
        lora.save(path, adapter(lm, seed), about(weights))
        names.add(load(Source("x", str(folder), device="cpu", adapter=str(path))).weights)
    plain = load(Source("x", str(folder), device="cpu")).weights
    assert len(names) == 2 and plain not in names


def test_missing_or_foreign_file(tmp_path):
    with pytest.raises(MacbenchError, match="macbench train"):
        lora.read(str(tmp_path / "none.safetensors"))
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors", {"a": json.dumps({})})
    with pytest.raises(MacbenchError, match="not an adapter"):
        lora.read(str(tmp_path / "other.safetensors"))
    (tmp_path / "torn.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(MacbenchError, match="not an adapter"):
        lora.read(str(tmp_path / "torn.safetensors"))
