"""The program as people use it: sentences, exit codes, what it leaves behind."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from macbench import listing, presets, store
from macbench.attention import METHODS
from macbench.cli import main, parser
from macbench.config import configure
from macbench.experiments import demo
from macbench.run.cells import reachable
from macbench.tables.blocks import summarise

ROOT = Path(__file__).parents[1]
WINDOW = 2048


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def refusal(capsys, *argv: str) -> str:
    """The one sentence on stderr of a command that must exit with code 2."""
    capsys.readouterr()
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("macbench: ")
    return line


def rows(out: Path) -> dict[str, list[str]]:
    """Every cell's samples without their times."""

    def timeless(line: str) -> str:
        return json.dumps({k: v for k, v in json.loads(line).items() if k != "time"})

    return {
        path.parent.name: [timeless(line) for line in path.read_text().splitlines()]
        for path in sorted(out.glob("*/samples.jsonl"))
    }


def run(*words: str, limit: int = 1) -> list[str]:
    base = ["task=ruler/niah_single_1", "length=1k", "max_new=4", f"limit={limit}"]
    return ["run", *base, *words]


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ([], "required: COMMAND"),
        (["rn"], "invalid choice: 'rn'"),
        (["show"], "required: DIR; see `macbench show --help`"),
        (["show", "nowhere"], "there is no folder nowhere"),
        (["plot", "accuracy_budgt", "--from", "."], "did you mean 'accuracy_budget'?"),
        (["list", "model"], "invalid choice: 'model'"),
        (["list", "models", "--yaml"], "unknown argument '--yaml'; see `macbench list --help`"),
        (["run", "--limit=3"], "unknown argument '--limit=3'; see `macbench run --help`"),
        (["run", "method=[full,mca]"], "unknown method 'mca': did you mean 'mac'?"),
        (["run", "task=ruler/few"], "did you mean 'ruler/fwe'?"),
        (["run", "model=smollm"], "did you mean 'smollm2'?"),
        (["run", "model=tiny-random"], "model 'tiny-random' has no tokenizer"),
        (["run", "lenght=4k"], "unknown option 'lenght': did you mean 'length'?"),
        (["run", "method=quest", "quest.budget=1.2"], "a share in (0, 1]"),
        (["run", "-m", "method=full,mac"], "write the list method=[full,mac]"),
        (["run", "-m", "mac.tau=0.4,0.5"], "write the list mac.tau=[0.4,0.5]"),
        (["run", "-m", "length=2k,long"], "write tokens as 4096 or 4k"),
        (["run", "-m", "seed=1,2", "hydra/launcher=nonesuch"], "nonesuch"),
        (["demo", "--samples", "0"], "at least 1"),
    ],
)
def test_bad_words_are_refused_in_one_sentence(capsys, here, argv, part):
    assert part in refusal(capsys, *argv)
    assert not [path for path in here.iterdir() if path.name != "results"]


@pytest.mark.parametrize("command", ["compare", "show", "score"])
def test_what_lies_in_a_results_folder_is_not_one(capsys, here, command, monkeypatch):
    """As of a shell's `results/*`."""
    cell = here / "results" / "cell"
    cell.mkdir(parents=True)
    for file in (cell / "samples.jsonl", cell.parent / "runs.jsonl"):
        file.write_text("")
    words = "one cell of a run; give the folder above it"
    assert f"results/cell is {words}, results." in refusal(capsys, command, "results/cell")
    said = "results/runs.jsonl is a file; give the folder above it, results."
    assert said in refusal(capsys, command, "results/runs.jsonl")
    monkeypatch.chdir(cell)
    assert f". is {words}, .." in refusal(capsys, command, ".")


@pytest.mark.parametrize(
    ("launcher", "extra"), [("joblib", "launchers"), ("submitit_slurm", "slurm"), ("ray", "ray")]
)
def test_a_launcher_that_is_not_installed_names_its_extra(capsys, here, launcher, extra):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    family = launcher.partition("_")[0]
    assert f"hydra-{family}-launcher" in extras["optional-dependencies"][extra][0]
    with suppress(ModuleNotFoundError):
        if find_spec(f"hydra_plugins.hydra_{family}_launcher"):
            pytest.skip("it is installed")
    sentence = refusal(capsys, "run", "-m", "seed=1,2", f"hydra/launcher={launcher}")
    assert sentence.endswith(f"{family} is not installed; pip install 'macbench[{extra}]'.")


def test_a_length_above_the_window(capsys, here, tiny):
    sentence = refusal(capsys, *run(*tiny, "length=4k"))
    assert f"window of {WINDOW} tokens" in sentence and "4096" in sentence


