"""How far a run is: a bar on a terminal, now and then a line anywhere else."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

EVERY = 10.0  # seconds between plain lines


class Progress:
    """Counts samples of a run. On stderr, so that tables on stdout can be piped."""

    def __init__(self, stream: TextIO | None = None):
        self.console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self.total = self.done = self.measured = 0
        self.began = self.said = 0.0
        self.bar: Bar | None = None

    def start(self, total: int) -> None:
        """Begin counting `total` samples."""
        self.total, self.done, self.measured = total, 0, 0
        self.began = self.said = time.monotonic()
        if self.console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("samples"))
            self.bar = Bar(
                *columns, TimeRemainingColumn(), TextColumn("left"), console=self.console
            )
            self.bar.add_task("samples", total=total)
            self.bar.start()

    def advance(self, samples: int, stored: bool = False) -> None:
        """`samples` more are done; stored: they were before, so they say nothing of the speed."""
        self.done += samples
        self.measured += 0 if stored else samples
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], advance=samples)
            return
        now = time.monotonic()
        if self.done == self.total or now - self.said >= EVERY:
            self.said = now
            self.note(self.line(now))

    def line(self, now: float) -> str:
        """Such as "12 of 40 samples, 1:30 left", at the clock's `now` seconds."""
        text = f"{self.done} of {self.total} samples"
        if self.done == self.total or not self.measured:
            return text
        left = (now - self.began) / self.measured * (self.total - self.done)
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        return f"{text}, {clock} left"

    def note(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave the terminal as it was; harmless when repeated."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
