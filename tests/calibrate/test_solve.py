"""Calibration: the recording against loops, the prediction against MAC itself, the file against the
runs that may and may not take it."""

from __future__ import annotations

import csv
import io
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from macbench import store
from macbench.attention import create
from macbench.calibrate.shadow import Curve, Shadow, bisect, choose, curves, mean
from macbench.calibrate.solve import next_aim, read_words
from macbench.cli import main
from macbench.errors import MacbenchError
from macbench.tables.compare import table

sys.path.insert(0, str(Path(__file__).parents[1] / "attention"))
from harness import drive, exact, problem


def recorded(case, mac, rings):
    shadow = Shadow(mac, rings, case.steps)
    record = drive(shadow, case)
    return shadow.recorded(), record


def test_the_recording_is_full_attention_and_finds_the_nearest_of_each_ring():
    case = problem(lengths=(37, 9), steps=12)
    rings = [4, 16]
    found, record = recorded(case, create("mac", {}), rings)
    torch.testing.assert_close(record.tensor(), exact(case), rtol=0, atol=1e-12)
    for slot, s in enumerate(case.sequences):
        for at in range(case.steps):
            t = s.length + at
            assert found.seen[slot, at] == t + 1
            for layer in range(2):
                for head in range(4):
                    for i, ring in enumerate(rings):
                        held = range(max(t - ring, 0), t)
                        q = s.q_pre[layer, :, head]
                        apart = {x: (q[t] - q[x]).norm().item() for x in held}
                        best = min(held, key=lambda x: apart[x])
                        place = (layer, slot, at, head, i)
                        assert found.distance[place].item() == pytest.approx(apart[best], rel=1e-6)
                        assert found.position[place] == best


def budget_of(record, case):
    """What a driven method has read of full attention's bytes."""
    read = record.trace.sums["kv_tokens"].sum() * case.geometry.token_bytes
    read += record.trace.sums["meta_bytes"].sum()
    whole = record.trace.context.sum() * case.geometry.layers * case.geometry.kv_heads
    return (read / (whole * case.geometry.token_bytes)).item()


@settings(max_examples=40)
@given(
    st.integers(0, 50),
    st.lists(st.integers(1, 60), min_size=1, max_size=2),
    st.integers(1, 3),
    st.sampled_from([4, 16, 32]),
    st.sampled_from([0.0, 0.2, 0.45, 0.6, 0.8, 1.0]),
    st.integers(0, 12),
    st.sampled_from([{}, {"sink": 3}, {"min_context": 30}, {"amend": False}]),
    st.sampled_from([{}, {"match_on": "post_rope"}, {"refresh_mixed_groups": True}]),
)
def test_where_queries_do_not_drift_the_prediction_is_what_mac_reads(
    seed, lengths, group, ring, tau, r, one, other
):
    """The same queries under both: to the last token, for every tau from one recording."""
    case = problem(seed, lengths=lengths, steps=15, group=group)
    knobs = {"r": r, **one, **other}
    mac = create("mac", knobs)
    blocks = [recorded(case, mac, [ring, 64])[0]]
    curve = mean(curves([blocks], mac, ring, case.geometry))
    taken = create("mac", {**knobs, "tau": tau, "K": ring})
    assert curve.at(tau) == pytest.approx(budget_of(drive(taken, case), case), rel=1e-9)


def test_a_tau_per_layer_is_predicted_too():
    case = problem(3, lengths=(50,), steps=15)
    mac = create("mac", {"r": 4})
    layers = curves([[recorded(case, mac, [16])[0]]], mac, 16, case.geometry)
    taus = [0.3, 0.7]
    read = sum(curve.at(tau) for curve, tau in zip(layers, taus, strict=True)) / 2
    record = drive(create("mac", {"r": 4, "tau": taus, "K": 16}), case)
    assert read == pytest.approx(budget_of(record, case), rel=1e-9)


