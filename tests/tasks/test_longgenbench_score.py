"""From `macbench run` over `macbench score` to the table, and what a kill leaves behind."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from macbench import store, tasks
from macbench.cli import main
from macbench.config import configure
from macbench.errors import MacbenchError
from macbench.store.cell import cell_name, open_cell
from macbench.tables import report

SECRET = "sk-very-secret-42"
SPACE = "longgenbench/skyscraper"
COUNTS = ("prompt_tokens", "hold", "new_tokens", "steps", "context", "head_tokens", "kv_tokens")
COUNTS += ("meta_bytes", "context_head", "context_kv", "resident")


@pytest.fixture(autouse=True)
def no_official(monkeypatch, tmp_path):
    monkeypatch.delenv("MACBENCH_DATA", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("MACBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def judge(monkeypatch):
    """An address whose judge says yes where the event's words stand in the section, after .delay
    seconds; .mood changes what it says."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = body["messages"][0]["content"]
            with guard:
                server.prompts.append(prompt)
            time.sleep(server.delay)
            section, event = re.fullmatch(
                r"Context: (.*)### Instruction: Does this context include the (.*)\? Please .*",
                prompt,
                re.DOTALL,
            ).groups()
            said = server.mood or ("Yes." if event in section else "No.")
            answer = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    guard = threading.Lock()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.prompts, server.delay, server.mood = [], 0.0, None
    server.words = [
        "judge=openai",
        "judge_model=m",
        f"judge_url=http://127.0.0.1:{server.server_port}/v1",
    ]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def written(sample, good: int, until: int = 100) -> str:
    """A tower up to a floor: every `good`-th check fulfilled, the others' floors are offices."""
    wanted: dict[int, list[str]] = {}
    checks = [(int(at), e) for own in sample.extra["checks"].values() for at, e in own.items()]
    for number, (at, event) in enumerate(sorted(checks)):
        if number % good == 0:
            wanted.setdefault(at, []).append(event)
    floors = [
        f"#*# Floor {at}:\nHere is {' and '.join(wanted.get(at, ['an empty hall']))}.\n"
        for at in range(2, until + 1)
    ]
    return "\nAn entrance.\n" + "".join(floors) + "*** finished\n#*# Floor 999: nonsense"


def cell(out: Path, method: str, texts, knobs=None, **more) -> None:
    """One finished cell of given texts."""
    length = 16_000
    task = tasks.get(SPACE)

    class Nothing:
        def plain(self, text):
            return []

    samples = [*task.samples(Nothing(), length, 42, len(texts))]  # type: ignore[arg-type]
    identity = {
        "schema": 1,
        "model": {"name": "tiny", "weights": "w"},
        "dtype": "float32",
        "task": {"name": SPACE, "version": 1, "knobs": {"variant": "short"}},
        "length": length,
        "seed": 42,
        "hold": 0,
        "max_new": None,
        "decoding": {"temperature": 0.95},
        "method": {"name": method, "version": 1, "knobs": knobs or {}},
        **more,
    }
    about = {
        "label": method,
        "method": method,
        "asked": {},
        "control": False,
        "notes": ["source=embedded"],
        "floor": None,
        "block": 1,
        "geometry": {"layers": 1, "q_heads": 2, "kv_heads": 1, "head_dim": 64, "token_bytes": 512},
    }
    name = cell_name(["tiny", SPACE, method], identity)
    with open_cell(out, name, identity, about) as opened:
        for sample, text in zip(samples, texts, strict=True):
            output = text(sample)
            score = task.score(sample, output)
            row = {
                **dict.fromkeys(COUNTS, 1),
                "index": sample.index,
                "id": sample.id,
                "cluster": sample.cluster,
                "source": sample.source,
                "prompt_sha": sample.id,
                "output": output,
                "stopped": "stop",
                "score": score.value,
                "details": score.details,
                "extra": sample.extra,
                "acted": True,
            }
            sums = {"head_tokens": [[1.0, 1.0]], "kv_tokens": [[1.0]]}
            line = {"index": sample.index, "id": sample.id, "steps": 1.0, "context": 1.0, **sums}
            opened.append(row, line)
        opened.finish()


