"""RocketKV's scores of the tokens that it may read, and where the chosen ones lie, in Triton.

Three launches a layer, with `kernels.select` between the second and the third. The best chunks in
order until k tokens, of which the last is cut, are the k best tokens where every token has its
chunk's score and of equals the lower wins: so tokens are chosen, and nothing is sorted or unrolled.
The torch reference is in `macbench.attention.rocketkv`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.paged import PAGE
from macbench.kernels.partials import lse_of

CHUNKS = 128  # of a program, at most
TILE = 2**14  # bounds of a program, at most
TOKENS = 256
PLACES = 512
TINY = tl.constexpr(1.1754943508222875e-38)  # the least normal fp32


@triton.jit
def _held(sizes, lens, row, slots):
    """Tokens of a row that were not evicted. sizes [5, slots]: N, kept, k, tokens of a chunk, r."""
    grown = tl.load(lens + row) - tl.load(sizes + row)
    return (tl.load(sizes + slots + row) + grown).to(tl.int32)


@triton.jit
def _logits(
    q,  # [B, HKV * G, D]
    bounds,  # [B, HKV, 2 * D, room]: in and out
    k_pool,  # [pages, HKV, PAGE, D]
    table,  # [B, M]
    lens,  # [B]
    sizes,  # [5, slots]
    logits,  # [B, HKV * G, size] out
    tops,  # [B, HKV * G, blocks] out: of this program's chunks, the largest logit
    masses,  # out: sum over their tokens of exp(logit - top)
    scale,
    slots,
    room,
    size,
    M,
    HKV: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,  # the next power of two, at least 16
    PAGE: tl.constexpr,
    CHUNKS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """The newest key enters its chunk's bounds, and every chunk gets its logit of every head."""
    block, group = tl.program_id(0), tl.program_id(1)
    row, head = group // HKV, group % HKV
    held = _held(sizes, lens, row, slots)
    width = tl.load(sizes + 3 * slots + row).to(tl.int32)
    channels = tl.load(sizes + 4 * slots + row).to(tl.int32)
    dim, query = tl.arange(0, DIMS), tl.arange(0, 16)
    chunk = block * CHUNKS + tl.arange(0, CHUNKS)
    count = tl.minimum(tl.maximum(held - chunk * width, 0), width)

    own = (query < G)[:, None] & (dim < D)[None, :]
    tile = tl.load(q + (group * G + query)[:, None] * D + dim[None, :], own, 0.0)
    absolute = tl.abs(tile.to(tl.float32))
    large = tl.sum(absolute, 0)  # ranked like the group's mean; of equals, the lower channel first
    before = (large[None, :] == large[:, None]) & (dim[None, :] < dim[:, None])
    before = before | (large[None, :] > large[:, None])
    rank = tl.sum(before.to(tl.int32), 1)
    used = (rank < channels) & (dim < D)
    lower = tl.sum(tile.to(tl.float32), 0) <= 0
    part = tl.where(used[None, :], tile, 0.0)
    share = tl.sum(tl.where(used[None, :], absolute, 0.0), 1)
    share = tl.maximum(share / tl.maximum(tl.sum(absolute, 1), TINY), TINY)

    base = bounds + group.to(tl.int64) * 2 * D * room
    place = (dim + tl.where(lower, D, 0)).to(tl.int64) * room
    there = used[:, None] & (count > 0)[None, :]
    bound = tl.load(base + place[:, None] + chunk[None, :], there, 0.0)
    newest = (held - 1) // width
    if (newest >= block * CHUNKS) & (newest < tl.minimum((block + 1) * CHUNKS, room)):
        position = tl.load(lens + row).to(tl.int32) - 1
        page = tl.load(table + row * M + position // PAGE).to(tl.int64)
        place = ((page * HKV + head) * PAGE + position % PAGE) * D + dim
        key = tl.load(k_pool + place, dim < D, 0.0).to(tl.float32)  # holds every bf16 and fp16
        first = (held - 1) % width == 0
        high, low = base + dim.to(tl.int64) * room + newest, D * room
        most = tl.load(high, dim < D, 0.0).to(tl.float32)
        least = tl.load(high + low, dim < D, 0.0).to(tl.float32)
        most = tl.where(first, key, tl.maximum(most, key))
        least = tl.where(first, key, tl.minimum(least, key))
        tl.store(high, most, dim < D)
        tl.store(high + low, least, dim < D)
        now = tl.where(used, tl.where(lower, least, most), 0.0).to(bound.dtype)
        bound = tl.where((chunk == newest)[None, :], now[:, None], bound)
    logit = tl.dot(part, bound, input_precision="ieee") if WIDE else tl.dot(part, bound)
    logit = tl.where((count > 0)[None, :], logit * (scale / tl.sqrt(share))[:, None], float("-inf"))

    out = (group * G + query).to(tl.int64)
    tl.store(logits + out[:, None] * size + chunk[None, :], logit, (query < G)[:, None])
    top = tl.max(logit, 1)
    anchor = tl.where(top == float("-inf"), 0.0, top)
    mass = tl.sum(count[None, :] * tl.exp(logit - anchor[:, None]), 1)
    tl.store(tops + out * tl.num_programs(0) + block, top, query < G)
    tl.store(masses + out * tl.num_programs(0) + block, mass, query < G)


@triton.jit
def _means(
    logits,  # [B, HKV * G, size]
    tops,  # [B, HKV * G, blocks]
    masses,
    lens,  # [B]
    sizes,  # [5, slots]
    scores,  # [B, HKV, tokens] out
    slots,
    size,
    tokens,
    HKV: tl.constexpr,
    G: tl.constexpr,
    HEADS: tl.constexpr,  # G, the next power of two
    CHUNKS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """The mean of a token's probabilities over the group's heads; -1 behind the last token."""
    group = tl.program_id(1)
    held = _held(sizes, lens, group // HKV, slots)
    width = tl.load(sizes + 3 * slots + group // HKV).to(tl.int32)
    query = tl.arange(0, HEADS)
    own = (group * G + query).to(tl.int64)
    lse = lse_of(tops, masses, own, query < G, size // CHUNKS, HEADS)

    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    real = (query < G)[:, None] & (token < held)[None, :]
    place = own[:, None] * size + (token // width)[None, :]
    logit = tl.load(logits + place, real, float("-inf"))
    mean = tl.sum(tl.exp(logit - lse[:, None]), 0) / G
    out = group.to(tl.int64) * tokens + token
    tl.store(scores + out, tl.where(token < held, mean, -1.0))


@triton.jit
def _positions(
    chosen,  # [B, HKV, most]: places in, positions out
    kept,  # [B, HKV, room] positions of the prompt's tokens that stay
    sizes,  # [5, slots]
    slots,
    room,
    most,
    HKV: tl.constexpr,
    PLACES: tl.constexpr,
):
    group = tl.program_id(1)
    length = tl.load(sizes + group // HKV)
    old = tl.load(sizes + slots + group // HKV)
    at = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    here = chosen + group.to(tl.int64) * most + at
    place = tl.load(here, at < most, 0)
    position = tl.load(kept + group.to(tl.int64) * room + place, place < old, 0).to(tl.int64)
    tl.store(here, tl.where(place < old, position, length + place - old), at < most)


def token_scores(
    q: Tensor,
    bounds: Tensor,
    k_pool: Tensor,
    table: Tensor,
    lens: Tensor,
    sizes: Tensor,
    scale: float,
    chunks: int,
    tokens: int,
) -> Tensor:
    """Group means of probabilities by chunk bounds, fp32 [B, Hkv, n]; -1 behind a row's last token.
    n: `tokens`, which no row exceeds, up to a whole program's, so that shapes seldom change.

    q [B, Hq, d]; bounds [B, Hkv, 2 d, room] (maxima, then minima) of which `chunks` chunks are in
    use at most, updated in place with the key at lens - 1; sizes [5, B]: prompt, tokens of it that
    stay, tokens to attend, tokens of a chunk, channels to score by.
    """
    b, q_heads, d = q.shape
    kv_heads = bounds.shape[1]
    group, dims = q_heads // kv_heads, max(16, triton.next_power_of_2(d))
    each = min(CHUNKS, TILE // dims)
    blocks = triton.cdiv(chunks, each)
    size, tokens = blocks * each, triton.cdiv(tokens, TOKENS) * TOKENS
    assert group <= 16, "query heads of a KV head share a tile of 16 rows"
    logits = torch.empty(b, q_heads, size, dtype=torch.float32, device=q.device)
    tops = torch.empty(b, q_heads, blocks, dtype=torch.float32, device=q.device)
    masses = torch.empty_like(tops)
    scores = torch.empty(b, kv_heads, tokens, dtype=torch.float32, device=q.device)
    _logits[(blocks, b * kv_heads)](
        q.contiguous(),
        bounds,
        k_pool,
        table,
        lens,
        sizes,
        logits,
        tops,
        masses,
        scale,
        sizes.shape[1],
        bounds.shape[-1],
        size,
        table.shape[1],
        HKV=kv_heads,
        G=group,
        D=d,
        DIMS=dims,
        PAGE=PAGE,
        CHUNKS=each,
        WIDE=q.dtype == torch.float32,
        num_warps=4 if dims <= 64 else 8,  # a program ranks dims x dims pairs of channels
    )
    _means[(tokens // TOKENS, b * kv_heads)](
        logits,
        tops,
        masses,
        lens,
        sizes,
        scores,
        sizes.shape[1],
        size,
        tokens,
        HKV=kv_heads,
        G=group,
        HEADS=triton.next_power_of_2(group),
        CHUNKS=each,
        TOKENS=TOKENS,
    )
    return scores


def positions(chosen: Tensor, kept: Tensor, sizes: Tensor) -> Tensor:
    """Places among the held tokens, int64 [B, Hkv, n], become positions of the sequence, in place.

    kept int32 [B, Hkv, room]: where the prompt's tokens that stay lie; all later ones stay.
    """
    b, kv_heads, most = chosen.shape
    _positions[(triton.cdiv(most, PLACES), b * kv_heads)](
        chosen,
        kept,
        sizes,
        sizes.shape[1],
        kept.shape[-1],
        most,
        HKV=kv_heads,
        PLACES=PLACES,
    )
    return chosen
