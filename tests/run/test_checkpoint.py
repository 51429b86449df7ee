"""Long answers that are cut off, once or twice, and continued in another process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from macbench import store
from macbench.cli import main
from macbench.engine import Answer, Engine, Request
from macbench.run import groups
from macbench.run.resume import join, loaded, rest, saved
from macbench.store.cell import Cell
from macbench.tasks.longgenbench import sections

NEW = 40
TASK = ["task=ruler/niah_single_1", "length=512", f"max_new={NEW}", "limit=2", "block=2"]
CELLS = ["method=[full,mac,streaming_llm]", "mac.K=32", "mac.r=8", "streaming_llm.budget=0.3"]

DYING = """
import os, signal, sys
from macbench.store.cell import Cell
from macbench.cli import main
left, save = int(sys.argv[1]), Cell.save_partial
def counted(cell, rows=()):
    global left
    save(cell, rows)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
Cell.save_partial = counted
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def words(tiny) -> list[str]:
    return ["run", *TASK, *CELLS, *tiny, "model.dtype=float32", "checkpoint=5"]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory) -> dict[str, list[store.Row]]:
    """The rows of an undisturbed run."""
    out = tmp_path_factory.mktemp("whole")
    assert main([*words, f"out={out}"]) == 0
    assert not [*out.glob("*/partial*")]
    return rows(out)


def rows(out: Path) -> dict[str, list[store.Row]]:
    """Every method's rows as stored but for times, by index."""
    found = {}
    for name, method in store.read(out).cells["method"].items():
        lines = (out / name / "samples.jsonl").read_text().splitlines()
        found[method] = sorted(map(json.loads, lines), key=lambda row: row["index"])
        for row in found[method]:
            del row["time"]
    return found


def partial(out: Path, method: str) -> Path:
    cells = store.read(out).cells
    return out / cells.index[cells["method"] == method][0] / "partial.jsonl"


def unmarked(row: store.Row) -> store.Row:
    return {name: value for name, value in row.items() if name != "resumed"}


def killed(saves: int, words: list[str]) -> None:
    """Run in another process that is gone as soon as it has saved so many times, cell by cell."""
    command = [sys.executable, "-c", DYING, str(saves), *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def interrupted(saves: int, words: list[str], monkeypatch) -> None:
    """The same without another process: nothing of the run survives the interrupt but its files."""
    save, left = Cell.save_partial, [saves]

    def counted(cell, rows=()):
        save(cell, rows)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Cell, "save_partial", counted)
        assert main(words) == 130


def assert_counts(row: store.Row) -> None:
    """One step for every token but the first, over the contexts there were."""
    prompt, new = row["prompt_tokens"], row["new_tokens"]
    assert row["steps"] == new - 1
    assert row["context"] == sum(range(prompt + 1, prompt + new))


# after the first cell's first save; after the second cell's fourth, where the third has three
@pytest.mark.parametrize("first, second, places", [(1, 4, [6, 26]), (11, 2, [21, 31])])
def test_two_kills_in_the_middle(words, whole, tmp_path, capsys, first, second, places):
    """The second one during the continuation of the first cell, five tokens a save."""
    words = [*words, f"out={tmp_path}"]
    killed(first, words)
    at = [json.loads(line) for line in partial(tmp_path, "full").read_text().splitlines()]
    assert [len(line["answer"]["tokens"]) for line in at] == [places[0]] * 2
    killed(second, words)
    assert main(words) == 0
    assert not [*tmp_path.glob("*/partial*")]
    table = capsys.readouterr().out
    found = rows(tmp_path)
    for method, lines in found.items():
        assert len(lines) == 2
        for row, undisturbed in zip(lines, whole[method], strict=True):
            assert_counts(row)
            assert row["prompt_sha"] == undisturbed["prompt_sha"]
            if method == "full":
                assert row["resumed"] == places
                assert unmarked(row) == unmarked(undisturbed)
            elif first == 1:  # never saved: begun anew, alone
                assert row == undisturbed
            else:
                assert row["resumed"] == [21 if method == "mac" else 16]
                assert 0 < row["kv_tokens"] < row["context_kv"]
    marked = ["full", "mac K=32 r=8", "streaming_llm budget=0.3"][: 1 if first == 1 else 3]
    for label in marked:
        assert f"resumed: {label} on ruler/niah_single_1, 2 of 2 answers" in table
    assert table.count("resumed: ") == len(marked)


