"""Checks of knobs that methods share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from macbench.errors import MacbenchError

if TYPE_CHECKING:
    from macbench.attention.base import Geometry


def check_share(knob: str, value: float) -> None:
    """Refuse a share outside (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise MacbenchError(f"{knob}={value} must be a share in (0, 1], such as 0.05 for 5 %.")


def check_least(method: Any, least: int, *knobs: str) -> None:
    """Refuse whole numbers below `least`."""
    for knob in knobs:
        value = getattr(method, knob)
        if value < least:
            raise MacbenchError(f"{method.name}.{knob}={value} must be at least {least}.")


def check_dense(method: Any, geometry: Geometry) -> None:
    """Refuse more dense layers than the model has; the default is for any model."""
    dense, layers = method.dense_layers, geometry.layers
    if dense > max(layers, type(method).dense_layers):
        raise MacbenchError(
            f"{method.name}.dense_layers={dense} but the model has {layers} layers; give at most "
            f"{layers}."
        )