def test_a_budget_below_the_floor_names_the_floor_and_unreachable_runs_it(capsys, here, tiny):
    words = ["method=[full,quest]", "quest.budget=0.01", "out=results"]
    assert "unreachable=floor" in refusal(capsys, *run(*tiny, *words))
    assert not list(here.glob("results/*/"))
    assert main(run(*tiny, *words, "unreachable=floor")) == 0
    assert "min " in capsys.readouterr().out


def test_a_default_budget_below_the_floor_is_named(capsys, here, tiny):
    """Quest's 0.2, of which its label says nothing; the model has dense layers only."""
    words = ["method=quest", "unreachable=floor", "out=results"]
    assert main(run(*tiny, *words)) == 0
    err = capsys.readouterr().err
    assert "quest budget=0.2 cannot be reached; it runs at its floor, 100.0 % of bytes" in err


def test_two_budgets_below_the_floor_are_one_cell(capsys, here, tiny):
    words = ["method=[full,quest,streaming_llm]", "quest.budget=[0.01,0.02]"]
    words += ["streaming_llm.budget=[0.05,0.1]", "unreachable=floor", "out=results"]
    assert main(run(*tiny, *words)) == 0
    capsys.readouterr()
    assert len(list(here.glob("results/*quest*"))) == 1
    assert main(["compare", "results"]) == 0
    (quest,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith(" quest   ")]
    assert quest.count("at min ") == 3  # of the columns 1, 5 and 10 %


def test_every_method_with_a_budget_runs_at_its_floor_and_says_so(capsys, here, tiny):
    """In the words of the run and, as `min`, in the table; once, however many budgets are below
    it. oracle_topk reads every key anyway."""
    asked = {
        name: knob
        for name, method in METHODS.items()
        for knob in ("budget", "tokens")
        if knob in method.__dataclass_fields__ and name != "oracle_topk"
    }
    assert len(asked) >= 10
    words = [f"{name}.{knob}=[0.0001,0.0002]" for name, knob in asked.items()]
    words += [f"method=[full,{','.join(asked)}]", "unreachable=floor", "out=results"]
    assert main(run(*tiny, *words)) == 0
    err = capsys.readouterr().err
    for name, knob in asked.items():
        (said,) = [line for line in err.splitlines() if line.startswith(f"{name} {knob}=0.0001 ")]
        assert "runs at its floor" in said and "1024 tokens" in said
    lines = summarise(store.read("results"))[0].lines[1:]
    assert sorted(line.label.split()[0] for line in lines) == sorted(asked)
    for line in lines:
        assert line.asked.startswith("min ") and line.asked[4:] in err
        if line.label.split()[0] != "multipole":  # its buffer is one to two intervals long
            assert line.budgets.byte == pytest.approx(line.plan.floor, rel=0.25, abs=0.02)


def test_an_unwritable_results_folder(capsys, here, tiny):
    Path("file").write_text("not a folder")
    for more in ([], ["-m", "seed=1,2"]):
        sentence = refusal(capsys, *run(*tiny, "out=file", *more))
        assert "file is a file; name a folder" in sentence
    assert "file/results" in refusal(capsys, *run(*tiny, "out=file/results"))


def test_missing_weights_without_network(capsys, here, monkeypatch):
    sentence = refusal(capsys, *run("model.source=nobody/nothing-1b"))
    assert "hf download nobody/nothing-1b" in sentence and "model.source" in sentence


def test_a_corrupt_data_line(capsys, here, tiny, monkeypatch):
    data = here.parent / "data" / "ruler"
    data.mkdir(parents=True)
    (data / "squad.json").write_text('{"data": [\n{"title": "a", "paragraphs": [\nbroken\n')
    monkeypatch.setenv("MACBENCH_DATA", str(data.parent))
    sentence = refusal(capsys, *run(*tiny, "task=ruler/qa_1"))
    assert "squad.json" in sentence and "line 3" in sentence


def test_a_gpu_backend_without_a_gpu(capsys, here, tiny):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    sentence = refusal(capsys, *run(*tiny, "backend=triton"))
    assert "backend=triton needs an NVIDIA GPU" in sentence and "backend=torch" in sentence


def test_an_interrupted_command_says_how_to_go_on(capsys, monkeypatch):
    def interrupt() -> dict:
        raise KeyboardInterrupt

    monkeypatch.setattr("macbench.environment.environment", interrupt)
    assert main(["env"]) == 130
    assert "the same command again continues" in capsys.readouterr().err


