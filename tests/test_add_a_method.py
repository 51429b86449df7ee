"""docs/add_a_method.md: its two files make a method."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from macbench import store

sys.path.insert(0, str(Path(__file__).parent / "attention"))
from harness import drive, exact, problem

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    """The page's files by path."""
    text = (ROOT / "docs" / "add_a_method.md").read_text()
    found = dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```$", text, re.M | re.S))
    assert set(found) == {"macbench/attention/even.py", "conf/method/even.yaml"}
    return found


@pytest.fixture(scope="module")
def even(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("example") / "even.py"
    path.write_text(files["macbench/attention/even.py"])
    spec = importlib.util.spec_from_file_location("example_even", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["example_even"] = module
    spec.loader.exec_module(module)
    yield module.Even
    del sys.modules["example_even"]


def test_the_example_is_short(files):
    code = [line for line in files["macbench/attention/even.py"].splitlines() if line.strip()]
    assert len(code) <= 40


def test_it_is_the_method_that_it_says_it_is(even):
    """8 of 31 and more tokens: the last of eight parts as equal as can be; the whole is full."""
    case = problem(lengths=(30,), steps=12)
    record = drive(even(budget=0.25), case)
    sequence = case.sequences[0]
    for at in range(12):
        seen = 31 + at
        chosen = [seen * (i + 1) // 8 - 1 for i in range(8)]
        assert chosen[-1] == seen - 1
        q, k, v = (
            x[1, :, 2]
            for x in (sequence.q, sequence.k[:, :, [0, 0, 1]], sequence.v[:, :, [0, 0, 1]])
        )
        weights = (k[chosen] @ q[seen - 1] * case.geometry.scale).softmax(0)
        torch.testing.assert_close(record.out[at][1][0, 2], weights @ v[chosen])
        predicted = even(budget=0.25).predicted(case.geometry, 30, seen)
        assert record.counts[at]["kv_tokens"].unique().item() / seen == pytest.approx(predicted)
    whole = drive(even(budget=1.0), case)
    torch.testing.assert_close(whole.tensor(), exact(case), rtol=0, atol=1e-12)


def test_the_two_files_are_enough(files, tiny, tmp_path):
    """A package with both added, and nothing else changed, runs and lists the method."""
    package = tmp_path / "site" / "macbench"
    package.mkdir(parents=True)
    rooms = [
        *(ROOT / "macbench").iterdir(),
        *(ROOT / r for r in ("kernels", "experiments", "plots", "conf")),
    ]
    for path in rooms:
        if path.name in ("attention", "conf"):
            shutil.copytree(path, package / path.name)
        elif path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    for name, text in files.items():
        (package / name.removeprefix("macbench/")).write_text(text)

    def macbench(*words: str) -> str:
        code = "import sys; from macbench.cli import main; sys.exit(main(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            env={"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1", "PATH": ""},
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "even.budget=0.2" in macbench("list", "methods")
    words = ["method=[full,even]", "even.budget=[0.1,0.3]", "task=ruler/niah_single_1"]
    macbench("run", *tiny, *words, "length=512", "limit=1", "max_new=4", "out=results")
    results = store.read(tmp_path / "results")
    assert {*results.cells["label"]} == {"full", "even budget=0.1", "even budget=0.3"}
    for cell, planned in results.samples.set_index("cell")["planned"].items():
        asked = results.cells["config"][cell]["asked"].get("budget", 1.0)
        assert planned == pytest.approx(asked, rel=0.02)
