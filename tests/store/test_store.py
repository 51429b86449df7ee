"""The store under kills, full disks, second processes and other configurations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from macbench import store
from macbench.errors import MacbenchError
from macbench.store.cell import cell_name, check_writable, open_cell

IDENTITY = {
    "schema": 1,
    "model": {"name": "tiny", "weights": "abc"},
    "dtype": "float32",
    "task": {"name": "ruler/vt", "version": 1, "knobs": {}},
    "length": 2048,
    "seed": 0,
    "hold": 0,
    "max_new": None,
    "decoding": {"temperature": 0.0},
    "method": {"name": "mac", "version": 1, "knobs": {"tau": 0.45}},
}
CONFIG = {
    "label": "mac tau=0.45",
    "method": "mac",
    "asked": {"tau": 0.45},
    "control": False,
    "notes": [],
    "floor": None,
    "block": 1,
    "geometry": {"layers": 2, "q_heads": 2, "kv_heads": 1, "head_dim": 4, "token_bytes": 32},
}
NAME = cell_name(["tiny", "ruler/vt", "mac tau=0.45"], IDENTITY)


def sample(index: int, seconds: float = 0.1) -> store.Row:
    reads = {"head_tokens": 40.0, "kv_tokens": 20.0, "meta_bytes": 64.0}
    return {
        **dict.fromkeys(store.COLUMNS, 0),
        **reads,
        "index": index,
        "id": f"vt-{index}",
        "cluster": f"vt-{index}",
        "source": "synthetic",
        "prompt_sha": "0" * 16,
        "references": ["A\u2028B"],  # a line break to some
        "output": f"answer\n{index} \ufffd",
        "score": index % 2,
        "steps": 2.0,
        "context": 20.0,
        "context_head": 80.0,
        "context_kv": 40.0,
        "resident": 1.0,
        "acted": True,
        "time": {"prefill_s": seconds, "decode_s": seconds},
    }


def layers(index: int) -> store.Row:
    q, kv = [[1.0 + index, 2.0], [3.0, 4.0]], [[5.0], [6.0]]
    return {
        "index": index,
        "id": f"vt-{index}",
        "steps": 2.0,
        "context": 20.0,
        **dict.fromkeys(("head_tokens", "hit", "distance", "gap", "skip", "depth"), q),
        **dict.fromkeys(("kv_tokens", "meta_bytes", "group_hit"), kv),
    }


def fill(out: Path, *indices: int, finish: bool = True, **changed) -> Path:
    with open_cell(out, NAME, IDENTITY, {**CONFIG, **changed}) as cell:
        for index in indices:
            cell.append(sample(index), layers(index))
        if finish:
            cell.finish()
        return cell.path


def contents(cell: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in cell.iterdir() if p.name != "environment.json"}


def child(code: str, *args: object) -> subprocess.CompletedProcess:
    """Run code in another process, with this module's helpers at hand."""
    module = Path(__file__)
    start = (
        "import sys, importlib.util as u\n"
        f"s = u.spec_from_file_location('helpers', {str(module)!r})\n"
        "h = u.module_from_spec(s); sys.modules['helpers'] = h; s.loader.exec_module(h)\n"
        "from pathlib import Path\nout = Path(sys.argv[1])\n"
    )
    command = [sys.executable, "-c", start + code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_round_trip(tmp_path):
    fill(tmp_path, 1, 0)
    results = store.read(tmp_path)
    assert list(results.cells.index) == [NAME]
    assert results.cells.loc[NAME, "identity"] == IDENTITY
    assert results.cells.loc[NAME, "config"] == {"identity": IDENTITY, **CONFIG}
    rows = results.samples.drop(columns="cell").to_dict("records")
    assert rows == [sample(0), sample(1)]
    long = results.layers("hit")
    assert len(long) == 2 * (2 * 2 + 2 * 1)
    one = long[(long["index"] == 1) & (long["kind"] == "q") & (long["layer"] == 0)]
    assert one["hit"].tolist() == [2.0, 2.0] and one["head"].tolist() == [0, 1]
    assert long.loc[long["kind"] == "kv", "group_hit"].tolist() == [5.0, 6.0] * 2
    summary = json.loads((tmp_path / NAME / "summary.json").read_text())
    assert summary["samples"] == 2 and summary["accuracy"]["mean"] == 0.5
    assert summary["budgets"]["token"] == 0.5
    assert summary["reuse"]["acceptance"] == pytest.approx((10 + 11) / 16)


def test_keys_keep_their_order_and_lines_are_json(tmp_path):
    cell = fill(tmp_path, 0)
    line = (cell / "samples.jsonl").read_bytes()
    assert line.count(b"\n") == 1 and list(json.loads(line)) == list(sample(0))


def test_name_depends_on_the_identity_only():
    reordered = dict(reversed(IDENTITY.items()))
    assert cell_name(["a"], reordered) == cell_name(["a"], IDENTITY)
    assert cell_name(["a"], {**IDENTITY, "seed": 1}) != cell_name(["a"], IDENTITY)
    assert "/" not in NAME and " " not in NAME


@pytest.mark.parametrize("torn", ["samples.jsonl", "layers.jsonl"])
@pytest.mark.parametrize("cut", [1, 5, 60])
def test_torn_line_is_dropped_and_run_again(tmp_path, torn, cut):
    whole = contents(fill(tmp_path / "whole", 0, 1))
    cell = fill(tmp_path / "torn", 0, 1, finish=False)
    if torn == "layers.jsonl":  # the kill came before the sample's own line
        (cell / "samples.jsonl").write_bytes(whole["samples.jsonl"].splitlines(True)[0])
    (cell / torn).write_bytes(whole[torn][:-cut])
    assert store.read(tmp_path / "torn").samples["index"].tolist() == [0]
    with open_cell(tmp_path / "torn", NAME, IDENTITY, CONFIG) as again:
        assert list(again.rows) == [0]
        again.append(sample(1), layers(1))
        again.finish()
    assert contents(cell) == whole


def test_kill_between_the_two_lines(tmp_path):
    code = """
cell = h.open_cell(out, h.NAME, h.IDENTITY, h.CONFIG)
cell.append(h.sample(0), h.layers(0))
import os, signal
cell._samples.close()
cell._samples = type("Killer", (), {
    "fileno": lambda self: cell._layers.fileno(),
    "write": lambda self, line: os.kill(os.getpid(), signal.SIGKILL),
})()
cell.append(h.sample(1), h.layers(1))
"""
    killed = child(code, tmp_path / "killed")
    assert killed.returncode == -9, killed.stderr
    cell = tmp_path / "killed" / NAME
    assert (cell / "layers.jsonl").read_bytes().count(b"\n") == 2
    assert (cell / "samples.jsonl").read_bytes().count(b"\n") == 1
    assert set(store.read(tmp_path / "killed").layers("hit")["index"]) == {0}
    fill(tmp_path / "killed", 1)
    assert contents(cell) == contents(fill(tmp_path / "whole", 0, 1))


def test_sigkill_at_any_moment_then_resume_equals_an_undisturbed_run(tmp_path):
    code = """
done = int(sys.argv[2])
with h.open_cell(out, h.NAME, h.IDENTITY, h.CONFIG) as cell:
    for i in range(8):
        if i not in cell.rows:
            cell.append(h.sample(i), h.layers(i))
        if i == done:
            import os; os.kill(os.getpid(), 9)
    cell.finish()
"""
    for done in (0, 3, 7):
        assert child(code, tmp_path / "killed", done).returncode == -9
    assert child(code, tmp_path / "killed", 99).returncode == 0
    whole = fill(tmp_path / "whole", *range(8))
    assert contents(tmp_path / "killed" / NAME) == contents(whole)


@pytest.mark.parametrize("cut", ["samples", "layers"])
def test_full_disk_loses_nothing(tmp_path, cut):
    """A file-size limit stands in for the full disk: it cuts a write in the middle of a line."""
    pad = {"id": "x" * 1000} if cut == "layers" else {}  # the longer lines reach the limit first
    size = len(json.dumps(layers(0) | pad if pad else sample(0))) + 1
    code = f"""
import resource
cell = h.open_cell(out, h.NAME, h.IDENTITY, h.CONFIG)
resource.setrlimit(resource.RLIMIT_FSIZE, ({2 * size} + 100,) * 2)
for i in range(5):
    try:
        cell.append(h.sample(i), h.layers(i) | {pad})
    except h.MacbenchError as error:
        print(i, sorted(cell.rows), error)
        break
"""
    done = child(code, tmp_path)
    assert done.stdout.startswith("2 [0, 1] cannot write"), done.stderr
    assert "run the same command again" in done.stdout and "too large" in done.stdout
    cell = tmp_path / NAME
    for name in ("samples.jsonl", "layers.jsonl"):
        lines = (cell / name).read_bytes()
        assert lines.count(b"\n") == 2 and lines.endswith(b"\n")
    fill(tmp_path, 2)
    assert store.read(tmp_path).samples["index"].tolist() == [0, 1, 2]


def test_full_disk_while_finishing_keeps_the_old_files(tmp_path):
    cell = fill(tmp_path, 0)
    before = contents(cell)
    code = """
import resource
cell = h.open_cell(out, h.NAME, h.IDENTITY, h.CONFIG)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    cell.finish()
except h.MacbenchError as error:
    print(error)
"""
    assert "cannot write" in child(code, tmp_path).stdout
    assert contents(cell) == before


def test_second_process_is_refused(tmp_path):
    code = """
try:
    h.open_cell(out, h.NAME, h.IDENTITY, h.CONFIG)
except h.MacbenchError as error:
    print(error)
"""
    with open_cell(tmp_path, NAME, IDENTITY, CONFIG) as cell:
        cell.append(sample(0), layers(0))
        assert "another process is writing" in child(code, tmp_path).stdout
        cell.append(sample(1), layers(1))
    assert child(code, tmp_path).stdout == ""
    assert store.read(tmp_path).samples["index"].tolist() == [0, 1]


def test_raising_the_limit_continues(tmp_path):
    first = fill(tmp_path / "grown", 0, 1)
    kept = (first / "samples.jsonl").read_bytes()
    fill(tmp_path / "grown", 2, 3)
    assert (first / "samples.jsonl").read_bytes().startswith(kept)
    assert contents(first) == contents(fill(tmp_path / "once", 0, 1, 2, 3))


def test_derived_files_do_not_depend_on_the_order_of_lines(tmp_path):
    one, two = fill(tmp_path / "a", 0, 1, 2), fill(tmp_path / "b", 2, 0, 1)
    for name in ("layers.parquet", "summary.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_another_label_is_the_same_cell(tmp_path):
    """A knob is named in the label only when it varies; the numbers are the same."""
    path = fill(tmp_path, 0)
    other = cell_name(["tiny", "ruler/vt", "mac"], IDENTITY)
    with open_cell(tmp_path, other, IDENTITY, {**CONFIG, "label": "mac"}) as cell:
        assert cell.path == path and list(cell.rows) == [0]
    assert store.read(tmp_path).cells.loc[NAME, "label"] == "mac"


def test_another_identity_is_refused(tmp_path):
    path = fill(tmp_path, 0)
    before = contents(path)
    with pytest.raises(MacbenchError, match=r"another configuration \(it differs in seed\)"):
        open_cell(tmp_path, NAME, {**IDENTITY, "seed": 1}, CONFIG)
    assert contents(path) == before
    (path / "config.yaml").unlink()
    with pytest.raises(MacbenchError, match=r"no config\.yaml"):
        open_cell(tmp_path, NAME, IDENTITY, CONFIG)


def test_foreign_files_are_refused(tmp_path):
    path = fill(tmp_path, 0)
    (path / "thesis.doc").touch()
    with pytest.raises(MacbenchError, match=r"not macbench's \(thesis\.doc\)"):
        open_cell(tmp_path, NAME, IDENTITY, CONFIG)


def test_damaged_lines_are_named_and_nothing_is_cut(tmp_path):
    path = fill(tmp_path, 0, 1, 2)
    lines = (path / "samples.jsonl").read_bytes().splitlines(True)
    damaged = b"".join([lines[0], b"{garbage\n", lines[2]])
    (path / "samples.jsonl").write_bytes(damaged)
    for use in (lambda: store.read(tmp_path), lambda: fill(tmp_path, 3)):
        with pytest.raises(MacbenchError, match=r"samples\.jsonl, line 2, is damaged"):
            use()
    assert (path / "samples.jsonl").read_bytes() == damaged
    (path / "samples.jsonl").write_bytes(b"".join(lines))
    kept = (path / "layers.jsonl").read_bytes().splitlines(True)
    for damage in (b"".join(kept[1:]), kept[0][:-1]):  # lacks a line; none is whole
        (path / "layers.jsonl").write_bytes(damage)
        with pytest.raises(MacbenchError, match="does not belong to"):
            fill(tmp_path, 3)
        assert (path / "layers.jsonl").read_bytes() == damage
    assert (path / "samples.jsonl").read_bytes() == b"".join(lines)


def test_failed_cell_is_recorded_and_a_later_run_clears_it(tmp_path):
    with open_cell(tmp_path, NAME, IDENTITY, CONFIG) as cell:
        cell.append(sample(0), layers(0))
        cell.fail("out of memory")
        assert cell.failed == "out of memory"
    assert store.read(tmp_path).cells.loc[NAME, "failed"] == "out of memory"
    fill(tmp_path, 1)
    assert pd.isna(store.read(tmp_path).cells.loc[NAME, "failed"])


def test_buckets_of_two_widths_in_one_cell_stay_apart(tmp_path):
    """A later run's answers may be longer, and its buckets wider."""
    with open_cell(tmp_path, NAME, IDENTITY, CONFIG) as cell:
        for i, width in enumerate((4, 5, 5)):
            told = {"width": width, "histograms": {"hits": [[i, 1]]}}
            cell.append(sample(i), layers(i) | told)
    found = store.read(tmp_path).histograms
    assert found[["width", "bin", "count"]].values.tolist() == [
        [4, 0, 0],
        [4, 1, 1],
        [5, 0, 3],
        [5, 1, 2],
    ]


def test_an_archived_cell_is_read_and_takes_no_more(tmp_path):
    path = fill(tmp_path, 0, 1)
    for file in path.glob("layers.*"):
        file.unlink()
    kept = (path / "summary.json").read_bytes()
    with open_cell(tmp_path, NAME, IDENTITY, CONFIG) as cell:
        assert list(cell.rows) == [0, 1]
        cell.fail("out of memory")
        cell.finish()
        with pytest.raises(MacbenchError, match="the 2 that it holds"):
            cell.append(sample(2), layers(2))
    assert (path / "summary.json").read_bytes() == kept
    assert pd.isna(store.read(tmp_path).cells.loc[NAME, "failed"])


def test_unfinished_cells_are_read(tmp_path):
    fill(tmp_path, 0)
    fill(tmp_path, 1, finish=False)  # its parquet is stale now
    results = store.read(tmp_path)
    assert set(results.layers("hit")["index"]) == {0, 1}
    empty = tmp_path / "empty"
    fill(empty, finish=False)
    assert len(store.read(empty).samples) == 0 and len(store.read(empty).layers("hit")) == 0


def test_environment_is_written_once(tmp_path):
    path = fill(tmp_path, 0)
    assert json.loads((path / "environment.json").read_text())["versions"]["torch"]
    (path / "environment.json").write_text("{}")
    fill(tmp_path, 1)
    assert (path / "environment.json").read_text() == "{}"


def test_unusable_folders(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MacbenchError, match="file is a file; name a folder"):
        check_writable(tmp_path / "file")
    for out in (tmp_path / "file" / "below", Path("/proc/macbench")):
        with pytest.raises(MacbenchError, match="cannot write"):
            check_writable(out)
        with pytest.raises(MacbenchError, match="cannot write"):
            open_cell(out, NAME, IDENTITY, CONFIG)
    with pytest.raises(MacbenchError, match="no results in"):
        store.read(tmp_path)
    check_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(MacbenchError, match="Permission denied"):
        check_writable(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts them in /proc")
def test_files_are_closed(tmp_path):
    fill(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    fill(tmp_path, 0)
    with pytest.raises(MacbenchError):
        open_cell(tmp_path, NAME, {**IDENTITY, "seed": 1}, CONFIG)
    assert len(os.listdir("/proc/self/fd")) == before