def figures(out: Path) -> dict[tuple[str, str], dict[str, float]]:
    """(judge, method) -> label -> value, of the csv table."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in csv.DictReader(io.StringIO(report.table(store.read(out), "csv"))):
        if row["figure"]:
            value = float(row["value"]) if row["value"] else None
            found.setdefault((row["judge"], row["method"]), {})[row["figure"]] = value
    return found


def refusal(capsys, *argv: str) -> str:
    capsys.readouterr()
    assert main(argv) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("macbench: ")]
    assert SECRET not in line
    return line


# -- a run ---------------------------------------------------------------------------------------


def run(tiny, out, *words, task="longgenbench/urban", length="length=48") -> list[str]:
    given = [f"task={task}", length, "limit=2", "method=[full,mac]", "mac.K=8", "mac.r=8"]
    return ["run", *given, f"out={out}", *tiny, *words]


def test_from_a_run_to_the_table(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(run(tiny, out)) == 0
    shown = capsys.readouterr().out
    assert "LongGenBench source=embedded" in shown and "temperature=0.95" in shown
    assert "short, at most 48 new tokens (capped: 16000 published)" in shown
    assert "judge=keyword (a stand-in: not the benchmark's own scores)" in shown
    assert "breakdown, %" in shown and "finish" in shown
    before = {path: path.read_bytes() for path in out.glob("*/samples.jsonl")}
    rows = [json.loads(line) for text in before.values() for line in text.splitlines()]
    assert len(rows) == 4
    for row in rows:
        assert (row["extra"]["capped"], row["new_tokens"], row["stopped"]) == (48, 48, "length")
        assert row["details"]["completion"] >= 0.01 and row["details"]["words"] > 0
        assert row["prompt_tokens"] > 400
    assert main(["score", str(out)]) == 0  # judge=keyword
    assert {path: path.read_bytes() for path in before} == before
    assert len([*out.glob("*/scores-keyword-*.jsonl")]) == 2
    assert capsys.readouterr().out.count("judge=keyword (a stand-in") == 1
    assert main(run(tiny, out)) == 0  # the store takes the new files for its own
    assert {path: path.read_bytes() for path in before} == before


def test_the_judge_of_a_run_comes_after_it(tiny, tmp_path, judge, capsys):
    out, family = tmp_path / "out", [f"longgenbench.{word}" for word in judge.words]
    assert main(run(tiny, out, *family)) == 0
    shown = capsys.readouterr().out
    assert "judge=openai m at 127.0.0.1" in shown and "judge=keyword" in shown
    names = {path.parent.name for path in out.glob("*/samples.jsonl")}
    assert main(run(tiny, out)) == 0  # a judge makes no other cell
    assert {path.parent.name for path in out.glob("*/samples.jsonl")} == names
    everything = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert SECRET.encode() not in everything


def test_lengths_and_prompts_that_do_not_fit(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    sentence = refusal(capsys, *run(tiny, out, length="length=1800"))
    assert re.search(r"window of 2048 tokens but 2\d{3} are needed \(prompt \+ answer\)", sentence)
    assert not [*out.glob("*/samples.jsonl")]
    alone = ["task=longgenbench", "longgenbench.variant=long"]
    assert configure(alone).lengths == [32_000]
    assert configure([*alone, "length=8k"]).lengths == [8192]
    assert configure(["task=longgenbench"]).lengths == [16_000]
    with pytest.raises(MacbenchError, match="different lengths"):
        configure(["task=[longgenbench,ruler]"])


def test_bad_options_of_a_run(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    assert "diary" in refusal(capsys, *run(tiny, out, task="longgenbench/dairy"))
    words = ["longgenbench.judge=openai", "longgenbench.judge_model=m"]
    assert "OPENAI_API_KEY" in refusal(capsys, *run(tiny, out, *words))
    assert "short or long" in refusal(capsys, *run(tiny, out, "longgenbench.variant=big"))


# -- judged again --------------------------------------------------------------------------------


def test_another_judge_beside_the_first(tmp_path, judge, capsys):
    good, half, short = (
        lambda s: written(s, 1),
        lambda s: written(s, 2),
        lambda s: written(s, 1, 50),
    )
    cell(tmp_path, "full", [good, half])
    cell(tmp_path, "mac", [half, short])
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*") if path.is_file()}
    assert main(["score", str(tmp_path), *judge.words]) == 0
    assert {path: path.read_bytes() for path in before} == before
    name = next(j for j, _ in figures(tmp_path) if j != "keyword")
    assert name.startswith("openai m at 127.0.0.1:")
    got = figures(tmp_path)
    assert {*got} == {("keyword", "full"), ("keyword", "mac"), (name, "full"), (name, "mac")}
    full = got[name, "full"]
    assert full["finish"] == 1 and full["STIC-1"] == full["STIC-2"] == full["weighted"] < 1
    assert got[name, "mac"]["finish"] == 0.75
    assert got[name, "mac"]["weighted"] == pytest.approx(0.75 * got[name, "mac"]["STIC-2"])
    assert full["agrees with keyword"] > 0.9 and full["kappa"] > 0.8
    assert full["unclear answers"] == full["texts cut by the cap"] == 0
    assert len({*judge.prompts}) == len(judge.prompts) > 30
    shown = report.table(store.read(tmp_path), "text")
    assert f"judge={name}" in shown and "stand-in" in shown.split(f"judge={name}")[0]
    (summary,) = [*tmp_path.glob("*full*/scores-openai-*.json")]
    kept = json.loads(summary.read_text())
    assert kept["figures"]["STIC-2"][0] == full["STIC-2"] and kept["samples"] == 2
    asked = len(judge.prompts)
    assert main(["score", str(tmp_path), *judge.words]) == 0  # nothing is asked twice
    for path in tmp_path.glob("*/scores-openai-*"):
        path.unlink()
    assert main(["score", str(tmp_path), *judge.words]) == 0  # not even without the scores
    assert len(judge.prompts) == asked
    assert figures(tmp_path) == got
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert SECRET.encode() not in everything


def test_a_judge_that_talks_nonsense(tmp_path, judge, capsys):
    cell(tmp_path, "full", [lambda s: written(s, 1)])
    judge.mood = "As a language model,\nI"
    sentence = refusal(capsys, "score", str(tmp_path), *judge.words)
    assert "neither yes nor no in 10 of 10 answers, such as 'As a language model, I'" in sentence
    judge.mood = None
    cells = [*tmp_path.glob("*/samples.jsonl")]
    assert len(cells) == 1 and figures(tmp_path)["keyword", "full"]["STIC-2"] == 1


def test_a_judge_that_is_not_there(tmp_path, judge, capsys, monkeypatch):
    cell(tmp_path, "full", [lambda s: written(s, 1)])
    words = ["judge=openai", "judge_model=m", "judge_url=http://127.0.0.1:9/v1"]
    monkeypatch.setattr("macbench.tasks.longgenbench.judge.openai.OpenAI.tries", 2)
    monkeypatch.setattr("macbench.tasks.longgenbench.judge.openai.OpenAI.pause", 0.01)
    assert "goes on from there" in refusal(capsys, "score", str(tmp_path), *words)
    assert main(["score", str(tmp_path), *judge.words]) == 0


def test_a_kill_loses_nothing_that_was_said(tmp_path, judge):
    cell(tmp_path, "full", [lambda s: written(s, 1), lambda s: written(s, 2)])
    judge.delay = 0.1
    command = [sys.executable, "-m", "macbench.cli", "score", str(tmp_path), *judge.words]
    process = subprocess.Popen(
        command, env=os.environ | {"OPENAI_API_KEY": SECRET}, stdout=-3, stderr=-3
    )
    deadline = time.monotonic() + 60
    while len(judge.prompts) < 20 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.2)
    judge.delay = 0.0
    kept = len((tmp_path / "judge.jsonl").read_text().splitlines())
    first = len(judge.prompts)
    assert 0 < kept < first
    assert main(["score", str(tmp_path), *judge.words]) == 0
    everything = len({*judge.prompts})
    assert len(judge.prompts) - first == everything - kept  # what was said is not asked again
    assert len((tmp_path / "judge.jsonl").read_text().splitlines()) == everything
    (scores,) = tmp_path.glob("*/scores-openai-*.jsonl")
    assert [json.loads(line)["index"] for line in scores.read_text().splitlines()] == [0, 1]


def test_a_torn_score_is_judged_again(tmp_path, judge):
    cell(tmp_path, "full", [lambda s: written(s, 1), lambda s: written(s, 2)])
    assert main(["score", str(tmp_path), *judge.words]) == 0
    before = figures(tmp_path)
    (scores,) = tmp_path.glob("*/scores-openai-*.jsonl")
    scores.write_bytes(scores.read_bytes()[:-100])
    assert figures(tmp_path) != before  # one text less
    assert main(["score", str(tmp_path), *judge.words]) == 0
    assert figures(tmp_path) == before


def test_scores_belong_to_their_text(tmp_path):
    cell(tmp_path, "full", [lambda s: written(s, 1)])
    assert main(["score", str(tmp_path)]) == 0
    (scores,) = tmp_path.glob("*/scores-keyword-*.jsonl")
    row = json.loads(scores.read_text())
    scores.write_text(json.dumps({**row, "output_sha": "another", "score": 0.0}) + "\n")
    assert store.read(tmp_path).scores.empty


def test_a_local_judge(tiny, tmp_path, capsys):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "judge"
    source = tiny[0].partition("=")[2]
    torch.manual_seed(0)  # another one's gibberish might hold a yes
    LlamaForCausalLM(LlamaConfig.from_pretrained(source)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    out = tmp_path / "out"
    cell(out, "full", [lambda s: written(s, 1, 12)])  # too few answers to call it nonsense
    words = ["score", str(out), "judge=local", f"judge_model={folder}"]
    assert main(words) == 0
    assert "judge=local judge" in capsys.readouterr().out
    kept = (out / "judge.jsonl").read_text()
    assert main(words) == 0 and (out / "judge.jsonl").read_text() == kept
    cell(out, "mac", [lambda s: written(s, 1)])
    assert "neither yes nor no" in refusal(capsys, *words)


def test_a_local_judge_that_cannot_be_loaded(tmp_path, capsys, monkeypatch):
    """The advice is in the words of `score`, which knows no model.source."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cell(tmp_path, "full", [lambda s: written(s, 1)])
    words = ["score", str(tmp_path), "judge=local"]
    for given, part in (
        ([], "judge_model=llama-3.1-8b-instruct cannot be loaded"),
        ([], "give the folder as judge_model; or name another, as in judge_model=smollm2."),
        (["judge_model=gone/x"], "'gone/x' is not in the local Hugging Face cache"),
        (["judge_model=smolm2"], "unknown judge_model 'smolm2': did you mean 'smollm2'?"),
        (["judge_model=tiny-random"], "has no tokenizer"),
        ([f"judge_model={tmp_path}"], "has no config.json"),
    ):
        sentence = refusal(capsys, *words, *given)
        assert part in sentence and "model.source" not in sentence


def test_bad_words_and_folders(tmp_path, capsys):
    assert "no folder" in refusal(capsys, "score", str(tmp_path / "none"))
    assert "no results" in refusal(capsys, "score", str(tmp_path))
    cell(tmp_path, "full", [])
    assert "no answers of longgenbench" in refusal(capsys, "score", str(tmp_path))
    assert "'judge_model'" in refusal(capsys, "score", str(tmp_path), "judge_modell=x")
    assert "write key=value" in refusal(capsys, "score", str(tmp_path), "keyword")
    assert "OPENAI_API_KEY" in refusal(
        capsys, "score", str(tmp_path), "judge=openai", "judge_model=m"
    )
