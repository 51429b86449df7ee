"""The demo: the embedded model on all three benchmarks, with full attention and other methods.

The paper's Figures 1 and 5 in small. MAC's ring and band are scaled to the short prompts (K=128,
r=64): the paper's K=1024 and r=256 are sized for 128K tokens, and at 2K such a ring alone would be
three quarters of the cache. RULER has every method; the other two show what their tables hold.
"""

from __future__ import annotations

from pathlib import Path

from macbench.progress import Progress

TASKS = ("niah_single_2", "niah_multikey_1", "niah_multiquery", "fwe")
ANSWER = 40  # tokens: RULER's longest answer, four numbers, takes about 37
COMMON = ("model=smollm2", "model.dtype=float32", "mac.K=128", "mac.r=64")


def runs(out: Path, samples: int, length: str) -> dict[str, list[str]]:
    """The demo as arguments of `macbench run`, by benchmark; samples and length are RULER's."""
    ruler = [
        f"task=[{','.join(f'ruler/{task}' for task in TASKS)}]",
        "ruler.data=embedded",
        f"length={length}",
        f"limit={samples}",
        "block=8",
        f"max_new={ANSWER}",
        "method=[full,full/split,mac,quest,streaming_llm,oracle_topk,random]",
        "mac.tau=[0.45,0.6]",
        "quest.budget=0.4",
        "streaming_llm.budget=0.4",
        "oracle_topk.tokens=0.2",
        "random.tokens=0.2",
    ]
    questions = [
        "task=longbench_v2",
        "longbench_v2.data=embedded",
        "length=1k",
        "limit=12",
        "block=6",
        "method=[full,mac,streaming_llm]",
        "mac.tau=[0.45,0.6]",
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
        "mac.tau=0.45",
        "streaming_llm.budget=0.4",
    ]
    asked = {"RULER": ruler, "LongBench v2": questions, "LongGenBench": writing}
    return {name: [*COMMON, *words, f"out={out}"] for name, words in asked.items()}


def main(out: Path, samples: int, length: str, progress: Progress) -> int:
    """Run what is missing, print the table and draw the figures. Returns the exit code."""
    from macbench import plots, report, run, store
    from macbench.config import configure

    asked = runs(out, samples, length)
    configs = {name: configure(words) for name, words in asked.items()}  # refused before any runs
    code = 0
    for number, (name, config) in enumerate(configs.items(), 1):
        command = f"macbench run {' '.join(asked[name])}"
        print(f"{number} of {len(configs)}, {name}: {command}", flush=True)
        code = max(code, run.run(config, progress))
    print(f"\n{report.table(store.read(out), 'text')}")
    print(
        f"MAC's K and r are scaled to short prompts; RULER's answers are cut at {ANSWER} tokens, "
        "where it allows 128 (fwe: 50).\n"
    )
    for figure in ("accuracy_budget", "layer_heatmaps"):
        for path in plots.draw(figure, out):
            print(f"figure: {path}")
    return code
