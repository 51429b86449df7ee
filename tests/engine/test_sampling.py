"""Greedy and seeded sampling against probabilities written out."""

from __future__ import annotations

import pytest
import torch

from macbench.engine.sampling import Decoding, choose
from macbench.errors import MacbenchError

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5])


def draws(decoding, count=4000, made=0):
    keys = torch.arange(count)
    return choose(LOGITS.expand(count, -1), decoding, keys, torch.full((count,), made))


def assert_frequencies(chosen, probability):
    """Within 5 sigma; a token of probability 0 never."""
    share = torch.bincount(chosen, minlength=5) / len(chosen)
    sigma = (probability * (1 - probability) / len(chosen)).sqrt()
    assert ((share - probability).abs() <= 5 * sigma).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_tempered_softmax(temperature):
    weights = (LOGITS / temperature).exp()
    assert_frequencies(draws(Decoding(temperature)), weights / weights.sum())


def test_top_k_keeps_the_k_best():
    weights = torch.where(LOGITS >= 1.0, LOGITS.exp(), 0)
    assert_frequencies(draws(Decoding(1.0, top_k=3)), weights / weights.sum())
    assert (draws(Decoding(1.0, top_k=1)) == 0).all()
    assert torch.equal(draws(Decoding(1.0, top_k=99)), draws(Decoding(1.0)))


@pytest.mark.parametrize("top_p, kept", [(0.01, [0]), (0.5, [0, 4]), (0.8, [0, 4, 1])])
def test_top_p_keeps_the_smallest_set_of_that_mass(top_p, kept):
    """Probabilities in order: 0.46, 0.28, 0.17, 0.06, 0.02."""
    weights = torch.zeros(5)
    weights[kept] = LOGITS.exp()[kept]
    assert_frequencies(draws(Decoding(1.0, top_p=top_p)), weights / weights.sum())


def test_a_draw_depends_on_sample_and_position_alone():
    decoding = Decoding(1.0)
    assert torch.equal(draws(decoding), draws(decoding))
    assert not torch.equal(draws(decoding), draws(decoding, made=1))
    few = choose(LOGITS.expand(3, -1), decoding, torch.tensor([9, 2, 9]), torch.zeros(3).long())
    assert few[0] == few[2] == draws(decoding)[9] and few[1] == draws(decoding)[2]


def test_greedy_takes_the_best_whatever_the_key():
    assert (draws(Decoding(), 10) == 0).all()


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}])
def test_impossible_decoding_is_refused(bad):
    with pytest.raises(MacbenchError, match=next(iter(bad))):
        Decoding(**bad)
