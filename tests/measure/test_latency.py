"""What the latency harness times, and that it refuses to time what is wrong.

Kernels run under Triton's interpreter, which has to be chosen before they are defined: so this file
is also a script, started once, that prints one JSON object.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch

from macbench.bench.attention import configure, table
from macbench.cli import main
from macbench.errors import MacbenchError
from macbench.measure.latency import data, record, reference
from macbench.measure.latency.cases import (
    Plan,
    Point,
    Reuse,
    Shape,
    full_volume,
    kv_tokens,
    mac_volume,
    plan,
)
from macbench.measure.latency.curve import break_even, crossing
from macbench.measure.latency.floor import Machine

MACHINE = Machine("a card", 1000.0, 8, 2.5, ((1000, 4.0), (3000, 8.0)))


def reuse(**over) -> Reuse:
    values = {"hit": 0.5, "pattern": "independent", "lag": 5, "K": 32, "r": 10, "ring": "typical"}
    return Reuse(**{**values, **over})


# -- bytes and floors ----------------------------------------------------------------------------


def test_bytes_of_a_step_by_hand():
    shape = Shape("4/2", 16, 100, 1)  # a vector is 32 bytes
    hits = Plan(torch.tensor([[True, True, True, False]]), torch.tensor([[5, 7, 5, 5]]))
    assert kv_tokens(shape, reuse(K=8), hits).tolist() == [[17, 100]]  # lag 7 + r; one head misses
    volume = mac_volume(shape, reuse(K=8), hits)
    assert volume.ring == 4 * 8 * 32
    assert volume.match == volume.ring + 4 * 32
    assert volume.attend == 117 * 2 * 32 + 4 * 32
    assert volume.merge == 3 * (32 + 4) + 4 * (32 + 32 + 4) + 4 * 32
    assert full_volume(shape).total == 100 * 2 * 2 * 32 + 2 * 4 * 32
    assert shape.cache_bytes == 100 * 2 * 2 * 32


def test_floors_are_bytes_and_launches():
    assert MACHINE.floor(5000, 3) == 5 + 2.5 + 2
    assert MACHINE.cold_floor(2000, 1) == 6.0  # between two measured sizes
    assert MACHINE.cold_floor(500, 1) == 4.0
    assert MACHINE.cold_floor(6000, 2) == 16 + 1


# -- who hits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["contiguous", "independent"])
def test_a_plan_keeps_the_asked_share_and_higher_rates_miss_less_of_the_same(pattern):
    shape, before = Shape("32/8", 128, 4096, 3), None
    for hit in (0, 0.5, 0.9, 0.95, 1):
        made = plan(shape, reuse(hit=hit, pattern=pattern), 7)
        assert int((~made.hit).sum()) == math.floor((1 - hit) * 96 + 0.5)
        if before is not None:
            assert not (before.hit & ~made.hit).any()
        before = made


def test_contiguous_misses_are_a_run_that_cuts_groups_and_independent_ones_spread():
    shape = Shape("32/8", 128, 4096, 4)
    groups = {}
    for pattern in ("contiguous", "independent"):
        hit = plan(shape, reuse(hit=0.75, pattern=pattern), 0).hit
        groups[pattern] = int((~hit.view(-1, 4)).any(-1).sum())
        if pattern == "contiguous":
            miss = ~hit.flatten()
            assert int((miss & ~miss.roll(1)).sum()) == 1  # one run, maybe around the end
            assert int(hit.view(-1, 4).any(-1).logical_and(~hit.view(-1, 4).all(-1)).sum()) == 2
    assert groups["contiguous"] == 9  # 32 heads of 128, begun one head into a group
    assert groups["independent"] > 18


def test_drawn_lags_stay_in_the_ring():
    lags = plan(Shape("32/8", 128, 4096, 4), reuse(lag=0), 0).lag
    assert lags.min() >= 1 and lags.max() <= 31 and lags.unique().numel() > 20


@pytest.mark.parametrize("kind", ["far", "typical", "worst"])
@pytest.mark.parametrize("hit", [0, 0.5, 1])
@pytest.mark.parametrize("lag", [0, 5])
def test_a_ring_gives_the_planned_matches_and_is_as_hard_as_it_says(kind, hit, lag):
    shape = Shape("6/2", 64, 100, 2)
    wish = reuse(hit=hit, ring=kind, lag=lag)
    hits = plan(shape, wish, 3)
    made = data.bank(shape, 1, "cpu", 1)
    queries, *_ = data.ring(made, 0, wish, hits, 32, 2)
    radius = wish.radius(64)
    found, position = reference.matched(queries, made.layers[0].q_pre, 99, radius)
    assert torch.equal(found, hits.hit)
    assert torch.equal(position[found], (99 - hits.lag)[hits.hit])

    apart = queries.float() - made.layers[0].q_pre.float().unflatten(-1, (2, 1, 32))
    planted = torch.zeros(2, 6, 32, dtype=torch.bool)
    planted.scatter_(2, ((99 - hits.lag) % 32)[..., None], hits.hit[..., None])
    first = apart[:, :, 0].norm(dim=-1)
    whole = apart.square().sum((2, 4)).sqrt().masked_fill(planted, torch.inf)
    if kind == "far":
        assert (first[~planted] > radius).all()
    elif kind == "worst":
        early = apart.transpose(2, 3).flatten(3)[..., :-16].norm(dim=-1)
        assert (early < radius).all()
    else:
        share = whole.amin(-1) / radius
        assert (share < 1.22).all() and (share > 0.78).all()
    assert (whole[~hits.hit] > radius).all()


# -- the reference -------------------------------------------------------------------------------


def test_the_reference_is_plain_attention():
    shape = Shape("6/2", 16, 75, 2, "float32")
    made = data.bank(shape, 1, "cpu", 1)
    layer = made.layers[0]
    expected = reference.expected_full(made).out
    for b in range(2):
        pages = made.table[b].long()
        k, v = (x[pages].transpose(0, 1).flatten(1, 2)[:, :75] for x in (layer.k, layer.v))
        plain = torch.nn.functional.scaled_dot_product_attention(
            layer.q[b][:, None], k.repeat_interleave(3, 0), v.repeat_interleave(3, 0)
        )
        torch.testing.assert_close(expected[b], plain[:, 0])


def test_rows_that_are_exact_make_the_reference_equal_full_attention():
    shape = Shape("6/2", 16, 75, 2, "float32")
    made, wish = data.bank(shape, 1, "cpu", 1), reuse(r=12, lag=0)
    hits = plan(shape, wish, 0)
    queries, rows, lse, _ = data.ring(made, 0, wish, hits, 8, 2)
    for lag in range(1, 32):  # what the same query saw up to every candidate's prefix end
        zeros = torch.zeros(2, 6, dtype=torch.int64)
        (out, level), _ = reference.summaries(made, 0, zeros, 75 - lag - 12)
        rows[:, :, (74 - lag) % 32], lse[:, :, (74 - lag) % 32] = out, level
    expected = reference.expected_mac(made, 0, wish, hits, (queries, rows, lse))
    torch.testing.assert_close(expected.out, reference.expected_full(made).out)


def test_what_is_not_a_number_is_never_right():
    right = reference.Expected(torch.ones(1, 2, 4))
    wrong = torch.ones(1, 2, 4)
    wrong[0, 1, 2] = torch.nan
    assert reference.judge_output(right.out, right).ok
    assert not reference.judge_output(wrong, right).ok


# -- rows ----------------------------------------------------------------------------------------


def row(**over) -> dict:
    point = Point(Shape("32/8", 128, 4096, 1), "mac", reuse(lag=0))
    made = record.identity(point, 0) | {"us_median": 12.5, "us_p10": 12.0, "us_p90": 13.0, "n": 60}
    made |= {"floor_us": 10.0, "cold_us": 11.0, "over_floor": 1.25, "ok": True, "cold": True}
    return made | {"device": "a card", "code": "c", "run": "2000-01-01"} | over


def test_rows_survive_and_the_same_point_is_not_measured_again(tmp_path):
    book = record.Record(tmp_path, "rows")
    book.add(row())
    book.add(row(hit=0.9, us_median=None, ok=False, note="wrong"))
    (tmp_path / "rows.tmp").write_bytes(b"what a kill leaves")

    again = record.Record(tmp_path, "rows")
    assert again.has(row(), "a card", "c")
    assert not again.has(row(), "another card", "c") and not again.has(row(), "a card", "d")
    assert not again.has(row(hit=0.9), "a card", "c") and not again.has(row(hit=1), "a card", "c")
    again.add(row(hit=0.9, us_median=9.0))
    again.add(row(us_median=11.0))

    found = record.read(tmp_path / "rows.parquet")
    assert list(found.columns) == list(record.COLUMNS)
    assert found["us_median"].tolist() == [11.0, 9.0] and found["ok"].all()
    assert found["lag"].tolist() == [0, 0] and found["layout"].tolist() == ["32/8"] * 2


def test_a_file_of_something_else_is_refused(tmp_path):
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(MacbenchError, match="not a file of latency rows"):
        record.Record(tmp_path, "rows")
    with pytest.raises(MacbenchError, match="preset=hit_curve"):
        record.collect(tmp_path, "hit_curve")


def test_the_table_names_the_break_even_and_shows_no_time_of_what_failed():
    curve = [row(hit=h, vs_flashinfer_tc=r, access=None) for h, r in ((0, 0.8), (0.5, 1.0), (1, 4))]
    failed = row(hit=0.9, us_median=None, us_p10=None, us_p90=None, over_floor=None)
    failed |= {"ok": False, "note": "3 of 32 heads decided otherwise"}
    rows = record.frame([dict.fromkeys(record.COLUMNS) | r for r in (*curve, failed)])
    text = table(rows)
    (line,) = (line for line in text.splitlines() if "FAILED" in line)
    assert "3 of 32 heads" in line and "12.5" not in line
    assert "as fast as flashinfer_tc from hit rate 0.50 on" in text
    assert len(break_even(rows)) == 1


def test_break_even_is_interpolated_in_time():
    curve = pd.DataFrame({"hit": [0.0, 0.5, 1.0], "vs_flashinfer_tc": [0.5, 0.8, 2.0]})
    assert crossing(curve) == pytest.approx(0.5 + 0.5 * (1.25 - 1) / (1.25 - 0.5))
    assert crossing(curve.assign(vs_flashinfer_tc=[1.1, 1.2, 2])) == 0
    assert crossing(curve.assign(vs_flashinfer_tc=[0.5, 0.6, 0.9])) is None


# -- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("battch=1", "did you mean 'batch'?"),
        ("preset=hit_curv", "did you mean 'hit_curve'?"),
        ("method=[mac,flashinfer]", "did you mean 'flashinfer_tc'?"),
        ("pattern=contigous", "did you mean 'contiguous'?"),
        ("ring=xyz", "known: far, typical, worst"),
        ("batch=1,16", "write the list batch=[1,16]"),
        ("batch=x", "must be a whole number"),
        ("hit=1.5", "must lie in [0, 1]"),
        ("hit=[]", "hit is empty"),
        ("lag=512", "lag=512 must lie in [1, K) with K=512"),
        ("layout=32/5", "write query heads/KV heads"),
        ("context=long", "write tokens as 4096 or 4k"),
        ("context=512", "too short for K=512"),
        ("access=0.1", "with hit=1 and one lag"),
        ("d=100", "powers of two"),
        ("replays=0", "at least 1"),
        ("hit", "write key=value"),
        ("hit=[0", "cannot be read"),
    ],
)
def test_a_wrong_word_is_one_sentence(capsys, word, part):
    assert main(["bench", "attention", word]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("macbench: ") and part in line


def test_without_a_gpu_bench_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main(["bench", "attention"]) == 2
    assert (
        "NVIDIA GPU of compute capability 8.0 or newer and none was found"
        in capsys.readouterr().err
    )


def test_points_are_the_combinations_each_once():
    words = ["batch=[1,2]", "hit=[0,0.5,1]", "pattern=[contiguous,independent]", "K=[64,128]"]
    points, settings = configure([*words, "context=4k", "lag=uniform", "method=[mac,triton_full]"])
    mac = [point for point in points if point.method == "mac"]
    assert len(mac) == 2 * 2 * (1 + 2 + 1)  # all or none missing: one pattern
    assert len(points) == len(mac) + 2 and settings.name is None
    assert {point.shape.context for point in points} == {4096}


def test_a_share_of_the_context_sets_the_band():
    points, _ = configure(["hit=1", "access=0.1", "context=32k", "method=mac", "batch=1"])
    (point,) = points
    assert point.reuse is not None and point.reuse.r + point.reuse.lag == 3277


@pytest.mark.parametrize(
    ("preset", "points"),
    [("hit_curve", 90), ("speedup_grid", 192), ("breakdown", 69), ("tables", 30), ("long", 4)],
)
def test_presets_are_complete(preset, points):
    made, settings = configure([f"preset={preset}"])
    assert len(made) == points and settings.name == preset


def test_smollm2_has_its_own_head_dimension():
    points, _ = configure(["layout=[9/3,32/8]", "method=flashinfer_tc", "batch=1"])
    assert [point.shape.d for point in points] == [64, 128]


# -- whole points under the interpreter -----------------------------------------------------------

SHAPE = Shape("3/1", 16, 120, 2, "float32")
TILES = (("programs", 3), ("tokens", 32))


class Idle:
    """A timer without a clock: it runs everything in the order of the real one."""

    def capture(self, call):
        return call

    def time(self, replays, after, count, warm=0.0):
        after = after or [lambda: None] * len(replays)
        for turn in range(count):
            replays[turn % len(replays)]()
            after[turn % len(replays)]()
        return [100.0 + turn for turn in range(count)]

    def sensors(self, replays, after):
        return {"sm_mhz": None, "mem_mhz": None, "power_w": None}


def fake_flashinfer() -> None:
    """FlashInfer's decode wrapper in torch, to see that its arguments mean what they should."""
    import types
    from importlib.machinery import ModuleSpec

    class Wrapper:
        def __init__(self, scratch, layout, *, use_cuda_graph, use_tensor_cores, **buffers):
            assert layout == "HND" and use_cuda_graph and len(buffers) == 3

        def plan(self, indptr, indices, last, q_heads, kv_heads, d, page, **types):
            assert (page, set(types)) == (16, {"q_data_type", "kv_data_type"})
            self.lists = [
                (indices[a:b].long(), 16 * (b - a - 1) + n)
                for a, b, n in zip(
                    indptr.tolist(), indptr[1:].tolist(), last.tolist(), strict=False
                )
            ]

        def run(self, q, cache, out):
            for b, (pages, length) in enumerate(self.lists):
                k, v = (x[pages].transpose(0, 1).flatten(1, 2)[:, :length] for x in cache)
                out[b] = torch.nn.functional.scaled_dot_product_attention(
                    q[b][:, None], k, v, enable_gqa=True
                )[:, 0]

    module = types.ModuleType("flashinfer")
    module.__spec__ = ModuleSpec("flashinfer", None)
    module.__dict__.update(__version__="0", BatchDecodeWithPagedKVCacheWrapper=Wrapper)
    sys.modules["flashinfer"] = module


