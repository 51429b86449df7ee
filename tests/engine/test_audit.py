"""The audit: hand-made cases, methods that are exact, methods that are not, and no change by it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain

import pytest
import torch
from transformers import LlamaForCausalLM

from macbench.attention import Method, create
from macbench.engine import Engine, Request
from macbench.engine.audit import full_attention, log_likelihood, relative, summary
from macbench.models import Source, load

METHODS = [
    ("full", {}),
    ("full", {"passes": 2}),
    ("mac", {"tau": 0.3, "K": 16, "r": 6}),
    ("streaming_llm", {"budget": 0.3}),
    ("random", {"tokens": 0.4, "recent": 8}),
]


class Scaled(Method):
    """Exact attention's output times `factor`."""

    name = "scaled"

    def __init__(self, factor):
        self.factor = factor

    def attend(self, layer, q_pre, q, view, trace):
        return self.factor * view.exact(layer, q)[0]

    def settle(self, view, trace):
        trace.read(slice(None), view, view.lens[:, None], view.lens[:, None])


def answer(model, methods, requests, audit):
    hold = max(r.hold for r in requests)
    longest, most = max(len(r.tokens) for r in requests), max(r.max_new for r in requests)
    engine = Engine(model, methods, len(requests), longest, most, max_hold=hold, audit=audit)
    return engine.run(requests)


def made(methods):
    return [create(name, knobs) for name, knobs in methods]


def said(a):
    return a.tokens + ([] if a.end is None else [a.end])


