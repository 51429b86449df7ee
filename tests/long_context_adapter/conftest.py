"""A tiny random Llama and a byte-level tokenizer with a chat template."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from macbench.experiments.long_context_adapter.network import Network
from macbench.experiments.long_context_adapter.rows import KINDS, Frame, Spec, Writer
from macbench.experiments.long_context_adapter.texts import trained

CHAT = (
    "<|s|>system\nBe brief.<|e|>\n{% for m in messages %}<|s|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|e|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|s|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<|s|>", "<|e|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([line for lines in trained().values() for line in lines[:40]], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|s|>", eos_token="<|e|>")
    made.chat_template = CHAT
    return made


@pytest.fixture(scope="session")
def spec(tokenizer, tmp_path_factory):
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.backend_tokenizer.save(str(file))
    shares = dict.fromkeys(KINDS, 1.0)
    return Spec(str(file), Frame.of(tokenizer), 1, shares, 0.5, (4096, 8192), None)


@pytest.fixture(scope="session")
def writer(spec):
    return Writer(spec)


@pytest.fixture
def tiny(tokenizer):
    """lm(): the same random weights at every call; network(lm) around them."""

    def lm():
        config = AutoConfig.for_model(
            "llama",
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=4096,
            initializer_range=0.3,
            tie_word_embeddings=True,
        )
        with torch.random.fork_rng([]):
            torch.manual_seed(5)
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()

    def network(of, theta=10_000.0):
        return Network(of, 4, 2.0, theta, 0).place(torch.device("cpu"), torch.float32)

    return SimpleNamespace(lm=lm, network=network)
