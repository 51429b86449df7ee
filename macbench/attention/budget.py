"""Checks and conversions of the `budget` and `tokens` knobs."""

from __future__ import annotations

from macbench.errors import MacbenchError


def check_share(knob: str, value: float) -> None:
    """Refuse a share outside (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise MacbenchError(f"{knob}={value} must be a share in (0, 1], such as 0.05 for 5 %.")
