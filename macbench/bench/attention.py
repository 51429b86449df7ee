"""`macbench bench attention`: from words to points, and the table of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any

import pandas as pd

from macbench import config
from macbench.bench.shared import (
    begin,
    check_machine,
    combinations,
    draw,
    open_book,
    options,
    read_words,
)
from macbench.checks import check_least, check_types, show
from macbench.errors import MacbenchError, nearest
from macbench.measure.latency.cases import (
    BYTES,
    FULL,
    LAUNCHES,
    METHODS,
    PATTERNS,
    RINGS,
    Point,
    Reuse,
    Shape,
)

CHOICES = {
    "method": METHODS,
    "pattern": PATTERNS,
    "ring": RINGS,
    "dtype": tuple(name for name in BYTES if name != "float32"),
}
LEAST = {"batch": 1, "K": 2, "r": 0, "replays": 1, "seed": 0, "d": 16, "chunk": 16}
UNIFORM = 0  # a lag that is drawn
SMALL = {"9/3": 64}  # head dimensions other than 128


@dataclass(frozen=True)
class Values:
    """One point's options as they are typed."""

    layout: str
    d: int | None
    context: int | str
    batch: int
    hit: float
    pattern: str
    lag: int | str
    K: int
    r: int
    access: float | None
    ring: str
    tau: float
    dtype: str
    chunk: int | None
    method: str


@dataclass(frozen=True)
class Settings:
    """Options of a whole run."""

    replays: int
    seed: int
    out: str
    name: str | None


AXES = [field.name for field in fields(Values)]
SINGLE = [field.name for field in fields(Settings)]


def attention(words: Sequence[str]) -> int:
    """Time one decode step of attention. Exit code 1 where a gate was red."""
    points, settings = configure(words)
    check_machine()
    import torch

    from macbench.measure.latency import record, run

    book, say = open_book("attention", settings.out, settings.name)
    timer, machine, began = begin("attention", words, book, say)
    how = run.Options(settings.replays, settings.seed, began, record.code())
    device = torch.device("cuda", torch.cuda.current_device())
    good = run.Bench(book, timer, machine, device, how, say).run(points)
    names = {
        point: LAUNCHES if point.method == "mac_launches" else (point.method,) for point in points
    }
    wanted = [
        record.identity(point, settings.seed, name) for point in points for name in names[point]
    ]
    rows = book.find(wanted)
    print(table(rows))
    print(f"\nRows: {book.path}; how they were made: {book.about}")
    return 0 if good else 1


# -- from words to points ------------------------------------------------------------------------


def configure(words: Sequence[str]) -> tuple[list[Point], Settings]:
    """The points that the words mean, each once; MacbenchError for whatever is wrong with them."""
    given = read_words(words, lambda key: [*AXES, *SINGLE, *_tiling(key)])
    base = options("attention", given)
    cases: list[dict[str, Any]] = base.pop("cases", [{}])
    tiling = {k.partition(".")[2]: given.pop(k) for k in list(given) if k.startswith("tiling.")}
    settings = _settings({key: (base | given)[key] for key in SINGLE})
    if tiling:
        from macbench.kernels.workspace import Tiling

        for tiles in combinations(tiling, list(tiling)):
            check_types("tiling.", Tiling, tiles)
    points = [
        point
        for case in cases
        for values in combinations(base | case | given, AXES)
        for tiles in combinations(tiling, list(tiling))
        for point in [_point(values, tuple(sorted(tiles.items())))]
    ]
    return list(dict.fromkeys(points)), settings


def _tiling(key: str) -> list[str]:
    """A tiling's fields, where the key is about one."""
    if not key.startswith("tiling"):
        return []
    if find_spec("triton") is None:
        raise MacbenchError("tiling.* needs triton and it is not installed; pip install triton.")
    from macbench.kernels.workspace import Tiling

    return [f"tiling.{field.name}" for field in fields(Tiling)]


def _settings(values: dict[str, Any]) -> Settings:
    check_types("", Settings, values)
    check_least(values, LEAST)
    return Settings(**values)


def _point(values: dict[str, Any], tiling: tuple[tuple[str, Any], ...]) -> Point:
    """One combination, checked."""
    check_types("", Values, values)
    for key, known in CHOICES.items():
        if values[key] not in known:
            raise MacbenchError(f"unknown {key} '{values[key]}': {nearest(values[key], [*known])}")
    check_least(values, LEAST)
    layout, d = values["layout"], values["d"] or SMALL.get(values["layout"], 128)
    q_heads, slash, kv_heads = layout.partition("/")
    whole = slash and q_heads.isdecimal() and kv_heads.isdecimal() and int(kv_heads) > 0
    if not whole or int(q_heads) % int(kv_heads) or not 1 <= int(q_heads) // int(kv_heads) <= 16:
        raise MacbenchError(
            f"layout={layout}: write query heads/KV heads, a multiple of at most 16, as 32/8."
        )
    chunk = values["chunk"]
    if d & (d - 1) or (chunk and (chunk & (chunk - 1) or chunk > d)):
        raise MacbenchError(f"d={d} chunk={show(chunk)}: both must be powers of two, chunk <= d.")
    shape = Shape(layout, d, _context(values["context"]), values["batch"], values["dtype"])
    method = values["method"]
    if method in FULL:
        return Point(shape, method, None, tiling if method == "triton_full" else ())
    return Point(shape, method, _reuse(values, shape), tiling, chunk)


