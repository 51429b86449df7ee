"""The command line's words become the run that was meant, or one sentence."""

from __future__ import annotations

from dataclasses import fields
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macbench import overrides, presets
from macbench.attention import METHODS
from macbench.checks import check_types
from macbench.config import configure, tokens
from macbench.errors import MacbenchError


def labels(*words: str) -> list[str]:
    return [cell.label for cell in configure(words).cells]


def refusal(*words: str) -> str:
    with pytest.raises(MacbenchError) as caught:
        configure(words)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith((".", "?"))
    return sentence


def test_one_cell_per_value_of_a_listed_knob():
    config = configure(
        [
            "task=ruler/niah_multikey_1",
            "model=smollm2",
            "length=4k",
            "method=[full,mac,quest]",
            "mac.tau=[0.45,0.6]",
            "quest.budget=[0.2,0.4]",
            "limit=20",
            "out=DIR",
        ]
    )
    assert [cell.label for cell in config.cells] == [
        "full",
        "mac tau=0.45",
        "mac tau=0.6",
        "quest budget=0.2",
        "quest budget=0.4",
    ]
    assert [cell.knobs.get("tau") for cell in config.cells] == [None, 0.45, 0.6, None, None]
    assert config.tasks == ["ruler/niah_multikey_1"]
    assert (config.lengths, config.limit, config.out) == ([4096], 20, Path("DIR"))
    assert config.model["name"] == "smollm2"


def test_several_listed_knobs_are_combined():
    config = configure(["method=mac", "mac.tau=[0.4,0.5,0.6]", "mac.r=[32,64]"])
    pairs = [(cell.knobs["tau"], cell.knobs["r"]) for cell in config.cells]
    assert pairs == list(product([0.4, 0.5, 0.6], [32, 64]))
    assert len({cell.label for cell in config.cells}) == 6


def test_a_nested_list_is_one_value():
    (cell,) = configure(["method=mac", "mac.tau=[[0.4,0.5,0.6,0.7]]"]).cells
    assert cell.knobs["tau"] == [0.4, 0.5, 0.6, 0.7]
    first, second = labels("method=mac", "mac.tau=[[0.4,0.5,0.6,0.7],[0.4,0.5,0.6,0.8]]")
    assert first != second


def test_a_variant_lies_over_its_method_and_the_command_line_over_both():
    base, variant = configure(["method=[mac,mac/authors]", "mac.tau=0.6"]).cells
    over = presets.read("method", "mac/authors")
    assert over and base.knobs == presets.read("method", "mac") | {"tau": 0.6}
    assert variant.knobs == base.knobs | over
    assert (variant.name, variant.variant, variant.label) == (
        "mac",
        "authors",
        "mac/authors tau=0.6",
    )
    given = configure(["method=[mac,mac/authors]", "mac.K=128"]).cells
    assert [cell.knobs["K"] for cell in given] == [128, 128]


def test_a_family_is_all_its_tasks_each_once():
    config = configure(["task=[ruler/vt,ruler]", "length=[2k,4096,1m]"])
    assert config.tasks[0] == "ruler/vt"
    assert len(config.tasks) == len(set(config.tasks)) == 13
    assert config.lengths == [2048, 4096, 1048576]


def test_options_of_a_task_family_reach_its_tasks():
    knobs = configure(["task=ruler/vt", "ruler.prefix=none"]).task_knobs
    assert knobs["ruler/vt"]["prefix"] == "none"


def test_another_checkpoint_is_not_called_by_the_preset():
    assert configure(["model.source=some/Model-1B"]).model["name"] == "Model-1B"
    assert configure(["model.source=some/Model-1B", "model.name=mine"]).model["name"] == "mine"


