"""From a source to a model: folders, random weights, and what goes wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import yaml

from macbench.errors import MacbenchError
from macbench.models import Source, load

TINY = Source("tiny", "tiny-llama", init="random", dtype="float32", device="cpu")


@pytest.fixture
def folder(zoo, tmp_path):
    """A model with a tokenizer, as save_pretrained writes it."""
    lm = zoo.tiny("qwen3", vocab_size=400)
    lm.generation_config.eos_token_id = [2, 5]
    lm.save_pretrained(tmp_path / "model")
    zoo.tokenizer(zoo.chat).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def source(folder: Path, **changes) -> Source:
    return replace(Source("mine", str(folder), device="cpu"), **changes)


def test_local_folder(zoo, folder):
    model = load(source(folder))
    tokens = zoo.sequence(20)
    with torch.no_grad():
        theirs = zoo.tiny("qwen3", vocab_size=400)(input_ids=tokens).logits
    assert (zoo.runner(model, [20]).feed(tokens) - theirs).abs().max() < 1e-5
    assert model.text.render("hi", " x") == "<bos><user>hi<end><assistant> x"
    assert model.stop_ids == (0, 2, 5)  # <bos> opens the template
    assert (model.vocab, model.max_length) == (400, 512)
    assert model.geometry.dtype == torch.float32


def test_identity_follows_the_weights(folder):
    first = load(source(folder)).weights
    assert first.startswith("sha256:")
    assert load(source(folder, name="other")).weights == first
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert load(source(folder)).weights != first


def test_random_weights_of_a_folders_configuration(folder):
    model = load(source(folder, init="random"))
    assert model.weights.startswith("random:0:")
    assert model.text is not None
    assert model.stop_ids == ()  # random weights have nothing to stop at


def test_random_weights_of_a_configuration_file(tmp_path, folder):
    bare = tmp_path / "shape.json"
    bare.write_text((folder / "config.json").read_text())
    model = load(source(bare, init="random"))
    assert model.text is None
    assert model.config.model_type == "qwen3"
    assert model.weights == load(source(folder, init="random")).weights
    assert model.weights != load(TINY).weights


def test_random_weights_follow_the_seed_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a, b, c = load(TINY), load(TINY), load(replace(TINY, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a.head.weight, b.head.weight)
    assert not torch.equal(a.head.weight, c.head.weight)
    assert a.weights == b.weights != c.weights
    assert "random weights" in a.notes


def test_random_weights_in_bfloat16_keep_exact_rotary_tables(zoo):
    low, exact = load(replace(TINY, dtype="bfloat16")), load(TINY)
    assert low.head.weight.dtype == low.geometry.dtype == torch.bfloat16
    low.prepare(9000)
    exact.prepare(9000)
    at = torch.tensor([0, 1, 4095, 8999])
    x = torch.ones(4, 1, 16)
    assert torch.equal(
        low.geometry.rotate(x.bfloat16(), at),
        _rotate_half_by_hand(x.bfloat16(), at),
    )
    assert torch.equal(exact.geometry.rotate(x, at), _rotate_half_by_hand(x, at))


def _rotate_half_by_hand(x, positions):
    """RoPE with theta 1e4 and all 16 dimensions, tables rounded to x's dtype."""
    frequencies = 1.0 / 1e4 ** (torch.arange(0, 16, 2).float() / 16)
    angles = positions[:, None].float() * frequencies
    cos, sin = angles.cos().to(x.dtype)[:, None], angles.sin().to(x.dtype)[:, None]
    a, b = x[..., :8], x[..., 8:]
    return torch.cat((a * cos + -b * sin, b * cos + a * sin), dim=-1)


