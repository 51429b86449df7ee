"""What attends over the cache: torch anywhere, on a CUDA card our Triton kernels or FlashInfer."""

from __future__ import annotations

import importlib.util
from typing import Protocol

import torch
from torch import Tensor

from macbench.attention.base import Geometry
from macbench.errors import MacbenchError
from macbench.kernels.paged import PAGE

BACKENDS = ("auto", "torch", "triton", "flashinfer")


def resolve(asked: str, device: torch.device) -> str:
    """The backend that `asked` means on this device; refused (MacbenchError), never replaced.

    auto: Triton on a card, where it is as fast as FlashInfer or faster (docs/kernels.md).
    """
    installed = {name: importlib.util.find_spec(name) for name in ("triton", "flashinfer")}
    if asked == "auto":
        return "triton" if device.type == "cuda" and installed["triton"] else "torch"
    if asked == "torch":
        return asked
    if device.type != "cuda":
        raise MacbenchError(
            f"backend={asked} needs a CUDA GPU and none was found; use backend=torch."
        )
    for name in {"triton", asked}:  # beside FlashInfer, lists and MAC run on our kernels
        if not installed[name]:
            raise MacbenchError(
                f"backend={asked} needs the package {name}: pip install 'macbench[gpu]'."
            )
    return asked


class Attend(Protocol):
    """Exact attention of a fixed number of rows over the paged cache."""

    def plan(self, table: Tensor, lens: list[int]) -> None:
        """Before a step: what the host knows of it. table [B, M], lens of every row."""

    def over(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor,
        lens: Tensor,
        lists: Tensor | None = None,
        counts: Tensor | None = None,
        piece: int = PAGE,
    ) -> tuple[Tensor, Tensor]:
        """q [B, Hq, d] over the first lens [B] keys, or of lists [B, H, n] the first counts [B, H]
        pieces of `piece` tokens -> o [B, Hq, d], lse [B, Hq]."""


class Triton:
    """Our kernels (`macbench.kernels.attend`)."""

    def __init__(self, geometry: Geometry, rows: int):
        self.geometry, self.rows = geometry, rows
        self.work: dict[int, object] = {}  # by spans per row

    def plan(self, table: Tensor, lens: list[int]) -> None:
        pass

    def over(self, q, k, v, table, lens, lists=None, counts=None, piece=PAGE):
        from macbench.kernels import attend

        g = self.geometry
        spans = g.kv_heads if lists is None else lists.shape[1]
        if spans not in self.work:
            tiling = attend.tiling(self.rows * spans, g.head_dim, g.device)
            shape = (self.rows, g.q_heads, g.kv_heads, g.head_dim)
            self.work[spans] = attend.Workspace(*shape, g.dtype, g.device, tiling, spans)
        output = torch.empty(q.shape, dtype=g.dtype, device=q.device)
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        if lists is not None:
            lists, counts = lists.contiguous(), counts.contiguous()
        work, q = self.work[spans], q.contiguous()
        attend.attend(work, q, k, v, table, lens, g.scale, lists, counts, piece, output, lse)
        return output, lse


class FlashInfer(Triton):
    """FlashInfer's paged decode for whole rows; lists run on our kernels."""

    SPACE = 128 * 2**20  # bytes of scratch, as FlashInfer recommends

    def __init__(self, geometry: Geometry, rows: int):
        super().__init__(geometry, rows)
        self.wrapper = None

    def plan(self, table, lens):
        """For all layers of a step. The wrapper's buffers stay, so a captured step stays valid."""
        import flashinfer

        g = self.geometry
        pages = torch.tensor([-(-n // PAGE) for n in lens], dtype=torch.int32)
        start = torch.zeros(len(lens) + 1, dtype=torch.int32)
        start[1:] = pages.cumsum(0)
        last = torch.tensor([(n - 1) % PAGE + 1 for n in lens], dtype=torch.int32)
        if self.wrapper is None:
            self.wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
                torch.empty(self.SPACE, dtype=torch.uint8, device=g.device),
                "HND",
                use_cuda_graph=True,
                use_tensor_cores=True,  # as fast or faster in every case measured
                paged_kv_indptr_buffer=torch.empty_like(start, device=g.device),
                paged_kv_indices_buffer=torch.empty(
                    table.numel(), dtype=torch.int32, device=g.device
                ),
                paged_kv_last_page_len_buffer=torch.empty_like(last, device=g.device),
            )
        used = [row[:n] for row, n in zip(table, pages.tolist(), strict=True)]
        self.wrapper.plan(
            start,
            torch.cat(used).int(),
            last,
            g.q_heads,
            g.kv_heads,
            g.head_dim,
            PAGE,
            q_data_type=g.dtype,
            kv_data_type=g.dtype,
            sm_scale=g.scale,
        )

    def over(self, q, k, v, table, lens, lists=None, counts=None, piece=PAGE):
        if lists is not None or self.wrapper is None:
            return super().over(q, k, v, table, lens, lists, counts, piece)
        out, lse = self.wrapper.run(q.contiguous(), (k, v), return_lse=True)
        return out, lse * 0.6931471805599453  # its lse is in base 2


def make(geometry: Geometry, rows: int) -> Attend | None:
    """The kernels for `rows` rows, or None: torch."""
    if geometry.backend == "torch":
        return None
    return {"triton": Triton, "flashinfer": FlashInfer}[geometry.backend](geometry, rows)
