"""What the kernels of a decode step are tuned by, and the memory that they write in between."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import torch
import triton
from torch import Tensor


def power(n: int) -> int:
    return triton.next_power_of_2(n)


@dataclass(frozen=True)
class Tiling:
    """What is tuned, not what is computed.

    Of attend: programs, at most what the card holds at once; tokens and stages of a chunk and its
    pipeline; weight, chunks' worth of what a span costs beside them; registers of a thread at
    most (more than fit are spilled, outside the loop over keys). Of match: rows per program, chunks
    of dims on their way (ahead), warps. Of merge: partials at once, how many at a time when there
    are more, programs per head (split), warps.
    pdl: launches overlap (compute capability 9.0).
    """

    programs: int = 264
    tokens: int = 128
    weight: int = 4
    stages: int = 2
    registers: int | None = None
    rows: int = 32
    ahead: int = 4
    match_warps: int = 4
    partials: int = 4
    more: int = 16
    split: int = 1
    warps: int = 1
    pdl: bool = False


def choose_tiling(groups: int, d: int, dtype: torch.dtype, device: torch.device) -> Tiling:
    """The measured choice for this many groups (rows x KV heads) of head dimension d.

    docs/kernels.md has the times behind it; vectors of more than 256 bytes were not timed, their
    chunks are cut so that as many programs fit. On a CPU (the interpreter): few programs.
    """
    if device.type == "cpu":
        return Tiling(programs=4, tokens=32, rows=32, partials=4)
    card = torch.cuda.get_device_properties(device)
    sms, pdl = card.multi_processor_count, card.major >= 9
    vector = power(d) * dtype.itemsize
    tokens, stages = 64 if vector <= 256 else 32, 3 if vector <= 512 else 2
    if groups < 64:  # latency counts: small pieces, and all programs at once on a long span
        return Tiling(2 * sms, tokens, 4, stages, None, 16, 4, 1, 8, 64, 4, pdl=pdl)
    resident = 3 if vector <= 512 else 2
    return Tiling(resident * sms, tokens, 4, stages, 168, 64, 4, 2, 4, 16, pdl=pdl)


class Workspace:
    """Everything a step writes beside cache and ring, for `batch` rows; layers share it.

    output [B, Hq, d] in `dtype` and lse [B, Hq] hold the answer of the last call.
    """

    def __init__(
        self,
        batch: int,
        q_heads: int,
        kv_heads: int,
        d: int,
        dtype: torch.dtype,
        device: torch.device | str,
        tiling: Tiling,
        spans: int | None = None,
    ):
        """spans: per row, Hkv (the default) or Hq where every query head has a list of its own."""
        self.tiling, self.kv_heads = tiling, kv_heads
        self.spans = spans or kv_heads
        self.group = q_heads // self.spans
        assert self.group <= 16, "query heads of a span share a tile of 16 rows"
        self.groups = batch * self.spans
        slots = 2 * (tiling.programs + self.groups)

        def empty(*shape: int, of: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=of, device=device)

        self.cuts = empty(self.groups, of=torch.int32)
        self.part_o = empty(slots, self.group, power(d))
        self.part_l = empty(slots, self.group)
        self.best = empty(batch, q_heads, of=torch.int64)
        self.picked = empty(batch, q_heads, of=torch.int64)
        self.picked_lse = empty(batch, q_heads)
        self.picked_chain = empty(batch, q_heads, of=torch.int32)
        self.output = empty(batch, q_heads, d, of=dtype)
        self.lse = empty(batch, q_heads)

    def layer(self, best: Tensor, picked: Tensor, picked_chain: Tensor) -> Workspace:
        """The same memory with its own match keys, kept until the next step of that layer."""
        made = copy(self)
        made.best, made.picked, made.picked_chain = best, picked, picked_chain
        return made


def tail_weight(tiling: Tiling, band: int, sink: int) -> int:
    """What every tail weighs: its chunks at most, and one."""
    return -(-(band + sink) // tiling.tokens) + 1


def launch(pdl: bool) -> dict[str, bool]:
    """Launch options: a kernel may start while the one before it ends."""
    return {"launch_pdl": True} if pdl else {}
