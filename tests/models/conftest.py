"""Tiny random models of every family, and a key-value cache in a dozen lines of plain torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.attention.bias import causal_lower_right
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from macbench.models import Model

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,  # large enough that attention is far from uniform
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 2.0, 3.0, 5.0, 8.0, 13.0],
    "original_max_position_embeddings": 64,
}
MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES = {
    "llama": {"head_dim": 8},
    "llama3": {"model_type": "llama", "head_dim": 8, "rope_parameters": LLAMA3_ROPE},
    "mistral": {"head_dim": None, "sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 16},  # not hidden_size / heads
    "qwen3_moe": {"head_dim": 16, **MOE},
    "phi3": {
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "original_max_position_embeddings": 64,
        "rope_parameters": LONGROPE,
    },
    "glm4": {"head_dim": 16, "num_hidden_layers": 3, "attention_bias": True},
}


def tiny(family: str, **changes):
    """A random `…ForCausalLM` of the family; the same weights at every call."""
    fields = {"model_type": family} | SHAPE | FAMILIES[family] | changes
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


CORPUS = ["the special magic number for the vague cat is 4821. what is it? The number is"] * 3
CHAT = (
    "{{ bos_token }}{% for m in messages %}<user>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained here; adds a beginning-of-text token by itself, as Llama's does."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<bos>", "<user>", "<end>", "<assistant>", "<think>", "</think>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<bos>", extra_special_tokens=special[1:]
    )
    made.chat_template = template
    return made


class Cache:
    """Keys and values of one sequence; `attend` is exact attention, lower-right causal."""

    def __init__(self, scale: float):
        self.scale = scale
        self.kv: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(self, layer, q_pre, q, k, v):
        if layer in self.kv:
            k = torch.cat((self.kv[layer][0], k), dim=1)
            v = torch.cat((self.kv[layer][1], v), dim=1)
        self.kv[layer] = (k, v)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        mask = causal_lower_right(q.shape[2], k.shape[2])
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=self.scale, enable_gqa=True
        )
        return out.transpose(1, 2)


class Rows:
    """One cache per row of a batch: a decode batch of sequences of different lengths."""

    def __init__(self, caches: list[Cache]):
        self.caches = caches

    def attend(self, layer, q_pre, q, k, v):
        rows = [
            cache.attend(layer, *(x[i : i + 1] for x in (q_pre, q, k, v)))
            for i, cache in enumerate(self.caches)
        ]
        return torch.cat(rows)


class Runner:
    """Feeds token chunks of one or several sequences through `Model.forward`."""

    def __init__(self, model: Model, totals: list[int]):
        model.prepare(max(totals))
        self.model = model
        self.rows = Rows([Cache(model.geometry.scale) for _ in totals])
        self.regimes = torch.tensor([model.regime(n) for n in totals])
        self.lens = [0] * len(totals)

    def feed(self, tokens: torch.Tensor, row: int | None = None) -> torch.Tensor:
        """Logits [B, T, vocab] of tokens [B, T]; `row` feeds that row alone."""
        which = range(len(self.lens)) if row is None else [row]
        width = tokens.shape[1]
        positions = torch.stack([torch.arange(self.lens[i], self.lens[i] + width) for i in which])
        rows = Rows([self.rows.caches[i] for i in which])
        hidden = self.model.forward(tokens, positions, self.regimes[list(which)], rows.attend)
        for i in which:
            self.lens[i] += width
        return self.model.logits(hidden)


def sequence(length: int, seed: int = 0) -> torch.Tensor:
    """Random tokens [1, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, SHAPE["vocab_size"], (1, length), generator=generator)


@pytest.fixture(scope="session")
def zoo():
    """What the tests of this folder share, without an import between test files."""

    class Zoo:
        families = tuple(FAMILIES)
        tiny = staticmethod(tiny)
        sequence = staticmethod(sequence)
        tokenizer = staticmethod(tokenizer)
        chat = CHAT
        runner = Runner
        cache = Cache

        @staticmethod
        def model(family: str, **changes) -> Model:
            return Model(tiny(family, **changes), name=family, weights="random:7")

    return Zoo


def pytest_generate_tests(metafunc):
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", FAMILIES)
