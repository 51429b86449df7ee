"""The comparison at matched budgets: every cell against what its samples say, worked out here."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
from cells import TASKS, write
from scipy import stats as scipy_stats

from macbench import store
from macbench.cli import main
from macbench.errors import MacbenchError
from macbench.tables import report
from macbench.tables.blocks import summarise
from macbench.tables.compare import table

N = 40
FULL = [1] * 30 + [0] * 10


def flip(scores, *places):
    return [1 - s if i in places else s for i, s in enumerate(scores)]


def found(out, **options):
    text = table(store.read(out), "csv", **options)
    return {row["label"]: row for row in csv.DictReader(io.StringIO(text))}


def grid(text, first):
    """A table of the text as {row: {column: cell}}, by the word that its header begins with."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.split() and line.split()[0] == first)
    split = [[c.strip() for c in line.strip().split("   ") if c.strip()] for line in lines[at:]]
    header, body = split[0], []
    for row in split[2:]:
        if not row:
            break
        body.append(row)
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in body}


@pytest.fixture
def out(tmp_path):
    """One right-or-wrong task: full, quest at two budgets, a broken one, one too good, MAC."""
    write(tmp_path, "full", {"passes": 1}, FULL, begin=0.0)
    for budget, scores in ((0.1, flip(FULL, 0, 1, 2)), (0.4, FULL)):
        label = f"quest budget={budget}"
        knobs = {"budget": budget}
        write(tmp_path, "quest", knobs, scores, label=label, share=budget, planned=0.101, begin=0.5)
    write(tmp_path, "snapkv", {"budget": 0.1}, [0] * N, label="snapkv window=64 budget=0.1")
    write(tmp_path, "kivi", {"budget": 0.4}, [1] * N, label="kivi budget=0.4")
    write(tmp_path, "mac", {"tau": 0.45}, flip(FULL, 5, 35), label="mac tau=0.45")
    return tmp_path


def test_rows_are_methods_and_columns_budgets(out):
    cells = grid(table(store.read(out)), "score")
    assert list(cells) == ["full", "kivi", "mac tau=0.45", "quest", "snapkv window=64"]
    assert set(cells["full"]) == {"no budget asked", "10 %", "40 %"}
    assert cells["quest"]["no budget asked"] == "-" == cells["mac tau=0.45"]["10 %"]
    assert cells["quest"]["10 %"].startswith("67.5 +- ")
    # 4 steps of 100 tokens: 10 % of the tokens and 20480 bytes of 400 x 512
    assert "at ~20.0 %" in cells["quest"]["10 %"]
    assert cells["full"]["no budget asked"].endswith("at 100.0 %")


def test_the_marks(out):
    """quest at 40 % answers as full does; kivi gains 10 samples and snapkv loses 30 of 40."""
    rows = found(out, margin=0.12)
    marks = {
        label: [row[name] for name in ("not_worse", "different", "better")]
        for label, row in rows.items()
        if label != "full"
    }
    assert marks == {
        "kivi budget=0.4": ["True", "True", "True"],
        "mac tau=0.45": ["True", "False", "False"],
        "quest budget=0.1": ["False", "False", "False"],
        "quest budget=0.4": ["True", "False", "False"],
        "snapkv window=64 budget=0.1": ["False", "True", "False"],
    }
    text = table(store.read(out), margin=0.12)
    cells = grid(text, "score")
    assert cells["kivi"]["40 %"].endswith(", nd!") and cells["quest"]["40 %"].endswith(", n")
    assert cells["snapkv window=64"]["10 %"].endswith(", d")
    assert cells["quest"]["10 %"].endswith(" %")
    assert "! kivi budget=0.4: better than full attention; look for a bug first." in text


