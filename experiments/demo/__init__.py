"""The demo: smollm2-long on all three benchmarks, with full attention and other methods.

The paper's Figures 1 and 5 in small. On RULER eight methods in 15 cells (and full attention a
second way, for the noise floor); the other two benchmarks have what their tables hold. MAC's ring
and band are scaled to these short prompts (K=128, r=64): the paper's K=1024 and r=256 are sized for
128K tokens, and at 2K such a ring alone would be three quarters of the cache. Of its two taus 0.45
is the paper's, and 0.3 reads about as little as the others do. Quest has one page list per KV head,
so that it reads what it is asked to.
"""

from __future__ import annotations

import sys
from pathlib import Path

from macbench.progress import Progress

TASKS = ("niah_single_2", "niah_multikey_1", "niah_multiquery", "fwe")
ANSWER = 40  # tokens: RULER's longest answer, four numbers, takes about 37
CHOICE = 64  # tokens: what a reply goes by, and then "The correct answer is (B)"
MODEL = "model=smollm2-long"
MAC = ("mac.tau=[0.3,0.45]", "mac.K=128", "mac.r=64")


def runs(out: Path, samples: int, length: str) -> dict[str, list[str]]:
    """The demo as arguments of `macbench run`, by benchmark; samples and length are RULER's."""
    ruler = [
        f"task=[{','.join(f'ruler/{task}' for task in TASKS)}]",
        "ruler.data=embedded",
        f"length={length}",
        f"limit={samples}",
        "block=8",
        f"max_new={ANSWER}",
        "method=[full,full/split,mac,quest/shared,snapkv,snapkv/wide,rocketkv,streaming_llm,kivi,random]",
        "quest.budget=[0.2,0.4]",
        "snapkv.budget=[0.2,0.4]",
        "rocketkv.budget=[0.2,0.4]",
        "streaming_llm.budget=[0.2,0.4]",
        "random.tokens=0.2",
    ]
    questions = [
        "task=longbench_v2",
        "longbench_v2.data=embedded",
        "length=1k",
        "limit=20",
        "block=10",
        f"max_new={CHOICE}",
        "method=[full,mac,quest/shared,streaming_llm]",
        "quest.budget=0.4",
        "streaming_llm.budget=0.4",
    ]
    writing = [
        "task=longgenbench/diary",
        "longgenbench.data=embedded",
        "longgenbench.judge=keyword",
        "length=256",
        "limit=2",
        "block=2",
        "method=[full,mac,streaming_llm]",
        "streaming_llm.budget=0.4",
    ]
    asked = {"RULER": ruler, "LongBench v2": questions, "LongGenBench": writing}
    return {name: [MODEL, *words, *MAC, f"out={out}"] for name, words in asked.items()}


def main(out: Path, samples: int, length: str, progress: Progress) -> int:
    """Run what is missing, print the table and draw the figures. Returns the exit code."""
    from macbench import plots, store
    from macbench.config import configure
    from macbench.run.run import run
    from macbench.tables import report

    asked = runs(out, samples, length)
    configs = {name: configure(words) for name, words in asked.items()}  # refused before any runs
    code = 0
    for number, (name, config) in enumerate(configs.items(), 1):
        command = f"macbench run {' '.join(asked[name])}"
        print(f"{number} of {len(configs)}, {name}: {command}", flush=True)
        code = max(code, run(config, progress, sharing=False))
    print(f"\n{report.table(store.read(out), 'text')}")
    print(
        f"MAC's K and r are scaled to short prompts. Answers are cut at {ANSWER} tokens (RULER "
        f"allows 128, for fwe 50) and {CHOICE} (LongBench v2: 128), texts at 256 (LongGenBench: "
        "16000).\n"
    )
    for figure in ("accuracy_budget", "layer_heatmaps"):
        for path in plots.draw(figure, out):
            print(f"figure: {path}")
    print(f"\nby the budget that was asked for, with tests: {sys.argv[0]} compare {out}")
    return code
