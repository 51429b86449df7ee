"""What attends where: kernels on the cards that can run them, torch everywhere else."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from macbench.engine.backend import resolve
from macbench.errors import MacbenchError

CARD = torch.device("cuda")


@pytest.fixture
def card(monkeypatch):
    """Makes a card of a compute capability, CUDA's or ROCm's, with these packages installed."""

    def make(capability: tuple[int, int], cuda: str | None = "13.0", packages=("triton",)):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        find = {name: object() for name in packages}.get
        monkeypatch.setattr(importlib.util, "find_spec", find)

    return make


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_cards_since_ampere_run_the_kernels(card, capability):
    card(capability)
    assert resolve("auto", CARD) == resolve("triton", CARD) == "triton"
    assert resolve("torch", CARD) == "torch"


@pytest.mark.parametrize(("capability", "cuda"), [((7, 5), "13.0"), ((9, 4), None)])
def test_older_cards_and_rocm_run_torch_and_say_so_when_asked_for_more(card, capability, cuda):
    card(capability, cuda, ("triton", "flashinfer"))
    assert resolve("auto", CARD) == "torch"
    for asked in ("triton", "flashinfer"):
        with pytest.raises(MacbenchError, match=r"compute capability 8\.0.*use backend=torch"):
            resolve(asked, CARD)


def test_without_a_card_or_a_package(card):
    assert resolve("auto", torch.device("cpu")) == "torch"
    with pytest.raises(MacbenchError, match="use backend=torch"):
        resolve("triton", torch.device("cpu"))
    card((9, 0), packages=())
    assert resolve("auto", CARD) == "torch"
    with pytest.raises(MacbenchError, match=r"needs the package triton: pip install"):
        resolve("triton", CARD)
    card((9, 0))
    with pytest.raises(MacbenchError, match="needs the package flashinfer"):
        resolve("flashinfer", CARD)
