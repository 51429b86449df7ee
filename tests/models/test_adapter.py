"""Our forward against transformers' own, on random tiny models in float32."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from macbench.attention import Needs
from macbench.attention.full import Full
from macbench.engine import Engine, Request
from macbench.errors import MacbenchError
from macbench.models import Model

LIMIT = 1e-5  # largest absolute difference of logits


@torch.no_grad()
def oracle(lm, tokens):
    return lm(input_ids=tokens).logits


def assert_same(ours, theirs):
    assert theirs.std() > 0.1  # logits that mean something
    assert (ours - theirs).abs().max().item() < LIMIT


def test_whole_prompt(zoo, family):
    tokens = torch.cat((zoo.sequence(50, 1), zoo.sequence(50, 2)))
    run = zoo.runner(zoo.model(family), [50, 50])
    assert_same(run.feed(tokens), oracle(zoo.tiny(family), tokens))


def test_chunks_and_twenty_steps(zoo, family):
    tokens = zoo.sequence(60)
    run = zoo.runner(zoo.model(family), [60])
    parts = [run.feed(tokens[:, :23]), run.feed(tokens[:, 23:40])]
    parts += [run.feed(tokens[:, i : i + 1]) for i in range(40, 60)]
    assert_same(torch.cat(parts, dim=1), oracle(zoo.tiny(family), tokens))


def test_batch_of_two_lengths(zoo, family):
    long, short = zoo.sequence(61, 1), zoo.sequence(29, 2)
    run = zoo.runner(zoo.model(family), [61, 29])
    run.feed(long[:, :41], row=0)
    run.feed(short[:, :9], row=1)
    steps = [
        run.feed(torch.cat((long[:, 41 + i : 42 + i], short[:, 9 + i : 10 + i]))) for i in range(20)
    ]
    ours = torch.cat(steps, dim=1)
    lm = zoo.tiny(family)
    assert_same(ours[0], oracle(lm, long)[0, 41:])
    assert_same(ours[1], oracle(lm, short)[0, 9:])


def test_cached_decode_of_transformers_agrees(zoo, family):
    """The same steps through transformers' own cache, not only its whole-sequence forward."""
    tokens = zoo.sequence(36)
    run = zoo.runner(zoo.model(family), [36])
    run.feed(tokens[:, :30])
    lm = zoo.tiny(family)
    with torch.no_grad():
        past = lm(input_ids=tokens[:, :30], use_cache=True).past_key_values
        for i in range(30, 36):
            theirs = lm(input_ids=tokens[:, i : i + 1], past_key_values=past, use_cache=True)
            assert_same(run.feed(tokens[:, i : i + 1]), theirs.logits)


def test_longrope_rows_on_both_sides_of_the_switch(zoo):
    """One batch, one row ends below 64 tokens and one beyond: each keeps its own factors."""
    long, short = zoo.sequence(90, 1), zoo.sequence(50, 2)
    model = zoo.model("phi3")
    assert [model.regime(n) for n in (1, 64, 65, 500)] == [0, 0, 1, 1]
    run = zoo.runner(model, [90, 50])
    first = [run.feed(long[:, :40], row=0), run.feed(long[:, 40:70], row=0)]
    run.feed(short[:, :30], row=1)
    steps = [
        run.feed(torch.cat((long[:, 70 + i : 71 + i], short[:, 30 + i : 31 + i])))
        for i in range(20)
    ]
    ours = torch.cat(steps, dim=1)
    lm = zoo.tiny("phi3")
    theirs = oracle(lm, long)
    assert_same(torch.cat(first, dim=1), theirs[:, :70])
    assert_same(ours[0], theirs[0, 70:])
    assert_same(ours[1], oracle(lm, short)[0, 30:])
    with_short_factors = oracle(lm, long[:, :64])  # the regimes do differ
    assert (theirs[:, :64] - with_short_factors).abs().max() > 100 * LIMIT


def test_a_row_does_not_see_its_neighbour(zoo, family):
    tokens, other = zoo.sequence(12, 1), zoo.sequence(12, 2)
    alone = zoo.runner(zoo.model(family), [12]).feed(tokens)
    beside = zoo.runner(zoo.model(family), [12, 300]).feed(torch.cat((tokens, other)))
    assert (alone[0] - beside[0]).abs().max() < LIMIT


