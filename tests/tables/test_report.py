"""The table: numbers against the rows they come from, and what it must say beside them."""

from __future__ import annotations

import csv
import io
import re

import pytest
from cells import TASKS, write

from macbench import store
from macbench.errors import MacbenchError
from macbench.tables import compare
from macbench.tables.blocks import summarise
from macbench.tables.report import table


def rows(out) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table(store.read(out), "csv"))))


FULL = [1, 1, 1, 1, 1, 1, 1, 0]
MAC = [1, 1, 0, 0, 0, 0, 0, 0]


@pytest.fixture
def out(tmp_path):
    """Two tasks, full in two exact backends, MAC and a control."""
    for task in TASKS:
        write(tmp_path, "full", {"passes": 1}, FULL, task, outputs=list("abcdefgh"))
        split = list("abcdefgh") if task == TASKS[0] else list("abcdefXX")
        write(tmp_path, "full", {"passes": 2}, FULL, task, label="full/split", outputs=split)
        write(tmp_path, "mac", {"tau": 0.45}, MAC, task, label="mac tau=0.45")
        write(tmp_path, "oracle_topk", {"tokens": 0.2}, FULL, task, control=True)
    return tmp_path


def test_budgets_weigh_tasks_like_scores(tmp_path):
    """Two samples of a task that reads a fifth, eight of one that reads four."""
    for task, scores, share, hits in zip(TASKS, ([1, 1], 8 * [0]), (0.2, 0.8), (1, 4), strict=True):
        write(tmp_path, "mac", {"tau": 0.45}, scores, task, share=share, hits=hits)
    found = {r["task"]: r for r in rows(tmp_path)}
    assert float(found["all"]["accuracy"]) == float(found["all"]["head_budget"]) == 0.5
    assert [float(found[task]["token_budget"]) for task in TASKS] == [0.2, 0.8]
    assert [float(found[task]["acceptance"]) for task in TASKS] == [0.25, 1]
    assert float(found["all"]["acceptance"]) == 0.625


def test_acceptance_is_of_the_cells_that_the_line_is_of(tmp_path):
    """An older version of a task, in which other samples were asked, is in no figure."""
    write(tmp_path, "mac", {"tau": 0.45}, [1], version=2)
    write(tmp_path, "mac", {"tau": 0.45}, [1], version=1, hits=0)
    (pooled,) = [r for r in rows(tmp_path) if r["task"] == "all"]
    assert float(pooled["acceptance"]) == 0.75 and int(pooled["n"]) == 1


def test_pooled_numbers(out):
    found = {r["method"]: r for r in rows(out) if r["task"] == "all"}
    assert list(found) == ["full", "mac tau=0.45", "oracle_topk"]  # full first, controls last
    mac = found["mac tau=0.45"]
    assert float(mac["accuracy"]) == 0.25 and int(mac["n"]) == 16
    assert float(mac["difference"]) == pytest.approx(-0.625)
    assert float(mac["difference_high"]) < 0
    assert (mac["test"], int(mac["worse"]), int(mac["better"])) == ("mcnemar", 10, 0)
    assert float(mac["p"]) == pytest.approx(2 / 2**10)
    assert float(mac["p_holm"]) == pytest.approx(2 * 2 / 2**10)  # two rows are tested
    assert float(mac["head_budget"]) == float(mac["token_budget"]) == 0.5
    assert float(mac["byte_budget"]) == pytest.approx(0.5 + 20480 / (400 * 512))
    assert float(mac["resident"]) == 1.25
    assert float(mac["acceptance"]) == 0.75
    assert float(mac["radius"]) == pytest.approx(128**0.5 * 0.55)
    assert found["full"]["difference"] == "" and float(found["full"]["byte_budget"]) == 1
    assert found["oracle_topk"]["marks"] == "control" and found["oracle_topk"]["acceptance"] == ""


def test_rows_per_task(out):
    found = [r for r in rows(out) if r["method"] == "mac tau=0.45" and r["task"] != "all"]
    assert [r["task"] for r in found] == sorted(TASKS)
    for row in found:
        assert float(row["accuracy_low"]) < float(row["accuracy"]) < float(row["accuracy_high"])


def test_split_is_the_noise_floor_and_not_a_row(out):
    text = table(store.read(out))
    assert "noise floor: 12.5 % of 16 samples" in text
    assert "full/split" not in text.split("versions:")[0]
    assert all(float(r["noise_floor"]) == 2 / 16 for r in rows(out) if r["task"] == "all")


def test_text_says_what_was_run(out):
    text = table(store.read(out))
    title = text.splitlines()[0]
    for part in ("tiny (4-bit quantised release)", "2048 tokens", "RULER", "hold=0", "greedy"):
        assert part in title
    assert "embedded" not in text
    assert "tau 0.45 (radius 6.22)" in text
    assert "20 % of tokens" in text and "oracle_topk (control)" in text
    assert "\x1b" not in text  # not a terminal: no colours
    line = next(line for line in text.splitlines() if line.strip().startswith("mac"))
    assert "25.0 +- " in line and "-62.5 [" in line and "0.002" in line and "75.0" in line
    assert "ruler/fwe 1" in text and "mac 1" in text  # versions


