"""RocketKV's scores of the tokens that it may read, and where the chosen ones lie, in Triton.

Three launches a layer, with `kernels.select` between the second and the third. The best chunks in
order until k tokens, of which the last is cut, are the k best tokens where every token has its
chunk's score and of equals the lower wins: so tokens are chosen, and only channels are sorted.
The torch reference is in `macbench.attention.rocketkv`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.paged import PAGE
from macbench.kernels.partials import lse_of

CHUNKS = 128  # that a program scores at a time, at most
TILE = 2**15  # bytes of their bounds, at most
STAGES = 3
PROGRAMS = 264  # two a multiprocessor of an H200: each finds its group's channels anew
MEANS = 1024  # chunks that a program turns into scores, at most
LOGITS = 4096  # of theirs, at most
TOKENS = 256  # lists of scores are whole multiples of it
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
    tops,  # [B, HKV * G, programs] out: of a program's chunks, the largest logit
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
    """The newest key enters its chunk's bounds, and every chunk gets its logit of every head.

    Which columns of the bounds hold a chunk is asked behind the product: a mask that differs
    between neighbours would load them one by one.
    """
    program, programs, group = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    row, head = group // HKV, group % HKV
    held = _held(sizes, lens, row, slots)
    width = tl.load(sizes + 3 * slots + row).to(tl.int32)
    channels = tl.load(sizes + 4 * slots + row).to(tl.int32)
    dim, query = tl.arange(0, DIMS), tl.arange(0, 16)

    own = (query < G)[:, None] & (dim < D)[None, :]
    tile = tl.load(q + (group * G + query)[:, None] * D + dim[None, :], own, 0.0)
    total = tl.zeros([DIMS], tl.float32)
    large = tl.zeros([DIMS], tl.float32)
    for g in range(G):
        one = tl.load(q + (group * G + g) * D + dim, dim < D, 0.0).to(tl.float32)
        total += one
        large += tl.abs(one)
    # ranked like the group's mean; of equals, the lower channel first
    key = large.to(tl.int32, bitcast=True).to(tl.int64) * DIMS + (DIMS - 1 - dim)
    ranked = tl.sort(key, descending=True)
    used = key >= tl.sum(tl.where(dim == channels - 1, ranked, 0), 0)
    lower = total <= 0
    absolute = tl.abs(tile.to(tl.float32))
    part = tl.where(used[None, :], tile, 0.0)
    share = tl.sum(tl.where(used[None, :], absolute, 0.0), 1)
    factor = scale / tl.sqrt(tl.maximum(share / tl.maximum(tl.sum(absolute, 1), TINY), TINY))

    base = bounds + group.to(tl.int64) * 2 * D * room
    newest = (held - 1) // width
    fresh = tl.zeros([16], tl.float32)  # its chunk's logits
    if (held > 0) & (newest < room) & (newest // CHUNKS % programs == program):
        position = tl.load(lens + row).to(tl.int32) - 1
        page = tl.load(table + row * M + position // PAGE).to(tl.int64)
        place = ((page * HKV + head) * PAGE + position % PAGE) * D + dim
        added = tl.load(k_pool + place, dim < D, 0.0).to(tl.float32)  # holds every bf16 and fp16
        first = (held - 1) % width == 0
        high, low = base + dim.to(tl.int64) * room + newest, D * room
        most = tl.load(high, dim < D, 0.0).to(tl.float32)
        least = tl.load(high + low, dim < D, 0.0).to(tl.float32)
        most = tl.where(first, added, tl.maximum(most, added))
        least = tl.where(first, added, tl.minimum(least, added))
        tl.store(high, most, dim < D)
        tl.store(high + low, least, dim < D)
        now = tl.where(used, tl.where(lower, least, most), 0.0)
        fresh = tl.sum(part.to(tl.float32) * now[None, :], 1)

    line = base + (dim + tl.where(lower, D, 0)).to(tl.int64) * room
    out = (group * G + query).to(tl.int64)
    top = tl.full([16], float("-inf"), tl.float32)
    mass = tl.zeros([16], tl.float32)
    blocks = tl.minimum(tl.cdiv(newest + 1, CHUNKS), size // CHUNKS)
    for block in range(program, blocks, programs):
        chunk = block * CHUNKS + tl.arange(0, CHUNKS)
        there = used[:, None] & (chunk < room)[None, :]
        bound = tl.load(line[:, None] + chunk[None, :], there, 0.0)
        logit = tl.dot(part, bound, input_precision="ieee") if WIDE else tl.dot(part, bound)
        logit = tl.where((chunk == newest)[None, :], fresh[:, None], logit) * factor[:, None]
        logit = tl.where((chunk <= newest)[None, :], logit, float("-inf"))
        tl.store(logits + out[:, None] * size + chunk[None, :], logit, (query < G)[:, None])
        higher = tl.maximum(top, tl.max(logit, 1))  # finite: a block begins with a chunk
        count = tl.minimum(held - chunk * width, width)
        more = tl.sum(count[None, :] * tl.exp(logit - higher[:, None]), 1)
        mass = mass * tl.exp(top - higher) + more
        top = higher
    tl.store(tops + out * programs + program, top, query < G)
    tl.store(masses + out * programs + program, mass, query < G)


@triton.jit
def _means(
    logits,  # [B, HKV * G, size]
    tops,  # [B, HKV * G, programs]
    masses,
    lens,  # [B]
    sizes,  # [5, slots]
    scores,  # [B, HKV, tokens] out
    slots,
    size,
    tokens,
    programs,
    HKV: tl.constexpr,
    G: tl.constexpr,
    HEADS: tl.constexpr,  # G, the next power of two
    CHUNKS: tl.constexpr,
):
    """The mean of a token's probabilities over the group's heads; -1 behind the last token."""
    group = tl.program_id(1)
    width = tl.load(sizes + 3 * slots + group // HKV).to(tl.int32)
    chunk = tl.program_id(0) * CHUNKS + tl.arange(0, CHUNKS)
    if tl.program_id(0) * CHUNKS * width >= tokens:
        return
    held = _held(sizes, lens, group // HKV, slots)
    query = tl.arange(0, HEADS)
    own = (group * G + query).to(tl.int64)
    place = own[:, None] * size + chunk[None, :]
    real = (query < G)[:, None] & (chunk < size)[None, :]
    logit = tl.load(logits + place, real, float("-inf"))  # behind the last chunk, anything
    lse = lse_of(tops, masses, own, query < G, programs, HEADS)
    mean = tl.sum(tl.exp(logit - lse[:, None]), 0) / G
    out = scores + group.to(tl.int64) * tokens
    for at in range(width):
        token = chunk * width + at
        tl.store(out + token, tl.where(token < held, mean, -1.0), token < tokens)


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
    n: `tokens`, which no row exceeds, up to a multiple of 256, so that shapes seldom change.

    q [B, Hq, d]; bounds [B, Hkv, 2 d, room] (maxima, then minima) of which `chunks` chunks are in
    use at most, updated in place with the key at lens - 1; sizes [5, B]: prompt, tokens of it that
    stay, tokens to attend, tokens of a chunk, channels to score by.
    """
    b, q_heads, d = q.shape
    kv_heads = bounds.shape[1]
    group, dims = q_heads // kv_heads, max(16, triton.next_power_of_2(d))
    each = min(CHUNKS, TILE // (dims * q.itemsize))
    blocks, lists = triton.cdiv(chunks, each), b * kv_heads
    programs, heads = min(blocks, max(1, PROGRAMS // lists)), triton.next_power_of_2(group)
    means = min(MEANS, LOGITS // heads)
    size, tokens = blocks * each, triton.cdiv(tokens, TOKENS) * TOKENS
    assert group <= 16, "query heads of a KV head share a tile of 16 rows"
    logits = torch.empty(b, q_heads, size, dtype=torch.float32, device=q.device)
    tops = torch.empty(b, q_heads, programs, dtype=torch.float32, device=q.device)
    masses = torch.empty_like(tops)
    scores = torch.empty(b, kv_heads, tokens, dtype=torch.float32, device=q.device)
    _logits[(programs, lists)](
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
        num_stages=STAGES,
        num_warps=8 if q.dtype == torch.float32 else 4,  # else products in fp32 spill
    )
    _means[(triton.cdiv(tokens, means), lists)](
        logits,
        tops,
        masses,
        lens,
        sizes,
        scores,
        sizes.shape[1],
        size,
        tokens,
        programs,
        HKV=kv_heads,
        G=group,
        HEADS=heads,
        CHUNKS=means,
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