def _context(value: Any) -> int:
    try:
        return config.tokens(value)
    except MacbenchError as error:
        raise MacbenchError(f"context={show(value)}: write tokens as 4096 or 4k.") from error


def _reuse(values: dict[str, Any], shape: Shape) -> Reuse:
    hit, lag, K, r, access = (values[key] for key in ("hit", "lag", "K", "r", "access"))
    if not 0 <= hit <= 1:
        raise MacbenchError(f"hit={hit} must lie in [0, 1].")
    if not 0 <= values["tau"] <= 0.8:  # a smaller radius drowns in the rounding of 16-bit rows
        raise MacbenchError(f"tau={values['tau']} must lie in [0, 0.8].")
    if lag != "uniform" and not (isinstance(lag, int) and 1 <= lag < K):
        raise MacbenchError(f"lag={lag} must lie in [1, K) with K={K}, or be uniform.")
    if access is not None:
        if lag == "uniform" or hit != 1 or not 0 < access < 1:
            raise MacbenchError(f"access={access} is a share in (0, 1), with hit=1 and one lag.")
        r = round(access * shape.context) - lag
        if r < 1:
            raise MacbenchError(
                f"access={access}: {access * shape.context:.0f} of {shape.context} tokens are no "
                f"more than lag={lag}; ask for more."
            )
    farthest = K - 1 if lag == "uniform" else lag
    if shape.context <= max(K, farthest + r):
        raise MacbenchError(
            f"context={shape.context} is too short for K={K}, lag={lag} and r={r}: nothing of the "
            "prefix could be skipped."
        )
    pattern = PATTERNS[0] if hit in (0, 1) else values["pattern"]  # all or none: the same
    return Reuse(
        hit=float(hit),
        pattern=pattern,
        lag=UNIFORM if lag == "uniform" else lag,
        K=K,
        r=r,
        ring=values["ring"],
        tau=float(values["tau"]),
        access=access,
    )


# -- the table -----------------------------------------------------------------------------------

NOTES = (
    "us: median of n graph replays (10th to 90th percentile), L2 cache cold unless marked warm.",
    "floor: bytes of this case (the ring in full) / read bandwidth of this run, and launches. "
    "x cold: over the time that a plain read kernel needs for as many bytes.",
    "x tc, x cc: as fast as FlashInfer's decode with and without tensor cores, same process.",
)


def table(rows: pd.DataFrame) -> str:
    """Rows for reading."""
    from macbench.measure.latency.curve import break_even

    cells = [_cells(row) for _, row in rows.iterrows()]
    return draw(cells, _HEADER, break_even(rows), NOTES)


_HEADER = (
    *("layout", "batch", "context", "K", "r", "ring", "lag", "pattern", "hit", "tiling", "method"),
    *("us", "10-90 %", "floor", "x floor", "x cold", "x tc", "x cc", "note"),
)


def _cells(row: pd.Series) -> dict[str, str]:
    def number(key: str, form: str = ".1f") -> str:
        return "" if pd.isna(row[key]) else format(row[key], form)

    def text(key: str) -> str:
        return "" if pd.isna(row[key]) else str(row[key])

    cells = {key: text(key) for key in ("layout", "batch", "context", "K", "r", "ring", "pattern")}
    cells |= {"lag": "uniform" if row["lag"] is not pd.NA and row["lag"] == 0 else text("lag")}
    cells |= {"hit": number("hit", "g"), "tiling": text("tiling"), "method": text("method")}
    cells |= {"us": number("us_median"), "floor": number("floor_us")}
    low, high = number("us_p10"), number("us_p90")
    cells["10-90 %"] = f"{low} to {high}" if low else ""
    cells |= {"x floor": number("over_floor", ".2f"), "x cold": number("over_cold", ".2f")}
    cells |= {"x tc": number("vs_flashinfer_tc", ".2f"), "x cc": number("vs_flashinfer_cc", ".2f")}
    warm = pd.notna(row["cold"]) and not row["cold"]
    cells["note"] = ("warm" if warm else "") if row["ok"] else f"FAILED: {row['note']}"
    return cells