def test_attend_sees_the_query_before_and_after_rope(zoo, family):
    model = zoo.model(family)
    geometry = model.geometry
    regime = torch.tensor([model.regime(10**6)])  # longrope's second, others' only one
    seen = []

    def attend(layer, q_pre, q, k, v):
        seen.append(layer)
        assert q_pre.shape == q.shape == (1, 9, geometry.q_heads, geometry.head_dim)
        assert k.shape == v.shape == (1, 9, geometry.kv_heads, geometry.head_dim)
        rotated = geometry.rotate(q_pre[0], torch.arange(5, 14), regime.expand(9))
        assert (rotated - q[0]).abs().max() < 1e-6
        assert (q_pre[0] - q[0]).abs().max() > 1e-3
        return torch.zeros_like(q)

    model.prepare(16)
    model.forward(zoo.sequence(9), torch.arange(5, 14)[None], regime, attend)
    assert seen == list(range(geometry.layers))


class Begun(Full):
    """Full attention that turns the prompt's last queries itself."""

    needs = Needs(prompt_queries=9)

    def begin(self, layer, slot, prompt, view):
        position = torch.arange(prompt.length - 9, prompt.length)
        regime = torch.full_like(position, prompt.regime)
        turned = self.geometry.rotate(prompt.q_pre[layer], position, regime)
        assert_close(turned, prompt.q[layer])


@pytest.mark.parametrize("length", [20, 300])
def test_methods_rotate_in_the_regime_of_their_prompt(zoo, length):
    model = zoo.model("phi3")
    request = Request(zoo.sequence(length)[0].tolist(), max_new=2, key=0)
    Engine(model, [Begun()], 1, length, 2).run([request])


def test_query_norm_comes_before_q_pre(zoo):
    """Qwen3's q-norm makes every head's query of root mean square 1 (its weights are ones)."""
    model = zoo.model("qwen3")
    model.prepare(8)

    def attend(layer, q_pre, q, k, v):
        rms = q_pre.pow(2).mean(-1).sqrt()
        assert (rms - 1).abs().max() < 1e-3
        return torch.zeros_like(q)

    model.forward(zoo.sequence(8), torch.arange(8)[None], torch.tensor([0]), attend)


def test_module_names_stay(zoo, family):
    before = list(zoo.tiny(family).state_dict())
    assert list(zoo.model(family).lm.state_dict()) == before


def test_rotary_tables_come_from_float32(zoo, family):
    """Casting a model casts transformers' own frequencies; the tables must not notice."""
    exact, cast = zoo.model(family), zoo.tiny(family).to(torch.bfloat16)
    assert cast.base_model.rotary_emb.inv_freq.dtype == torch.bfloat16
    low = Model(cast, name="low", weights="random:7")
    exact.prepare(500)
    low.prepare(500)
    x = torch.ones(500, 1, exact.geometry.head_dim, dtype=torch.float64)
    positions = torch.arange(500)
    full = exact.geometry.rotate(x, positions)
    rounded = low.geometry.rotate(x, positions)
    # bfloat16 keeps 8 bits of each cos and sin: an error of the frequencies would reach 1.
    assert (full - rounded).abs().max() < 2 * 2**-8 * 1.3


def test_prepare_keeps_and_extends_tables(zoo):
    tokens = zoo.sequence(20)
    model = zoo.model("llama")
    before = zoo.runner(model, [20]).feed(tokens)
    kept = model._tables
    model.prepare(10)
    assert model._tables is kept  # a captured graph still reads it
    model.prepare(400)
    assert torch.equal(zoo.runner(model, [20]).feed(tokens), before)


def test_forward_without_prepare_says_so(zoo):
    model = zoo.model("llama")
    with pytest.raises(MacbenchError, match="prepare"):
        model.forward(zoo.sequence(2), torch.arange(2)[None], torch.tensor([0]), None)


def test_no_gradients(zoo):
    logits = zoo.runner(zoo.model("llama"), [4]).feed(zoo.sequence(4))
    assert not logits.requires_grad
