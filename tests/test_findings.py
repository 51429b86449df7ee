"""The runs of the findings: all of them valid, started side by side, stopped in time."""

from __future__ import annotations

import json
import sys
import time
from itertools import product

from macbench.config import configure
from macbench.experiments.findings import BUDGETS, SETS, runs
from macbench.experiments.findings.__main__ import launch, visible
from macbench.tasks import expand


def test_runs_are_valid_and_ruler_is_whole(tmp_path):
    asked = runs()
    for folder, part in product(("ruler_8k", "ruler_16k", "ruler_32k", "base_4k"), SETS):
        named = [words[0] for name, words in asked.items() if name.startswith(f"{folder}/{part}-")]
        tasks = ",".join(word.removeprefix("task=[").removesuffix("]") for word in named)
        assert sorted(tasks.split(",")) == sorted(expand("ruler"))
    first = {name.rpartition("-")[0] or name: words for name, words in reversed(asked.items())}
    for words in first.values():  # the parts of a folder differ in their tasks
        config = configure([*words, f"out={tmp_path}"])
        own = {cell.knobs["budget"] for cell in config.cells if cell.name == "snapkv"}
        assert own <= {0.05, *json.loads(BUDGETS)}


def test_side_by_side_each_with_its_log(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    wait = "import os, sys, time; time.sleep(1); print(os.environ['CUDA_VISIBLE_DEVICES'])"
    wanted = {f"a/{i}": [sys.executable, "-c", wait] for i in range(3)}
    wanted["b/0"] = [sys.executable, "-c", "raise SystemExit('no such task')"]
    assert launch(wanted, tmp_path, 4, time.monotonic() + 60) == 1
    told = capsys.readouterr().out.splitlines()
    assert sorted(told) == [*(f"a/{i}: exit code 0" for i in range(3)), "b/0: exit code 1"]
    assert "no such task" in (tmp_path / "logs" / "b-0.txt").read_text()
    assert (tmp_path / "logs" / "a-0.txt").read_text() == "0\n"


def test_gpus_are_those_that_may_be_used_in_turn(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    tell = "import os, time; time.sleep(1); print(os.environ['CUDA_VISIBLE_DEVICES'])"
    wanted = {f"a/{i}": [sys.executable, "-c", tell] for i in range(4)}
    assert launch(wanted, tmp_path, 2, time.monotonic() + 60) == 0
    told = [(tmp_path / "logs" / f"a-{i}.txt").read_text() for i in range(4)]
    assert told == ["3\n", "5\n", "3\n", "5\n"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible() == [""]  # hidden stays hidden


def test_what_does_not_fit_in_the_time_is_stopped(tmp_path):
    """As by Ctrl-C, which a run answers by leaving what it has measured."""
    sleep = "import time\ntry: time.sleep(100)\nexcept KeyboardInterrupt: print('stopped')"
    wanted = {name: [sys.executable, "-c", sleep] for name in ("a/0", "b/0")}
    began = time.monotonic()
    assert launch(wanted, tmp_path, 1, began + 10) == 1  # a loaded machine starts Python slowly
    assert time.monotonic() - began < 60
    assert (tmp_path / "logs" / "a-0.txt").read_text() == "stopped\n"
    assert not (tmp_path / "logs" / "b-0.txt").exists()
