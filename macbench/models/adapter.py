"""One adapter for every supported family: transformers' layers around an attention of ours.

Each attention module keeps its weights, names and place; only its `forward` is bound anew. The
decoder layers run through their own forward, so norms, residuals, MLP and experts need nothing
from us. No masks, no cache class, static shapes, no synchronisation with the host.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from macbench.attention.base import Geometry
from macbench.errors import MacbenchError
from macbench.models import compiled, probe, rope

if TYPE_CHECKING:
    from macbench.models.text import Text

Attend = Callable[[int, Tensor, Tensor, Tensor, Tensor], Tensor]
"""attend(layer, q_pre, q, k, v) -> o.

q_pre, q and o are [B, T, Hq, d]; k (rotated) and v are [B, T, Hkv, d]. q_pre is the query after
the model's own q-norm and before the rotary embedding. Inputs may be strided views.
"""


EXPERTS = "grouped_mm"  # transformers' experts that neither loop nor wait for the host


class Model:
    """A loaded model, seen as its attention layers. Inference only: no parameter takes a gradient.

    `prepare` must be called before the first `forward`. `capturable` says whether `forward` may be
    captured in a CUDA graph. `around`, one of `compiled.AROUND`, says how `step` runs what stands
    around attention; where the model is `compilable`, it may be changed at any time.
    """

    def __init__(
        self,
        lm: Any,  # a transformers `…ForCausalLM` of a supported family
        *,
        name: str,
        weights: str,
        text: Text | None = None,
        stop_ids: tuple[int, ...] = (),
        notes: tuple[str, ...] = (),
    ):
        probe.check(lm.config, name)
        self.name = name
        self.weights = weights  # identity of the weights: "hub:…", "sha256:…" or "random:…"
        self.text = text
        self.stop_ids = stop_ids
        mixture = lm.config.model_type in probe.MIXTURES
        if mixture:
            lm.set_experts_implementation(EXPERTS)
            notes += (f"experts: {EXPERTS}",)
        self.notes = notes  # shown in table headers
        self.config = lm.config
        self.max_length: int = lm.config.max_position_embeddings
        self.lm = lm.eval().requires_grad_(False)
        self.head = lm.get_output_embeddings()
        self.vocab: int = self.head.weight.shape[0]
        self.base = lm.base_model
        first = self.base.layers[0].self_attn
        # The family's own function: the modeling file that defines the attention has it.
        self._rotate_pair = sys.modules[type(first).__module__].apply_rotary_pos_emb
        for layer in self.base.layers:
            # Bound on the instance: a new parent module would rename every parameter.
            attention = layer.self_attn
            attention.rotate_pair = self._rotate_pair
            attention.forward = MethodType(_attention, attention)
        self._switch = rope.switch(self.config)
        q_heads, kv_heads = _heads(first)
        self.geometry = Geometry(
            layers=len(self.base.layers),
            q_heads=q_heads,
            kv_heads=kv_heads,
            head_dim=first.head_dim,
            scale=first.scaling,
            device=self.head.weight.device,
            dtype=self.head.weight.dtype,
            rotate=self._rotate,
        )
        # In other dtypes torch's grouped product loops over experts and reads their sizes back.
        self.capturable = not mixture or self.geometry.dtype == torch.bfloat16
        self.compilable = self.geometry.device.type == "cuda" and not mixture
        self.around = compiled.DEFAULT if self.compilable else "eager"
        if self.compilable:
            fuse(self)
        self._tables: Tensor | None = None  # [2, regimes, tokens, rotary_dim]

    def prepare(self, max_tokens: int) -> None:
        """Build the rotary tables for rows of at most `max_tokens` (prompt + answer).

        Refuses (MacbenchError) what is beyond the model's window or its sliding window. Tables that
        already reach as far are kept, so captured graphs stay valid.
        """
        probe.check_length(self.config, self.name, max_tokens)
        if self._tables is None or self._tables.shape[2] < max_tokens:
            geometry = self.geometry
            self._tables = rope.tables(
                self.base.rotary_emb, max_tokens, geometry.device, geometry.dtype
            )

    def regime(self, tokens: int) -> int:
        """Rotary regime of a row of `tokens` = prompt + answer; fixed for the row's whole life."""
        return int(self._switch is not None and tokens > self._switch)

    def forward(self, tokens: Tensor, positions: Tensor, regimes: Tensor, attend: Attend) -> Tensor:
        """Hidden states after the final norm, [B, T, hidden].

        tokens, positions: [B, T] int64. regimes: [B] int64, from `regime`.
        """
        rotary = self.rotary(positions, regimes)
        hidden = self.base.embed_tokens(tokens)
        for index, layer in enumerate(self.base.layers):
            hidden = layer(
                hidden,
                attention_mask=None,
                position_ids=positions,
                position_embeddings=rotary,
                attend=partial(attend, index),
            )
        return self.base.norm(hidden)

    def step(self, tokens: Tensor, positions: Tensor, regimes: Tensor, attend: Attend) -> Tensor:
        """`forward` of one token a row ([R, 1]), compiled where `around` says so."""
        run = Model.forward if self.around == "eager" else compiled.forward
        return run(self, tokens, positions, regimes, attend)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> [..., vocab]."""
        return self.head(hidden)

    def rotary(self, positions: Tensor, regimes: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of positions [B, T] in the regimes [B], [B, T, rotary_dim] each."""
        cos, sin = self._ready()[:, regimes[:, None], positions]
        return cos, sin

    def _ready(self) -> Tensor:
        if self._tables is None:
            raise MacbenchError("the model has no rotary tables yet; call prepare(max_tokens).")
        return self._tables

    def _rotate(self, x: Tensor, positions: Tensor, regimes: Tensor | None = None) -> Tensor:
        """Rotate x [N, H, d] to positions [N] int64 with the tables of regimes [N], else of 0."""
        cos, sin = self._ready()[:, 0 if regimes is None else regimes, positions]
        rotated, _ = self._rotate_pair(x, x[:, :0], cos, sin)
        return rotated


