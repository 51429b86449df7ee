"""Attention and logits over vectors that are kept in 2, 4 or 8 bits, in Triton.

From memory come codes, scales and minima only. A word of 32 bits is two halves, and an operation
on it unpacks a code of each: masked, a code is part of the mantissa of an fp16 number with a known
exponent. A product takes two halves from one register, so those of a word are two channels of a
key, and those of two tokens' words one channel of both values. Tiles therefore hold channels in
another order (`_key_order`, `_value_order`), into which q, scales and exact vectors are brought.

Torch reference: `macbench.attention.quantise.Packed`, read as a whole. Products are taken in fp16
where the model has 16 bits (fp32 sums), in fp32 where it has 32. What is written: `kernels.pack`.
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
CHUNK = 32  # packed tokens that a program of `attend`, mostly one warp, takes at a time
PROGRAMS = 1584  # of `attend`, about, if lists are few: 12 fit a multiprocessor of a large card
REGISTERS = 168  # of a thread, for that
TOKENS, TOKENS_WIDE = 256, 64  # of a program of `logits`; of its products in fp32
PARTIALS = 32  # merged at a time

Parts = tuple[Tensor, Tensor, Tensor]  # codes, scale, low of one layer


def padded(channels: int, bits: int) -> tuple[int, int]:
    """Bytes of a vector, and what a tile takes: a power of two with 16 channels at least."""
    return channels * bits // 8, power(max(channels * bits // 8, 2 * bits))


def tile_of(q_heads: int) -> int:
    """Columns of a tile that holds a list's query heads."""
    assert q_heads <= 16, "query heads of a list share a tile of 16 columns"
    return 8 if q_heads <= 8 else 16


def units(codes: Tensor) -> Tensor:
    """Codes in words, or in bytes where vectors do not fill words."""
    return codes if codes.shape[-1] % 4 else codes.view(torch.int32)


