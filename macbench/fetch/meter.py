"""How far a download is: a bar on a terminal, now and then a line anywhere else."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from macbench.fetch.table import megabytes

EVERY = 10.0  # seconds between plain lines


class Meter:
    """Counts the bytes of one file after the other. On stderr, like every progress."""

    def __init__(self, stream: TextIO | None = None):
        self.console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self.name = ""
        self.total = self.done = 0
        self.said = 0.0
        self.bar: Progress | None = None

    def start(self, name: str, total: int, had: int) -> None:
        """Begin a file of `total` bytes, `had` of which are here."""
        self.name, self.total, self.done = name, total, had
        self.said = time.monotonic()
        if self.console.is_terminal:
            columns = (TextColumn(name), BarColumn(), DownloadColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console)
            self.bar.add_task(name, total=total, completed=had)
            self.bar.start()
        else:
            here = f", {megabytes(had)} of them here" if had else ""
            self.note(f"{name}: {megabytes(total)}{here}")

    def advance(self, size: int) -> None:
        """So many more bytes are here."""
        self.done += size
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], advance=size)
        elif (now := time.monotonic()) - self.said >= EVERY:
            self.said = now
            self.note(f"{self.name}: {megabytes(self.done)} of {megabytes(self.total)}")

    def note(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False)

    def stop(self) -> None:
        """Leave the terminal as it was; harmless when repeated."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
