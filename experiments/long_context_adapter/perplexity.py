"""Perplexity of the shipped English text, which the adapter has not seen, with and without it.

python -m macbench.experiments.long_context_adapter.perplexity
"""

from __future__ import annotations

import math

import torch

from macbench import presets
from macbench.models import Source, lora
from macbench.models.load import pick_device
from macbench.models.source import locate
from macbench.tasks.sources import shipped

MODELS, LENGTHS, WINDOWS = ("smollm2", "smollm2-long"), (2048, 8192), 8


@torch.inference_mode()
def perplexity(name: str, length: int, windows: int) -> float:
    """exp of the mean loss over the text's first windows of so many tokens, each by itself."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = Source(**presets.read("model", name))
    folder = locate(source).where
    config = AutoConfig.from_pretrained(folder)
    adapter = lora.read(source.adapter) if source.adapter else None
    if adapter:
        lora.adapt_config(config, adapter.about)
    lm = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    if adapter:
        lora.merge(lm, adapter)
    lm = torch.nn.Module.to(lm, pick_device("auto"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(shipped("english.txt").decode(), return_tensors="pt")["input_ids"][0]
    losses = []
    for window in ids.to(lm.device).split(length)[:windows]:
        losses.append(lm(window[None], labels=window[None]).loss.item())
    return math.exp(sum(losses) / len(losses))


def main() -> None:
    for name in MODELS:
        for length in LENGTHS:
            found = perplexity(name, length, WINDOWS)
            print(f"{name} {length} tokens: {found:.2f} ({WINDOWS} windows)", flush=True)


if __name__ == "__main__":
    main()
