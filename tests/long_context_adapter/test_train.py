"""The network is the model, its loss falls, and a continued training is the unbroken one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from macbench.cli import main as command
from macbench.errors import MacbenchError
from macbench.experiments.long_context_adapter import own, train
from macbench.experiments.long_context_adapter.network import Pieces
from macbench.experiments.long_context_adapter.own import _Decoder, write
from macbench.experiments.long_context_adapter.rows import Frame
from macbench.experiments.long_context_adapter.settings import configure
from macbench.experiments.long_context_adapter.supply import Batch
from macbench.models import lora

SMALL = [
    "steps=6",
    "tokens=1024",
    "schedule=[[1.0,[512],[1.0]]]",
    "spans=[2048]",
    "rank=4",
    "lr=0.02",
    "warmup=2",
    "theta=10000.0",
    "anchor=256",
    "own=0",
    "workers=0",
    "held_every=0",
    "save_every=0",
    "device=cpu",
]


def settings(*more):
    return configure([*SMALL, *more])


def test_network_without_training_is_the_model(tiny):
    lm = tiny.lm()
    tokens = torch.randint(0, 1000, (2, 40), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(40).expand(2, 40).clone()
    positions[1, 20:] += 300
    network = tiny.network(lm)
    with torch.no_grad():
        ours = network.logits(network(tokens, positions, Pieces(), network.merged())).view(
            2, 40, -1
        )
        theirs = lm(tokens, position_ids=positions).logits
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_trained_network_is_the_merged_model(tiny, tmp_path):
    network = tiny.network(tiny.lm(), theta=40_000.0)
    with torch.no_grad():
        for parameter in network.adapter.values():
            parameter += torch.randn(parameter.shape) * 0.05
            parameter.copy_(parameter.bfloat16())
    about = lora.About("b", 40_000.0, 4096, 4, 2.0, 1, 1, "r")
    lora.save(tmp_path / "a.safetensors", network.tensors(), about)
    adapter = lora.read(str(tmp_path / "a.safetensors"))
    from transformers import AutoModelForCausalLM

    lm = tiny.lm()
    config = lm.config
    lora.adapt_config(config, adapter.about)
    merged = AutoModelForCausalLM.from_config(config).eval()
    merged.load_state_dict(lm.state_dict())
    lora.merge(merged, adapter)
    tokens = torch.randint(0, 1000, (1, 50), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = network.logits(network(tokens, torch.arange(50)[None], Pieces(), network.merged()))
        assert torch.allclose(ours, merged(tokens).logits[0], atol=2e-4)
        assert not torch.allclose(ours, tiny.lm()(tokens).logits[0], atol=0.1)


def test_decoder_with_padding_is_the_network(tiny, tokenizer):
    """Rows of different lengths, a token at a time, against each row alone and at once."""
    network = tiny.network(tiny.lm())
    rows = [torch.randint(0, 1000, (n,)) for n in (9, 4)]
    width, new = 9, 5
    later = torch.randint(0, 1000, (2, new))
    padded = torch.stack([torch.cat((torch.ones(width - len(r), dtype=int), r)) for r in rows])
    starts = torch.tensor([width - len(r) for r in rows])
    with torch.no_grad():
        decode = _Decoder(network, 2, width + new, starts)
        states = [decode(padded, 0)[:, -1]]
        states += [decode(later[:, i : i + 1], width + i)[:, -1] for i in range(new)]
        for i, row in enumerate(rows):
            whole = torch.cat((row, later[i]))[None]
            alone = network(whole, torch.arange(whole.shape[1])[None], Pieces(), network.merged())
            ours = torch.stack([state[i] for state in states])
            assert torch.allclose(ours, alone[len(row) - 1 :], atol=1e-4)


def shaken(network):
    """The network after its adapter has changed, norms included."""
    with torch.no_grad():
        for parameter in network.adapter.values():
            parameter += torch.randn(parameter.shape) * 0.3
    return network


def test_the_base_stays_the_model_whatever_the_adapter_becomes(tiny):
    network = shaken(tiny.network(tiny.lm(), theta=40_000.0))
    tokens = torch.randint(0, 1000, (2, 40), generator=torch.Generator().manual_seed(3))
    positions = torch.arange(40).expand(2, 40)
    with torch.no_grad():
        theirs = tiny.lm()(tokens).logits.flatten(0, 1)
        base = network.logits(network(tokens, positions, Pieces(), network.untouched))
        assert torch.allclose(base, theirs, atol=1e-4)
        assert not torch.allclose(
            network.logits(network(tokens, positions, Pieces(), network.merged())), theirs, atol=1
        )


def anchored(tokens, positions):
    none = np.zeros(0, np.int64)
    return Batch(*[none] * 7, anchor=(np.array(tokens), np.array(positions)))


def test_drift_is_the_mean_divergence_from_the_base(tiny):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 1000, (2, 30))
    batch = anchored(tokens, np.stack([np.arange(30)] * 2))
    network = tiny.network(tiny.lm())
    assert train.drift(network, batch, Pieces(), network.merged()).item() == pytest.approx(
        0, abs=1e-6
    )
    moved = anchored(tokens, np.stack([np.arange(30) + (np.arange(30) > 9) * 500] * 2))
    assert (
        train.drift(network, moved, Pieces(), network.merged()).item() > 0.01
    )  # the base stays where it was

    network = shaken(network)
    drift = train.drift(network, batch, Pieces(), network.merged())
    with torch.no_grad():
        ours = network.logits(network(*map(torch.tensor, batch.anchor), Pieces(), network.merged()))
        q, p = ours.double().softmax(-1), tiny.lm()(torch.tensor(tokens)).logits.double()
    each = [
        sum(a * (a / b).log() for a, b in zip(base, adapted, strict=True)).item()
        for base, adapted in zip(p.softmax(-1).flatten(0, 1), q, strict=True)
    ]
    assert drift.item() == pytest.approx(sum(each) / 60, rel=1e-4)
    drift.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.adapter.values())


def test_what_the_base_writes_follows_the_seed_and_not_the_adapter(tiny, tokenizer):
    network, frame = tiny.network(tiny.lm()), Frame.of(tokenizer)
    first, again, other = (write(network, tokenizer, frame, 3, 4, 30, seed) for seed in (1, 1, 2))
    assert first == again == write(shaken(network), tokenizer, frame, 3, 4, 30, 1)
    assert first != other
    assert 0 < len(first["chats"]) <= 3 and len(first["passages"]) == 4
    asked, begun = own.requests(3, 1), own.openings(4, 1)
    assert {ask for ask, _ in first["chats"]} <= set(asked)
    for start, passage in zip(begun, first["passages"], strict=True):
        assert passage.startswith(start) and len(passage) > len(start)


def run(tiny, tokenizer, spec, out, chosen, says=None):
    out.mkdir(exist_ok=True)
    network = tiny.network(tiny.lm())
    from pathlib import Path

    say = (says if says is not None else []).append
    path = train.train(chosen, network, tokenizer, Path(spec.tokenizer), "base", out, say)
    return path, [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_loss_falls(tiny, tokenizer, spec, tmp_path):
    chosen = settings("steps=40", "lr=0.1", "held_every=40", "held_length=1024")
    path, log = run(tiny, tokenizer, spec, tmp_path / "a", chosen)
    steps = [row for row in log if "loss" in row]
    texts, anchors = ([row[name] for row in steps] for name in ("text", "anchor"))
    assert all(0 < anchor < 5 for anchor in anchors[1:]), anchors
    assert texts[-1] < texts[1] < texts[0] - 0.5, texts
    (held,) = [row["held"] for row in log if "held" in row]
    assert held["prose_loss"] < steps[0]["text"] and 0 <= held["retrieval"] <= 1
    about = lora.read(str(path)).about
    assert (about.base, about.rank, about.steps) == ("base", 4, 40)


def test_the_anchor_keeps_the_base(tiny, tokenizer, spec, tmp_path):
    """Of the same training, with and without weight on the anchor."""
    drifts = []
    for weight in (0.0, 3.0):
        chosen = settings("steps=20", "lr=0.05", f"anchor_weight={weight}")
        _, log = run(tiny, tokenizer, spec, tmp_path / str(weight), chosen)
        drifts.append(log[-1]["anchor"])
    assert drifts[1] < drifts[0] / 2, drifts


def test_without_an_anchor(tiny, tokenizer, spec, tmp_path):
    _, log = run(tiny, tokenizer, spec, tmp_path / "a", settings("anchor=0", "steps=2"))
    assert [row["anchor"] for row in log] == [0, 0]


def test_own_text_is_written_once_and_read(tiny, tokenizer, spec, tmp_path):
    chosen = settings("steps=2", "own=3", "own_passages=3", "own_tokens=20")
    says = []
    run(tiny, tokenizer, spec, tmp_path / "a", chosen, says)
    wrote = json.loads((tmp_path / "a" / "own.json").read_text())
    assert set(wrote) == {"chats", "passages"} and len(wrote["passages"]) == 3
    assert "3 own passages" in says[0]


def test_continued_is_unbroken(tiny, tokenizer, spec, tmp_path, monkeypatch):
    whole, log = run(tiny, tokenizer, spec, tmp_path / "whole", settings())
    broken = settings("save_every=3")

    def stop(*args):
        keep(*args)
        raise KeyboardInterrupt

    keep = train.keep
    monkeypatch.setattr(train, "keep", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, tokenizer, spec, tmp_path / "broken", broken)
    monkeypatch.setattr(train, "keep", keep)
    with pytest.raises(MacbenchError, match="other settings"):
        run(tiny, tokenizer, spec, tmp_path / "broken", replace(broken, lr=0.01))
    path, again = run(tiny, tokenizer, spec, tmp_path / "broken", broken)
    assert again[-1]["step"] == log[-1]["step"] == 5
    assert again[-1]["loss"] == pytest.approx(log[-1]["loss"], abs=1e-6)
    ours, theirs = lora.read(str(path)).tensors, lora.read(str(whole)).tensors
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_learning_rate():
    chosen = settings("steps=100", "warmup=10", "lr=1.0")
    rates = [train.learning_rate(step, chosen) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.05) and rates[55] == pytest.approx(0.525)


def test_settings():
    assert configure(["shares.prose=0.5", "lr=1e-3"]).shares["prose"] == 0.5
    recipe = configure([]).recipe()
    assert configure(["out=elsewhere", "workers=2"]).recipe() == recipe
    assert configure(["seed=2"]).recipe() != recipe != configure(["anchor=0"]).recipe()
    for words, says in (
        (["step=3"], "did you mean 'steps'"),
        (["shares.vt=1"], "shares.vt"),
        (["steps=many"], "steps=many must be a whole number"),
        (["tokens=3000"], "do not divide"),
        (["anchor=3000"], "whole rows of 2048"),
        (["anchor=-1"], "whole rows of 2048"),
        (["anchor_weight=-1"], "anchor_weight=-1.0: give 0 or more"),
        (["steps"], "write key=value"),
    ):
        with pytest.raises(MacbenchError, match=says):
            configure(words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_days_on_a_cpu_are_not_begun_unasked(tmp_path, capsys):
    assert command(["train", f"out={tmp_path / 'out'}"]) == 2
    assert "there is no GPU here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