# --- runs ----------------------------------------------------------------------------------------


def test_a_run_prints_its_table_and_the_same_command_again_continues(capsys, here, tiny):
    knobs = ["method=[full,mac,quest]", "mac.tau=[0.2,0.4]", "mac.K=64", "mac.r=16"]
    words = [*tiny, *knobs, "quest.budget=[0.7,0.9]", "quest.dense_layers=1", "out=results"]
    assert main(run(*words)) == 0
    out = capsys.readouterr().out
    for label in ("full", "mac tau=0.2", "mac tau=0.4", "quest budget=0.7", "quest budget=0.9"):
        assert label in out
    assert "macbench show results" in out
    first = rows(here / "results")
    assert len(first) == 5 and all(len(samples) == 1 for samples in first.values())
    stamps = {path: path.read_bytes() for path in here.glob("results/*/samples.jsonl")}

    assert main(run(*words)) == 0
    assert stamps == {path: path.read_bytes() for path in here.glob("results/*/samples.jsonl")}

    assert main(run(*words, limit=2)) == 0
    more = rows(here / "results")
    assert {cell: samples[:1] for cell, samples in more.items()} == first
    assert all(len(samples) == 2 for samples in more.values())

    for form in ("md", "csv", "latex"):
        capsys.readouterr()
        assert main(["show", "results", "--format", form]) == 0
        assert "mac tau=0.2" in capsys.readouterr().out.replace("\\_", "_")
    assert main(["plot", "accuracy_budget", "--from", "results", "--out", "figures"]) == 0
    figure = Path(capsys.readouterr().out.split()[-1])
    assert figure.parent == Path("figures") and figure.stat().st_size > 0
    assert {path.name for path in here.iterdir()} == {"results", "figures"}


def test_a_sweep_runs_every_combination_and_leaves_nothing_else(capsys, here, tiny):
    words = [*tiny, "method=[full,streaming_llm]", "length=512,1k", "seed=1,2", "out=results"]
    assert main([*run(), "-m", *words]) == 0
    assert "macbench show results\n" in capsys.readouterr().out
    found = rows(here / "results")
    assert len(found) == 2 * 2 * 2 and all(len(samples) == 1 for samples in found.values())
    assert [path.name for path in here.iterdir()] == ["results"]


def test_a_sweep_with_a_failing_job_says_so_and_does_the_others(capsys, here, tiny):
    words = [*tiny, "method=[full]", "length=4k,1k", "out=results"]
    assert main([*run(), "-m", *words]) == 2
    assert f"window of {WINDOW} tokens" in capsys.readouterr().err
    assert len(rows(here / "results")) == 1


def test_the_demo_makes_one_table_of_three_benchmarks_and_continues(
    capsys, here, tiny, monkeypatch
):
    """On a model that is small enough for a test: two layers, both dense for Quest, and heads of 16
    channels."""
    asked = demo.runs

    def small(*args) -> dict[str, list[str]]:
        found = asked(*args)
        found["RULER"].append("kivi.group_size=16")
        return {name: [*words[1:], *tiny, "unreachable=floor"] for name, words in found.items()}

    monkeypatch.setattr(demo, "runs", small)
    words = ["demo", "--length", "1k", "--out", "results", "--samples"]
    assert main([*words, "1"]) == 0
    out = capsys.readouterr().out
    blocks = summarise(store.read("results"))
    for block, name in zip(blocks, ("RULER", "LongBench v2", "LongGenBench"), strict=True):
        assert f"{name} source=embedded" in block.title and block.title in out
        labels = [line.label.split()[0] for line in block.lines]
        assert labels[0] == "full" and {"mac", "streaming_llm"} < {*labels}
    assert blocks[0].noise is not None
    assert "max_new=" in blocks[0].title and "max_new=" in blocks[1].title
    assert "capped" in blocks[2].title and "judge=keyword" in blocks[2].title
    figures = [line.split()[1] for line in out.splitlines() if line.startswith("figure: ")]
    assert len(figures) == 2 and all(Path(figure).stat().st_size for figure in figures)
    assert main(shlex.split(out.splitlines()[-1])[-2:]) == 0  # the command it ends with

    first = rows(here / "results")
    assert main([*words, "2"]) == 0
    for cell, samples in rows(here / "results").items():
        assert samples[: len(first[cell])] == first[cell]
        assert len(samples) == len(first[cell]) + ("ruler" in cell)


