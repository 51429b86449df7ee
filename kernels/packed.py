"""Attention and logits over vectors that are kept in 2, 4 or 8 bits, in Triton.

Codes are unpacked in registers; from memory come codes, scales and minima only. Torch reference:
`macbench.attention.quantise.Packed`, read as a whole. Products are taken in fp16 where the model
has 16 bits (fp32 sums), in fp32 where it has 32. What is written: `kernels.pack`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.paged import PAGE
from macbench.kernels.partials import gathered, partials_at
from macbench.kernels.workspace import power

LOG2E = tl.constexpr(1.4426950408889634)
PROGRAMS = 396  # of `attend`, at most, if lists are few: three fit a multiprocessor of a large card
TOKENS = 128  # of a program of `logits`
PARTIALS = 32  # merged at a time

Parts = tuple[Tensor, Tensor, Tensor]  # codes, scale, low of one layer


def padded(channels: int, bits: int) -> tuple[int, int]:
    """Bytes of a vector, and what a tile takes: a power of two with 16 channels at least."""
    return channels * bits // 8, power(max(channels * bits // 8, 2 * bits))


@triton.jit
def _codes(codes, token, held, BYTES: tl.constexpr, BYTESP: tl.constexpr, BITS: tl.constexpr):
    """Codes of one KV head's tokens [N] -> [N, BYTESP * 8 / BITS] uint8, channels in order."""
    byte = tl.arange(0, BYTESP)
    there = held[:, None] & (byte < BYTES)[None, :]
    x = tl.load(codes + token[:, None] * BYTES + byte[None, :], there, 0)
    if BITS == 4:
        x = tl.interleave(x & 15, x >> 4)
    elif BITS == 2:
        even, odd = tl.interleave(x & 3, (x >> 4) & 3), tl.interleave((x >> 2) & 3, x >> 6)
        x = tl.interleave(even, odd)
    return x