def test_a_narrow_margin_needs_more_samples(out):
    """40 equal answers exclude a loss of z^2 / (n + z^2) = 6.3 points, not of one."""
    rows = found(out)
    assert rows["quest budget=0.4"]["margin"] == "0.01"  # RULER's
    assert rows["quest budget=0.4"]["not_worse"] == "False"
    z = scipy_stats.norm.ppf(0.95)
    assert -float(rows["quest budget=0.4"]["difference_least"]) < 2 * z**2 / (N + z**2)


def test_holm_is_over_the_table(out):
    rows = {label: row for label, row in found(out).items() if label != "full"}
    p = {label: float(row["p"]) for label, row in rows.items()}
    worst = sorted(p.values())
    assert p["snapkv window=64 budget=0.1"] == pytest.approx(2 * 0.5**30)
    assert p["kivi budget=0.4"] == pytest.approx(2 * 0.5**10)
    assert p["quest budget=0.1"] == pytest.approx(2 * 0.5**3)
    assert p["mac tau=0.45"] == 1 and worst[0] == p["snapkv window=64 budget=0.1"]
    holm = {label: float(row["p_holm"]) for label, row in rows.items()}
    assert holm["kivi budget=0.4"] == pytest.approx(4 * 2 * 0.5**10)
    assert holm["quest budget=0.1"] == pytest.approx(min(1, 3 * 2 * 0.5**3))


def test_power_of_what_was_seen(out):
    """3 of 40 changed: 7.5 %; quantiles from scipy."""
    row = found(out, margin=0.02)["quest budget=0.1"]
    a, b, one = (scipy_stats.norm.ppf(x) for x in (0.975, 0.8, 0.95))
    assert float(row["changed"]) == 0.075
    assert int(row["n_for_a_point"]) == math.ceil((a + b) ** 2 * (0.075 - 1e-4) / 1e-4)
    assert int(row["n_for_the_margin"]) == math.ceil((one + b) ** 2 * 0.075 / 4e-4)
    same = found(out)["quest budget=0.4"]
    assert same["changed"] == "0.0" and same["n_for_a_point"] == ""  # nothing to go by


def test_clusters_are_the_unit(tmp_path):
    """Ten questions of each of four texts, all of one text lost: one thing happened, not ten."""
    texts = [f"text {i // 10}" for i in range(N)]
    write(tmp_path, "full", {"passes": 1}, [1] * N, clusters=texts)
    lost = [0] * 10 + [1] * 30
    write(tmp_path, "quest", {"budget": 0.1}, lost, label="quest budget=0.1", clusters=texts)
    row = found(tmp_path)["quest budget=0.1"]
    assert (row["test"], float(row["p"])) == ("sign-flip", 1.0)
    assert float(row["changed"]) == pytest.approx(10**2 / N)


def test_graded_scores_of_two_tasks(tmp_path):
    draw = np.random.default_rng(0)
    full, loss = draw.random((2, N)), draw.normal(0.05, 0.1, (2, N))
    for task, scores, change in zip(TASKS, full, loss, strict=True):
        write(tmp_path, "full", {"passes": 1}, list(scores), task)
        worse = np.clip(scores - change, 0, 1)
        write(tmp_path, "quest", {"budget": 0.1}, list(worse), task, label="quest budget=0.1")
    changes = [np.clip(f - c, 0, 1) - f for f, c in zip(full, loss, strict=True)]
    row = found(tmp_path)["quest budget=0.1"]
    mean = np.mean([c.mean() for c in changes])
    error = np.sqrt(sum(c.var(ddof=1) / N for c in changes)) / 2
    assert float(row["difference"]) == pytest.approx(mean)
    least = mean - scipy_stats.norm.ppf(0.95) * error
    assert float(row["difference_least"]) == pytest.approx(least, abs=0.1 * error)
    assert float(row["changed"]) == pytest.approx(np.mean([np.mean(c**2) for c in changes]))