@pytest.mark.parametrize("length", ["2k", "4k", "8k"])
def test_the_demo_has_eight_methods_in_fifteen_cells_at_budgets_that_can_be_reached(length):
    shape = replace(listing.shape(), dtype=torch.float32)
    found = {k: configure(words) for k, words in demo.runs(Path("out"), 1, length).items()}
    cells = [cell for cell in found["RULER"].cells if cell.variant != "split"]
    assert len(cells) == 15 and len({cell.name for cell in cells}) == 8
    for config, tokens in zip(found.values(), (*found["RULER"].lengths, 1024, 640), strict=True):
        for cell in config.cells:
            method, floor = reachable(cell, shape, tokens, "refuse")
            assert floor is None
            read = method.predicted(shape, tokens, tokens)
            if "budget" in cell.knobs and read is not None:
                assert read == pytest.approx(cell.knobs["budget"], rel=0.02)


# --- what there is -------------------------------------------------------------------------------


def test_lists_as_json(capsys):
    def listed(what: str) -> list[str]:
        assert main(["list", what, "--json"]) == 0
        return [row["name"] for row in json.loads(capsys.readouterr().out)]

    assert listed("models") == presets.models()
    assert len([name for name in listed("tasks") if name.startswith("ruler/")]) == 13
    for name in listed("methods"):
        assert configure([f"method={name}"]).cells[0].label == name


def test_models_that_only_the_bench_takes_are_marked(capsys):
    assert main(["list", "models"]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert ("-random " in line) == line.endswith("for `macbench bench` only")


def test_lists_for_reading(capsys):
    assert main(["list", "methods"]) == 0
    out = capsys.readouterr().out
    assert "mac.max_chain=null" in out
    blocks = {block.split()[0]: block for block in out.split("\n\n")[1:]}
    assert blocks.keys() == presets.methods().keys()
    assert "\n  arXiv 2604.00235; smallest byte budget: 21.9 %\n" in blocks["mac"]
    assert "\n  mac/authors (12.5 %): mac.K=512 mac.min_context=2048" in blocks["mac"]
    assert max(map(len, out.splitlines())) <= 100


def test_every_method_is_listed_with_its_paper_and_its_least_budget(capsys):
    """SmolLM2's 30 layers at 8K. Quest: two dense layers, then bounds and three pages of 512."""
    assert main(["list", "methods", "--json"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["quest"]["paper"] == "2406.10774" and found["full"]["paper"] is None
    assert all(row["paper"] or row["control"] or row["least"] == 1 for row in found.values())
    least = {name: row["least"] for name, row in found.items()}
    assert least["quest"] == pytest.approx((2 + 28 * (512 + 48) / 8192) / 30)
    assert least["streaming_llm"] == 5 / 8192
    assert least["oracle_topk"] == pytest.approx(0.5, abs=1e-3)  # it scores every key
    assert least["mac/authors"] == pytest.approx(0.126, abs=1e-3)  # a ring of 512


def commands() -> list[str]:
    return [
        "run",
        "calibrate",
        "list",
        "show",
        "compare",
        "plot",
        "fetch",
        "env",
        "demo",
        "bench",
    ]


@pytest.mark.parametrize("command", commands())
def test_the_help_of_a_command_has_an_example_that_is_accepted(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    example = shlex.split(text.partition("example:\n")[2].splitlines()[0])
    assert example[:2] == ["macbench", command]
    args = parser().parse_args(example[1:])
    if command == "run":
        assert configure(args.options).cells


def test_the_help_of_run_names_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = capsys.readouterr().out
    for option in ("task", "method", "length", "limit", "seed", "hold", "out", "block", "backend"):
        assert f"  {option}: " in text
    assert "hydra:" not in text


def test_help_starts_without_torch():
    code = "import sys; from macbench.cli import parser; parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_environment_names_the_versions(capsys):
    import torch

    assert main(["env"]) == 0
    assert f"torch: {torch.__version__}" in capsys.readouterr().out


# --- what is installed ---------------------------------------------------------------------------


def test_a_wheel_holds_every_module_and_data_file(tmp_path):
    rooms = ("macbench", "kernels", "conf", "experiments", "plots")
    source = tmp_path / "source"
    junk = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
    for room in rooms:
        shutil.copytree(ROOT / room, source / room, ignore=junk)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        (
            path.relative_to(source)
            if room == "macbench"
            else Path("macbench") / path.relative_to(source)
        ).as_posix()
        for room in rooms
        for path in (source / room).rglob("*")
        if path.is_file()
    }
    assert {name for name in expected if name.endswith((".py", ".yaml", "py.typed"))} <= packed
    assert expected - packed <= {name for name in expected if name.endswith((".md", ".png"))}
    assert packed <= expected