def test_blocks_are_pooled_and_finished_rows_left_out():
    case = problem(4, lengths=(50,), steps=15)
    other = problem(5, lengths=(33,), steps=15)
    mac = create("mac", {"r": 4})
    whole = [recorded(x, mac, [16])[0] for x in (case, other)]
    short = replace(whole[1], seen=whole[1].seen.clone())
    short.seen[:, 5:] = 0
    cut = replace(other, steps=5)
    records = [drive(create("mac", {"r": 4, "tau": 0.4, "K": 16}), x) for x in (case, cut)]
    tokens = [record.trace.context.sum().item() for record in records]
    shares = [budget_of(record, x) for record, x in zip(records, (case, cut), strict=True)]
    one_task = sum(n * share for n, share in zip(tokens, shares, strict=True)) / sum(tokens)
    curve = mean(curves([[whole[0], short]], mac, 16, case.geometry))
    assert curve.at(0.4) == pytest.approx(one_task, rel=1e-9)
    two_tasks = mean(curves([[whole[0]], [short]], mac, 16, case.geometry))
    assert two_tasks.at(0.4) == pytest.approx(sum(shares) / 2, rel=1e-9) != curve.at(0.4)


def curve_of(worst, saved, fixed=1.1, d=8):
    return Curve.of(*(torch.tensor(x).double().numpy() for x in (worst, saved)), fixed, d)


def test_a_curve_by_hand():
    """d = 8: radius 4 (1 - tau). Matches at 1, 2 and 3 save 50, 20 and 10 %."""
    curve = curve_of([3.0, 1.0, 2.0, float("inf")], [0.1, 0.5, 0.2, 0.9])
    assert [curve.at(tau) for tau in (0, 0.2, 0.3, 0.6, 0.76, 1)] == pytest.approx(
        [0.3, 0.3, 0.4, 0.6, 1.1, 1.1]
    )
    assert curve.solve(0.45) == pytest.approx(0.5, abs=2e-5) and curve.at(curve.solve(0.45)) <= 0.45
    assert curve.solve(0.1) == 0 and curve.solve(1.2) == 1


@given(st.floats(0, 1))
def test_bisection_finds_the_end_of_a_condition(end):
    found = bisect(lambda x: x <= end)
    assert found <= end < found + 1.1e-5


def test_the_ring_with_the_strictest_tau_is_chosen():
    """The larger ring finds nearer rows but costs 0.2 more; at 0.9 both reach, at 0.5 one."""
    small = [curve_of([2.0, 3.0], [0.4, 0.3], fixed=1.05)]
    large = [curve_of([1.0, 2.5], [0.4, 0.3], fixed=1.25)]
    by_ring = {64: small, 256: large}
    assert [c.ring for c in choose(by_ring, 0.9, "global")] == [256, 64]
    assert [c.ring for c in choose(by_ring, 0.5, "global")] == [64]
    assert choose(by_ring, 0.3, "global") == []


def test_a_layer_that_cannot_read_so_little_takes_its_least_and_the_others_the_rest():
    """At 0.5 on average, and rounding: the first reads 0.8 at least, so the second may read 0.2."""
    layers = [curve_of([1.0], [0.3]), curve_of([1.0, 2.0], [0.3, 0.6])]
    (choice,) = choose({64: layers}, 0.501, "layer")
    first, second = choice.tau
    assert layers[0].at(first) == pytest.approx(0.8) and layers[1].at(second) == pytest.approx(0.2)
    assert choice.predicted == pytest.approx(0.5)
    assert choose({64: layers}, 0.45, "layer") == []


def test_the_aim_moves_by_the_error_and_then_between_both_sides():
    assert next_aim(0.4, [], 0.4) == 0.4
    assert next_aim(0.4, [(0.4, 0.34)], 0.4) == pytest.approx(0.46)
    assert next_aim(0.4, [(0.4, 0.34), (0.46, 0.28)], 0.4) == pytest.approx(0.58)  # less for more
    both = [(0.4, 0.34), (0.46, 0.28), (0.58, 0.52)]
    assert next_aim(0.4, both, 0.4) == pytest.approx(0.52)  # half-way from 0.28 to 0.52
    assert next_aim(0.4, [(0.4, 0.39), (0.41, 0.9)], 0.4) == pytest.approx(0.401)


