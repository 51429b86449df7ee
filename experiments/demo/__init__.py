"""The demo: the embedded model answers RULER prompts with full attention and the other methods.

The paper's Figures 1 and 5 in small. MAC's ring and band are scaled to the short prompts (K=128,
r=64): the paper's K=1024 and r=256 are sized for 128K tokens, and at 2K such a ring alone would be
three quarters of the cache.
"""

from __future__ import annotations

from pathlib import Path

from macbench.progress import Progress

TASKS = ("niah_single_2", "niah_multikey_1", "niah_multiquery", "fwe")
ANSWER = 40  # tokens: the longest answer, four numbers, takes about 37
METHODS = (
    "method=[full,full/split,mac,quest,streaming_llm,oracle_topk,random]",
    "mac.tau=[0.45,0.6]",
    "mac.K=128",
    "mac.r=64",
    "quest.budget=[0.2,0.4]",
    "streaming_llm.budget=[0.2,0.4]",
    "oracle_topk.tokens=0.2",
    "random.tokens=0.2",
)


def overrides(out: Path, samples: int, length: str) -> list[str]:
    """The demo as arguments of `macbench run`."""
    tasks = ",".join(f"ruler/{task}" for task in TASKS)
    return [
        "model=smollm2",
        "model.dtype=float32",
        f"task=[{tasks}]",
        f"length={length}",
        f"limit={samples}",
        "block=8",
        f"max_new={ANSWER}",
        f"out={out}",
        *METHODS,
    ]


def main(out: Path, samples: int, length: str, progress: Progress) -> int:
    """Run what is missing, print the table and draw the figures. Returns the exit code."""
    from macbench import plots, report, run, store
    from macbench.config import configure

    arguments = overrides(out, samples, length)
    print(f"macbench run {' '.join(arguments)}\n")
    code = run.run(configure(arguments), progress)
    print(report.table(store.read(out), "text"))
    print(
        f"MAC's K and r are scaled to short prompts; answers are cut at {ANSWER} tokens, where "
        "RULER allows 128 (fwe: 50).\n"
    )
    for figure in ("accuracy_budget", "layer_heatmaps"):
        for path in plots.draw(figure, out):
            print(f"figure: {path}")
    return code
