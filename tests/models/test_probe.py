"""What cannot be run exactly is refused, in one sentence."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from macbench.errors import MacbenchError
from macbench.models import probe

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize(
    ("model_type", "fields", "word"),
    [
        ("gemma2", {}, "attn_logit_softcapping"),
        ("t5", {}, "cross attention"),
        ("llama", {"rope_parameters": DYNAMIC}, "dynamic"),
        ("gpt2", {}, "'gpt2' is unknown"),
        ("gpt2", {"add_cross_attention": True}, "cross attention"),
    ],
)
def test_refused_at_load(model_type, fields, word):
    config = AutoConfig.for_model(model_type, **fields)
    with pytest.raises(MacbenchError, match=word) as refusal:
        probe.check(config, "it")
    assert str(refusal.value).startswith("model 'it' cannot be run: ")
    assert "\n" not in str(refusal.value)


def test_length_beyond_the_window(zoo):
    model = zoo.model("llama")
    model.prepare(512)
    with pytest.raises(MacbenchError, match="window of 512 tokens but 513"):
        model.prepare(513)


def test_sliding_window_is_refused_one_token_beyond(zoo):
    """A window of 24 is full attention for 24 tokens (shown by parity) and not for 25."""
    tokens = zoo.sequence(25)
    model = zoo.model("mistral", sliding_window=24)
    lm = zoo.tiny("mistral", sliding_window=24)
    run = zoo.runner(model, [24])
    with torch.no_grad():
        theirs = lm(input_ids=tokens).logits
    assert (run.feed(tokens[:, :24]) - theirs[:, :24]).abs().max() < 1e-5
    with pytest.raises(MacbenchError, match="sliding window of 24 tokens but 25"):
        model.prepare(25)
    unlimited = zoo.runner(zoo.model("mistral"), [25]).feed(tokens)
    assert (unlimited - theirs)[:, 24].abs().max() > 1e-5  # why 25 has to be refused


@pytest.mark.parametrize(
    ("fields", "window"),
    [
        ({}, None),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, 8),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 99}, None),
    ],
)
def test_sliding_layers_count_only_where_there_are_some(zoo, fields, window):
    assert probe.window(zoo.tiny("qwen2", **fields).config) == window


def test_mistral_default_window():
    assert probe.window(AutoConfig.for_model("mistral")) == 4096
