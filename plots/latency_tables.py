"""Rows of the paper's Tables 3 and 5 on full attention and MAC, beside what it reports."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from macbench.measure.latency.record import collect
from macbench.plots import paper

LONG = 120 * 1024  # Table 3's context


def read(folder: Path) -> pd.DataFrame:
    rows = collect(folder, "tables")
    return rows[rows["tiling"] == ""]


def draw(rows: pd.DataFrame) -> str:
    """Markdown, in us: ours measured, the paper's after the slash."""
    device = ", ".join(sorted(rows["device"].unique()))
    first = rows[rows["method"] == "mac"].iloc[0]
    return "\n".join(
        [
            f"Attention of one layer, {first['layout']} heads, batch {first['batch']}, "
            f"K {first['K']}, in us: measured on {device} / the paper's on an H100.",
            "Every hit reads the same share of the context, which sets the band width; the paper "
            "does not say how it sets the share. Times of single launches hold the "
            f"{first['launch_us']:.1f} us of an empty graph each, and overlap in the whole step.",
            "",
            f"**Table 3**, {LONG // 1024}K tokens",
            "",
            *table_3(rows),
            "",
            "**Table 5**",
            "",
            *table_5(rows),
            "",
        ]
    )


def table_3(rows: pd.DataFrame) -> list[str]:
    told = paper("table_3")
    header = [
        "KV read",
        "full: FlashInfer tc",
        "cc / paper",
        "MAC / paper",
        "full/MAC tc",
        "cc / paper",
    ]
    lines = []
    for access in shares(rows[rows["context"] == LONG]):
        tc, cc = (time(rows, LONG, name) for name in ("flashinfer_tc", "flashinfer_cc"))
        mac = time(rows, LONG, "mac", access)
        full_p, mac_p = (_told(told, access=access, method=m) for m in ("full", "mac"))
        lines.append(
            [
                f"{access:.0%}",
                _us(tc),
                f"{_us(cc)} / {_us(full_p)}",
                f"{_us(mac)} / {_us(mac_p)}",
                _ratio(tc, mac),
                f"{_ratio(cc, mac)} / {_ratio(full_p, mac_p)}",
            ]
        )
    return _markdown(header, lines)


def table_5(rows: pd.DataFrame) -> list[str]:
    told = paper("table_5")
    header = ["context", "KV read", "full tc", "full cc / paper", "match / paper"]
    header += [
        "- / load balancer",
        "attend / paper",
        "merge / -",
        "MAC / paper",
        "full/MAC tc / paper",
    ]
    lines = []
    for context in sorted(rows["context"].unique()):
        for access in shares(rows[rows["context"] == context]):
            part = {
                name: _told(told, context=context, access=access, part=name)
                for name in ("full", "match", "balance", "attend", "mac")
            }
            tc, cc = (time(rows, context, name) for name in ("flashinfer_tc", "flashinfer_cc"))
            match, attend, merge, mac = (
                time(rows, context, name, access)
                for name in ("mac_match", "mac_attend", "mac_merge", "mac")
            )
            lines.append(
                [
                    f"{context // 1024}K",
                    f"{access:.0%}",
                    _us(tc),
                    f"{_us(cc)} / {_us(part['full'])}",
                    f"{_us(match)} / {_us(part['match'])}",
                    f"- / {_us(part['balance'])}",
                    f"{_us(attend)} / {_us(part['attend'])}",
                    f"{_us(merge)} / -",
                    f"{_us(mac)} / {_us(part['mac'])}",
                    f"{_ratio(tc, mac)} / {_ratio(part['full'], part['mac'])}",
                ]
            )
    return _markdown(header, lines)


def shares(rows: pd.DataFrame) -> list[float]:
    return sorted(rows["access"].dropna().unique())


def time(
    rows: pd.DataFrame, context: int, method: str, access: float | None = None
) -> float | None:
    found = rows[(rows["context"] == context) & (rows["method"] == method)]
    if access is not None:
        found = found[found["access"] == access]
    return float(found["us_median"].iloc[-1]) if len(found) else None


def _told(rows: pd.DataFrame, **where: object) -> float | None:
    for key, value in where.items():
        rows = rows[rows[key] == value] if len(rows) else rows
    return float(rows["us"].iloc[0]) if len(rows) else None


def _us(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _ratio(a: float | None, b: float | None) -> str:
    return "-" if a is None or b is None else f"{a / b:.2f}x"


def _markdown(header: list[str], lines: list[list[str]]) -> list[str]:
    rule = ["---:"] * len(header)
    return [f"| {' | '.join(line)} |" for line in (header, rule, *lines)]