def test_experts_are_pinned_and_told(zoo):
    model = zoo.model("qwen3_moe")
    assert model.config._experts_implementation == "grouped_mm"
    assert "experts: grouped_mm" in model.notes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "no/such/folder"}, "neither a folder here nor a hub id"),
        ({"source": "tiny-lama"}, "nor one of tiny-llama"),
        ({"source": "tiny-llama", "init": "weights"}, "without weights; use model.init=random"),
        ({"source": "there.json"}, "no configuration file 'there.json'"),
        ({"source": "there.gguf"}, "no GGUF file 'there.gguf'"),
        ({"source": "there.whl"}, "no wheel at 'there.whl'"),
        ({"init": "zeros"}, "unknown model.init 'zeros'"),
        ({"dtype": "int3"}, "unknown model.dtype 'int3'"),
        ({"device": "tpu"}, "unknown model.device 'tpu'"),
    ],
)
def test_sentences(changes, words, monkeypatch, tmp_path):
    monkeypatch.setenv("MACBENCH_CACHE", str(tmp_path))
    with pytest.raises(MacbenchError) as refusal:
        load(replace(TINY, **changes))
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu():
    with pytest.raises(MacbenchError, match="torch sees no GPU"):
        load(replace(TINY, device="cuda"))


def test_hub_id_from_the_local_cache(folder, monkeypatch, tmp_path):
    """A hub id that was downloaded before loads offline; its commit identifies the weights."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--some-owner--some-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "v1").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    hub = Source("big", "some-owner/some-model", revision="v1", device="cpu")
    model = load(hub)
    assert model.weights == f"hub:{commit}"
    assert model.text.render("hi") == "<bos><user>hi<end><assistant>"
    with pytest.raises(MacbenchError, match="--revision v2"):
        load(replace(hub, revision="v2"))


def test_missing_weights_without_network(monkeypatch, tmp_path):
    """Names what to get and where to put it; transformers is told to stay offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MacbenchError) as refusal:
        load(Source("big", "some-owner/some-model", revision="v1", device="cpu"))
    assert "`hf download some-owner/some-model --revision v1`" in str(refusal.value)
    assert "as model.source" in str(refusal.value)


def test_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(MacbenchError, match="cannot be read from"):
        load(source(folder))


def test_folder_without_tokenizer(folder):
    """Refused in one short sentence; random weights do without, where nothing is to be read."""
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(MacbenchError) as refusal:
        load(source(folder))
    said = f"model 'mine': folder '{folder}' has no tokenizer; add the checkpoint's tokenizer.json"
    assert str(refusal.value).startswith(said) and len(str(refusal.value)) < 120 + len(said)
    assert load(source(folder, init="random")).text is None


def test_what_cannot_read_is_refused_before_its_weights_are_made(monkeypatch):
    def made(*_, **__):
        raise AssertionError("weights were made")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", made)
    with pytest.raises(MacbenchError, match="for `macbench bench` only"):
        load(TINY, reads=True)


def test_folder_that_is_no_model(tmp_path):
    with pytest.raises(MacbenchError, match=r"has no config\.json"):
        load(source(tmp_path))


def test_broken_configurations(folder, tmp_path):
    bare = tmp_path / "shape.json"
    for content, words in (("{", "not valid JSON"), ("{}", "no model_type")):
        bare.write_text(content)
        with pytest.raises(MacbenchError, match=words):
            load(source(bare, init="random"))
    (folder / "config.json").write_text(json.dumps({"model_type": "from_the_future"}))
    with pytest.raises(MacbenchError, match="cannot be read from"):
        load(source(folder))


def test_refusal_comes_before_the_weights_are_read(zoo, folder):
    """The probe looks at the configuration alone: the folder's weights are not even there."""
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(MacbenchError, match="rotary embedding is of type 'dynamic'"):
        load(source(folder))


def test_presets_name_what_load_takes():
    names = set()
    for path in (files("macbench.conf") / "model").iterdir():
        preset = Source(**yaml.safe_load(path.read_text()))
        assert path.name == f"{preset.name}.yaml"
        names.add(preset.name)
        if preset.source == "tiny-llama":
            assert load(replace(preset, device="cpu")).geometry.layers == 2
    assert {"smollm2", "llama-3.1-8b-instruct", "phi-4-mini-instruct", "tiny-random"} <= names
