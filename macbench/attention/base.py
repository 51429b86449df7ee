"""The contract between the engine and a method: what a method asks for, sees and answers.

A method is one file in this folder, one YAML in `conf/method/` and one row in the tests' table.
Its class is a dataclass whose fields are its knobs (the keys of the YAML).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from macbench.engine.view import View
    from macbench.measure.trace import Trace


@dataclass(frozen=True)
class Needs:
    """What the engine must keep of the prompt for a method; read before the prefill."""

    prompt_queries: int = 0  # (q_pre, q) of the last n prompt positions of every layer
    observe: bool = False  # call observe() for every prefill chunk


@dataclass(frozen=True)
class Geometry:
    """Shapes of one model's attention on this device (local heads under tensor parallelism)."""

    layers: int
    q_heads: int  # Hq
    kv_heads: int  # Hkv
    head_dim: int  # d
    scale: float  # logits are scale * q.k
    device: torch.device
    dtype: torch.dtype
    # ([N, H, d], positions [N], rotary regimes [N], by default 0) -> rotated [N, H, d]
    rotate: Callable[..., Tensor]
    all_reduce: Callable[[Tensor], Tensor] = lambda x: x  # sum over tensor-parallel ranks
    backend: str = "torch"  # what attends over the cache: torch, triton or flashinfer

    @property
    def group(self) -> int:
        """Query heads per KV head, G."""
        return self.q_heads // self.kv_heads

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's K and V in one KV head of one layer."""
        return 2 * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True)
class Lists:
    """What the host knows of a step's lists: in every layer and head, a row has as many pieces."""

    counts: list[int]  # of each row
    piece: int  # tokens of a piece
    per_row: int  # lists of a row: Hkv, or Hq where each query head has its own

    @staticmethod
    def upto(most: list[int], lens: list[int], piece: int, per_row: int) -> Lists:
        """At most so many pieces of each row, of the pieces that hold its lens tokens."""
        counts = [min(m, -(-n // piece)) for m, n in zip(most, lens, strict=True)]
        return Lists(counts, piece, per_row)


@dataclass
class Prompt:
    """One sample's prefilled prompt, as handed to `Method.begin` (the prefill was exact)."""

    length: int  # N, tokens in the cache
    max_new: int  # tokens that may still be decoded, held prompt tokens included
    question: int  # token index where the question starts (N where the task does not mark one)
    key: int  # identifies (task, sample, seed): the only source of a method's randomness
    q_pre: list[Tensor] = field(default_factory=list)  # per layer [n, Hq, d]: last n positions
    q: list[Tensor] = field(default_factory=list)  # the same after RoPE
    shared: dict[Any, Any] = field(default_factory=dict)
    decoded: int = 0  # of N, tokens that had been decoded when the answer was cut off
    regime: int = 0  # rotary regime of the row, for `Geometry.rotate`
    clock: Callable[[], Any] = time.perf_counter  # marks the device's timeline
    borrowed: list[tuple] = field(default_factory=list)  # its two marks around what another method
    # made and this one used again

    @property
    def original(self) -> int:
        """Tokens of the prompt when the answer began: what budgets are shares of."""
        return self.length - self.decoded

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """`make()`, computed once for all methods that derive the same thing from this prompt."""
        if key in self.shared:
            made, spans = self.shared[key]
            self.borrowed += spans
            return made
        began, before = self.clock(), len(self.borrowed)
        made = make()  # it may borrow, too
        self.shared[key] = made, [(began, self.clock()), *self.borrowed[before:]]
        return made


class Method:
    """State of one method for `slots` sequences and all layers of one model."""

    name: ClassVar[str]
    version: ClassVar[int] = 1  # raised by any edit that changes numbers
    control: ClassVar[bool] = False  # looks at every key: an oracle or control, not a method
    needs: Needs = Needs()

    def check(self, geometry: Geometry, length: int) -> None:
        """Refuse (MacbenchError) knobs that cannot work at this context length, before any work."""

    def floor(self, geometry: Geometry, length: int) -> float | None:
        """Smallest reachable byte budget at this context length; None where there is no saying."""
        return None

    def predicted(self, geometry: Geometry, length: int, tokens: int) -> float | None:
        """Byte budget of a step over `tokens` cached tokens, its own included, after a prompt of
        `length`: the formula of the method's integers. None where data decide it.

        With tokens = length it lies within 2 % or one `granule` of the budget that was asked for,
        floors aside; what a longer row reads follows from it exactly.
        """
        return None

    def granule(self, geometry: Geometry, length: int) -> float:
        """Smallest step of `predicted` at a prompt of `length`."""
        return 1 / length

    def allocate(self, geometry: Geometry, slots: int, max_tokens: int) -> int:
        """Take all memory at once. Returns the resident bytes of one slot, all layers."""
        self.geometry = geometry
        return 0

    def observe(
        self, layer: int, slot: int, q_pre: Tensor, q: Tensor, keys: Tensor, start: int
    ) -> None:
        """A prefill chunk: q [T, Hq, d] at positions start..; keys [Hkv, start + T, d].

        Of methods of one class the first watches for all; its `begin`, which is called first, hands
        on what it saw by `Prompt.once`.
        """

    def begin(self, layer: int, slot: int, prompt: Prompt, view: View) -> None:
        """After the exact prefill of one slot: build ring, page bounds, kept tokens …"""

    def between(self, view: View, done: int) -> None:
        """Before every step, `done` of them after the fork: what only the host can decide, as no
        captured step can. May wait for the device where that is rare."""

    def attend(self, layer: int, q_pre: Tensor, q: Tensor, view: View, trace: Trace) -> Tensor:
        """One decode step of every slot: q_pre, q [B, Hq, d] -> output [B, Hq, d].

        This token's K/V is already in the cache at position `view.lens - 1`. Must report what it
        read with `trace.read` (here or in `settle`), must not synchronise with the host, and must
        not loop over rows or heads in Python.
        """
        raise NotImplementedError

    def lists(self, lens: list[int]) -> Lists | None:
        """The lists that `attend` will give `view.exact` at these lens, for a kernel that plans on
        the host; None: no lists, or lists it cannot know. A page that is not full comes first.
        """
        return None

    def settle(self, view: View, trace: Trace) -> None:
        """After the last layer of a step: report what is cheaper to report for all layers at once.

        `trace` takes `slice(None)` for the layer and values with a leading dimension of layers.
        """

    def capacity(self, slot: int, tokens: int) -> float:
        """Tokens (mean over layers and heads) whose K/V must stay resident of `tokens` seen.

        Eviction is emulated by lists over shared prompt pages; this is what it would keep.
        """
        return tokens

    def end(self, slot: int) -> None:
        """The slot's sequence is finished."""

    def witness(self, totals: dict[str, float]) -> bool:
        """Whether the method acted in a run with these trace totals (a silent method is marked)."""
        return totals["kv_tokens"] < totals["context_kv"]