def test_costs(out):
    """A step reads 100 tokens of 512 bytes; at 20 % of them 40960 are saved: at 81920 bytes a
    second half a second of work is one token's worth."""
    read = grid(table(store.read(out)), "budget")["quest budget=0.1"]
    assert (read["asked, %"], read["planned, %"], read["read, %"]) == ("10.0", "10.1", "20.0")
    cells = grid(table(store.read(out), bandwidth=81920), "cost")
    quest = cells["quest budget=0.1"]
    assert (quest["own prefill, s"], quest["of prefill, %"]) == ("0.5", "25.0")
    assert quest["pays after tokens"] == "1"
    assert float(found(out, bandwidth=81920)["quest budget=0.1"]["pays_after"]) == pytest.approx(1)
    assert "mac tau=0.45" not in cells  # of a run before it was measured
    assert "pays after" not in table(store.read(out)).split("score:")[0]


def test_fewer_tasks_are_told_with_what_full_has_on_them(tmp_path):
    """Quest answered only the task in which full attention has 90 %, of 50 % over both."""
    easy, hard = [1] * 9 + [0], [1] + [0] * 9
    write(tmp_path, "full", {"passes": 1}, easy, TASKS[0])
    write(tmp_path, "full", {"passes": 1}, hard, TASKS[1])
    write(tmp_path, "quest", {"budget": 0.4}, flip(easy, 0), TASKS[0])
    cells = grid(table(store.read(tmp_path)), "score")
    assert cells["full"]["no budget asked"].startswith("50.0 +- ")
    assert cells["quest"]["40 %"].startswith("80.0 +- ")
    assert cells["quest"]["40 %"].endswith(", 1 of 2 tasks (90.0)")


def test_fewer_samples_of_full_attention_stand_for_no_others(tmp_path):
    """Full attention has 5 samples of 20 and 40: no figure of its own on those."""
    write(tmp_path, "full", {"passes": 1}, [0] * 5)
    write(tmp_path, "quest", {"budget": 0.4}, [1, 0] * 10, label="quest budget=0.4")
    write(tmp_path, "mac", {"tau": 0.6}, FULL)
    cells = grid(table(store.read(tmp_path)), "score")
    assert cells["quest"]["40 %"].endswith(", 20 of 40")
    assert cells["full"]["no budget asked"].endswith(", 5 of 40")


def test_full_has_nothing_to_pay_back_and_what_reads_more_never_does(out):
    write(out, "mac", {"tau": 1.0}, FULL, label="mac tau=1", share=0.98, begin=0.5)
    rows = found(out, bandwidth=1e9)
    assert rows["full"]["pays_after"] == "" and rows["mac tau=1"]["pays_after"] == "inf"
    assert (
        grid(table(store.read(out), bandwidth=1e9), "cost")["mac tau=1"]["pays after tokens"]
        == "never"
    )


def test_a_budget_below_the_floor_stands_in_its_column_with_its_minimum(tmp_path):
    write(tmp_path, "full", {"passes": 1}, FULL)
    knobs = {"budget": 0.13}
    asked = {"budget": 0.05}
    label = "quest budget=0.05"
    write(tmp_path, "quest", knobs, FULL, label=label, floor=0.13, asked=asked, share=0.03)
    assert "at min 13.0 %" in grid(table(store.read(tmp_path)), "score")["quest"]["5 %"]


def test_a_floor_answers_for_every_budget_below_it(tmp_path):
    """One cell at 13 %, asked for as 5 %; others were asked for 10 and 20 %."""
    write(tmp_path, "full", {"passes": 1}, FULL)
    options = {"label": "quest budget=0.05", "floor": 0.13, "asked": {"budget": 0.05}}
    write(tmp_path, "quest", {"budget": 0.13}, FULL, share=0.03, **options)
    for budget in (0.1, 0.2):
        write(tmp_path, "snapkv", {"budget": budget}, FULL, label=f"snapkv budget={budget}")
    quest = grid(table(store.read(tmp_path)), "score")["quest"]
    assert quest["5 %"] == quest["10 %"] and "at min 13.0 %" in quest["10 %"]
    assert quest["20 %"] == "-"


