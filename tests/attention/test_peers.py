"""What is kept of a prompt, beside kvpress (NVIDIA), on the same model and prompt.

kvpress pins an older transformers than ours, so that it cannot be a dependency; for these tests:
pip install --no-deps kvpress cachetools fire termcolor. Its presses are called on each layer's own
inputs, without its hooks, which need that older version.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from macbench.attention import create
from macbench.engine import Engine, Request
from macbench.models import Model

N, KV_HEADS, LAYERS = 128, 2, 4  # shares of 128 are not rounded


@pytest.fixture(scope="module")
def kvpress():
    before = dict(ALL_ATTENTION_FUNCTIONS.items())
    peer = pytest.importorskip("kvpress", reason="needs kvpress, installed without dependencies")
    for name, attention in before.items():  # importing it wraps them all
        ALL_ATTENTION_FUNCTIONS[name] = attention
    return peer


def llama() -> LlamaForCausalLM:
    """The same weights at every call; large enough that attention is peaked."""
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=3 * KV_HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=8,
        initializer_range=0.25,
        attn_implementation="eager",
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    return torch.randint(97, (N,), generator=torch.Generator().manual_seed(0)).tolist()


@dataclass
class Layer:
    """What a press is called with, as transformers itself computes it."""

    module: torch.nn.Module
    hidden: torch.Tensor
    rope: tuple
    keys: torch.Tensor
    attention: torch.Tensor

    @property
    def inputs(self):
        position = torch.arange(N).float()[None, None, :, None].expand(self.keys.shape)
        return self.module, self.hidden, self.keys, position  # positions stand in for the values

    def kept(self, press) -> list[set[int]]:
        """By each KV head."""
        context = {"position_embeddings": self.rope}
        values = press.compress(*self.inputs, None, context)[1]
        kept = [set(head[:, 0].long().tolist()) for head in values[0]]
        masked = getattr(self.module, "masked_key_indices", None)
        if masked is not None:
            for head, at in zip(masked[1].tolist(), masked[2].tolist(), strict=True):
                kept[head].remove(at)
            self.module.masked_key_indices = None
        return kept


@pytest.fixture(scope="module")
def layers(tokens) -> list[Layer]:
    plain, seen = llama(), []

    def keep(module, args, kwargs):
        seen.append((module, kwargs["hidden_states"], kwargs["position_embeddings"]))

    for layer in plain.model.layers:
        layer.self_attn.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        out = plain(torch.tensor([tokens]), use_cache=True, output_attentions=True)
    plain.config._attn_implementation = "sdpa"  # AdaKVPress refuses eager
    cached = [layer.keys for layer in out.past_key_values.layers]
    return [
        Layer(*inputs, keys, attention)
        for inputs, keys, attention in zip(seen, cached, out.attentions, strict=True)
    ]


def ours(tokens, name, sizes=None, **knobs):
    """The method after the prefill, and [layer][KV head] the positions it keeps."""
    method = create(name, knobs)
    if sizes is not None:
        method.sizes = lambda layers, length: sizes
    engine = Engine(Model(llama(), name="tiny", weights="random:5"), [method], 1, N, 1)
    engine.run([Request(tokens, 1, key=0)])
    kept = [
        [set(t[:n].tolist()) for t, n in zip(layer[0], held[0].tolist(), strict=True)]
        for layer, held in zip(method.kept.tokens, method.kept.held, strict=True)
    ]
    return method, kept


@pytest.mark.parametrize("budget", [0.25, 0.5])
@pytest.mark.parametrize("window, kernel", [(8, 5), (16, 3)])
def test_snapkv_keeps_what_kvpress_keeps(kvpress, layers, tokens, budget, window, kernel):
    """It pools by average and takes the mean over queries and group: the order is the sum's."""
    press = kvpress.SnapKVPress(1 - budget, window_size=window, kernel_size=kernel)
    knobs = {"budget": budget, "window": window, "kernel": kernel, "pool": "avg"}
    assert ours(tokens, "snapkv", **knobs)[1] == [layer.kept(press) for layer in layers]