@triton.jit
def _words(codes, token, held, UNITS: tl.constexpr, DIMS: tl.constexpr, BITS: tl.constexpr):
    """One KV head's tokens [N] in units (words or bytes) -> words [N, DIMS * BITS / 32]."""
    EACH: tl.constexpr = 32 // codes.dtype.element_ty.primitive_bitwidth
    word = tl.arange(0, DIMS * BITS // 32)
    x = tl.zeros([token.shape[0], DIMS * BITS // 32], tl.int32)
    for i in tl.static_range(EACH):
        unit = word * EACH + i
        there = held[:, None] & (unit < UNITS)[None, :]
        x |= tl.load(codes + token[:, None] * UNITS + unit[None, :], there, 0).to(tl.int32) << 8 * i
    return x


@triton.jit
def halves(words):
    """Words [...] as fp16 [..., 2]."""
    return tl.join(words.to(tl.int16), (words >> 16).to(tl.int16)).to(tl.float16, bitcast=True)


@triton.jit
def _code(words, AT: tl.constexpr, BITS: tl.constexpr, SMALL: tl.constexpr):
    """Codes at bits [AT, AT + BITS) of both halves of words [...], fp16 [..., 2]: in the mantissa
    of 2^(10 - AT), whose bit AT counts ones. If SMALL, for products alone, times 2^-(14 + BITS):
    the upper bits of a subnormal mantissa, from which nothing is to be subtracted."""
    if SMALL:
        UPPER: tl.constexpr = ((1 << BITS) - 1 << 10 - BITS) * 0x10001
        return halves(words << 10 - BITS - AT & UPPER)
    else:
        MASK: tl.constexpr = ((1 << BITS) - 1 << AT) * 0x10001
        POWER: tl.constexpr = (25 - AT << 10) * 0x10001
        return halves(words & MASK | POWER) - (1 << 10 - AT)


@triton.jit
def _codes(words, BITS: tl.constexpr, SMALL: tl.constexpr = False):
    """Words [N, W] -> fp16 [N, J, W, 2]: the j-th of the J = 16 / BITS codes of both halves."""
    x = tl.join(words, words >> 8)
    if BITS == 8:
        x = _code(x, 0, BITS, SMALL)
    elif BITS == 4:
        x = tl.join(_code(x, 0, BITS, SMALL), _code(x, 4, BITS, SMALL))
    else:
        even = tl.join(_code(x, 0, BITS, SMALL), _code(x, 4, BITS, SMALL))
        odd = tl.join(_code(x, 2, BITS, SMALL), _code(x, 6, BITS, SMALL))
        x = tl.join(even, odd)
    x = tl.reshape(x, [words.shape[0], words.shape[1], 2, 2, 8 // BITS])
    x = tl.permute(x, (0, 2, 4, 1, 3))
    return tl.reshape(x, [words.shape[0], 16 // BITS, words.shape[1], 2])


@triton.jit
def _key_order(x, BITS: tl.constexpr):
    """[N, DIMS] as `_codes` has it of the words of N keys."""
    x = tl.reshape(x, [x.shape[0], x.shape[1] * BITS // 32, 2, 16 // BITS])
    return tl.permute(x, (0, 3, 1, 2))


@triton.jit
def _value_order(x, BITS: tl.constexpr):
    """[N, DIMS] as `_codes` has it of words that neighbouring values share: of their low halves,
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
    """N keys from `start`, in `_key_order`; only those held mean anything."""
    dtype: tl.constexpr = tl.float32 if WIDE else tl.float16
    x = _codes(_words(codes, start + tl.arange(0, N), held, UNITS, DIMS, BITS), BITS)
    scale = _key_order(_by_channel(scale, start, held, D, DIMS, TILE, N), BITS)
    low = _key_order(_by_channel(low, start, held, D, DIMS, TILE, N), BITS)
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
    x = _words(codes, token, held, UNITS, DIMS, BITS)
    a, b = tl.split(tl.permute(tl.reshape(x, [N // 2, 2, W]), (0, 2, 1)))
    x = tl.join(a & 0xFFFF | b << 16, (a >> 16) & 0xFFFF | b & -0x10000)
    x = _codes(tl.reshape(tl.permute(x, (0, 2, 1)), [N // 2, 2 * W]), BITS)
    scale = _value_order(_by_token(scale, token, held, D, DIMS, TILE), BITS)
    low = _value_order(_by_token(low, token, held, D, DIMS, TILE), BITS)
    return x.to(dtype) * scale.to(dtype) + low.to(dtype)


@triton.jit
def _query(
    q,
    list_,
    G: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    BITS: tl.constexpr,
    Q: tl.constexpr,
    WIDE: tl.constexpr,
):
    """A list's query heads as [DIMS, Q], channels in `_key_order`: in fp16, or in fp32."""
    lane, query = tl.arange(0, DIMS), tl.arange(0, Q)
    own = (query < G)[:, None] & (lane < D)[None, :]
    tile = tl.load(q + (list_ * G + query)[:, None] * D + lane[None, :], own, 0.0)
    tile = tl.trans(tl.reshape(_key_order(tile, BITS), [Q, DIMS]))
    return tile if WIDE else tile.to(tl.float16)


@triton.jit
def _logits(
    q,  # [B, H * G, D]
    codes,  # [slots, HKV, room, UNITS]
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
    DIMS: tl.constexpr,
    UNITS: tl.constexpr,
    BITS: tl.constexpr,
    LISTED: tl.constexpr,
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    Q: tl.constexpr,
    WIDE: tl.constexpr,
):
    """q.k = scale * (q.code) + low * sum(q): a code is exact in 16 bits, so the product is."""
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
    query = tl.arange(0, Q)
    tile = _query(q, list_, G, D, DIMS, BITS, Q, WIDE)
    first = (row * HKV + head).to(tl.int64) * room
    words = _words(codes + first * UNITS, token, held, UNITS, DIMS, BITS)
    keys = tl.reshape(_codes(words, BITS, True), [TOKENS, DIMS]).to(tile.dtype)
    score = tl.dot(keys, tile, input_precision="ieee")
    step = tl.load(scale + first + token, held, 0.0).to(tl.float32) * (factor * (1 << 14 + BITS))
    least = tl.load(low + first + token, held, 0.0).to(tl.float32) * factor
    total = tl.sum(tile.to(tl.float32), 0)
    score = score * step[:, None] + total[None, :] * least[:, None]
    score = tl.where(held[:, None], score, float("-inf"))
    out = (list_ * G + query)[None, :].to(tl.int64) * size + place[:, None]
    tl.store(scores + out, score, (query < G)[None, :] & (place < size)[:, None])


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
    codes, scale, low = units(keys[0]), *keys[1:]
    kv_heads, room = codes.shape[1:3]
    assert scale.shape[2:] == (room, 1), "one scale per token"
    heads, most = kv_heads, 0
    if pages is not None:
        heads, most = pages.shape[1:]
        size = most * PAGE
    scores = torch.empty(b, q_heads, size, dtype=torch.float32, device=q.device)
    is_wide = q.dtype == torch.float32
    tokens = TOKENS_WIDE if is_wide else TOKENS
    _logits[(triton.cdiv(size, tokens), b * heads)](
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
        DIMS=padded(d, bits)[1] * 8 // bits,
        UNITS=codes.shape[-1],
        BITS=bits,
        LISTED=pages is not None,
        PAGE=PAGE,
        TOKENS=tokens,
        Q=tile_of(q_heads // heads),
        WIDE=is_wide,
        num_warps=8 if is_wide else 4,
    )
    return scores


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
    tile = _query(q, list_, G, D, DIMS, BITS, Q, WIDE)
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
        exact = _key_order(tl.load(k_pool + first + pool, real & ~held[:, None], 0.0), BITS)
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
