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


@pytest.fixture
def site(tmp_path):
    """A folder with a copy of the package to which methods can be added."""
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
    return tmp_path / "site"


def add(site: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (site / "macbench" / name.removeprefix("macbench/")).write_text(text)


def python(site: Path, code: str, *words: str) -> str:
    """What a program with that package prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        cwd=site.parent,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_two_files_are_enough(files, tiny, site, tmp_path):
    """A package with both added, and nothing else changed, runs and lists the method."""
    add(site, files)

    def macbench(*words: str) -> str:
        code = "import sys; from macbench.cli import main; sys.exit(main(sys.argv[1:]))"
        return python(site, code, *words)

    assert "even.budget=0.2" in macbench("list", "methods")
    words = ["method=[full,even]", "even.budget=[0.1,0.3]", "task=ruler/niah_single_1"]
    macbench("run", *tiny, *words, "length=512", "limit=1", "max_new=4", "out=results")
    results = store.read(tmp_path / "results")
    assert {*results.cells["label"]} == {"full", "even budget=0.1", "even budget=0.3"}
    for cell, planned in results.samples.set_index("cell")["planned"].items():
        asked = results.cells["config"][cell]["asked"].get("budget", 1.0)
        assert planned == pytest.approx(asked, rel=0.02)


SLIPS = """
import sys
from macbench.cli import main
from macbench.config import configure

sys.stderr = sys.stdout
print([cell.label for cell in configure(["method=[full,even]", "even.budget=0.3"]).cells])
for words in sys.argv[1:]:
    print(main(words.split()))
"""


def test_a_slip_is_one_sentence_and_only_for_who_asks(files, site):
    """What can be forgotten on the way to a method; other methods run all the while."""
    (code, values) = files.values()
    add(site, files)
    for name, named in (("strided", "stride"), ("bare", "bare"), ("more", "more")):
        text = code.replace('"even"', f'"{named}"').replace("Even", name.title())
        add(site, {f"attention/{name}.py": text})
    add(site, {"attention/plain.py": code.replace("@dataclass", "").replace('"even"', '"plain"')})
    for name in ("strided", "plain", "lonely"):
        add(site, {f"conf/method/{name}.yaml": values})
    add(site, {"conf/method/more.yaml": "# none yet\n"})
    add(site, {"conf/method/torn.yaml": "budget: 0.2\nsinks: [1,\n"})
    add(site, {"conf/method/twice.yaml": "budget: 0.2\nbudget: 0.3\n"})
    add(site, {"conf/model/torn.yaml": "source: smollm2: 2\n"})
    asked = {
        "run method=strided": "conf/method/strided.yaml is no method's: no class in "
        "macbench/attention/ has name = 'strided' (those without a file: bare, stride)",
        "run method=lonely": "no class in macbench/attention/ has name = 'lonely'",
        "run method=bare": "method 'bare' has no conf/method/bare.yaml; add it",
        "run method=bar": "unknown method 'bar': did you mean 'bare'?",
        "run method=plain": "Even in macbench/attention/plain.py is no dataclass",
        "run method=more more.budget=0.3": "unknown option 'more.budget': the class has it but its "
        "file does not; add it to conf/method/more.yaml",
        "run method=torn": "conf/method/torn.yaml line 3 is not valid YAML",
        "run method=full torn.budget=0.3": "conf/method/torn.yaml line 3 is not valid YAML",
        "run method=twice": "conf/method/twice.yaml line 2 is not valid YAML",
        "run model=torn": "conf/model/torn.yaml line 1 is not valid YAML",
        "bench decode method=torn": "conf/method/torn.yaml line 3 is not valid YAML",
        "bench decode method=full length=x": "length=x: write tokens",
        "list methods": "conf/method/lonely.yaml is no method's",
    }
    first, *said = python(site, SLIPS, *asked).splitlines()
    assert first == "['full', 'even budget=0.3']"
    for (words, part), line, code in zip(asked.items(), said[::2], said[1::2], strict=True):
        assert line.startswith("macbench: ") and part in line and code == "2", (words, line)
