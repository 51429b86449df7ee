"""Attention over keys and values that are kept in 2, 4 or 8 bits (KIVI's step), in Triton.

From memory come codes, scales and minima only (`kernels.codes`); the newest tokens are exact and
come from the pool. Codes of two tokens' words are brought together into one channel of both values
(`_value_order`), as a product takes them.

Torch reference: `macbench.attention.quantise.Packed`, read as a whole. Products are taken in fp16
where the model has 16 bits (fp32 sums), in fp32 where it has 32. What is written: `kernels.pack`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.codes import (
    Parts,
    codes_of,
    key_order,
    padded,
    query_tile,
    tile_of,
    units,
    words_of,
)
from macbench.kernels.paged import PAGE
from macbench.kernels.partials import gathered, partials_at
from macbench.kernels.workspace import power

LOG2E = tl.constexpr(1.4426950408889634)
CHUNK = 32  # packed tokens that a program of `attend`, mostly one warp, takes at a time
PROGRAMS = 1584  # of `attend`, about, if lists are few: 12 fit a multiprocessor of a large card
REGISTERS = 168  # of a thread, for that
PARTIALS = 32  # merged at a time


@triton.jit
def _value_order(x, BITS: tl.constexpr):
    """[N, DIMS] as `codes_of` has it of words that neighbouring values share: of their low halves,
    then of their high ones."""
    x = tl.reshape(x, [x.shape[0] // 2, 2, x.shape[1] * BITS // 32, 2, 16 // BITS])
    x = tl.permute(x, (0, 4, 3, 2, 1))
    return tl.reshape(x, [x.shape[0], 16 // BITS, x.shape[2] * x.shape[3], 2])


@triton.jit
def _by_token(part, token, held, D: tl.constexpr, DIMS: tl.constexpr, TILE: tl.constexpr):
    """What groups of TILE channels of a token share, for each channel: [N, DIMS]."""
    if (TILE & (TILE - 1)) == 0:
        group = tl.arange(0, DIMS // TILE)
        there = held[:, None] & (group < D // TILE)[None, :]
        x = tl.load(part + token[:, None] * (D // TILE) + group[None, :], there, 0.0)
        x = tl.broadcast_to(x[:, :, None], [token.shape[0], DIMS // TILE, TILE])
        return tl.reshape(x, [token.shape[0], DIMS])
    else:
        lane = tl.arange(0, DIMS)
        at = token[:, None] * (D // TILE) + lane[None, :] // TILE
        return tl.load(part + at, held[:, None] & (lane < D)[None, :], 0.0)


@triton.jit
def _by_channel(
    part, start, held, D: tl.constexpr, DIMS: tl.constexpr, TILE: tl.constexpr, N: tl.constexpr
):
    """What groups of TILE tokens share in each channel, for N tokens from `start`, a multiple of N:
    [1, DIMS] where they lie in one group, else [N, DIMS]."""
    lane = tl.arange(0, DIMS)
    if TILE % N == 0:
        return tl.load(part + (start // TILE * D + lane)[None, :], (lane < D)[None, :], 0.0)
    else:
        at = ((start + tl.arange(0, N)) // TILE)[:, None] * D + lane[None, :]
        return tl.load(part + at, held[:, None] & (lane < D)[None, :], 0.0)


@triton.jit
def _keys(
    codes,
    scale,
    low,
    start,
    held,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    UNITS: tl.constexpr,
    BITS: tl.constexpr,
    TILE: tl.constexpr,
    N: tl.constexpr,
    WIDE: tl.constexpr,
):
    """N keys from `start`, in `key_order`; only those held mean anything."""
    dtype: tl.constexpr = tl.float32 if WIDE else tl.float16
    x = codes_of(words_of(codes, start + tl.arange(0, N), held, UNITS, DIMS, BITS), BITS)
    scale = key_order(_by_channel(scale, start, held, D, DIMS, TILE, N), BITS)
    low = key_order(_by_channel(low, start, held, D, DIMS, TILE, N), BITS)
    return x.to(dtype) * scale.to(dtype) + low.to(dtype)


@triton.jit
def _values(
    codes,
    scale,
    low,
    start,
    held,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    UNITS: tl.constexpr,
    BITS: tl.constexpr,
    TILE: tl.constexpr,
    N: tl.constexpr,
    WIDE: tl.constexpr,
):
    """N values from `start`, in `_value_order`; only those held mean anything."""
    dtype: tl.constexpr = tl.float32 if WIDE else tl.float16
    W: tl.constexpr = DIMS * BITS // 32
    token = start + tl.arange(0, N)
    x = words_of(codes, token, held, UNITS, DIMS, BITS)
    a, b = tl.split(tl.permute(tl.reshape(x, [N // 2, 2, W]), (0, 2, 1)))
    x = tl.join(a & 0xFFFF | b << 16, (a >> 16) & 0xFFFF | b & -0x10000)
    x = codes_of(tl.reshape(tl.permute(x, (0, 2, 1)), [N // 2, 2 * W]), BITS)
    scale = _value_order(_by_token(scale, token, held, D, DIMS, TILE), BITS)
    low = _value_order(_by_token(low, token, held, D, DIMS, TILE), BITS)
    return x.to(dtype) * scale.to(dtype) + low.to(dtype)


@triton.jit
def _added(score, values, top, mass, out):
    """Base-2 logits [N, Q] of a chunk, a finite one in each column, and its values in
    `_value_order`, added to the running maximum and mass [Q] and output [DIMS, Q]."""
    higher = tl.maximum(top, tl.max(score, 0))
    p = tl.exp2(score - higher[None, :])
    shrink = tl.exp2(top - higher)
    values = tl.reshape(tl.permute(values, (1, 2, 0, 3)), [out.shape[0], score.shape[0]])
    out = tl.dot(values, p.to(values.dtype), out * shrink[None, :], input_precision="ieee")
    return higher, mass * shrink + tl.sum(p, 0), out


@triton.jit
def _attend(
    q,  # [B, HKV * G, D]
    k_codes,  # [slots, HKV, room, UNITS]
    k_scale,  # [slots, HKV, room / KEYS, D]
    k_low,
    v_codes,
    v_scale,  # [slots, HKV, room, D / VALUES]
    v_low,
    k_pool,  # [pages, HKV, PAGE, D]
    v_pool,
    table,  # [B, M]
    lens,  # [B]
    part_o,  # [B * HKV, programs, G, DIMS] out
    part_l,  # [B * HKV, programs, G] out, log2
    factor,
    room,
    M,
    splits,
    residual,
    window,
    HKV: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    UNITS: tl.constexpr,
    BITS: tl.constexpr,
    KEYS: tl.constexpr,  # tokens that share a scale in each channel
    VALUES: tl.constexpr,  # channels that share a scale in each token
    PAGE: tl.constexpr,
    N: tl.constexpr,  # tokens of a chunk
    Q: tl.constexpr,
    WIDE: tl.constexpr,
):
    """A program attends to its share of one KV head's chunks of which all is packed, or, from
    `splits` on, to `window` tokens behind them."""
    list_, program = tl.program_id(1), tl.program_id(0)
    row, head = list_ // HKV, list_ % HKV
    length = tl.load(lens + row).to(tl.int32)
    before = tl.maximum(length - 1, 0)
    packed_k = before - before % residual
    packed_v = tl.maximum(before - residual, 0)
    lane, query = tl.arange(0, DIMS), tl.arange(0, Q)
    tile = query_tile(q, list_, G, D, DIMS, BITS, Q, WIDE)
    first = list_.to(tl.int64) * room
    k_codes += first * UNITS
    v_codes += first * UNITS
    k_scale += first // KEYS * D
    k_low += first // KEYS * D
    v_scale += first * (D // VALUES)
    v_low += first * (D // VALUES)
    factor *= LOG2E

    top = tl.full([Q], float("-inf"), tl.float32)
    mass = tl.zeros([Q], tl.float32)
    out = tl.zeros([DIMS, Q], tl.float32)
    whole = packed_v // N  # chunks of which all is packed
    share = tl.cdiv(whole, splits)
    every = tl.full([N], True, tl.int1)
    for c in range(program * share, tl.minimum(program * share + share, whole)):
        at = c * N
        keys = _keys(k_codes, k_scale, k_low, at, every, D, DIMS, UNITS, BITS, KEYS, N, WIDE)
        score = tl.dot(tl.reshape(keys, [N, DIMS]), tile, input_precision="ieee")
        values = _values(v_codes, v_scale, v_low, at, every, D, DIMS, UNITS, BITS, VALUES, N, WIDE)
        top, mass, out = _added(score * factor, values, top, mass, out)
    begin = tl.where(program < splits, length, whole * N + (program - splits) * window)
    for at in tl.range(begin, tl.minimum(begin + window, length), PAGE, num_stages=1):
        token = at + tl.arange(0, PAGE)
        live = token < length
        page = tl.load(table + row * M + at // PAGE).to(tl.int64)
        first = (page * HKV + head) * PAGE * D
        pool = tl.arange(0, PAGE)[:, None] * D + lane[None, :]
        real = live[:, None] & (lane < D)[None, :]
        held = token < packed_k
        keys = _keys(k_codes, k_scale, k_low, at, held, D, DIMS, UNITS, BITS, KEYS, PAGE, WIDE)
        exact = key_order(tl.load(k_pool + first + pool, real & ~held[:, None], 0.0), BITS)
        keys = tl.where(held[:, None, None, None], keys, exact.to(keys.dtype))
        score = tl.dot(tl.reshape(keys, [PAGE, DIMS]), tile, input_precision="ieee")
        score = tl.where(live[:, None], score * factor, float("-inf"))
        held = token < packed_v
        values = _values(
            v_codes, v_scale, v_low, at, held, D, DIMS, UNITS, BITS, VALUES, PAGE, WIDE
        )
        exact = _value_order(tl.load(v_pool + first + pool, real & ~held[:, None], 0.0), BITS)
        pair = tl.reshape(held, [PAGE // 2, 2])
        values = tl.where(pair[:, None, None, :], values, exact.to(values.dtype))
        top, mass, out = _added(score, values, top, mass, out)

    safe = tl.where(mass > 0, mass, 1.0)
    slot = (list_ * tl.num_programs(0) + program).to(tl.int64) * G + query
    channel = tl.reshape(lane, [DIMS * BITS // 32, 2, 16 // BITS])
    channel = tl.reshape(tl.permute(channel, (2, 1, 0)), [DIMS])  # in `_value_order`
    at = slot[None, :] * DIMS + channel[:, None]
    tl.store(part_o + at, out / safe[None, :], (query < G)[None, :])
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
    group, dims = q_heads // kv_heads, padded(d, bits)[1] * 8 // bits
    columns = tile_of(group)
    k_codes, v_codes = units(keys[0]), units(values[0])
    chunks = triton.cdiv(size, CHUNK)
    splits = max(1, min(PROGRAMS // (b * kv_heads) - 1, chunks))
    share = triton.cdiv(chunks, splits)
    window = max(1, share // 4) * CHUNK  # exact tokens take about four times as long
    partials = splits + triton.cdiv(min(residual + CHUNK, size), window)  # of a head
    part_o = torch.empty(b * kv_heads, partials, group, dims, dtype=torch.float32, device=q.device)
    part_l = torch.empty(b * kv_heads, partials, group, dtype=torch.float32, device=q.device)
    output = torch.empty_like(q, memory_format=torch.contiguous_format)
    _attend[(partials, b * kv_heads)](
        q.contiguous(),
        k_codes,
        *keys[1:],
        v_codes,
        *values[1:],
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
        window,
        HKV=kv_heads,
        G=group,
        D=d,
        DIMS=dims,
        UNITS=k_codes.shape[-1],
        BITS=bits,
        KEYS=room // keys[1].shape[2],
        VALUES=d // values[1].shape[3],
        PAGE=PAGE,
        N=CHUNK,
        Q=columns,
        WIDE=q.dtype == torch.float32,
        num_warps=max(1, dims * columns // 2048),
        maxnreg=REGISTERS,
    )
    _merge[(b * q_heads,)](
        part_o,
        part_l,
        output,
        partials,
        G=group,
        D=d,
        DIMS=dims,
        S=min(PARTIALS, power(partials)),
        num_warps=1,
    )
    return output