@given(st.floats(0.1, 0.9), st.floats(0.5, 2), st.floats(-0.2, 0.2), st.floats(0, 0.3))
def test_the_aim_finds_what_reads_the_budget(budget, slope, offset, bend):
    def read(aim):
        return offset + slope * aim + bend * aim**2

    tried = []
    for _ in range(12):
        aim = next_aim(budget, tried, budget)
        tried.append((aim, read(aim)))
    assert min(abs(r - budget) for _, r in tried) < 0.02


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "budget= is missing"),
        (["budget=0.2"], "out= is missing"),
        (["budget=20", "out=x"], "budget=20 must be a share"),
        (["budget=a", "out=x"], "budget=a must be a share"),
        (["budget=0.2", "out=x", "per=head"], "per=head: choose global or layer"),
        (
            ["budget=0.2", "out=x", "method=full"],
            "one method: mac, or another that takes a budget or p",
        ),
        (["budget=0.2", "out=x", "method=[mac,quest]"], "one method"),
        (["budget=0.2", "out=x", "method=quest", "quest.budget=0.2"], "quest.budget is what"),
        (["budget=0.2", "out=x", "method=quest", "per=layer"], "per=layer is for mac"),
        (["budget=0.2", "out=x", "mac.tau=0.5"], "mac.tau is what calibrate solves for"),
        (["budget=0.2", "out=x", "mac.r=[64,128]"], "one value of every option"),
        (["budget=0.2", "out=x", "mac.match=previous"], "predicts match=nearest"),
        (["budget=0.2", "out=x", "length=[1k,2k]"], "at one length="),
        (["budget=0.2", "out=x", "tsk=ruler"], "unknown option 'tsk'"),
        (["bugdet=0.2", "out=x"], "unknown option 'bugdet'"),  # not that budget= is missing
    ],
)
def test_wrong_words(words, part):
    with pytest.raises(MacbenchError, match=part):
        read_words(words)


def test_words_of_a_run_and_a_seed_of_its_own():
    asked, config = read_words(["budget=0.2", "out=a/b.yaml", "mac.K=[64,32]", "length=1k"])
    assert (asked.budget, asked.per, asked.rings, asked.out) == (
        0.2,
        "global",
        [32, 64],
        Path("a/b.yaml"),
    )
    assert config.seed == 4242 != read_words(["budget=0.2", "out=x", "seed=7"])[1].seed
    assert read_words(["budget=0.2", "out=x"])[0].rings == [64, 128, 256, 512, 1024]


BASE = ["task=ruler/niah_single_1", "length=512", "max_new=12", "limit=2"]


@pytest.fixture(scope="module")
def calibrated(tiny, tmp_path_factory):
    """A file made by the command on the random model."""
    file = tmp_path_factory.mktemp("calibrated") / "mac60.yaml"
    words = [*tiny, *BASE, "mac.r=16", "mac.K=[16,32]", "budget=0.6", f"out={file}"]
    assert main(["calibrate", *words]) == 0
    return file


def test_the_file_runs_and_stands_in_its_column(calibrated, tiny, tmp_path, capsys):
    held = yaml.safe_load(calibrated.read_text())
    assert abs(held["checked"] - 0.6) < 0.05
    assert held["knobs"]["K"] in (16, 32) and held["knobs"]["r"] == 16 and held["seed"] == 4242
    out = tmp_path / "out"
    words = [*tiny, *BASE, f"method=[full,mac,mac@{calibrated}]", "mac.tau=0.9", "mac.K=16"]
    assert main(["run", *words, f"out={out}"]) == 0
    rows = csv.DictReader(io.StringIO(table(store.read(out), "csv")))
    found = {row["label"]: row for row in rows}
    assert list(found) == ["full", "mac r=16 budget=0.6", "mac tau=0.9 K=16"]
    mine = found["mac r=16 budget=0.6"]
    assert mine["asked"] == "0.6" and abs(float(mine["byte_budget"]) - 0.6) < 0.15
    assert found["mac tau=0.9 K=16"]["asked"] == ""
    capsys.readouterr()
    assert main(["show", str(out)]) == 0
    assert f"60 %, tau {held['knobs']['tau']:g}" in capsys.readouterr().out


