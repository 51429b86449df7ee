"""Latency figures are drawn from parquet files alone. Every number here is made up."""

from __future__ import annotations

import pytest

from macbench import plots
from macbench.cli import main
from macbench.measure.latency import record
from macbench.measure.latency.cases import LAUNCHES

FULL_US = {"flashinfer_tc": 100.0, "flashinfer_cc": 200.0, "triton_full": 105.0}


def full(method: str, **shape) -> dict:
    time = FULL_US[method]
    return {"method": method, "us_median": time, "us_p10": time, "us_p90": time + 1, **shape}


def mac(time: float, method: str = "mac", **over) -> dict:
    reuse = {"hit": 1.0, "pattern": "contiguous", "ring": "typical", "lag": 64, "K": 512, "r": 256}
    times = {"us_median": time, "us_p10": time - 1, "us_p90": time + 2, "floor_us": time / 2}
    ratios = {"vs_flashinfer_tc": 100 / time, "vs_flashinfer_cc": 200 / time}
    return {"method": method, **reuse, **times, "cold_us": 0.6 * time, **ratios, **over}


def write(folder, name: str, rows: list[dict]) -> None:
    same = {"layout": "32/8", "d": 128, "context": 4096, "batch": 1, "dtype": "bfloat16"}
    same |= {"tiling": "", "seed": 0, "n": 60, "launch_us": 2.7, "ok": True, "device": "made up"}
    same |= {"floor_us": 50.0, "cold_us": 60.0, "run": "2000-01-01T00:00:00"}
    folder.mkdir(exist_ok=True)
    table = record.frame([dict.fromkeys(record.COLUMNS) | same | row for row in rows])
    table.to_parquet(folder / f"{name}.parquet")


def hit_curve(folder) -> None:
    rows = [full("flashinfer_tc", batch=batch) for batch in (1, 16)]
    for batch in (1, 16):
        rows += [mac(110, hit=0.0, batch=batch), mac(15, batch=batch), mac(20, K=1024, batch=batch)]
        rows += [mac(14, ring="far", batch=batch), mac(19, ring="worst", batch=batch)]
        for pattern, times in (("contiguous", (60, 30)), ("independent", (104, 70))):
            for hit, time in zip((0.5, 0.9), times, strict=True):
                rows.append(mac(time, hit=hit, pattern=pattern, batch=batch))
    write(folder, "hit_curve", rows)


def speedup_grid(folder) -> None:
    write(
        folder,
        "speedup_grid",
        [
            mac(10 * batch * access + 10, batch=batch, context=context, access=access)
            for context in (32768, 262144)
            for batch in (1, 8)
            for access in (0.01, 0.4)
        ],
    )


def breakdown(folder) -> None:
    rows = [mac(5 + i, "mac_match", K=K, context=8192) for i, K in enumerate((512, 1024))]
    rows += [full("flashinfer_tc", context=K) for K in (512, 1024)]
    for layout in ("32/8", "64/8"):
        case = {"layout": layout, "batch": 4, "context": 32768}
        rows.append(full("flashinfer_tc", **case))
        for access in (0.01, 0.2):
            for name in ("mac", *LAUNCHES):
                rows.append(mac(10 + 50 * access, name, access=access, **case))
    write(folder, "breakdown", rows)


def tables(folder) -> None:
    rows = []
    for context in (32768, 122880):
        rows += [full(name, context=context) for name in ("flashinfer_tc", "flashinfer_cc")]
        for name in ("mac", *LAUNCHES):
            rows.append(mac(20, name, context=context, access=0.01, K=1024))
    write(folder, "tables", rows)


@pytest.mark.parametrize("make", [hit_curve, speedup_grid, breakdown], ids=lambda f: f.__name__)
def test_a_figure_is_drawn_and_the_same_rows_give_the_same_bytes(tmp_path, make):
    make(tmp_path)
    (first,) = plots.draw(make.__name__, tmp_path)
    once = first.read_bytes()
    (again,) = plots.draw(make.__name__, tmp_path)
    assert once == again.read_bytes() and len(once) > 10_000


def test_the_tables_stand_beside_the_paper(tmp_path, capsys):
    tables(tmp_path)
    assert main(["plot", "latency_tables", "--from", str(tmp_path)]) == 0
    text = (tmp_path / "latency_tables.md").read_text()
    assert capsys.readouterr().out.strip().endswith("latency_tables.md")
    assert "| 1% | 100.0 | 200.0 / 234.2 | 20.0 / 62.9 | 5.00x | 10.00x / 3.72x |" in text
    assert "| 32K | 1% | 100.0 | 200.0 / 71.6 | 20.0 / 9.1 | - / 28.8 |" in text


def test_failed_rows_and_older_ones_are_not_drawn(tmp_path):
    write(tmp_path, "hit_curve_a", [mac(10, run="2000"), mac(20, hit=0.5, run="2000")])
    write(tmp_path, "hit_curve_b", [mac(11, run="2001"), mac(20, hit=0.5, ok=False, run="2001")])
    assert record.collect(tmp_path, "hit_curve")["us_median"].tolist() == [11.0]


@pytest.mark.parametrize("name", ["hit_curve", "speedup_grid", "breakdown", "latency_tables"])
def test_without_rows_there_is_a_sentence(tmp_path, capsys, name):
    assert main(["plot", name, "--from", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "macbench bench attention preset=" in line


def test_the_papers_numbers_are_there_and_name_their_source():
    for name, rows in (("table_3", 8), ("table_5", 60), ("figure_6", 12)):
        assert len(plots.paper(name)) == rows
