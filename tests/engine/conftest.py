"""A small random Llama in fp32, and what it should say according to transformers itself."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from macbench.engine import Request
from macbench.models import Model

CONFIG = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,  # large enough that attention is peaked and answers do not repeat
    "tie_word_embeddings": False,
}


def llama() -> LlamaForCausalLM:
    """The same weights at every call."""
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        return LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()


@pytest.fixture(scope="session")
def make_model():
    def make(stop_ids: tuple[int, ...] = ()) -> Model:
        return Model(llama(), name="tiny", weights="random:5", stop_ids=stop_ids)

    return make


@pytest.fixture(scope="session")
def model(make_model) -> Model:
    return make_model()


@pytest.fixture(scope="session")
def greedy():
    """transformers' own greedy continuation, the whole sequence forwarded for every token."""
    plain = llama()

    @torch.inference_mode()
    def continue_(tokens: list[int], count: int) -> list[int]:
        text = torch.tensor([tokens])
        for _ in range(count):
            text = torch.cat((text, plain(text).logits[:, -1:].argmax(-1)), 1)
        return text[0, len(tokens) :].tolist()

    return continue_


@pytest.fixture(scope="session")
def ask():
    """Requests of random tokens, one per length; their keys are 100, 101, …"""

    def make(*lengths: int, max_new: int = 12, seed: int = 0, **fields) -> list[Request]:
        draw = torch.Generator().manual_seed(seed)
        return [
            Request(
                torch.randint(97, (n,), generator=draw).tolist(), max_new, key=100 + i, **fields
            )
            for i, n in enumerate(lengths)
        ]

    return make