def test_without_checkpoints_a_cut_block_begins_anew(words, whole, tmp_path, monkeypatch, capsys):
    interrupted(7, [*words, f"out={tmp_path}"], monkeypatch)
    assert len([*tmp_path.glob("*/partial.jsonl")]) == 3
    assert main([*words, "checkpoint=0", f"out={tmp_path}"]) == 0
    assert rows(tmp_path) == whole
    assert not [*tmp_path.glob("*/partial*")]


@pytest.mark.parametrize("option", ["checkpoint=0", f"checkpoint={NEW}"])
def test_short_answers_are_not_saved(words, whole, tmp_path, monkeypatch, capsys, option):
    held = []
    save = Cell.save_partial
    monkeypatch.setattr(
        Cell, "save_partial", lambda cell, rows=(): held.extend(rows) or save(cell, rows)
    )
    assert main([*words, option, f"out={tmp_path}"]) == 0
    assert held == [] and rows(tmp_path) == whole


def test_a_torn_line_is_an_answer_begun_anew(words, whole, tmp_path, monkeypatch, capsys):
    words = [*words, f"out={tmp_path}"]
    interrupted(9, words, monkeypatch)
    file = partial(tmp_path, "streaming_llm")
    file.write_bytes(file.read_bytes()[:-40])
    partial(tmp_path, "mac").write_bytes(b"\x00\xff{\n[1]\n")
    file.with_name("partial.jsonl.tmp").write_bytes(b"{")  # what a kill leaves of a new one
    assert main(words) == 0
    found = rows(tmp_path)
    assert [row.get("resumed") for row in found["full"]] == [[16], [16]]
    assert [row.get("resumed") for row in found["streaming_llm"]] == [[16], None]
    assert found["mac"] == whole["mac"]
    assert found["streaming_llm"][1] == whole["streaming_llm"][1]


def test_sampled_answers_go_on_with_the_same_draws(words, tmp_path, monkeypatch, capsys):
    words = [*words, "method=full", "decoding.temperature=1.0"]
    words = [word for word in words if not word.startswith(("mac.", "streaming_llm."))]
    assert main([*words, f"out={tmp_path / 'whole'}"]) == 0
    interrupted(3, [*words, f"out={tmp_path / 'cut'}"], monkeypatch)
    assert main([*words, f"out={tmp_path / 'cut'}"]) == 0
    for row, other in zip(*(rows(tmp_path / x)["full"] for x in ("whole", "cut")), strict=True):
        assert other["resumed"] == [16] and unmarked(row) == unmarked(other)


def test_a_stop_string_ends_a_text_also_where_it_was_cut_off(tiny, tmp_path, monkeypatch, capsys):
    """The string begins before the fourth save and ends behind it."""
    words = ["run", "task=longgenbench/diary", "length=40", "limit=2", *tiny, "checkpoint=5"]
    words += ["method=[full,mac]", "mac.K=32", "mac.r=8", "model.dtype=float32"]
    assert main([*words, f"out={tmp_path / 'free'}"]) == 0
    free = rows(tmp_path / "free")
    interrupted(9, [*words, f"out={tmp_path / 'cut'}"], monkeypatch)  # the fourth of the first cell
    saved_ = json.loads(partial(tmp_path / "cut", "full").read_text().splitlines()[0])
    tokenizer = AutoTokenizer.from_pretrained(tiny[0].partition("=")[2])
    start = len(tokenizer.decode(saved_["answer"]["tokens"], skip_special_tokens=True))
    stop = free["full"][0]["output"][start - 4 : start + 4]
    monkeypatch.setattr(sections, "STOP", stop)
    assert main([*words, f"out={tmp_path / 'whole'}"]) == 0
    assert main([*words, f"out={tmp_path / 'cut'}"]) == 0
    whole, cut = rows(tmp_path / "whole"), rows(tmp_path / "cut")
    ended = whole["full"][0]
    assert ended["output"] == free["full"][0]["output"].partition(stop)[0]
    assert ended["stopped"] == "stop_string" and ended["new_tokens"] < 40
    for before, row, again in zip(free["full"], whole["full"], cut["full"], strict=True):
        assert_counts(row)
        assert unmarked(again) == unmarked(row)
        assert (row["stopped"] == "stop_string") == (stop in before["output"])