@pytest.mark.parametrize("format", ["text", "md", "latex"])
def test_embedded_source_is_said_wherever_ruler_is(tmp_path, format):
    write(tmp_path, "full", {"passes": 1}, FULL, TASKS[0], source="embedded")
    write(tmp_path, "full", {"passes": 1}, FULL, TASKS[1])
    text = table(store.read(tmp_path), format)
    named = [line for line in text.splitlines() if "RULER" in line]
    assert named and all("RULER source=embedded" in line for line in named)
    assert "embedded)" in text.split("accuracy")[2]  # the per-task table marks the task
    sources = {r["task"]: r["source"] for r in rows(tmp_path)}
    assert sources == {"all": "embedded", TASKS[0]: "embedded", TASKS[1]: ""}


def test_silent_and_failed_cells_are_marked(out):
    write(out, "quest", {"budget": 0.4}, FULL, TASKS[0], label="quest 40", acted=False)
    write(out, "quest", {"budget": 0.4}, FULL, TASKS[1], label="quest 40", acted=False)
    write(out, "quest", {"budget": 0.2}, FULL, TASKS[0], label="quest 20")
    write(out, "quest", {"budget": 0.2}, [], TASKS[1], label="quest 20", failed="out of memory")
    write(out, "random", {"tokens": 0.2}, [], TASKS[0], failed="out of memory")
    text = table(store.read(out))
    assert "quest 40 (never acted)" in text
    assert "quest 20 (failed: 1 of 2 cells, 1 of 2 tasks)" in text
    assert "random (failed: 1 of 1 cells, 0 of 2 tasks)" in text
    assert "failed: quest 20 on ruler/fwe: out of memory" in text
    quest = next(r for r in rows(out) if r["method"] == "quest 20")
    assert (quest["n"], quest["pairs"]) == ("8", "8")  # compared on the task it did answer


def test_only_failed_cells(tmp_path):
    write(tmp_path, "full", {"passes": 1}, [], failed="out of memory")
    assert "failed: full on ruler/niah_single_2: out of memory" in table(store.read(tmp_path))


def test_budget_below_the_floor_prints_its_minimum(tmp_path):
    write(tmp_path, "quest", {"budget": 0.136}, FULL, floor=0.136, asked={"budget": 0.05})
    text = table(store.read(tmp_path))
    assert "min 13.6 %" in text and "vs full" not in text.split("accuracy:")[0]


def test_lengths_are_separate_tables_and_seeds_are_pooled(tmp_path):
    for length in (2048, 4096):
        for seed in (0, 1):
            own = {"length": length, "seed": seed, "sha": f"of seed {seed}: "}
            write(tmp_path, "full", {"passes": 1}, FULL, **own)
            write(tmp_path, "mac", {"tau": 0.6}, MAC, **own)
    blocks = summarise(store.read(tmp_path))
    assert [block.about["length"] for block in blocks] == [2048, 4096]
    assert [line.n for line in blocks[0].lines] == [16, 16]
    versus = blocks[0].lines[1].versus
    assert versus and (versus.n, versus.worse, versus.test) == (16, 10, "mcnemar")


@pytest.mark.parametrize("asks", ["the same prompts", "of the same texts"])
def test_what_every_seed_asks_again_is_no_further_evidence(tmp_path, asks):
    """Records in file order, and questions on the same documents: one answer each, however often
    it was asked. p of five losses is 1/16 with one seed and with three."""
    for seed in (0, 1, 2):
        again = {"clusters": [f"text {i}" for i in range(8)], "sha": f"of seed {seed}: "}
        own = {"seed": seed, **(again if "texts" in asks else {"sha": ""})}
        write(tmp_path, "full", {"passes": 1}, FULL, **own)
        write(tmp_path, "mac", {"tau": 0.6}, MAC, **own)
    one = tmp_path / "one"
    write(one, "full", {"passes": 1}, FULL)
    write(one, "mac", {"tau": 0.6}, MAC)
    many, few = (summarise(store.read(out))[0].lines[1].versus for out in (tmp_path, one))
    assert many and few and (many.n, few.n) == (24, 8)
    assert many.p == pytest.approx(few.p)
    assert many.difference.high - many.difference.low > 0.8 * (
        few.difference.high - few.difference.low
    )


def test_acceptance_is_of_all_tasks_or_not_told(tmp_path):
    for task in ("ruler/vt", "ruler/cwe"):
        write(tmp_path, "mac", {"tau": 0.6}, MAC, task=task)
    assert summarise(store.read(tmp_path))[0].lines[0].acceptance is not None
    for path in tmp_path.glob("*ruler-vt*/layers.*"):
        path.unlink()
    line = summarise(store.read(tmp_path))[0].lines[0]
    assert line.acceptance is None and line.tasks["ruler/cwe"].acceptance is not None


