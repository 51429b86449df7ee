"""A decode step around attention, compiled: a handful of launches a layer in place of some thirty.

transformers' decoder layer stays what it is. Its forward is traced twice, each time with another
attention inside: one that keeps what it is given (the rest of the layer is then dead code) and one
that gives back what attention said (then all before it is). So a piece reaches from one layer's
attention to the next one's, whatever norms, biases and rotary embedding a family has between them:

    enter    norm, projections and rotary embedding of the first layer
    between  output projection, residuals, norms and MLP of a layer, and `enter` of the next
    leave    the same of the last layer, and the final norm

All layers share one compilation per number of rows (weights are inputs, shapes are fixed). A piece
waits for nothing, so a step can be captured in a CUDA graph once it has run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from macbench.models.adapter import Attend, Model

AROUND: dict[str, dict[str, Any] | None] = {  # how; inductor's options
    "eager": None,  # transformers' modules as they are
    "compiled": {},  # matrix products by cuBLAS
    # Products of one row as reductions that fuse with what surrounds them, of several rows the
    # fastest of cuBLAS and Triton; launch parameters searched for by measuring.
    "tuned": {"max_autotune": True, "coordinate_descent_tuning": True},
}
DEFAULT = "eager"  # of models on a card
SHAPES = 64  # numbers of rows, models and the like for which a process may compile

Rotary = tuple[Tensor, Tensor]  # cos and sin, [R, 1, rotary_dim] each


def forward(
    model: Model, tokens: Tensor, positions: Tensor, regimes: Tensor, attend: Attend
) -> Tensor:
    """`Model.forward` of one token a row, tokens and positions [R, 1], through the pieces."""
    with torch._dynamo.config.patch(recompile_limit=SHAPES):
        return _forward(model, tokens, positions, regimes, attend, *_own(model))


def disagreement(
    model: Model, tokens: Tensor, positions: Tensor, regimes: Tensor, attend: Attend
) -> float:
    """Largest relative error of a row in what a compiled piece gives, each on the inputs that the
    modules as they are lead to: through all layers, rounding alone can turn a row into another.
    """
    errors = []

    def both(plain: Callable, piece: Callable) -> Callable:
        def run(*inputs: Any) -> Any:
            ours, theirs = piece(*inputs), plain(*inputs)
            for a, b in zip(_tuple(ours), _tuple(theirs), strict=True):
                a, b = a.double().flatten(1), b.double().flatten(1)
                errors.append(((a - b).norm(dim=-1) / b.norm(dim=-1)).max())
            return theirs

        return run

    with torch._dynamo.config.patch(recompile_limit=SHAPES):
        checked = [both(*pair) for pair in zip(PIECES, _own(model), strict=True)]
        _forward(model, tokens, positions, regimes, attend, *checked)
    return torch.stack(errors).nan_to_num(torch.inf).max().item()


def _tuple(given: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [given] if isinstance(given, Tensor) else given


def _forward(
    model: Model,
    tokens: Tensor,
    positions: Tensor,
    regimes: Tensor,
    attend: Attend,
    enter: Callable,
    between: Callable,
    leave: Callable,
) -> Tensor:
    layers = model.base.layers
    rotary = model.rotary(positions, regimes)
    hidden = model.base.embed_tokens(tokens)
    heads = enter(layers[0], hidden, rotary)
    for index in range(len(layers) - 1):
        out = attend(index, *heads)
        hidden, *heads = between(layers[index], layers[index + 1], hidden, out, rotary)
    out = attend(len(layers) - 1, *heads)
    return leave(layers[-1], model.base.norm, hidden, out, rotary)


def _own(model: Model) -> list[Callable]:
    options = AROUND[model.around]
    assert options is not None, "an eager model has no pieces"
    return _pieces(tuple(options.items()))


@cache
def _pieces(options: tuple[tuple[str, Any], ...], backend: str = "inductor") -> list[Callable]:
    """The three pieces; what has to be compiled is, at the first call with new shapes."""
    more: dict[str, Any] = {"options": dict(options)} if options else {}
    return [
        torch.compile(piece, fullgraph=True, dynamic=False, backend=backend, **more)
        for piece in PIECES
    ]


def _enter(layer: Any, hidden: Tensor, rotary: Rotary) -> list[Tensor]:
    """What the layer gives its attention for hidden [R, 1, hidden]: q_pre, q, k and v."""
    seen: list[Tensor] = []

    def attend(q_pre: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.extend((q_pre, q, k, v))
        return q

    _layer(layer, hidden, rotary, attend)
    return [x.contiguous() for x in seen]


def _between(
    layer: Any, following: Any, hidden: Tensor, out: Tensor, rotary: Rotary
) -> tuple[Tensor, ...]:
    """hidden: what went into the layer; out [R, 1, Hq, d]: what its attention said."""
    hidden = _layer(layer, hidden, rotary, lambda *heads: out)
    return hidden, *_enter(following, hidden, rotary)


def _leave(layer: Any, norm: Any, hidden: Tensor, out: Tensor, rotary: Rotary) -> Tensor:
    return norm(_layer(layer, hidden, rotary, lambda *heads: out))


def _layer(layer: Any, hidden: Tensor, rotary: Rotary, attend: Callable[..., Tensor]) -> Tensor:
    return layer(
        hidden,
        attention_mask=None,
        position_ids=None,
        position_embeddings=rotary,
        attend=attend,
    )


PIECES: tuple[Callable, ...] = (_enter, _between, _leave)