def test_answers_that_had_ended_are_not_decoded_again(words, tmp_path, monkeypatch, capsys):
    """The first sample's answers have 8 tokens: they are stored at the second save."""
    ask, go, asked = groups.request, Engine.run, []

    def request(config, model, task, sample):
        made = ask(config, model, task, sample)
        return made if sample.index else Request(**{**vars(made), "max_new": 8})

    def engine(self, requests, *args):
        asked.append([len(r.tokens) for r in requests])
        return go(self, requests, *args)

    monkeypatch.setattr(groups, "request", request)
    monkeypatch.setattr(Engine, "run", engine)
    assert main([*words, f"out={tmp_path / 'whole'}"]) == 0
    interrupted(6, [*words, f"out={tmp_path / 'cut'}"], monkeypatch)
    stored = rows_now(tmp_path / "cut")
    assert stored == {"full": [0], "mac": [0], "streaming_llm": [0]}
    asked.clear()
    assert main([*words, f"out={tmp_path / 'cut'}"]) == 0
    done = json.loads((tmp_path / "cut" / "runs.jsonl").read_text().splitlines()[-1])
    assert done["repeat_mismatch"] == 0 and done["steps"] == 3 * (NEW - 11)
    whole, cut = rows(tmp_path / "whole"), rows(tmp_path / "cut")
    assert asked == [[whole["full"][1]["prompt_tokens"] + 11]] * 3
    for method, lines in cut.items():
        assert lines[0] == whole[method][0] and lines[0]["new_tokens"] == 8
        assert lines[1]["resumed"] == [11] and lines[1]["new_tokens"] == NEW
    assert unmarked(cut["full"][1]) == unmarked(whole["full"][1])


def rows_now(out: Path) -> dict[str, list[int]]:
    """Indices of the rows on disk, by method."""
    samples = store.read(out)
    methods = samples.cells["method"]
    return (
        samples.samples.groupby(samples.samples["cell"].map(methods))["index"].apply(list).to_dict()
    )


@pytest.mark.parametrize("hold", ["0", "question"])
def test_budgets_stay_shares_of_the_prompt(words, tmp_path, monkeypatch, capsys, hold):
    """A continued row keeps and reads as many tokens as one that was never cut off."""
    shares = ["quest.budget=0.3", "quest.shared=true", "quest.dense_layers=0"]
    shares += ["streaming_llm.budget=0.3", "oracle_topk.tokens=0.3", "random.tokens=0.3"]
    methods = ["quest", "streaming_llm", "oracle_topk", "random"]
    words = [word for word in words if not word.startswith(("mac.", "streaming_llm."))]
    words += [f"method=[{','.join(methods)}]", *shares, f"hold={hold}", "limit=1"]
    assert main([*words, f"out={tmp_path / 'whole'}"]) == 0
    whole = rows(tmp_path / "whole")
    saves = (whole["quest"][0]["hold"] if hold == "question" else 0) // 5 + 4
    interrupted(len(methods) * saves, [*words, f"out={tmp_path / 'cut'}"], monkeypatch)
    assert main([*words, f"out={tmp_path / 'cut'}"]) == 0
    cut = rows(tmp_path / "cut")
    for method in methods:
        (undisturbed,), (row,) = whole[method], cut[method]
        assert row["resumed"] and row["new_tokens"] == undisturbed["new_tokens"]
        for name in ("head_tokens", "kv_tokens", "meta_bytes", "resident", "context_kv"):
            assert row[name] == undisturbed[name], (method, name)


