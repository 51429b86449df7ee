"""Cells of made-up samples, for tests of what is said about them."""

from __future__ import annotations

from macbench import store
from macbench.store.cell import cell_name, open_cell

TASKS = ("ruler/niah_single_2", "ruler/fwe")
GEOMETRY = {"layers": 1, "q_heads": 2, "kv_heads": 1, "head_dim": 64, "token_bytes": 512}


def write(
    out,
    method,
    knobs,
    scores,
    task=TASKS[0],
    *,
    label=None,
    length=2048,
    seed=0,
    version=1,
    source="synthetic",
    outputs=None,
    sha="s",
    acted=True,
    failed=None,
    killed=False,
    clusters=None,
    share=None,
    planned=None,
    begin=None,
    hits=3,
    **config,
):
    """One cell whose samples read `share` of the cache (full all, else half); MAC hits so many of
    4."""
    identity = {
        "schema": 1,
        "model": {"name": "tiny", "weights": "w"},
        "dtype": "float32",
        "task": {"name": task, "version": version, "knobs": {}},
        "length": length,
        "seed": seed,
        "hold": 0,
        "max_new": None,
        "decoding": {"temperature": 0.0},
        "method": {"name": method, "version": 1, "knobs": knobs},
    }
    about = {
        "label": label or method,
        "method": method,
        "asked": {k: v for k, v in knobs.items() if k in ("tau", "budget", "tokens")},
        "control": False,
        "notes": ["4-bit quantised release", f"source={source}"],
        "floor": None,
        "block": 1,
        "geometry": GEOMETRY,
        **config,
    }
    share = share or (1 if method == "full" else 0.5)
    name = cell_name(["tiny", task, label or method], identity)
    with open_cell(out, name, identity, about) as cell:
        for i, score in enumerate(scores):
            row = {
                **dict.fromkeys(store.COLUMNS, 0),
                "index": i,
                "id": f"{task}-{i}",
                "cluster": clusters[i] if clusters else f"{task}-{i}",
                "source": source,
                "prompt_sha": f"{sha}{i}",
                "output": outputs[i] if outputs else "",
                "score": score,
                "steps": 4.0,
                "head_tokens": 800 * share,
                "kv_tokens": 400 * share,
                "meta_bytes": 0 if share == 1 else 20480.0,
                "context_head": 800.0,
                "context_kv": 400.0,
                "resident": 1 if share == 1 else 1.25,
                "acted": acted,
                "planned": planned,
                "time": {"prefill_s": 2.0, "decode_s": 1.0}  # and the first compiles
                | ({} if begin is None else {"begin_s": begin if i else begin + 9}),
            }
            sums = {"head_tokens": [[400 * share] * 2], "kv_tokens": [[400 * share]]}
            if method == "mac":
                stats = ("hit", "distance", "gap", "skip", "depth")
                sums |= {k: [[float(hits)] * 2] for k in stats} | {"group_hit": [[float(hits)]]}
            cell.append(row, {"index": i, "id": row["id"], "steps": 4.0, "context": 400.0, **sums})
        if failed:
            cell.fail(failed)
        elif not killed:
            cell.finish()
