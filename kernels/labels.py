"""Double Sparsity's scores in one Triton launch: every label is multiplied with the query's few
channels, and a program per row and KV head keeps the newest key's label.

The torch reference is in `macbench.attention.double_sparsity`, that of the codes in
`macbench.attention.quantise`. Codes are whole numbers, so a product over packed labels is
scale * (q . codes) + low * (sum of q). They are not even unpacked: a word of 32 bits is two fp16
numbers, and masked, what is left of a code at bit AT of one is the code times 2^(AT - 24), exactly.
Products are taken of that; q has the 2^-AT, and the sum the 2^24.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from macbench.kernels.codes import halves, tile_of, units
from macbench.kernels.pack import code_of, scale_and_low
from macbench.kernels.paged import PAGE
from macbench.kernels.workspace import power

TOKENS = 64  # of a tile, of which a program, one warp, takes some
PROGRAMS = 3168  # about, if there are tokens enough: 24 fit a multiprocessor of a large card


@triton.jit
def _words(labels, token, held, UNITS: tl.constexpr, WORDS: tl.constexpr):
    """Labels of tokens [N] in units (words or bytes) -> words [N, WORDS], 0 behind."""
    EACH: tl.constexpr = 32 // labels.dtype.element_ty.primitive_bitwidth
    x = tl.zeros([token.shape[0], WORDS], tl.int32)
    for i in tl.static_range(EACH):
        unit = tl.arange(0, WORDS) * EACH + i
        # a load of one word, not of more: four threads share a product, each with words of its own
        at = tl.multiple_of(token[:, None] * UNITS + unit[None, :], (1, 1))
        there = held[:, None] & (unit < UNITS)[None, :]
        x |= tl.load(labels + at, there, 0).to(tl.int32) << 8 * i
    return x


@triton.jit
def _code(words, AT: tl.constexpr, BITS: tl.constexpr):
    """Codes at bit AT of both halves of words [...], fp16 [..., 2], times 2^(AT - 24)."""
    return halves(words & ((1 << BITS) - 1 << AT) * 0x10001)


@triton.jit
def _codes(words, BITS: tl.constexpr):
    """Words [N, W] -> fp16 [N, channels], a byte's code at AT as in `_code`. Four channels of a
    word lie together, then come those of three more words: so threads take them to a product."""
    x = tl.join(words, words >> 8)
    if BITS == 8:
        x = _code(x, 0, BITS)
    elif BITS == 4:
        x = tl.join(_code(x, 0, BITS), _code(x, 4, BITS))
    else:
        even = tl.join(_code(x, 0, BITS), _code(x, 4, BITS))
        odd = tl.join(_code(x, 2, BITS), _code(x, 6, BITS))
        x = tl.join(even, odd)
    x = tl.reshape(x, [words.shape[0], words.shape[1] // 4, 4, 2, 2, 8 // BITS])
    x = tl.permute(x, (0, 5, 1, 2, 3, 4))
    return tl.reshape(x, [words.shape[0], words.shape[1] * 32 // BITS])


@triton.jit
def _against_codes(few, BITS: tl.constexpr):
    """Queries fp32 [Q, channels] as they are multiplied with `_codes`."""
    EACH: tl.constexpr = 8 // BITS  # codes of a byte
    Q: tl.constexpr = few.shape[0]
    LANES: tl.constexpr = few.shape[1]
    power = 127 - tl.arange(0, LANES) % EACH * BITS  # of 2^-AT, as fp32 has it
    x = few * (power << 23).to(tl.float32, bitcast=True)[None, :]
    x = tl.reshape(x, [Q, LANES * BITS // 128, 4, 2, 2, EACH])
    return tl.reshape(tl.permute(x, (0, 5, 1, 2, 4, 3)), [Q, LANES])


@triton.jit
def _quantised(key, R: tl.constexpr, BITS: tl.constexpr):
    """fp32 [LANES], the first R -> codes int32 (0 behind), scale and low fp16."""
    lane = tl.arange(0, key.shape[0])
    least = tl.min(tl.where(lane < R, key, float("inf")), 0, keep_dims=True)
    most = tl.max(tl.where(lane < R, key, float("-inf")), 0, keep_dims=True)
    scale, low = scale_and_low(least, most, BITS)
    whole = (tl.broadcast_to(scale, key.shape), tl.broadcast_to(low, key.shape))
    code = code_of(key, whole[0], whole[1], BITS)
    return tl.where(lane < R, code, 0), tl.max(scale, 0), tl.max(low, 0)


@triton.jit
def _newest(
    few,  # fp32 [Q, LANES]
    key,  # [LANES]
    labels,
    scale,
    low,
    at,  # the label to write
    score,  # [Q] where its scores go
    factor,
    G: tl.constexpr,
    R: tl.constexpr,
    UNITS: tl.constexpr,
    BITS: tl.constexpr,
):
    """Keep the newest key's label, and its scores."""
    lane = tl.arange(0, few.shape[1])
    exact = key.to(tl.float32)
    if BITS == 0:
        tl.store(labels + at * R + lane, key, lane < R)
        product = tl.sum(few * exact[None, :], 1)
    else:
        EACH: tl.constexpr = labels.dtype.element_ty.primitive_bitwidth // BITS  # codes of a unit
        code, step, least = _quantised(exact, R, BITS)
        unit = tl.arange(0, few.shape[1] // EACH)
        x = tl.reshape(code << lane % EACH * BITS, [few.shape[1] // EACH, EACH])
        x = tl.sum(x, 1).to(labels.dtype.element_ty)
        tl.store(labels + at * UNITS + unit, x, unit < UNITS)
        tl.store(scale + at, step)
        tl.store(low + at, least)
        product = tl.sum(few * code.to(tl.float32)[None, :], 1) * step.to(tl.float32)
        product += tl.sum(few, 1) * least.to(tl.float32)
    tl.store(score, product * factor, tl.arange(0, few.shape[0]) < G)


@triton.jit(do_not_specialize=["share"])
def _labels(
    q,  # [B, HKV * G, D]
    channels,  # [B, HKV, R]
    labels,  # [B, HKV, room, R], or codes [B, HKV, room, UNITS] in words or bytes: in and out
    scale,  # [B, HKV, room] of codes: in and out
    low,
    k_pool,  # [pages, HKV, PAGE, D]
    table,  # [B, M]
    lens,  # [B]
    scores,  # [B, HKV * G, size] out
    factor,
    share,  # tokens of a program
    room,
    size,
    M,
    HKV: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    LANES: tl.constexpr,  # R and more, as a tile has them
    UNITS: tl.constexpr,
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    Q: tl.constexpr,
    BITS: tl.constexpr,  # 0: labels as they are
    WIDE: tl.constexpr,
):
    """Program 0 has the newest key, the others `share` labels each."""
    group = tl.program_id(1).to(tl.int64)
    row, head, first = group // HKV, group % HKV, group * room
    newest = tl.load(lens + row).to(tl.int32) - 1
    lane, query = tl.arange(0, LANES), tl.arange(0, Q)
    channel = tl.load(channels + group * R + lane, lane < R, 0)
    own = (query < G)[:, None] & (lane < R)[None, :]
    tile = tl.load(q + (group * G + query)[:, None] * D + channel[None, :], own, 0.0)
    few = tile.to(tl.float32)
    out = scores + (group * G + query) * size
    if tl.program_id(0) == 0:
        if newest >= 0:
            page = tl.load(table + row * M + newest // PAGE).to(tl.int64)
            place = ((page * HKV + head) * PAGE + newest % PAGE) * D
            key = tl.load(k_pool + place + channel, lane < R, 0.0)
            at = first + newest
            _newest(few, key, labels, scale, low, at, out + newest, factor, G, R, UNITS, BITS)
    else:
        total = factor * tl.sum(few, 1)
        if BITS == 0:
            against = tl.trans(tile)
        else:
            against = tl.trans(_against_codes(few, BITS).to(tl.float32 if WIDE else tl.float16))
        begin = (tl.program_id(0) - 1) * share
        for at in tl.range(begin, tl.minimum(begin + share, size), TOKENS, num_stages=1):
            token = at + tl.arange(0, TOKENS)
            held = token < newest
            if BITS == 0:
                place = (first + token)[:, None] * R + lane[None, :]
                label = tl.load(labels + place, held[:, None] & (lane < R)[None, :], 0.0)
                score = tl.dot(label, against, input_precision="ieee") * factor
            else:
                words = _words(labels + first * UNITS, token, held, UNITS, LANES * BITS // 32)
                step = tl.load(scale + first + token, held, 0.0).to(tl.float32)
                least = tl.load(low + first + token, held, 0.0).to(tl.float32)
                code = _codes(words, BITS).to(against.dtype)
                score = tl.dot(code, against, input_precision="ieee")
                score *= (step * (factor * 16777216.0))[:, None]
                score += total[None, :] * least[:, None]
            score = tl.where(held[:, None], score, float("-inf"))
            real = (token < size) & (token != newest)
            tl.store(out[None, :] + token[:, None], score, (query < G)[None, :] & real[:, None])


def label_scores(
    q: Tensor,
    channels: Tensor,
    labels: Tensor | tuple[Tensor, Tensor, Tensor],
    bits: int,
    k_pool: Tensor,
    table: Tensor,
    lens: Tensor,
    scale: float,
    size: int,
) -> Tensor:
    """q [B, Hq, d] over channels [B, Hkv, r] of the first lens [B] keys -> partial logits, fp32
    [B, Hq, size], -inf behind. No row is longer than `size`.

    labels, updated in place with the key at lens - 1: [B, Hkv, room, r] at 16 bits, else codes
    [B, Hkv, room, r * bits / 8], scale and low [B, Hkv, room, 1].
    """
    b, q_heads, d = q.shape
    kv_heads, r = channels.shape[1:]
    codes, span, low = (labels, labels, labels) if isinstance(labels, Tensor) else labels
    assert codes.is_contiguous() and span.is_contiguous() and low.is_contiguous()
    lanes = power(max(r, 16))
    if bits < 16:
        codes, lanes = units(codes), max(lanes, 128 // bits)  # four words
    tiles, groups = triton.cdiv(size, TOKENS), b * kv_heads
    share = max(1, tiles * groups // PROGRAMS)
    scores = torch.empty(b, q_heads, size, dtype=torch.float32, device=q.device)
    _labels[(1 + triton.cdiv(tiles, share), groups)](
        q.contiguous(),
        channels,
        codes,
        span,
        low,
        k_pool,
        table,
        lens,
        scores,
        scale,
        share * TOKENS,
        codes.shape[2],
        size,
        table.stride(0),
        HKV=kv_heads,
        G=q_heads // kv_heads,
        D=d,
        R=r,
        LANES=lanes,
        UNITS=codes.shape[-1],
        PAGE=PAGE,
        TOKENS=TOKENS,
        Q=tile_of(q_heads // kv_heads),
        BITS=0 if bits == 16 else bits,
        WIDE=q.dtype == torch.float32,
        num_warps=1,
    )
    return scores
