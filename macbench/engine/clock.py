"""Time on a device, taken without waiting for it."""

from __future__ import annotations

import time
from typing import Any

import torch

Mark = Any  # a place on the device's timeline: seconds, or an event on a card
Span = tuple[Mark, Mark]


class Clock:
    """Marks the timeline of a device; spans can be asked for once the device is past them."""

    def __init__(self, device: torch.device):
        self.on_card = device.type == "cuda"

    def mark(self) -> Mark:
        """Now, in the order of what the device was asked to do."""
        if not self.on_card:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, span: Span) -> float:
        """Between two marks that the device has passed."""
        first, last = span
        return first.elapsed_time(last) / 1e3 if self.on_card else last - first
