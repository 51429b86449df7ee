"""Progress where there is no terminal."""

from __future__ import annotations

import io

from macbench.progress import Progress


def test_the_time_left_counts_only_what_was_measured_now():
    progress = Progress(io.StringIO())
    progress.start(100)
    progress.advance(60, stored=True)
    assert progress.line(progress.began + 60) == "60 of 100 samples"
    progress.advance(20)
    assert progress.line(progress.began + 600) == "80 of 100 samples, 10:00 left"
    assert progress.line(progress.began + 6000) == "80 of 100 samples, 1:40:00 left"


def test_lines_are_few_and_the_last_is_there():
    stream = io.StringIO()
    progress = Progress(stream)
    progress.start(50)
    for _ in range(50):
        progress.advance(1)
    progress.note("skipped [ruler/qa_1]: too short")
    progress.stop()
    progress.stop()
    assert stream.getvalue() == "50 of 50 samples\nskipped [ruler/qa_1]: too short\n"