def test_pyramidkv_keeps_what_kvpress_keeps_but_for_the_window(kvpress, layers, tokens):
    """kvpress counts the window in what a layer selects, the authors beside it; and its steps are
    not whole. Given its sizes, ours keeps the same tokens."""
    budget, window = 0.5, 8
    press = kvpress.PyramidKVPress(1 - budget, window_size=window, kernel_size=5, beta=4)
    theirs = [layer.kept(press) for layer in layers]
    sizes = [len(heads[0]) for heads in theirs]
    knobs = {"window": window, "kernel": 5, "pool": "avg"}
    assert ours(tokens, "pyramidkv", sizes, budget=budget, **knobs)[1] == theirs
    more = {"budget": budget + window / N + 1e-9, "beta": 4}  # its base is N * budget
    mine = create("pyramidkv", knobs | more).sizes(LAYERS, N)
    assert mine == pytest.approx([size + window for size in sizes], abs=LAYERS)
    assert sizes[0] > sizes[-1]


@pytest.mark.parametrize("budget", [0.125, 0.375])
def test_tova_keeps_what_kvpress_keeps_but_for_the_last_token(kvpress, layers, tokens, budget):
    """kvpress keeps the last token in any case; here it competes, as in the authors' code."""
    press = kvpress.TOVAPress(1 - budget)
    for layer, (mine,) in zip(layers, ours(tokens, "tova", budget=budget)[1], strict=True):
        theirs, *others = layer.kept(press)
        assert all(other == theirs for other in others) and len(theirs) == len(mine)
        assert N - 1 in theirs and theirs - {N - 1} <= mine


def test_adakv_without_a_safeguard_keeps_what_kvpress_keeps(kvpress, layers, tokens):
    press = kvpress.AdaKVPress(kvpress.SnapKVPress(0.75, window_size=8, kernel_size=5), 0.0)
    knobs = {"budget": 0.25, "window": 8, "kernel": 5, "pool": "avg", "ada": True}
    mine = ours(tokens, "snapkv", alpha=0.0, **knobs)[1]
    assert mine == [layer.kept(press) for layer in layers]
    assert any(len(first) != len(second) for first, second in mine)


def test_adakv_safeguards_otherwise_than_kvpress(kvpress, layers, tokens):
    """kvpress promises each head alpha * C tokens and shares out the rest; the authors mix every
    head's share with the mean. Both keep as many in all, and of each head the best."""
    press = kvpress.AdaKVPress(kvpress.SnapKVPress(0.75, window_size=8, kernel_size=5), 0.5)
    knobs = {"budget": 0.25, "window": 8, "kernel": 5, "pool": "avg", "ada": True}
    for layer, mine in zip(layers, ours(tokens, "snapkv", alpha=0.5, **knobs)[1], strict=True):
        theirs = layer.kept(press)
        assert sum(map(len, mine)) == pytest.approx(sum(map(len, theirs)), abs=1)
        for a, b in zip(mine, theirs, strict=True):
            assert a <= b or b <= a


def test_streaming_llm_keeps_what_kvpress_keeps(kvpress, layers):
    """Of a prompt alone; while ours decodes, its window moves on and the size stays."""
    press = kvpress.StreamingLLMPress(0.75, n_sink=4)
    method, geometry = create("streaming_llm", {"budget": 0.25}), SimpleNamespace(kv_heads=KV_HEADS)
    geometry.device = torch.device("cpu")
    method.allocate(geometry, 1, N)
    method.begin(0, 0, SimpleNamespace(original=N), None)
    seen = {}
    view = SimpleNamespace(lens=torch.tensor([N]), exact=lambda *a, **k: (seen.update(k), None))
    method.attend(0, None, torch.zeros(1, 1), view, None)
    lists = zip(seen["tokens"][0], seen["counts"][0].tolist(), strict=True)
    mine = [set(tokens[:n].tolist()) for tokens, n in lists]
    assert mine == layers[0].kept(press)


def test_h2o_gathers_what_kvpress_observes(kvpress, layers, tokens):
    """ObservedAttentionPress divides by the number of queries that see a token, and keeps no
    recent window; its scores are ours with normalise=true."""
    method, kept = ours(tokens, "h2o", budget=0.5, normalise=True)
    press = kvpress.ObservedAttentionPress(0.5)
    for number, layer in enumerate(layers):
        theirs = press.score(*layer.inputs, layer.attention, {})[0]
        for head, positions in enumerate(kept[number]):
            at = method.kept.tokens[number, 0, head, : len(positions)].long()
            mine = method.scores[number, 0, head, : len(positions)] / (N - at)
            torch.testing.assert_close(mine, theirs[head, at])