def _heads(attention: Any) -> tuple[int, int]:
    """(query heads, KV heads) of an attention module, from the shapes of its weights."""
    d = attention.head_dim
    if hasattr(attention, "qkv_proj"):
        kv_heads = attention.num_key_value_heads
        return attention.qkv_proj.weight.shape[0] // d - 2 * kv_heads, kv_heads
    return attention.q_proj.weight.shape[0] // d, attention.k_proj.weight.shape[0] // d


def _project(attention: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, T, Hq, d] (after the model's q-norm), k and v [B, T, Hkv, d], none of them rotated."""
    d = attention.head_dim
    if hasattr(attention, "qkv_proj"):  # one matrix, in the order q, k, v
        q_heads, kv_heads = _heads(attention)
        qkv = attention.qkv_proj(hidden).unflatten(-1, (-1, d))
        return qkv.split((q_heads, kv_heads, kv_heads), dim=-2)
    if hasattr(attention, "qkv_weight"):  # the same, by `fuse`
        q_heads, kv_heads = _heads(attention)
        qkv = linear(hidden, attention.qkv_weight, attention.qkv_bias).unflatten(-1, (-1, d))
        q, k, v = qkv.split((q_heads, kv_heads, kv_heads), dim=-2)
    else:
        q = attention.q_proj(hidden).unflatten(-1, (-1, d))
        k = attention.k_proj(hidden).unflatten(-1, (-1, d))
        v = attention.v_proj(hidden).unflatten(-1, (-1, d))
    if hasattr(attention, "q_norm"):
        q, k = attention.q_norm(q), attention.k_norm(k)
    return q, k, v


def fuse(model: Model, on: bool = True) -> None:
    """Keep q, k and v weights of a layer as one matrix, for one product in place of three.

    No memory is added: the modules' own parameters become views of it, under their names. Models
    that come with one matrix are left alone. on=False: three products again.
    """
    for layer in model.base.layers:
        attention = layer.self_attn
        if hasattr(attention, "qkv_weight"):
            if not on:
                del attention.qkv_weight, attention.qkv_bias
        elif on and hasattr(attention, "q_proj"):
            parts = (attention.q_proj, attention.k_proj, attention.v_proj)
            for name in ("weight", "bias"):
                whole = _joined([getattr(part, name) for part in parts])
                attention.register_buffer(f"qkv_{name}", whole, persistent=False)


def _joined(parameters: list[torch.nn.Parameter | None]) -> Tensor | None:
    """Parameters in one tensor of which they are views from now on; None where there are none."""
    present = [parameter for parameter in parameters if parameter is not None]
    if not present:
        return None
    whole = torch.cat([parameter.data for parameter in present])
    sizes = [len(parameter) for parameter in present]
    for parameter, part in zip(present, whole.split(sizes), strict=True):
        parameter.data = part
    return whole


def _attention(
    attention: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    **_: Any,
) -> tuple[Tensor, None]:
    """The forward of every attention module: project, rotate, ask `attend`, project back."""
    q_pre, k, v = _project(attention, hidden_states)
    q, k = attention.rotate_pair(q_pre, k, *position_embeddings, unsqueeze_dim=2)
    o = attend(q_pre, q, k, v)
    return attention.o_proj(o.flatten(-2)), None
