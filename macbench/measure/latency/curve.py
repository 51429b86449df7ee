"""What a hit curve says: where MAC begins to pay."""

from __future__ import annotations

import pandas as pd

CURVE = ["layout", "d", "batch", "context", "K", "r", "ring", "lag", "tiling"]


def curves(rows: pd.DataFrame) -> list[tuple[dict, str, pd.DataFrame]]:
    """Every hit curve among the good rows of MAC: (what is fixed, pattern, rows by hit rate).

    At hit rates 0 and 1, measured once, the patterns are the same. Needs two hit rates.
    """
    mac = rows[(rows["method"] == "mac") & rows["ok"] & rows["access"].isna()]
    found = []
    for key, group in mac.groupby(CURVE, sort=False):
        ends = group["hit"].isin([0, 1])
        between = group[~ends]
        for pattern in list(dict.fromkeys(between["pattern"])) or ["contiguous"]:
            curve = pd.concat([group[ends], between[between["pattern"] == pattern]])
            if curve["hit"].nunique() > 1:
                found.append(
                    (dict(zip(CURVE, key, strict=True)), pattern, curve.sort_values("hit"))
                )
    return found


def crossing(curve: pd.DataFrame, column: str = "vs_flashinfer_tc") -> float | None:
    """The hit rate, interpolated, from which on the speed-up stays at least 1; None if none is."""
    hits, ratios = curve["hit"].tolist(), curve[column].tolist()
    if not ratios or not ratios[-1] >= 1:
        return None
    for i in range(len(hits) - 1, 0, -1):
        if not ratios[i - 1] >= 1:
            times = 1 / ratios[i - 1], 1 / ratios[i]  # linear in time, not in speed
            share = (times[0] - 1) / (times[0] - times[1])
            return hits[i - 1] + share * (hits[i] - hits[i - 1])
    return hits[0]


def break_even(rows: pd.DataFrame) -> list[str]:
    """A line per hit curve that can be compared."""
    lines = []
    for fixed, pattern, curve in curves(rows):
        curve = curve[curve["vs_flashinfer_tc"].notna()]
        if curve["hit"].nunique() < 3:
            continue
        at = crossing(curve)
        said = "at no hit rate" if at is None else f"from hit rate {at:.2f} on"
        lines.append(
            f"{fixed['layout']} batch {fixed['batch']} context {fixed['context']} K {fixed['K']} "
            f"{fixed['ring']} {pattern}: as fast as flashinfer_tc {said}"
        )
    return lines
