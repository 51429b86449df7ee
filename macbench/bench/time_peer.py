"""The same decode step under transformers itself: its own attention and caches, same weights.

Nothing is prefilled: keys and values are random normal values in transformers' cache tensors. Two
ways that `generate` can go are timed and the faster one counts: a static cache with the forward
that it compiles by itself, and its default, a dynamic cache without compiling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from macbench.bench.time_decode import Timer
    from macbench.models import Model

WARM = 5  # steps, compiling included
WAYS = ("static", "dynamic")
ABOUT = {"static": "sdpa, static cache, compiled", "dynamic": "sdpa, dynamic cache, eager"}


@contextmanager
def own_attention(model: Model) -> Iterator[Any]:
    """The transformers model with its own attention in the place of ours."""
    attentions = [layer.self_attn for layer in model.base.layers]
    bound = [attention.__dict__.pop("forward") for attention in attentions]
    try:
        yield model.lm
    finally:
        for attention, forward in zip(attentions, bound, strict=True):
            attention.forward = forward


def time_peer(
    model: Model,
    length: int,
    batch: int,
    replays: int,
    timer: Timer,
    say: Callable[[str], None],
    ways: tuple[str, ...] = WAYS,
) -> tuple[str, list[float]] | None:
    """What was fastest, and us of its steps; None where nothing ran. length: as in `Case`."""
    best: tuple[str, list[float]] | None = None
    for way in ways:
        try:
            times = _time(model, way, length, batch, replays, timer)
        except Exception as error:  # of torch.compile or for lack of memory: whatever it is,
            say(f"transformers, {ABOUT[way]}: {type(error).__name__}: {str(error)[:200]}")
            continue
        finally:
            # Frees memory, and keeps lengths from becoming variables of the compiled code.
            vars(model.lm).pop("_compiled_call", None)
            torch._dynamo.reset()
        if best is None or sorted(times)[len(times) // 2] < sorted(best[1])[len(best[1]) // 2]:
            best = ABOUT[way], times
    return best


@torch.inference_mode()
def _time(
    model: Model, way: str, length: int, batch: int, replays: int, timer: Timer
) -> list[float]:
    prompt = length - WARM - replays
    device = model.geometry.device
    with own_attention(model) as lm:
        lm.set_attn_implementation("sdpa")
        make = static_cache if way == "static" else dynamic_cache
        cache = make(model, batch, prompt, length)
        call = lm
        if way == "static":
            from transformers import CompileConfig

            call = lm.get_compiled_call(CompileConfig())
        token = torch.full((batch, 1), 5, dtype=torch.int64, device=device)
        position = torch.full((batch, 1), prompt, dtype=torch.int64, device=device)

        def step() -> None:
            out = call(
                input_ids=token, position_ids=position, past_key_values=cache, use_cache=True
            )
            token.copy_(out.logits[:, -1:].argmax(-1))
            position.add_(1)

        def nothing(done: int) -> None:
            pass

        timer.steps(step, nothing, 0, WARM)
        return timer.steps(step, nothing, WARM, replays)


def static_cache(model: Model, batch: int, prompt: int, length: int) -> Any:
    """A cache of `length` tokens of which `prompt` are there."""
    from transformers import StaticCache

    g = model.geometry
    cache: Any = StaticCache(config=model.config, max_cache_len=length)
    cache.early_initialization(batch, g.kv_heads, g.head_dim, g.dtype, g.device)
    for layer in cache.layers:
        layer.keys.normal_()
        layer.values.normal_()
        layer.cumulative_length.fill_(prompt)
    return cache


def dynamic_cache(model: Model, batch: int, prompt: int, length: int) -> Any:
    """A cache of `prompt` tokens, which grows."""
    from transformers import DynamicCache

    g = model.geometry

    def normal() -> Tensor:
        shape = (batch, g.kv_heads, prompt, g.head_dim)
        return torch.randn(shape, dtype=g.dtype, device=g.device)

    cache = DynamicCache(config=model.config)
    for layer in range(g.layers):
        cache.update(normal(), normal(), layer)
    return cache