def test_what_reads_something_else_than_asked_says_so(tmp_path):
    """Asked 20 and 40 %, read 20.4 and 50 % (10 % of it metadata)."""
    write(tmp_path, "full", {"passes": 1}, FULL)
    for budget, share in ((0.2, 0.104), (0.4, 0.4)):
        write(tmp_path, "quest", {"budget": budget}, FULL, label=f"quest {budget=}", share=share)
    text = table(store.read(tmp_path))
    quest = grid(text, "score")["quest"]
    assert "at 20.4 %" in quest["20 %"] and "at ~50.0 %" in quest["40 %"]
    assert "\n~: what was read is more than 5 % of it off" in text
    assert r"at $\sim$50.0 \%" in table(store.read(tmp_path), "latex")  # ~ alone is a blank there
    rows = found(tmp_path)
    assert [rows[f"quest budget={b}"]["matched"] for b in (0.2, 0.4)] == ["True", "False"]
    assert rows["full"]["matched"] == ""


def test_what_is_unfinished_says_so(tmp_path):
    """Two tasks: quest has a part of one, snapkv failed on one, kivi never acted."""
    for task in TASKS:
        write(tmp_path, "full", {"passes": 1}, FULL, task)
        label, knobs = "snapkv budget=0.1", {"budget": 0.1}
        failed = "out of memory" if task == TASKS[1] else None
        write(tmp_path, "snapkv", knobs, [] if failed else FULL, task, label=label, failed=failed)
        write(tmp_path, "kivi", {"bits": 4}, FULL, task, acted=False)
    write(tmp_path, "quest", {"budget": 0.1}, FULL[:3], label="quest budget=0.1")
    text = table(store.read(tmp_path))
    cells = grid(text, "score")
    assert cells["quest"]["10 %"].endswith(", 1 of 2 tasks (100.0)")
    assert cells["snapkv"]["10 %"].endswith(", 1 of 2 tasks (75.0)")
    assert " of 2 tasks" not in cells["full"]["no budget asked"]
    assert "mind quest budget=0.1: 1 of 2 tasks." in text
    assert "mind snapkv budget=0.1: failed: 1 of 2 cells, 1 of 2 tasks." in text
    assert "mind kivi: never acted." in text


def test_against_another_row_every_row_is_paired_with_that_one(out):
    """Quest at 0.1 fails in three samples that full attention answers; MAC in one, and it answers
    one more, so of quest's three MAC has all."""
    cells = found(out, against="quest budget=0.1")
    full, mac, quest = (cells[x] for x in ("full", "mac tau=0.45", "quest budget=0.1"))
    assert (full["won"], full["lost"]) == ("3", "0") and quest["difference"] == ""
    assert float(full["difference"]) == pytest.approx(3 / N)
    assert (mac["won"], mac["lost"]) == ("4", "1")
    text = table(store.read(out), against="quest budget=0.1")
    assert grid(text, "vs")["full"] and "not worse than quest budget=0.1 by more than" in text
    assert "look for a bug" not in text  # only of what beats full attention

    (block,) = summarise(store.read(out), against="quest budget=0.1")
    same = {line.label: line.same for line in block.lines}
    assert same["full"] is None and same["mac tau=0.45"] == 1  # of full attention's answers, ever


def test_against_a_row_that_is_not_there(out, capsys):
    write(out, "full", {"passes": 1}, FULL, length=4096)  # a second block
    assert main(["compare", str(out), "--against", "quest budget=0.11"]) == 2
    assert "did you mean 'quest budget=0.1'?" in capsys.readouterr().err
    assert main(["compare", str(out), "--against", "nothing like it"]) == 2
    assert capsys.readouterr().err.count("full") == 1


def test_without_full_attention_there_are_no_tests_and_it_is_said(tmp_path):
    write(tmp_path, "quest", {"budget": 0.1}, FULL, label="quest budget=0.1")
    text = table(store.read(tmp_path))
    assert "no sample of full attention here to pair with" in text
    assert "vs full" not in text and "McNemar" not in text


