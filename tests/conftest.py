"""Every test: no network for models and data, one thread, the same examples each time."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

for name, value in {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ[name] = value  # before torch, transformers or datasets are imported

settings.register_profile("macbench", derandomize=True, deadline=None)
settings.load_profile("macbench")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