@triton.jit
def _by_token(
    part, token, held, D: tl.constexpr, DIMS: tl.constexpr, TILE: tl.constexpr, N: tl.constexpr
):
    """What groups of TILE channels of a token share, for each channel: fp32 [N, DIMS]."""
    if (TILE & (TILE - 1)) == 0 and DIMS == D:
        group = tl.arange(0, D // TILE)
        x = tl.load(part + token[:, None] * (D // TILE) + group[None, :], held[:, None], 0.0)
        x = tl.broadcast_to(x[:, :, None], [N, D // TILE, TILE])
        return tl.reshape(x, [N, D]).to(tl.float32)
    else:
        lane = tl.arange(0, DIMS)
        at = token[:, None] * (D // TILE) + lane[None, :] // TILE
        return tl.load(part + at, held[:, None] & (lane < D)[None, :], 0.0).to(tl.float32)


@triton.jit
def _by_channel(part, token, held, D: tl.constexpr, DIMS: tl.constexpr, TILE: tl.constexpr):
    """What groups of TILE tokens share in each channel: fp32 [N, DIMS]."""
    lane = tl.arange(0, DIMS)
    at = (token // TILE)[:, None] * D + lane[None, :]
    return tl.load(part + at, held[:, None] & (lane < D)[None, :], 0.0).to(tl.float32)


@triton.jit
def _logits(
    q,  # [B, H * G, D]
    codes,  # [slots, HKV, room, BYTES]
    scale,  # [slots, HKV, room]
    low,
    lens,  # [B]
    pages,  # [B, H, most] pages whose tokens are looked at
    counts,  # [B, H] how many of them
    scores,  # [B, H * G, size] out
    factor,
    room,
    most,
    size,
    H: tl.constexpr,  # lists per row, HKV or one per query head
    HKV: tl.constexpr,
    G: tl.constexpr,  # query heads of a list
    D: tl.constexpr,
    BYTES: tl.constexpr,
    BYTESP: tl.constexpr,
    BITS: tl.constexpr,
    LISTED: tl.constexpr,
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """q.k = scale * (q.code) + low * sum(q): a code is exact in 16 bits, so the product is."""
    DIMS: tl.constexpr = BYTESP * 8 // BITS
    list_ = tl.program_id(1)
    row, head = list_ // H, list_ % H * HKV // H
    place = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    length = tl.load(lens + row).to(tl.int32)
    if LISTED:
        named = (place < size) & (place // PAGE < tl.load(counts + list_).to(tl.int32))
        page = tl.load(pages + list_.to(tl.int64) * most + place // PAGE, named, 0)
        token = page.to(tl.int32) * PAGE + place % PAGE
        held = named & (token < length)
    else:
        token = place
        held = (place < size) & (place < length)
    lane, query = tl.arange(0, DIMS), tl.arange(0, 16)
    own = (query < G)[:, None] & (lane < D)[None, :]
    tile = tl.load(q + (list_ * G + query)[:, None] * D + lane[None, :], own, 0.0)
    first = (row * HKV + head).to(tl.int64) * room
    keys = _codes(codes + first * BYTES, token, held, BYTES, BYTESP, BITS)
    if WIDE:
        score = tl.dot(tile, tl.trans(keys.to(tl.float32)), input_precision="ieee")
    else:
        score = tl.dot(tile, tl.trans(keys.to(tl.float32).to(tile.dtype)))
    step = tl.load(scale + first + token, held, 0.0).to(tl.float32)
    least = tl.load(low + first + token, held, 0.0).to(tl.float32)
    total = tl.sum(tile.to(tl.float32), 1)
    score = score * step[None, :] + total[:, None] * least[None, :]
    score = tl.where(held[None, :], score * factor, float("-inf"))
    out = (list_ * G + query)[:, None].to(tl.int64) * size + place[None, :]
    tl.store(scores + out, score, (query < G)[:, None] & (place < size)[None, :])


def logits(
    q: Tensor,
    keys: Parts,
    bits: int,
    lens: Tensor,
    factor: float,
    size: int,
    pages: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """q [B, Hq, d] over packed keys [B, Hkv, T, d] with one scale per token -> factor * q.k.

    Of the first `size` tokens, fp32 [B, Hq, size]; or of the tokens on the first counts [B, H] of
    pages [B, H, n], H = Hkv or Hq, [B, Hq, n * 16]. -inf from lens [B] on and behind the counts.
    """
    b, q_heads, d = q.shape
    codes, scale, low = keys
    kv_heads, room = codes.shape[1:3]
    assert scale.shape[2:] == (room, 1), "one scale per token"
    heads, most = kv_heads, 0
    if pages is not None:
        heads, most = pages.shape[1:]
        size = most * PAGE
    assert q_heads // heads <= 16, "query heads of a list share a tile of 16 rows"
    width, tile = padded(d, bits)
    scores = torch.empty(b, q_heads, size, dtype=torch.float32, device=q.device)
    _logits[(triton.cdiv(size, TOKENS), b * heads)](
        q.contiguous(),
        codes,
        scale,
        low,
        lens,
        lens if pages is None else pages.contiguous(),
        lens if counts is None else counts.contiguous(),
        scores,
        factor,
        room,
        most,
        size,
        H=heads,
        HKV=kv_heads,
        G=q_heads // heads,
        D=d,
        BYTES=width,
        BYTESP=tile,
        BITS=bits,
        LISTED=pages is not None,
        PAGE=PAGE,
        TOKENS=TOKENS,
        WIDE=q.dtype == torch.float32,
    )
    return scores


@triton.jit
def _attend(
    q,  # [B, HKV * G, D]
    k_codes,  # [slots, HKV, room, BYTES]
    k_scale,  # [slots, HKV, room / KEYS, D]
    k_low,
    v_codes,
    v_scale,  # [slots, HKV, room, D / VALUES]
    v_low,
    k_pool,  # [pages, HKV, PAGE, D]
    v_pool,
    table,  # [B, M]
    lens,  # [B]
    part_o,  # [B * HKV, splits, G, DIMS] out
    part_l,  # [B * HKV, splits, G] out, log2
    factor,
    room,
    M,
    splits,
    residual,
    HKV: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BYTES: tl.constexpr,
    BYTESP: tl.constexpr,
    BITS: tl.constexpr,
    KEYS: tl.constexpr,  # tokens that share a scale in each channel
    VALUES: tl.constexpr,  # channels that share a scale in each token
    PAGE: tl.constexpr,
    N: tl.constexpr,  # tokens of a chunk
    WIDE: tl.constexpr,
):
    """A program attends to its share of one KV head's tokens, in chunks."""
    DIMS: tl.constexpr = BYTESP * 8 // BITS
    list_ = tl.program_id(1)
    row, head = list_ // HKV, list_ % HKV
    length = tl.load(lens + row).to(tl.int32)
    before = tl.maximum(length - 1, 0)
    packed_k = before - before % residual
    packed_v = tl.maximum(before - residual, 0)
    chunks = tl.cdiv(length, N)
    share = tl.cdiv(chunks, splits)
    chunk = tl.program_id(0) * share

    lane, query, index = tl.arange(0, DIMS), tl.arange(0, 16), tl.arange(0, N)
    own = (query < G)[:, None] & (lane < D)[None, :]
    tile = tl.load(q + (list_ * G + query)[:, None] * D + lane[None, :], own, 0.0)
    if not WIDE:
        tile = tile.to(tl.float16)
    first = list_.to(tl.int64) * room
    k_codes += first * BYTES
    v_codes += first * BYTES
    k_scale += first // KEYS * D
    k_low += first // KEYS * D
    v_scale += first * (D // VALUES)
    v_low += first * (D // VALUES)

    top = tl.full([16], float("-inf"), tl.float32)
    mass = tl.zeros([16], tl.float32)
    out = tl.zeros([16, DIMS], tl.float32)
    for c in range(chunk, tl.minimum(chunk + share, chunks)):
        token = c * N + index
        held = token < packed_k
        keys = _codes(k_codes, token, held, BYTES, BYTESP, BITS).to(tl.float32)
        keys = keys * _by_channel(k_scale, token, held, D, DIMS, KEYS)
        keys = keys + _by_channel(k_low, token, held, D, DIMS, KEYS)
        held = token < packed_v
        values = _codes(v_codes, token, held, BYTES, BYTESP, BITS).to(tl.float32)
        values = values * _by_token(v_scale, token, held, D, DIMS, VALUES, N)
        values = values + _by_token(v_low, token, held, D, DIMS, VALUES, N)
        if c * N + N > packed_v:  # the newest tokens, of which at least the values are exact
            exact = (token < length)[:, None] & (lane < D)[None, :]
            page = tl.load(table + row * M + token // PAGE, token < length, 0).to(tl.int64)
            place = ((page * HKV + head) * PAGE + token % PAGE) * D
            at = place[:, None] + lane[None, :]
            keys += tl.load(k_pool + at, exact & (token >= packed_k)[:, None], 0.0).to(tl.float32)
            values += tl.load(v_pool + at, exact & (token >= packed_v)[:, None], 0.0).to(tl.float32)
        if WIDE:
            score = tl.dot(tile, tl.trans(keys), input_precision="ieee")
        else:
            score = tl.dot(tile, tl.trans(keys.to(tl.float16)))
        score = tl.where((token < length)[None, :], score * (factor * LOG2E), float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))  # finite: a chunk holds a token
        p = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(top - higher)
        mass = mass * shrink + tl.sum(p, 1)
        out = out * shrink[:, None]
        if WIDE:
            out = tl.dot(p, values, out, input_precision="ieee")
        else:
            out = tl.dot(p.to(tl.float16), values.to(tl.float16), out)
        top = higher
    safe = tl.where(mass > 0, mass, 1.0)
    slot = (list_ * splits + tl.program_id(0)).to(tl.int64) * G + query
    tl.store(
        part_o + slot[:, None] * DIMS + lane[None, :], out / safe[:, None], (query < G)[:, None]
    )
    tl.store(part_l + slot, tl.where(mass > 0, top + tl.log2(safe), float("-inf")), query < G)


@triton.jit
def _merge(
    part_o,
    part_l,
    output,  # [B, HKV * G, D]
    splits,
    G: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    S: tl.constexpr,
):
    """The partials of one query head."""
    head, dims = tl.program_id(0), tl.arange(0, DIMS)
    first = head // G * splits
    level, part = partials_at(part_o, part_l, first, 0, splits, head % G, dims, G, DIMS, S)
    out, _, mass = gathered(
        part_o, part_l, first, splits, level, part, head % G, dims, G, DIMS, S, S
    )
    out = out / tl.where(mass > 0, mass, 1.0)
    tl.store(output + head.to(tl.int64) * D + dims, out.to(output.dtype.element_ty), dims < D)


def attend(
    q: Tensor,
    keys: Parts,
    values: Parts,
    bits: int,
    k_pool: Tensor,
    v_pool: Tensor,
    table: Tensor,
    lens: Tensor,
    residual: int,
    factor: float,
    size: int,
) -> Tensor:
    """q [B, Hq, d] over the first lens [B] tokens, as KIVI keeps them -> output [B, Hq, d].

    Of the t = lens - 1 tokens before the newest, the first t - t mod residual keys are read packed
    (scales shared by tokens, per channel), and the first t - residual values (scales shared by
    channels, per token); all else from the pools. No row is longer than `size`.
    """
    b, q_heads, d = q.shape
    kv_heads, room = keys[0].shape[1:3]
    group, (width, padding) = q_heads // kv_heads, padded(d, bits)
    assert group <= 16, "query heads of a KV head share a tile of 16 rows"
    dims = padding * 8 // bits
    n = min(128, max(32, 4096 // dims))
    splits = max(1, min(PROGRAMS // (b * kv_heads), -(-size // n)))
    part_o = torch.empty(b * kv_heads, splits, group, dims, dtype=torch.float32, device=q.device)
    part_l = torch.empty(b * kv_heads, splits, group, dtype=torch.float32, device=q.device)
    output = torch.empty_like(q, memory_format=torch.contiguous_format)
    _attend[(splits, b * kv_heads)](
        q.contiguous(),
        *keys,
        *values,
        k_pool,
        v_pool,
        table,
        lens,
        part_o,
        part_l,
        factor,
        room,
        table.stride(0),
        splits,
        residual,
        HKV=kv_heads,
        G=group,
        D=d,
        BYTES=width,
        BYTESP=padding,
        BITS=bits,
        KEYS=room // keys[1].shape[2],
        VALUES=d // values[1].shape[3],
        PAGE=PAGE,
        N=n,
        WIDE=q.dtype == torch.float32,
    )
    _merge[(b * q_heads,)](
        part_o,
        part_l,
        output,
        splits,
        G=group,
        D=d,
        DIMS=dims,
        S=min(PARTIALS, power(splits)),
        num_warps=1,
    )
    return output