@pytest.mark.parametrize(("checked", "why"), [(0.4, "not like those"), (0.6, "came no nearer")])
def test_why_a_calibrated_budget_is_off(tmp_path, checked, why):
    """It reads 60 % where 40 were asked for, and did so on its own samples, or did not."""
    write(tmp_path, "full", {"passes": 1}, FULL)
    about = {"budget": 0.4, "checked": checked, "length": 2048, "tasks": ["ruler/vt"]}
    write(tmp_path, "mac", {"budget": 0.4}, FULL, label="mac budget=0.4", calibration=about)
    assert why in table(store.read(tmp_path))


def test_a_calibration_at_another_length_is_named(tmp_path):
    write(tmp_path, "full", {"passes": 1}, FULL)
    about = {"length": 1024, "tasks": ["ruler/vt"]}
    write(tmp_path, "mac", {"tau": 0.4}, FULL, label="mac budget=0.5", calibration=about)
    there = "calibrated elsewhere: mac budget=0.5, at 1024 tokens of ruler/vt."
    for told in (table(store.read(tmp_path)), report.table(store.read(tmp_path))):
        assert there in told
    about["length"] = 2048
    write(tmp_path / "same", "mac", {"tau": 0.4}, FULL, label="mac", calibration=about)
    assert "calibrated elsewhere" not in table(store.read(tmp_path / "same"))


def test_rows_of_one_label_are_told_apart_in_few_letters(tmp_path):
    """Two calibrations of tau per layer for one budget."""
    write(tmp_path, "full", {"passes": 1}, FULL)
    for first in (0.3, 0.4):
        knobs = {"tau": [first] * 30, "amend": first == 0.3}
        write(tmp_path, "mac", knobs, FULL, label="mac budget=0.5", asked={"budget": 0.5})
    names = [name for name in grid(table(store.read(tmp_path)), "score") if name != "full"]
    assert len({*names}) == 2 and max(map(len, names)) < 50
    assert {name.rpartition(" ")[2] for name in names} == {"amend=false", "amend=true"}


def test_the_tests_fit_a_hundred_columns(out):
    tables = table(store.read(out), bandwidth=1e9).split("score:")[0].splitlines()[2:]
    assert max(map(len, tables)) <= 110


def test_folders_are_read_together_and_a_cell_in_both_once(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    write(one, "full", {"passes": 1}, FULL[:20])
    write(other, "full", {"passes": 1}, FULL)
    write(one, "quest", {"budget": 0.1}, FULL, label="quest budget=0.1")
    write(other, "quest", {"budget": 0.4}, FULL, label="quest budget=0.4")
    results = store.read(one, other)
    assert len(results.cells) == 3
    row = found_in(results)["quest budget=0.1"]
    assert (row["n"], row["pairs"]) == ("40", "40")
    with pytest.raises(MacbenchError, match="no results in"):
        store.read(one, tmp_path / "none")


def found_in(results):
    text = table(results, "csv")
    return {row["label"]: row for row in csv.DictReader(io.StringIO(text))}


def test_the_command_and_its_formats(out, capsys):
    for format, part in (("md", "| score | no budget asked |"), ("latex", r"\toprule")):
        assert main(["compare", str(out), "--format", format]) == 0
        assert part in capsys.readouterr().out
    assert main(["compare", str(out), "--margin", "12", "--bandwidth", "4800"]) == 0
    text = capsys.readouterr().out
    assert "by more than 12 points" in text and "at 4800 GB/s" in text
    assert main(["compare", str(out), "--margin", "0"]) == 2
    assert "--margin 0: give points" in capsys.readouterr().err
    for wrong in ("-1", "nan", "inf"):
        assert main(["compare", str(out), "--bandwidth", wrong]) == 2
        assert "GB/s above 0" in capsys.readouterr().err