@pytest.mark.parametrize("name", METHODS)
def test_the_file_of_a_method_gives_every_knob_its_default(name):
    """So that `macbench list methods` tells the truth and every knob can be set."""
    knobs = {f.name: f.default for f in fields(METHODS[name]) if f.init}
    assert presets.read("method", name) == knobs


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["method=mca"], "unknown method 'mca': did you mean 'mac'?"),
        (["method=[mac/authos]"], "did you mean 'mac/authors'?"),
        (["model=smolm2"], "unknown model 'smolm2': did you mean 'smollm2'?"),
        (["task=ruler/niah_singel_2"], "did you mean 'ruler/niah_single_2'?"),
        (["methd=[full]"], "unknown option 'methd': did you mean 'method'?"),
        (["mac.ta=0.4"], "unknown option 'mac.ta': did you mean 'mac.tau'?"),
        (["quest.tau=1"], "'quest.tau': quest has quest.budget, quest.dense_layers, quest.shared."),
        (
            ["mac.budget=0.4"],
            "'mac.budget': mac has no budget, since what it reads is an outcome of mac.tau",
        ),
        (["mac.budget=0.4"], "`macbench calibrate method=mac budget=0.4 out=FILE`"),
        (["twilight.budget=0.4"], "an outcome of twilight.p"),
        (["xyzzy=1"], "unknown option 'xyzzy': known: "),
        (["decoding=0.7"], "give decoding.temperature"),
        (["limit"], "write key=value"),
        (["+limit=1"], "write key=value"),
        (["mac.tau=["], "cannot be read"),
        (["method=full,mac"], "write the list method=[full,mac]"),
        (["mac.tau=0.4,0.5"], "write the list mac.tau=[0.4,0.5]"),
        (["length=2k,4k"], "write the list length=[2k,4k]"),
        (["seed=1,2"], "add -m"),
        (["limit=1,2"], "limit takes one value"),
        (["hydra/launcher=joblib"], "needs -m"),
        (["limit=many"], "limit=many must be a whole number"),
        (["limit=0"], "limit=0 must be at least 1"),
        (["limit=null"], "limit=null must be a whole number"),
        (["=3"], "write key=value"),
        (["out=~/x"], "needs quotes of its own"),
        (["hold=false"], "must be one of 0, 1, question"),
        (["hold=2"], "must be one of 0, 1, question"),
        (["backend=tritn"], "must be one of auto, torch, triton, flashinfer"),
        (["unreachable=no"], "must be one of refuse, floor"),
        (["length=long"], "write tokens as 4096 or 4k"),
        (["length=[]"], "length is empty"),
        (["out="], "out= must name the folder"),
        (["decoding.temperature=-1"], "temperature >= 0"),
        (["decoding.top_p=x"], "decoding.top_p=x must be a number"),
        (["model.seed=x"], "model.seed=x must be a whole number"),
        (["method=quest", "quest.budget=0"], "quest.budget=0 must be a share in (0, 1]"),
        (["method=quest", "quest.budget=20"], "quest.budget=20 must be a share in (0, 1]"),
        (["method=mac", "mac.tau=high"], "mac.tau=high must be a number or a list"),
        (["method=mac", "mac.amend=1"], "mac.amend=1 must be true or false"),
        (["method=[full]", "mac.tau=0.4"], "mac.tau is given but mac is not in method=[full]"),
        (["method=[mac,mac]"], "'mac' is asked for twice"),
        (["method=mac", "mac.tau=[0.4,0.4]"], "'mac tau=0.4' is asked for twice"),
    ],
)
def test_what_is_wrong_is_one_sentence(words, part):
    assert part in refusal(*words)


def test_a_sweep_is_split_into_its_jobs():
    hydra, jobs = overrides.split_sweep(
        ["seed=1,2", "length=2k,4k", "method=[full,mac]", "hydra/launcher=joblib"]
    )
    assert jobs == [
        (f"seed={seed}", f"length={length}", "method=[full,mac]")
        for seed in (1, 2)
        for length in ("2k", "4k")
    ]
    assert hydra[2:] == ["methods=[full,mac]", "hydra/launcher=joblib"]


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("method=full,mac", "write the list method=[full,mac]"),
        ("mac.tau=0.4,0.5", "write the list mac.tau=[0.4,0.5]"),
        ("limit=1,2", "-m sweeps model, task, length, seed only"),
        ("model=glob(*)", "write the values out"),
    ],
)
def test_a_sweep_of_what_is_not_swept_names_the_way_out(word, part):
    with pytest.raises(MacbenchError, match=r"\A.*\Z") as caught:
        overrides.split_sweep([word])
    assert part in str(caught.value)


@given(st.integers(1, 10**6))
def test_tokens_are_read_as_people_write_them(count):
    assert tokens(count) == tokens(str(count)) == count
    assert tokens(f"{count}k") == tokens(f"{count}K") == 1024 * count
    assert tokens(f"{count}m") == 1024 * tokens(f"{count}k")


@pytest.mark.parametrize("text", ["", "k", "-1", "0", "4.5k", "4kk", True, None, [1], "²"])
def test_what_is_no_number_of_tokens_is_refused(text):
    with pytest.raises(MacbenchError, match="write tokens as 4096 or 4k"):
        tokens(text)


def test_types_are_checked_against_annotations():
    from macbench.attention.mac import Mac

    for value in (0.5, 1, [0.5, 1]):
        check_types("mac.", Mac, {"tau": value})
    for value in ("x", True, None, [None], ["x"], {}):
        with pytest.raises(MacbenchError, match=r"mac\.tau=.* must be a number or a list"):
            check_types("mac.", Mac, {"tau": value})
    for value in (None, 3):
        check_types("mac.", Mac, {"max_chain": value})
    for value in (1.5, "x", False):
        with pytest.raises(MacbenchError, match="must be a whole number or null"):
            check_types("mac.", Mac, {"max_chain": value})