def test_same_answers_are_counted(tmp_path):
    write(tmp_path, "full", {"passes": 1}, FULL, outputs=list("abcdefgh"))
    write(tmp_path, "mac", {"tau": 0.6}, FULL, outputs=list("abcdxxgh"))
    full, mac = summarise(store.read(tmp_path))[0].lines
    assert full.same is None and mac.same == 0.75
    assert [r["same"] for r in rows(tmp_path) if r["task"] == "all"] == ["", "0.75"]


def test_fewer_samples_are_paired_on_what_both_have(tmp_path):
    write(tmp_path, "full", {"passes": 1}, FULL)
    write(tmp_path, "mac", {"tau": 0.6}, MAC[:4])
    line = summarise(store.read(tmp_path))[0].lines[1]
    assert line.versus and line.n == line.versus.n == 4
    assert line.versus.difference.mean == -0.5


def test_different_prompts_are_never_compared(tmp_path):
    write(tmp_path, "full", {"passes": 1}, FULL)
    write(tmp_path, "mac", {"tau": 0.6}, MAC, sha="other")
    with pytest.raises(MacbenchError, match="has another prompt in"):
        table(store.read(tmp_path))


def test_older_task_versions_are_left_out(tmp_path):
    write(tmp_path, "full", {"passes": 1}, [0] * 8, version=1)
    write(tmp_path, "full", {"passes": 1}, [1] * 8, version=2, sha="new")
    block = summarise(store.read(tmp_path))[0]
    assert [line.accuracy.mean for line in block.lines if line.accuracy] == [1]
    assert "left out: 1 cells of older versions" in block.notes[-1]


def test_equal_labels_name_what_differs(tmp_path):
    write(tmp_path, "mac", {"tau": 0.6, "K": 128}, MAC)
    write(tmp_path, "mac", {"tau": 0.6, "K": 512}, MAC)
    labels = [line.label for line in summarise(store.read(tmp_path))[0].lines]
    assert labels == ["mac K=128", "mac K=512"]


def test_better_than_full_is_a_warning(tmp_path):
    write(tmp_path, "full", {"passes": 1}, [0] * 8)
    write(tmp_path, "quest", {"budget": 0.2}, [1] * 8)
    assert "quest is better than full attention: look for a bug" in table(store.read(tmp_path))
    for i in range(20):  # of many methods, one by chance: not after Holm's correction
        write(tmp_path, "random", {"tokens": i / 20}, [0] * 8)
    assert "look for a bug" not in table(store.read(tmp_path))


def test_narrow_terminal_clips_nothing(out, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    text = table(store.read(out))
    assert "\x1b" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert max(map(len, plain.splitlines())) <= 80 and "…" not in plain
    assert "tau 0.45 (radius 6.22)" in plain and plain.count("mac tau=0.45") >= 3


def test_what_a_run_left_undone_is_marked(tmp_path):
    """A killed run has samples but no summary, or one of fewer samples than there are by now."""
    write(tmp_path, "full", {"passes": 1}, FULL)
    write(tmp_path, "quest", {"budget": 0.2}, FULL[:3], killed=True)
    write(tmp_path, "mac", {"tau": 0.45}, FULL)
    (summary,) = tmp_path.glob("*mac*/summary.json")
    summary.write_text('{"samples": 3}')
    text = table(store.read(tmp_path))
    assert "quest (not finished: 1 of 1 cells)" in text and "mac (not finished" in text
    assert "the same command again continues it" in text and "full (" not in text
    assert "mind quest: not finished: 1 of 1 cells." in compare.table(store.read(tmp_path))


def test_pooled_seeds_are_named(tmp_path):
    for seed in (7, 42):
        write(tmp_path, "full", {"passes": 1}, FULL, seed=seed)
    for told in (table(store.read(tmp_path)), compare.table(store.read(tmp_path))):
        assert "seeds: 7, 42, whose samples are pooled; a prompt" in told
    write(tmp_path / "one", "full", {"passes": 1}, FULL)
    assert "seeds:" not in table(store.read(tmp_path / "one"))


def test_markdown_and_latex_are_well_formed(out):
    text = table(store.read(out), "md")
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1
    tex = [line for line in table(store.read(out), "latex").splitlines() if line[:1] != "%"]
    assert tex.count(r"\toprule") == tex.count(r"\bottomrule") == 2
    body = [line for line in tex if line.endswith(r"\\")]
    assert {line.count(" & ") for line in body} == {12, 2}
    assert all(c not in line.replace("\\" + c, "") for line in tex for c in "%_#")
    assert any("$-$62.5 [" in line for line in body)  # a minus where a number is below 0


def test_same_results_same_bytes_and_unknown_format(out):
    for format in ("text", "md", "csv", "latex"):
        assert table(store.read(out), format) == table(store.read(out), format)
    with pytest.raises(MacbenchError, match=r"'latx': did you mean 'latex'\?"):
        table(store.read(out), "latx")
