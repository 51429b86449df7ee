"""Whole runs that are killed, started again, or out of memory: nothing measured is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch

from macbench.cli import main
from macbench.run import run

TASK = ["task=ruler/niah_single_1", "length=512", "max_new=6", "limit=6"]
CELLS = ["method=[full,mac,random]", "mac.K=32", "mac.r=8", "random.tokens=0.3"]


def files(out: Path) -> dict[str, bytes]:
    """Every cell's derived file of samples without times, and its layers as they are."""
    import pandas as pd

    found = {}
    for cell in sorted(path.parent for path in out.glob("*/samples.jsonl")):
        samples = pd.read_json(cell / "samples.jsonl", lines=True).sort_values("index")
        found[f"{cell.name} samples"] = samples.drop(columns="time").to_json().encode()
        for path in sorted(cell.glob("layers*")):
            found[f"{cell.name} {path.name}"] = path.read_bytes()
    return found


def lines(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.glob("*/samples.jsonl"))


def killed_at(rows: int, out: Path, words: list[str]) -> None:
    """Start the run in another process and kill it once so many rows are on disk."""
    command = [sys.executable, "-m", "macbench.cli", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(6000):
        if lines(out) >= rows or process.poll() is not None:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("block", [1, 4])
def test_a_run_killed_three_times_ends_as_an_undisturbed_one(tmp_path, tiny, capsys, block):
    words = ["run", *TASK, *CELLS, *tiny, f"block={block}"]
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    for rows in (1, 5, 14):  # of 18: within the first block, between blocks, near the end
        killed_at(rows, broken, [*words, f"out={broken}"])
        assert lines(broken) >= 1
    assert main([*words, f"out={broken}"]) == 0
    assert main([*words, f"out={whole}"]) == 0
    assert lines(broken) == 18
    assert files(broken) == files(whole)


def test_methods_are_added_beside_cells_that_were_archived(tmp_path, tiny, capsys):
    """Cells are handed on without their layers, which are most of their bytes."""
    words = ["run", *TASK, *tiny, f"out={tmp_path}"]
    assert main([*words, "method=[full,random]", "random.tokens=0.3"]) == 0
    for path in tmp_path.glob("*/layers.*"):
        path.unlink()
    kept = {path: path.read_bytes() for path in tmp_path.glob("*/s*.json*")}
    assert main([*words, *CELLS]) == 0
    assert lines(tmp_path) == 18
    assert {path: path.read_bytes() for path in kept} == kept
    assert main([*words, "method=full", "limit=7"]) == 2
    told = capsys.readouterr().err
    assert "no layers.jsonl" in told and "the 6 that it holds" in told
    assert lines(tmp_path) == 18


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError(), RuntimeError("Triton Error [CUDA]: out of memory")],
    ids=["torch", "triton"],
)
def test_a_block_that_does_not_fit_is_halved(tmp_path, tiny, capsys, monkeypatch, error):
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    words = ["run", *TASK, *tiny, "method=[full,random]", "limit=5"]
    assert main([*words, "block=2", f"out={whole}"]) == 0
    made = []

    def make_engine(group, methods, slots, made_tokens=0):
        made.append(slots)
        if slots > 2:
            raise error
        return real(group, methods, slots, made_tokens)

    real = run.make_engine
    monkeypatch.setattr(run, "make_engine", make_engine)
    capsys.readouterr()
    assert main([*words, "block=8", f"out={halved}"]) == 0
    assert made == [5, 3, 2, 1]
    assert "goes on with blocks of 3" in capsys.readouterr().err
    assert files(halved) == files(whole)
    assert main(["run", *TASK, *tiny, "method=full", "limit=3", f"out={halved}", "block=8"]) == 0
    assert made == [5, 3, 2, 1]  # all is stored


def test_a_judge_finds_the_models_memory_free(tmp_path, tiny, monkeypatch):
    models, alive = [], []

    def load(source, **reads):
        model = real(source, **reads)
        models.append(weakref.ref(model))
        return model

    real = run.load
    monkeypatch.setattr(run, "load", load)
    monkeypatch.setattr(run, "after_run", lambda *_: alive.extend(ref() for ref in models))
    assert main(["run", *TASK, *tiny, "method=[full,mac]", "limit=1", f"out={tmp_path}"]) == 0
    assert alive == [None]


def test_out_of_memory_is_recorded_and_a_later_run_clears_it(tmp_path, tiny, capsys):
    words = ["run", *TASK, *tiny, f"out={tmp_path}", "limit=1"]
    assert main([*words, "method=[full,mac]", f"mac.K={10**13}"]) == 1
    out = capsys.readouterr().out
    assert "failed" in out and "out of memory" in out and "run fewer methods" in out
    assert len([*tmp_path.glob("*/failed.json")]) == 2
    assert main([*words, "method=[full,random]"]) == 0
    assert "failed: full" not in capsys.readouterr().out
    assert main([*words, "method=[full,random]"]) == 0  # stored: nothing is run again
    assert lines(tmp_path) == 2
    assert main([*words, "method=[full,mac]", f"mac.K={10**13}"]) == 1
    (failed,) = tmp_path.glob("*/failed.json")  # full has its answer
    assert "_mac" in failed.parent.name
