"""The trained network: a Llama-shaped model whose linear maps are W + scale * B @ A.

The maps of all layers are stacked, [layers, out, in], and merged once a step, so that what is
trained is what is later read from the file. What stands before and after attention works on
[tokens, width] whatever the rows' length: each is compiled once for a number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from macbench.models.lora import FINAL, LINEARS, NORMS


@dataclass(frozen=True)
class Shape:
    """What of a configuration the network needs."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float

    @classmethod
    def of(cls, config: Any) -> Shape:
        return cls(
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.rms_norm_eps,
        )


@dataclass(frozen=True)
class Weights:
    """What a forward pass takes of the base, or of the base with the adapter merged in."""

    layers: list[list[Tensor]]  # of a layer: LINEARS in the computation's dtype, then NORMS
    final: Tensor
    theta: float  # rotary base


class Network(nn.Module):
    """Frozen base weights and the adapter's float32 parameters."""

    untouched: Weights  # the base's own, ready to run

    def __init__(self, lm: Any, rank: int, scale: float, theta: float, seed: int):
        super().__init__()
        self.shape, self.scale, self.theta = Shape.of(lm.config), scale, theta
        self.base_theta: float = lm.config.rope_parameters["rope_theta"]
        layers = lm.model.layers
        made = torch.Generator().manual_seed(seed)
        self.base: dict[str, Tensor] = {}
        self.adapter = nn.ParameterDict()
        for name, place in LINEARS.items():
            base = torch.stack([layer.get_submodule(place).weight.data for layer in layers]).float()
            count, out, width = base.shape
            start = torch.randn(count, rank, width, generator=made) / width**0.5
            self.base[name] = base
            self.adapter[f"{name}_A"] = nn.Parameter(start)
            self.adapter[f"{name}_B"] = nn.Parameter(torch.zeros(count, out, rank))
        for name, place in NORMS.items():
            gains = torch.stack([layer.get_submodule(place).weight.data for layer in layers])
            self.adapter[name] = nn.Parameter(gains.float())
        self.adapter[FINAL] = nn.Parameter(lm.model.norm.weight.data.float())
        self.gains = {name: self.adapter[name].detach().clone() for name in (*NORMS, FINAL)}
        self.embedding = lm.model.embed_tokens.weight.data.float()

    def place(self, device: torch.device, dtype: torch.dtype) -> Network:
        """Move all of it; what runs as it is gets the dtype of the computation."""
        self.to(device)
        self.base = {name: weight.to(device) for name, weight in self.base.items()}
        self.embedding = self.embedding.to(device, dtype)
        gains = {name: gain.to(device) for name, gain in self.gains.items()}
        stacks = [*(weight.to(dtype) for weight in self.base.values()), *(gains[n] for n in NORMS)]
        self.untouched = Weights(by_layer(stacks), gains[FINAL], self.base_theta)
        return self

    def tensors(self) -> dict[str, Tensor]:
        """The adapter under the names of its file."""
        return {name.replace("_", "."): t for name, t in self.adapter.items()}

    def merged(self) -> Weights:
        """Base and adapter of this moment."""
        dtype = self.embedding.dtype
        stacks = []
        for name, base in self.base.items():
            a, b = self.adapter[f"{name}_A"], self.adapter[f"{name}_B"]
            stacks.append(torch.baddbmm(base, b, a, alpha=self.scale).to(dtype))
        stacks += [self.adapter[name] for name in NORMS]
        return Weights(by_layer(stacks), self.adapter[FINAL], self.theta)

    def rotary(self, positions: Tensor, theta: float) -> tuple[Tensor, Tensor]:
        """cos and sin of positions [tokens]: [tokens, 1, head_dim], float32."""
        d = self.shape.head_dim
        steps = torch.arange(0, d, 2, device=positions.device, dtype=torch.float32)
        angles = positions.float()[:, None] * theta ** (-steps / d)
        angles = torch.cat((angles, angles), -1)[:, None]
        return angles.cos(), angles.sin()

    def forward(
        self, tokens: Tensor, positions: Tensor, pieces: Pieces, weights: Weights
    ) -> Tensor:
        """States before the head [rows * length, width]; tokens, positions [rows, length].

        weights: `merged`, made once for all passes of a step, or `untouched`.
        """
        rows, length = tokens.shape
        shape = self.shape
        cos, sin = self.rotary(positions.flatten(), weights.theta)
        x = F.embedding(tokens.flatten(), self.embedding)
        # so that the first layer needs no compiling of its own
        x.requires_grad_(torch.is_grad_enabled())
        for q, k, v, o, gate, up, down, n1, n2 in weights.layers:
            made = pieces.before(x, n1, q, k, v, cos, sin, shape)
            query, key, value = (
                t.reshape(rows, length, -1, shape.head_dim).transpose(1, 2) for t in made
            )
            mixed = pieces.attend(query, key, value)
            mixed = mixed.transpose(1, 2).reshape(rows * length, -1)
            x = pieces.after(x, mixed, o, n2, gate, up, down, shape)
        return norm(x, weights.final, shape.eps)

    def logits(self, states: Tensor) -> Tensor:
        return F.linear(states, self.embedding)