def script(folder: str) -> None:
    from pathlib import Path

    from macbench.measure.latency import run, steps

    fake_flashinfer()
    machine = Machine("interpreter", 1e6, 8, 2.7, ((10, 3.0), (10**9, 300.0)), l2=1)
    options = run.Options(replays=3, seed=0, run="now", code="c")

    def measure(name: str, points: list[Point]) -> tuple[bool, list[str]]:
        lines: list[str] = []
        book = record.Record(Path(folder), name)
        bench = run.Bench(book, Idle(), machine, torch.device("cpu"), options, lines.append)
        return bench.run(points), lines

    mixed = Point(SHAPE, "mac", reuse(ring="worst"), TILES)
    parts = Point(SHAPE, "mac_launches", reuse(hit=1.0, pattern="contiguous", lag=0), TILES)
    full = [Point(SHAPE, "triton_full", None, TILES), Point(SHAPE, "flashinfer_tc")]
    answers = {"good": measure("good", [mixed, parts, *full])}
    answers["again"] = measure("good", [mixed, parts, *full])
    restore = steps.MacStep.restore
    steps.MacStep.restore = lambda self, index: None  # type: ignore[method-assign]
    answers["trap"] = measure("trap", [mixed])
    steps.MacStep.restore = restore  # type: ignore[method-assign]
    exact = steps.attend.attend

    def wrong(work, q, *rest):
        exact(work, q, *rest)
        work.output[1, 2, 3] += 0.01

    steps.attend.attend = wrong
    answers["wrong"] = measure("wrong", full[:1])
    print(json.dumps(answers))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    pytest.importorskip("triton", reason="needs triton")
    folder = tmp_path_factory.mktemp("interpreted")
    env = {**os.environ, "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), folder


def test_points_are_gated_timed_and_recorded(measured):
    answers, folder = measured
    good, lines = answers["good"]
    assert good and len(lines) == 6
    rows = record.read(folder / "good.parquet").set_index("method")
    assert rows["ok"].all() and (rows["error"] < 1e-5).all()
    assert rows.index.tolist()[:2] == ["flashinfer_tc", "triton_full"]  # the ratios need them
    assert rows["us_median"].tolist() == [101.0] * 6 and (rows["n"] == 3).all()
    assert rows.loc["mac", "vs_flashinfer_tc"] == 1 and rows.loc["mac", "sets"] == 2
    parts = rows.loc[["mac_match", "mac_attend", "mac_merge"], "bytes"]
    assert parts.min() > 0 and rows.loc["mac", "kernels"] == 3


def test_what_was_measured_is_not_measured_again(measured):
    answers, _ = measured
    assert answers["again"] == [True, []]


def test_a_step_that_matches_its_own_query_is_red(measured):
    answers, folder = measured
    good, (line,) = answers["trap"]
    assert not good and "FAILED" in line and "decided otherwise" in line
    (row,) = record.read(folder / "trap.parquet").to_dict("records")
    assert pd.isna(row["us_median"]) and pd.isna(row["over_floor"]) and not row["ok"]


def test_a_wrong_output_is_red(measured):
    good, (line,) = measured[0]["wrong"]
    assert not good and "output off by" in line


if __name__ == "__main__":
    script(sys.argv[1])