def test_errors_and_likelihoods_by_hand():
    exact = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    out = torch.tensor([[3.0, 4.5], [1.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(relative(out, exact), torch.tensor([0.1, 0.0, 0.0]))
    logits = torch.tensor([[0.0, math.log(3.0)], [2.0, 2.0]])
    got = log_likelihood(logits, torch.tensor([1, 0]))
    torch.testing.assert_close(got, torch.tensor([0.75, 0.5]).log())


def test_a_summary_by_hand():
    reads = {"error": [[0.2, 0.4], [0.6, 0.0]], "audited": 2.0, "chosen": 4.0, "loglik": -3.0}
    assert summary(reads, 3, (1, -5.0)) == {
        "every": 3,
        "steps": 2.0,
        "error": pytest.approx(0.15),
        "tokens": 4.0,
        "agreement": 0.25,
        "loglik": -3.0,
        "full_loglik": -5.0,
    }
    nothing = summary({"audited": 0.0, "chosen": 0.0, "loglik": 0.0}, 3, (0, 0.0))
    assert nothing["error"] is None and nothing["agreement"] is None


@pytest.mark.parametrize("every, compared", [(1, 11), (4, 3), (100, 1)])
def test_an_output_scaled_by_a_tenth_is_a_tenth_off(model, ask, every, compared):
    """12 tokens, 11 steps; those after 0, every, 2 every, … steps are compared."""
    (answers,) = answer(model, [Scaled(1.1)], ask(50, 33, max_new=12), every)
    for a in answers:
        assert a.reads["steps"] == a.reads["chosen"] == 11 and a.reads["audited"] == compared
        errors = torch.tensor(a.reads["error"])
        assert errors.shape == (3, 6)
        torch.testing.assert_close(errors / compared, torch.full_like(errors, 0.1))


def test_held_tokens_are_compared_and_the_first_token_is_chosen_by_the_method(model, ask):
    requests = [replace(r, hold=5) for r in ask(50, 33, max_new=12)]
    for a in answer(model, [Scaled(1.0)], requests, 4)[0]:
        assert a.reads["audited"] == 4  # of 16 steps
        assert a.reads["chosen"] == len(a.tokens) == 12


def test_a_row_that_has_ended_is_no_longer_audited(make_model, model, ask):
    requests = ask(50, 33, max_new=20)
    free = answer(model, made([("full", {})]), requests, 0)[0]
    stop = next(t for t in free[0].tokens[3:] if t not in free[1].tokens)
    end = free[0].tokens.index(stop)
    one, two = answer(make_model((stop,)), made([("full", {})]), requests, 1)[0]
    assert one.stopped == "stop" and one.end == stop
    assert one.reads["audited"] == one.reads["chosen"] == end  # the stop token, not the first
    assert two.reads["audited"] == two.reads["chosen"] == 19 and two.end is None


@pytest.mark.parametrize("every", [1, 5])
def test_an_audit_changes_nothing(model, ask, every):
    requests = ask(90, 64, max_new=20)
    plain = answer(model, made(METHODS), requests, 0)
    audited = answer(model, made(METHODS), requests, every)
    extra = {"error", "audited", "chosen", "loglik"}
    for before, after in zip(chain(*plain), chain(*audited), strict=True):
        assert before.tokens == after.tokens
        reads = {name: value for name, value in after.reads.items() if name not in extra}
        assert extra <= {*after.reads} and reads == before.reads


def test_full_attention_drifts_by_rounding_and_others_visibly(model, ask):
    requests = ask(90, 64, max_new=20)
    answers = answer(model, made(METHODS), requests, 1)
    for (name, _), row in zip(METHODS, answers, strict=True):
        for request, a in zip(requests, row, strict=True):
            seen = full_attention(model, request.tokens, said(a), int(a.reads["chosen"]), 0)
            found = summary(a.reads, 1, seen)
            assert found["steps"] == found["tokens"] == 19
            if name == "full":
                assert found["error"] < 1e-5 and found["agreement"] == 1
                assert abs(found["loglik"] - found["full_loglik"]) < 1e-3
            else:
                assert found["error"] > 1e-3, name
                assert abs(found["loglik"] - found["full_loglik"]) > 1e-3
            if name == "streaming_llm":
                assert found["error"] > 0.05 and found["agreement"] < 1


@pytest.mark.parametrize("chunk", [4096, 16])
def test_the_exact_pass_is_transformers_own_forward(model, ask, monkeypatch, chunk):
    """Agreement and ln p of the last tokens of a text of random ones and full attention's own."""
    monkeypatch.setattr("macbench.engine.audit.CHUNK", chunk)
    monkeypatch.setattr("macbench.engine.audit.HEADS", 3)
    plain = LlamaForCausalLM(model.config).eval()
    plain.load_state_dict(model.lm.state_dict())
    (request,) = ask(40, max_new=8)
    text = answer(model, made([("full", {})]), [request], 0)[0][0].tokens
    text[2:5] = [1, 2, 3]
    model.prepare(60)
    for last in (1, 5, 8):
        with torch.inference_mode():
            logits = plain(torch.tensor([request.tokens + text[:-1]])).logits[0, -last:]
        token = torch.tensor(text[-last:])
        agreed, loglik = full_attention(model, request.tokens, text, last, 0)
        assert agreed == (logits.argmax(-1) == token).sum() > 0
        want = logits.log_softmax(-1).gather(1, token[:, None]).sum()
        assert loglik == pytest.approx(want.item(), abs=1e-4)
    assert full_attention(model, request.tokens, text, 0, 0) == (0, 0.0)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_on_a_card_compared_steps_run_between_replays_and_saving_disturbs_nothing(backend):
    torch.manual_seed(0)
    model = load(Source("tiny", "tiny-llama", init="random", dtype="float32", device="cuda"))
    draw = torch.Generator().manual_seed(1)
    requests = [
        Request(torch.randint(model.vocab, (n,), generator=draw).tolist(), 24, key=n)
        for n in (300, 171)
    ]
    answers, saved = [], []
    for audit in (0, 1, 5):
        engine = Engine(model, made(METHODS), 2, 300, 24, backend=backend, audit=audit)
        engine.run(requests)
        answers.append(engine.run(requests, 7 if audit else 0, saved.append))
    assert len(saved) == 6 and [len(a.tokens) for a in saved[-1][0]] == [22, 22]
    for plain, every, fifth in zip(*(chain(*rows) for rows in answers), strict=True):
        assert plain.tokens == every.tokens == fifth.tokens
        assert plain.reads["kv_tokens"] == fifth.reads["kv_tokens"]
        assert every.reads["audited"] == 23 and fifth.reads["audited"] == 5
        assert every.reads["loglik"] == pytest.approx(fifth.reads["loglik"], rel=1e-5)
    for (name, _), row in zip(METHODS, answers[2], strict=True):
        errors = torch.tensor([a.reads["error"] for a in row]) / 5
        assert errors.max() < 1e-4 if name == "full" else errors.mean() > 1e-3, name