def test_held_tokens_are_decoded_before_the_answer(words, tmp_path, monkeypatch, capsys):
    """Cut off while they still are, and 20 steps later."""
    words = [*words, "hold=question"]
    assert main([*words, f"out={tmp_path / 'whole'}"]) == 0
    whole = rows(tmp_path / "whole")["full"]
    held = whole[0]["hold"]
    for saves in (1, held // 5 + 4):  # of each of the three cells
        out = tmp_path / str(saves)
        interrupted(3 * saves, [*words, f"out={out}"], monkeypatch)
        assert main([*words, f"out={out}"]) == 0
        for row, undisturbed in zip(rows(out)["full"], whole, strict=True):
            assert unmarked(row) == unmarked(undisturbed)
            assert row["steps"] == row["new_tokens"] - 1 + row["hold"]
            made = 5 * saves - row["hold"] + 1
            assert row.get("resumed") == ([made] if saves > 1 else None)


def test_an_audit_goes_on_and_is_shown(words, whole, tmp_path, monkeypatch, capsys):
    words = [*words, "audit=4", f"out={tmp_path}"]
    interrupted(9, words, monkeypatch)
    assert main(words) == 0
    table = capsys.readouterr().out
    assert "ln p - full's" in table and "audit: relative L2" in table
    for method, lines in rows(tmp_path).items():
        for row, undisturbed in zip(lines, whole[method], strict=True):
            audit = row.pop("audit")
            assert audit["every"] == 4 and audit["tokens"] == row["steps"] == NEW - 1
            assert audit["steps"] == 4 + 6  # of 15 steps before the cut and 24 after it
            if method == "full":
                assert audit["error"] < 1e-5 and audit["agreement"] == 1
                assert abs(audit["loglik"] - audit["full_loglik"]) < 1e-3
                assert unmarked(row) == unmarked(undisturbed)
    layers = store.read(tmp_path).layers("steps")
    heads = layers[layers["kind"] == "q"]
    assert (heads["audited"] == 10).all()
    exact = heads["cell"].map(store.read(tmp_path).cells["method"]) == "full"
    assert (heads.loc[exact, "error"] < 1e-4).all() and (heads.loc[~exact, "error"] > 1e-3).any()


def test_an_audit_is_no_other_cell(words, whole, tmp_path, capsys):
    words = [*words, f"out={tmp_path}"]
    assert main([*words, "audit=7", "limit=1"]) == 0
    assert main(words) == 0  # the second sample, without
    first, second = zip(*rows(tmp_path).values(), strict=True)
    assert all("audit" in row for row in first) and not any("audit" in row for row in second)
    assert [{k: v for k, v in row.items() if k != "audit"} for row in first] == [
        undisturbed[0] for undisturbed in whole.values()
    ]


@pytest.mark.parametrize("word", ["checkpoint=-1", "audit=-1", "audit=half"])
def test_impossible_values_are_refused(word, tmp_path, capsys):
    assert main(["run", word, f"out={tmp_path}"]) == 2
    assert word.partition("=")[0] in capsys.readouterr().err


# -- two parts of an answer ----------------------------------------------------------------------


def part(tokens, steps, **reads) -> Answer:
    reads = {"steps": steps, "kv_tokens": [[1.0], [2.0]], **reads}
    return Answer(tokens, "", reads, prefill_s=1.0, decode_s=2.0)


def test_parts_are_joined():
    tally = {"histograms": {"hits": [[1, 0]]}, "width": 3}
    line = json.loads(json.dumps(saved(7, "sha", part([5, 6], 1.0, only=4.0, **tally))))
    before = loaded(line, "sha")
    assert before is not None and before.tokens == [5, 6]
    left = rest(Request([1, 2, 3], max_new=10, key=9, question=2), before)
    ask = {"hold": 1, "question": 2, "made": 2, "steps": 1, "decoded": 1}
    assert left == Request([1, 2, 3, 5, 6], 8, key=9, **ask)
    both = join(before, part([8], 2.0, **tally))
    assert both.tokens == [5, 6, 8] and both.resumed == [2] and both.decode_s == 4.0
    assert both.reads == {
        "steps": 3.0,
        "kv_tokens": [[2.0], [4.0]],
        "histograms": {"hits": [[2, 0]]},
        "width": 3,
    }
    wider = join(both, part([9], 2.0, **{**tally, "width": 4}))
    assert wider.resumed == [2, 3] and wider.reads.keys() == {"steps", "kv_tokens"}


def test_an_answer_without_tokens_or_to_another_prompt_begins_anew():
    request = Request([1, 2, 3], max_new=10, key=9, hold=2)
    assert loaded(None, "sha") is None
    assert loaded(saved(0, "sha", part([], 1.0)), "sha") is None
    assert loaded(saved(0, "sha", part([5], 1.0)), "other") is None
    assert loaded({"index": 0}, "sha") is None
    assert rest(request, None) is request
    assert join(None, part([8], 2.0)) == part([8], 2.0)
