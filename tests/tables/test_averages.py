"""RULER's averages against hand-made numbers, and what they refuse to average."""

from __future__ import annotations

import csv
import io

import pandas as pd
import pytest

from macbench import cli, store
from macbench.tables import averages
from macbench.tasks.ruler import TASKS


class Made:
    """Results made here, without a disk."""

    def __init__(self):
        self.cells: dict[str, dict] = {}
        self.samples: list[dict] = []

    def add(
        self,
        task,
        length,
        score,
        method="full",
        version=1,
        n=2,
        failed=None,
        source="x",
        floor=None,
    ):
        """A cell of n samples with one score."""
        identity = {
            "schema": 1,
            "model": {"name": "tiny", "weights": "w"},
            "dtype": "float32",
            "task": {"name": task, "version": version, "knobs": {"prefix": "official"}},
            "length": length,
            "seed": 42,
            "hold": 0,
            "max_new": None,
            "decoding": {"temperature": 0.0},
            "method": {"name": method, "version": 1, "knobs": {"budget": floor}},
        }
        cell = f"{task} {length} {method} {version}"
        about = {"model": "tiny", "task": task, "length": length, "label": method}
        config = {"floor": floor, "asked": {"budget": 0.05}}
        self.cells[cell] = {**about, "failed": failed, "identity": identity, "config": config}
        self.samples += [{"cell": cell, "score": score, "source": source}] * n

    def results(self):
        cells = pd.DataFrame.from_dict(self.cells, orient="index")
        return store.Results(cells, pd.DataFrame(self.samples), {})


def tidy(made):
    text = averages.table(made.results(), "csv")
    return {row["method"]: row for row in csv.DictReader(io.StringIO(text))}


SCORES = {4096: 0.9, 8192: 0.8, 16384: 0.7, 32768: 0.6, 65536: 0.5, 131072: 0.1}


@pytest.fixture
def made():
    """All tasks at all lengths with full, one length and without one task at another with mac."""
    made = Made()
    for length, score in SCORES.items():
        for i, task in enumerate(TASKS):
            made.add(f"ruler/{task}", length, score + (i - 6) / 100)
    for task in TASKS:
        made.add(f"ruler/{task}", 4096, 0.5, "mac", n=1)
        if task != "cwe":
            made.add(f"ruler/{task}", 131072, 0.5, "mac")
    return made


def test_published_averages(made):
    full = tidy(made)["full"]
    for length, score in SCORES.items():
        assert float(full[str(length)]) == pytest.approx(score)
    assert float(full["Avg."]) == pytest.approx(3.6 / 6)
    inc = (0.9 + 2 * 0.8 + 3 * 0.7 + 4 * 0.6 + 5 * 0.5 + 6 * 0.1) / 21
    dec = (6 * 0.9 + 5 * 0.8 + 4 * 0.7 + 3 * 0.6 + 2 * 0.5 + 0.1) / 21
    assert float(full["wAvg (inc)"]) == pytest.approx(inc)
    assert float(full["wAvg (dec)"]) == pytest.approx(dec)


def test_weights_are_those_of_the_published_table():
    # Llama-3.1-8B: its six published lengths and the two averages printed beside them
    means = (95.5, 93.8, 91.6, 87.4, 84.7, 77.0)
    at = {
        length: averages.Average(mean, (), (500, 500))
        for length, mean in zip(averages.LENGTHS, means, strict=True)
    }
    found = averages.over_lengths(averages.Row("full", at))
    assert {k: round(v, 1) for k, v in found.items()} == {
        "Avg.": 88.3,
        "wAvg (inc)": 85.4,
        "wAvg (dec)": 91.3,
    }


def test_a_missing_task_or_length_leaves_the_average_out_and_says_so(made):
    mac = tidy(made)["mac"]
    assert float(mac["4096"]) == 0.5
    assert mac["131072"] == mac["Avg."] == mac["wAvg (inc)"] == mac["wAvg (dec)"] == ""
    text = averages.table(made.results())
    assert "left out, mac: 128K has 12 of 13 tasks, not cwe." in text
    assert "left out, mac: no average over lengths without 8K, 16K, 32K, 64K, 128K." in text
    assert "samples per task: 1 to 2; the published runs have 500." in text
    row = next(line for line in text.splitlines() if line.strip().startswith("mac"))
    assert row.split() == ["mac", "50.0", *["-"] * 8]


def test_failed_cells_and_older_versions_do_not_count(made):
    made.add("ruler/cwe", 131072, 0.5, "mac", failed="out of memory")
    assert tidy(made)["mac"]["131072"] == ""
    made.add("ruler/cwe", 131072, 0.5, "mac", version=2)  # of full no cell is as new
    assert tidy(made)["full"]["4096"] == "" and float(tidy(made)["mac"]["131072"]) == 0.5


def test_embedded_texts_are_named(made):
    made.add("ruler/qa_1", 2048, 0.5, source="embedded")
    text = averages.table(made.results(), "md")
    assert "source=embedded" in text and "these averages are not RULER scores" in text


@pytest.mark.parametrize("format", ["text", "md", "latex", "csv"])
def test_every_format_has_every_column(made, format):
    table = averages.table(made.results(), format)
    for name in ("mac", "Avg.", "wAvg (inc)", "wAvg (dec)"):
        assert name in table


def test_the_command_says_where_there_is_nothing_of_ruler(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "read", lambda folder: made.results())
    assert cli.main(["show", str(tmp_path), "--averages"]) == 0
    assert "RULER averages" in capsys.readouterr().out
    made.cells = {"c": {**next(iter(made.cells.values())), "task": "longbench_v2"}}
    assert cli.main(["show", str(tmp_path), "--averages"]) == 2
    assert "no RULER results" in capsys.readouterr().err


def test_a_floor_that_differs_by_length_is_one_row(made):
    for length, floor in ((4096, 0.14), (8192, 0.13)):
        for task in TASKS:
            made.add(f"ruler/{task}", length, 0.5, method="quest budget=0.05", floor=floor)
    row = tidy(made)["quest budget=0.05"]
    assert (row["4096"], row["8192"]) == ("0.5", "0.5")


def test_cells_without_a_sample_yet_are_as_if_they_were_not_there(made):
    made.add("ruler/vt", 4096, 0.5, method="tova", n=0)
    assert "tova" not in tidy(made)
    begun = Made()
    begun.add("ruler/vt", 4096, 0.5, n=0)
    begun.samples = [{"cell": "another", "score": 0.0, "source": "x"}]
    assert "4K to 128K" in averages.table(begun.results())