def by_layer(stacks: Iterable[Tensor]) -> list[list[Tensor]]:
    """Stacks [layers, …] as a list of each layer's tensors."""
    return [list(layer) for layer in zip(*(stack.unbind(0) for stack in stacks), strict=True)]


def norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """RMSNorm in float32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * gain).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [tokens, heads, head_dim], in float32."""
    wide = x.float()
    left, right = wide.chunk(2, -1)
    return (wide * cos + torch.cat((-right, left), -1) * sin).to(x.dtype)


def before(
    x: Tensor, n1: Tensor, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, shape: Shape
) -> list[Tensor]:
    """Queries, keys and values, each [tokens, query heads, head_dim]."""
    y = norm(x, n1, shape.eps)
    group = shape.heads // shape.kv_heads
    made = [F.linear(y, w).unflatten(-1, (-1, shape.head_dim)) for w in (q, k, v)]
    queries, keys = rotate(made[0], cos, sin), rotate(made[1], cos, sin)
    return [queries, *(t.repeat_interleave(group, 1) for t in (keys, made[2]))]


def after(
    x: Tensor,
    mixed: Tensor,
    o: Tensor,
    n2: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    shape: Shape,
) -> Tensor:
    """The rest of a layer."""
    x = x + F.linear(mixed, o)
    y = norm(x, n2, shape.eps)
    return x + F.linear(F.silu(F.linear(y, gate)) * F.linear(y, up), down)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention, each [rows, heads, length, head_dim]."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


@dataclass(frozen=True)
class Pieces:
    """A layer's parts: what stands before and after attention, compiled or not, and attention."""

    before: Callable[..., list[Tensor]] = before
    after: Callable[..., Tensor] = after
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] = attend

    def compiled(self) -> Pieces:
        first = torch.compile(self.before, dynamic=False)
        rest = torch.compile(self.after, dynamic=False)
        return Pieces(first, rest, self.attend)


def attention_of(device: torch.device, shape: Shape, lengths: Iterable[int]) -> Callable:
    """On a card cuDNN's attention, there the fastest both ways, if it runs at all these lengths."""
    if device.type != "cuda":
        return attend
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def with_cudnn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
        with sdpa_kernel(order, set_priority=True):
            return attend(query, key, value)

    try:
        for length in lengths:
            size = (1, length, shape.heads, shape.head_dim)
            made = torch.randn(size, device=device, dtype=torch.bfloat16, requires_grad=True)
            heads = made.transpose(1, 2)
            with_cudnn(heads, heads, heads).sum().backward()
        torch.cuda.synchronize()
    except RuntimeError:
        return attend
    return with_cudnn
