"""What docs/findings.md says: every method at matched byte budgets, on the three benchmarks.

python -m macbench.experiments.findings OUT [--minutes 25] [--only NAME ...] [--jobs 4] [--list]

Runs that do not depend on each other, several at a time on each GPU; after so many minutes all are
stopped, and the same command continues. `macbench compare OUT/ruler_8k` reads what there is.
"""

from __future__ import annotations

BUDGETS = "[0.1,0.2,0.5]"
QUICK = (  # MAC, and what takes least of a card's time
    "method=[full,full/split,mac,mac/authors,quest,quest/sparse,snapkv,snapkv/wide,snapkv/ada,"
    "pyramidkv,streaming_llm,rocketkv,double_sparsity,double_sparsity/shared,oracle_topk,random]",
    "mac.tau=[0.3,0.45,0.6,0.75]",
    *(f"{name}.budget={BUDGETS}" for name in ("quest", "snapkv", "pyramidkv", "rocketkv")),
    f"double_sparsity.budget={BUDGETS}",
    "streaming_llm.budget=[0.05,0.1,0.2,0.5]",
    "oracle_topk.tokens=[0.05,0.1,0.2]",
    "random.tokens=0.2",
    "unreachable=floor",
)
MORE = (  # the others, some of which work long on a prompt
    "method=[twilight,kivi,kivi/2bit,multipole,tova,h2o]",
    *(f"{name}.budget={BUDGETS}" for name in ("multipole", "tova", "h2o")),
    "unreachable=floor",
)
FIVE = (  # those that can read so little
    "method=[rocketkv,snapkv,snapkv/wide,snapkv/ada,pyramidkv,multipole/coarse,tova,h2o]",
    *(f"{name}.budget=0.05" for name in ("rocketkv", "snapkv", "pyramidkv")),
    *(f"{name}.budget=0.05" for name in ("multipole", "tova", "h2o")),
    "unreachable=floor",
)
BOTH = (  # what mac_8k found to help
    *("method=mac", "mac.tau=[0.45,0.6]"),
    *("mac.refresh_mixed_groups=true", "mac.max_chain=2"),
)
SETS = {"quick": QUICK, "more": MORE, "five": FIVE, "both": BOTH}
FEW = (  # where an answer is long
    "method=[full,mac,quest,snapkv/recompress,streaming_llm]",
    "mac.tau=[0.45,0.75]",
    *(f"{name}.budget=0.2" for name in ("quest", "snapkv", "streaming_llm")),
)
MINE = (  # what makes MAC work: its controls and extensions, and the two that help together
    ("match", ("method=[full,mac]", "mac.match=[nearest,previous,random_lag,random]")),
    ("post_rope", ("method=mac", "mac.match_on=post_rope")),
    ("unamended", ("method=mac", "mac.amend=false")),
    ("whole_groups", ("method=mac", "mac.refresh_mixed_groups=true")),
    ("short_chains", ("method=mac", "mac.max_chain=[1,8]")),
    ("chains_between", ("method=mac", "mac.max_chain=[2,4]")),
    ("both", ("method=mac", "mac.refresh_mixed_groups=true", "mac.max_chain=[2,4,8]")),
)
WHY = ("method=[twilight/all,h2o/normalise]", "h2o.budget=0.2")  # tests findings.md's reasons
COSTS = (  # what each works before the first token: to be run alone (--only costs_16k)
    "method=[full,mac,mac/authors,quest,quest/sparse,snapkv,snapkv/wide,snapkv/ada,pyramidkv,"
    "streaming_llm,rocketkv,double_sparsity,double_sparsity/shared,twilight,kivi,multipole,tova,"
    "h2o]",
    *(f"{name}.budget=0.2" for name in ("quest", "snapkv", "pyramidkv", "streaming_llm")),
    *(f"{name}.budget=0.2" for name in ("rocketkv", "double_sparsity", "multipole")),
    *(f"{name}.budget=0.2" for name in ("tova", "h2o")),
    "max_new=4",
)
RULER = (
    "ruler/niah_single_1,ruler/niah_single_2,ruler/niah_single_3",
    "ruler/niah_multikey_1,ruler/niah_multikey_2,ruler/niah_multikey_3",
    "ruler/niah_multivalue,ruler/niah_multiquery",
    "ruler/vt,ruler/cwe",
    "ruler/fwe,ruler/qa_1,ruler/qa_2",
)
BLOCK = "block=25"  # 38 configurations took 60 GB at 16K
LONG, BASE = (
    ("model=smollm2-long", "model.dtype=bfloat16"),
    ("model=smollm2", "model.dtype=bfloat16"),
)


def runs() -> dict[str, list[str]]:
    """Arguments of `macbench run` by folder/part, the most wanted first."""
    found: dict[str, list[str]] = {}

    def ruler(folder: str, part: str, *words: str, tasks: tuple[str, ...] = RULER) -> None:
        for at, names in enumerate(tasks):
            found[f"{folder}/{part}-{at}"] = [f"task=[{names}]", "ruler.data=embedded", *words]

    questions = ("task=longbench_v2", "longbench_v2.data=embedded", "length=8000", "limit=200")
    for part, methods in SETS.items():
        ruler("ruler_8k", part, *LONG, "length=8k", "limit=50", BLOCK, *methods)
        ruler("ruler_16k", part, *LONG, "length=16k", "limit=50", BLOCK, *methods)
        found[f"longbench_v2/{part}"] = [*questions, *LONG, BLOCK, *methods]
    ruler("ruler_16k", "why", *LONG, "length=16k", "limit=50", BLOCK, *WHY)
    for scenario in ("diary", "menu", "skyscraper", "urban"):
        found[f"longgenbench/{scenario}"] = [
            *(f"task=longgenbench/{scenario}", "longgenbench.data=embedded"),
            *("longgenbench.judge=keyword", "length=16000", "limit=1", *LONG, *FEW),
        ]
    few = ("ruler/niah_multikey_1,ruler/niah_multivalue", "ruler/vt,ruler/cwe")
    own = (*LONG, "length=8k", "limit=50", BLOCK)
    for name, switches in MINE:
        ruler("mac_8k", name, *own, "mac.tau=[0.45,0.6]", *switches, tasks=few)
    for part, methods in SETS.items():
        ruler("hold_8k", part, *own, "hold=question", *methods, tasks=few)
        ruler("base_4k", part, *BASE, "length=4k", "limit=50", BLOCK, *methods)
        ruler("ruler_32k", part, *LONG, "length=32k", "limit=20", "block=10", *methods)
    alone = ("length=16k", "limit=30", "block=10", *COSTS)
    ruler("costs_16k", "alone", *LONG, *alone, tasks=("ruler/niah_multikey_1",))
    return found
