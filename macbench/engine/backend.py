"""What attends over the cache: torch anywhere, on a CUDA card our Triton kernels or FlashInfer."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from macbench.attention.base import Geometry, Lists
from macbench.errors import MacbenchError
from macbench.kernels.paged import PAGE

SPACE = 128 * 2**20  # bytes of FlashInfer's scratch, as it recommends


def resolve(asked: str, device: torch.device) -> str:
    """The backend that `asked` means on this device; refused (MacbenchError), never replaced.

    auto: Triton on a card, where it is as fast as FlashInfer or faster (docs/kernels.md).
    """
    installed = {name: importlib.util.find_spec(name) for name in ("triton", "flashinfer")}
    if asked == "auto":
        return "triton" if runs_kernels(device) and installed["triton"] else "torch"
    if asked == "torch":
        return asked
    if not runs_kernels(device):
        raise MacbenchError(
            f"backend={asked} needs an NVIDIA GPU of compute capability 8.0 or newer (Ampere, Ada, "
            "Hopper, Blackwell) and none was found; use backend=torch."
        )
    for name in {"triton", asked}:  # beside FlashInfer, MAC and other lists run on our kernels
        if not installed[name]:
            raise MacbenchError(
                f"backend={asked} needs the package {name}: pip install 'macbench[gpu]'."
            )
    return asked


def runs_kernels(device: torch.device) -> bool:
    """Whether our kernels run there: they need bf16 products and copies that are not waited for."""
    if device.type != "cuda" or not torch.version.cuda:  # ROCm calls its cards cuda, too
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


class Attend(Protocol):
    """Exact attention of a fixed number of rows over the paged cache."""

    def plan(self, table: Tensor, lens: list[int], lists: Lists | None = None) -> None:
        """Before a step: what the host knows of it. table [B, M], lens of every row."""

    def over(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        table: Tensor,
        lens: Tensor,
        live: Tensor,
        lists: Tensor | None = None,
        counts: Tensor | None = None,
        piece: int = PAGE,
    ) -> tuple[Tensor, Tensor]:
        """q [B, Hq, d] over the first lens [B] keys, or of lists [B, H, n] the first counts [B, H]
        pieces of `piece` tokens -> o [B, Hq, d], lse [B, Hq]; of rows that are not live [B], what
        is finite."""


class Triton:
    """Our kernels (`macbench.kernels.attend`)."""

    def __init__(self, geometry: Geometry, rows: int):
        self.geometry, self.rows = geometry, rows
        self.work: dict[int, object] = {}  # by spans per row

    def plan(self, table: Tensor, lens: list[int], lists: Lists | None = None) -> None:
        pass

    def over(self, q, k, v, table, lens, live, lists=None, counts=None, piece=PAGE):
        from macbench.kernels import attend
        from macbench.kernels.workspace import Workspace, choose_tiling

        g = self.geometry
        spans = g.kv_heads if lists is None else lists.shape[1]
        if spans not in self.work:
            tiling = choose_tiling(self.rows * spans, g.head_dim, g.dtype, g.device)
            shape = (self.rows, g.q_heads, g.kv_heads, g.head_dim)
            self.work[spans] = Workspace(*shape, g.dtype, g.device, tiling, spans)
        output = torch.empty(q.shape, dtype=g.dtype, device=q.device)
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        work, q = self.work[spans], q.contiguous()
        attend.attend(work, q, k, v, table, lens, g.scale, lists, counts, piece, output, lse, live)
        return output, lse


@dataclass
class Wrapper:
    """FlashInfer's decode of a fixed number of requests, in buffers that a captured step keeps."""

    run: Any
    start: Tensor  # [requests + 1] where the pages of each begin
    indices: Tensor  # pages of all, and one place for what is not a page

    @staticmethod
    def make(requests: int, entries: int, tensor_cores: bool, device: torch.device) -> Wrapper:
        import flashinfer

        start = torch.empty(requests + 1, dtype=torch.int32, device=device)
        indices = torch.zeros(entries + 1, dtype=torch.int32, device=device)
        run = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            torch.empty(SPACE, dtype=torch.uint8, device=device),
            "HND",
            use_cuda_graph=True,
            use_tensor_cores=tensor_cores,
            paged_kv_indptr_buffer=start,
            paged_kv_indices_buffer=indices,
            paged_kv_last_page_len_buffer=torch.empty_like(start[1:]),
        )
        return Wrapper(run, start, indices)

    def plan(
        self,
        counts: list[int],  # pages of each request
        last: list[int],  # tokens of its last page
        indices: Tensor,
        q_heads: int,
        kv_heads: int,
        page: int,
        g: Geometry,
    ) -> None:
        start = torch.zeros(len(counts) + 1, dtype=torch.int32)
        start[1:] = torch.tensor(counts).cumsum(0)
        self.run.plan(
            start,
            indices,
            torch.tensor(last, dtype=torch.int32),
            q_heads,
            kv_heads,
            g.head_dim,
            page,
            q_data_type=g.dtype,
            kv_data_type=g.dtype,
            sm_scale=g.scale,
        )

    def over(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = self.run.run(q, (k, v), return_lse=True)
        return out, lse * 0.6931471805599453  # its lse is in base 2


class FlashInfer(Triton):
    """FlashInfer's paged decode of whole rows, and of lists whose counts the host knows.

    A list is a request of its own with one KV head, in the same pool seen as pages of one head; a
    token is a page of one. Other lists run on our kernels.
    """

    def __init__(self, geometry: Geometry, rows: int):
        super().__init__(geometry, rows)
        self.whole: Wrapper | None = None
        self.listed: Wrapper | None = None

    def plan(self, table, lens, lists=None):
        """For all layers of a step. The wrappers' buffers stay, so a captured step stays valid."""
        g = self.geometry
        pages = [-(-n // PAGE) for n in lens]
        last = [(n - 1) % PAGE + 1 for n in lens]
        if self.whole is None:
            self.whole = Wrapper.make(self.rows, table.numel(), True, g.device)
        used = torch.cat([row[:n] for row, n in zip(table, pages, strict=True)]).int()
        self.whole.plan(pages, last, used, g.q_heads, g.kv_heads, PAGE, g)
        if lists is None:
            return
        n, heads = lists.per_row, g.q_heads // lists.per_row
        if self.listed is None:
            entries = n * table.numel() * PAGE // lists.piece
            self.listed = Wrapper.make(self.rows * n, entries, heads > 1, g.device)
        counts = [count for count in lists.counts for _ in range(n)]
        last = [full if lists.piece == PAGE else 1 for full in last for _ in range(n)]
        filled = self.listed.indices[: sum(counts)]  # by `over`, in every layer
        self.listed.plan(counts, last, filled, heads, 1, lists.piece, g)

    def over(self, q, k, v, table, lens, live, lists=None, counts=None, piece=PAGE):
        if lists is None and self.whole is not None:
            return self.whole.over(q.contiguous(), k, v)
        if lists is None or self.listed is None:
            return super().over(q, k, v, table, lens, live, lists, counts, piece)
        lists = lists.long()
        rows, n, most = lists.shape
        start, indices = self.listed.start, self.listed.indices
        count, place = start.diff().view(rows, n, 1), torch.arange(most, device=q.device)
        turned = torch.where(place + 1 < count, place + 1, 0)  # the first piece to the end
        pieces = lists.gather(-1, turned.expand(lists.shape))
        page = table.gather(1, (pieces * piece // PAGE).flatten(1)).view(lists.shape)
        head = torch.arange(n, device=q.device)[:, None] * self.geometry.kv_heads // n
        at = (page * self.geometry.kv_heads + head) * (PAGE // piece) + pieces % (PAGE // piece)
        slot = torch.where(place < count, start[:-1].view(rows, n, 1) + place, len(indices) - 1)
        indices.scatter_(0, slot.flatten().long(), at.flatten().int())
        one = (-1, 1, piece, q.shape[-1])
        out, lse = self.listed.over(q.reshape(rows * n, -1, q.shape[-1]), k.view(one), v.view(one))
        return out.view(q.shape), lse.view(q.shape[:2])


def make(geometry: Geometry, rows: int) -> Attend | None:
    """The kernels for `rows` rows, or None: torch."""
    if geometry.backend == "torch":
        return None
    return {"triton": Triton, "flashinfer": FlashInfer}[geometry.backend](geometry, rows)