def test_heads_that_disagree_are_allowed_for(tiny, tmp_path, capsys):
    """Quest's lists per query head: the knob goes down until their union is what was asked."""
    file, out = tmp_path / "quest.yaml", tmp_path / "out"
    words = [*tiny, *BASE, "quest.dense_layers=0"]
    assert main(["calibrate", *words, "method=quest", "budget=0.5", f"out={file}"]) == 0
    held = yaml.safe_load(file.read_text())
    assert held["checked"] == pytest.approx(0.5, abs=0.03) and held["knobs"]["budget"] < 0.48
    assert main(["run", *tiny, *BASE, f"method=[full,quest@{file}]", f"out={out}"]) == 0
    (found,) = [r for r in csv.DictReader(io.StringIO(table(store.read(out), "csv"))) if r["p"]]
    assert found["method"] == "quest dense_layers=0" and found["asked"] == "0.5"
    assert float(found["byte_budget"]) == pytest.approx(0.5, abs=0.05)


def test_what_is_checked_is_what_a_table_says(tiny, tmp_path):
    """Of two tasks, of which one takes many more steps."""
    file, out = tmp_path / "quest.yaml", tmp_path / "out"
    words = [*tiny, "task=[ruler/niah_single_1,ruler/fwe]", "length=1k", "limit=1", "seed=7"]
    words.append("quest.dense_layers=0")
    assert main(["calibrate", *words, "method=quest", "budget=0.5", f"out={file}"]) == 0
    held = yaml.safe_load(file.read_text())
    same = ["method=[full,quest]", f"quest.budget={held['knobs']['budget']}", f"out={out}"]
    assert main(["run", *words, *same]) == 0
    rows = [*csv.DictReader(io.StringIO(table(store.read(out), "csv")))]
    (whole,) = [r for r in rows if r["p"]]
    assert held["checked"] == pytest.approx(float(whole["byte_budget"]), abs=2e-6)


def test_an_outcome_of_p_is_calibrated_by_running(tiny, tmp_path):
    file = tmp_path / "twilight.yaml"
    words = ["method=twilight", "twilight.dense_layers=0", "twilight.base=all", "budget=0.6"]
    assert main(["calibrate", *tiny, *BASE, *words, f"out={file}"]) == 0
    held = yaml.safe_load(file.read_text())
    assert held["predicted"] is None and held["checked"] == pytest.approx(0.6, abs=0.06)
    assert held["knobs"]["p"] != 0.85 and held["knobs"]["base"] == "all"


def test_a_run_refuses_the_samples_it_was_calibrated_on(calibrated, tiny, tmp_path, capsys):
    words = [*tiny, *BASE, f"method=[full,mac@{calibrated}]", f"out={tmp_path / 'out'}"]
    assert main(["run", *words, "seed=4242"]) == 2
    assert "was calibrated on samples of ruler/niah_single_1" in capsys.readouterr().err
    assert main(["run", *words, "seed=4242", "length=600"]) == 2  # of the seed at any length
    assert not list(tmp_path.glob("out/*/"))


def test_a_run_refuses_equal_prompts_of_another_seed(calibrated, tiny, tmp_path, capsys):
    """As where a task has the same samples for every seed."""
    held = yaml.safe_load(calibrated.read_text())
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({**held, "seed": 1, "tasks": ["longbench_v2"]}))
    words = [*tiny, *BASE, f"method=[full,mac@{other}]", f"out={tmp_path / 'out'}", "seed=4242"]
    assert main(["run", *words]) == 2
    assert "was calibrated on samples of" in capsys.readouterr().err


def test_other_weights_and_other_files_are_refused(calibrated, tiny, tmp_path, capsys):
    words = [*tiny, *BASE, f"out={tmp_path / 'out'}"]
    assert main(["run", *words, "model.seed=1", f"method=[full,mac@{calibrated}]"]) == 2
    err = capsys.readouterr().err
    assert re.search(
        r"was calibrated for tiny \(random:0:\w{8}:cpu\), not for tiny \(random:1:", err
    )
    other = [*words, "model.seed=1", "model.name=other"]
    assert main(["run", *other, f"method=[full,mac@{calibrated}]"]) == 2
    assert "for tiny, not for other; run macbench calibrate" in capsys.readouterr().err
    assert main(["run", *words, "method=mac@nowhere.yaml"]) == 2
    assert "no calibration nowhere.yaml" in capsys.readouterr().err
    (tmp_path / "note.yaml").write_text("a: 1")
    assert main(["run", *words, f"method=mac@{tmp_path / 'note.yaml'}"]) == 2
    assert "is not a file that macbench calibrate has written" in capsys.readouterr().err
    held = yaml.safe_load(calibrated.read_text())
    fewer = {k: v for k, v in held["knobs"].items() if k != "K"}
    for knobs in (fewer, {**held["knobs"], "new": 1}):  # a default would not be what was calibrated
        (tmp_path / "other.yaml").write_text(yaml.safe_dump({**held, "knobs": knobs}))
        assert main(["run", *words, f"method=mac@{tmp_path / 'other.yaml'}"]) == 2
        assert "does not hold the knobs that mac has" in capsys.readouterr().err
    assert main(["run", *words, "method=mac@"]) == 2
    assert "names no file; write mac@FILE" in capsys.readouterr().err
    assert main(["run", *words, f"method=quest@{calibrated}"]) == 2
    assert "calibrates mac" in capsys.readouterr().err


def test_options_beside_a_file_are_refused_not_ignored(calibrated, tiny, tmp_path, capsys):
    words = [*tiny, *BASE, f"method=[full,mac@{calibrated}]", f"out={tmp_path / 'out'}"]
    assert main(["run", *words, "mac.tau=0.3"]) == 2
    assert "mac.tau is given but mac@" in capsys.readouterr().err


def test_a_file_and_the_same_knobs_typed_are_one_cell(calibrated, tiny, tmp_path, capsys):
    knobs = yaml.safe_load(calibrated.read_text())["knobs"]
    typed = [f"mac.{knob}={knobs[knob]}" for knob in ("tau", "K", "r")]
    words = [*tiny, *BASE, f"method=[full,mac@{calibrated},mac]", *typed]
    assert main(["run", *words, f"out={tmp_path / 'out'}"]) == 0
    assert "is the same as a method before it; it runs once" in capsys.readouterr().err
    assert len(list(tmp_path.glob("out/*mac*/"))) == 1


def test_a_file_that_cannot_be_written_costs_no_work(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "file" / "mac.yaml"):
        assert main(["calibrate", *tiny, *BASE, "budget=0.6", f"out={out}"]) == 2
        (sentence,) = capsys.readouterr().err.splitlines()  # before any sample is counted
        assert f"cannot write {out}" in sentence


def test_a_budget_out_of_reach_names_the_least(tiny, tmp_path, capsys):
    file = tmp_path / "no.yaml"
    assert main(["calibrate", *tiny, *BASE, "budget=0.01", f"out={file}"]) == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert "cannot read as little as 1 %" in sentence and "at least, with K=64" in sentence
    assert "a larger budget=, or take a longer length= or a smaller mac.r." in sentence
    assert not file.exists()
    words = ["method=streaming_llm", "budget=0.0001", f"out={file}"]
    assert main(["calibrate", *tiny, *BASE, *words]) == 2
    said = "as little as 0.01 % here: 1.0 % at least; ask for a larger budget="
    assert said in capsys.readouterr().err
    assert not file.exists()
