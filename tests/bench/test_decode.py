"""`macbench bench decode`: what it asks for, what it counts, and a run without a card's timer."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from macbench.bench import decode as bench_decode
from macbench.bench import time_decode, time_peer
from macbench.bench.decode import configure
from macbench.bench.decode_table import COLUMNS, keep_launches, launch_table, table
from macbench.bench.launches import short
from macbench.cli import main
from macbench.errors import MacbenchError
from macbench.measure.latency.floor import Machine
from macbench.measure.latency.record import Record, key_of, read
from macbench.measure.trace import Trace
from macbench.models import Model, Source, compiled, load

MACHINE = Machine("a card", 1000.0, 8, 2.5, ((1000, 4.0), (3000, 8.0)))
LENGTH, REPLAYS = 300, 4
TINY = ["model=tiny-random", "dtype=float32", f"length={LENGTH}", f"replays={REPLAYS}"]


class Counter:
    """A timer for which every step takes as many us as steps were done before it."""

    def steps(self, replay, before, done, count):
        for turn in range(count):
            before(done + turn)
            replay()
        return [float(done + turn) for turn in range(count)]


def measured(*words: str) -> list[dict]:
    plan = configure([*TINY, *words])
    bench = bench_decode.Bench(plan, Counter(), MACHINE, print, capture=lambda step: step)
    return [row | {"run": "now"} for row in bench.measure()]


# -- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["lenght=8k"], "did you mean 'length'?"),
        (["model=smollm"], "did you mean 'smollm2'?"),
        (["method=mca"], "did you mean 'mac'?"),
        (["around=fast"], "one of eager, compiled, tuned"),
        (["around=[eager,3]"], "one of eager, compiled, tuned"),
        (["fused=2"], "true or false"),
        (["dtype=int8"], "one of bfloat16, float16, float32"),
        (["length=long"], "write tokens as 4096 or 4k"),
        (["batch=0"], "batch=0 must be at least 1"),
        (["batch=[]"], "batch is empty"),
        (["replays=1"], "replays=1 must be at least 3"),
        (["replays=[3,4]"], "replays=[3,4] must be a whole number"),
        (["peer=vllm"], "one of none, transformers"),
        (["mac.tau=0.5"], "mac is not in method=[full]"),
        (["method=mac", "mac.tua=0.5"], "did you mean 'mac.tau'?"),
        (["method=mac", "mac.tau=2"], "must lie in [0, 1]"),
        (["mixed=true"], "at least two methods"),
        (["preset=mixd"], "did you mean 'mixed'?"),
    ],
)
def test_wrong_words_are_one_sentence(words, part):
    with pytest.raises(MacbenchError) as caught:
        configure(words)
    assert part in str(caught.value)


def test_without_a_gpu_it_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "decode", f"out={tmp_path}/x"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "need none" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_the_preset_of_nine_methods():
    plan = configure(["preset=mixed"])
    assert [spec.label for spec in plan.methods] == [
        "full",
        "mac tau=0.45",
        "mac tau=0.6",
        "quest budget=0.2",
        "quest budget=0.4",
        "streaming_llm budget=0.2",
        "streaming_llm budget=0.4",
        "oracle_topk",
        "random",
    ]
    assert plan.settings.mixed and plan.settings.name == "mixed"
    assert {(v.model, v.length) for v in plan.values} == {("smollm2", 8192)}
    one = configure(["preset=mixed", "method=[full,mac]", "mac.tau=0.3", "batch=2"])
    assert [spec.label for spec in one.methods] == ["full", "mac tau=0.3"]
    assert [v.batch for v in one.values] == [2]


def test_every_preset_is_readable():
    for name in ("around", "llama", "mixed"):
        assert configure([f"preset={name}"]).values


def test_a_length_that_the_steps_fill_is_refused():
    with pytest.raises(MacbenchError, match="too short for 16 steps"):
        measured("length=16", "around=eager")


# -- bytes ---------------------------------------------------------------------------------------


def model(kind: str = "llama", **changes) -> Model:
    fields = {
        "vocab_size": 50,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    } | changes
    config = AutoConfig.for_model(kind, **fields)
    return Model(AutoModelForCausalLM.from_config(config), name="x", weights="random:0")


def test_bytes_of_weights_by_hand():
    # q and o 8 x 8, k and v 8 x 4, three of 8 x 12, two norms of 8; a final norm, a head 50 x 8
    layer = 2 * 64 + 2 * 32 + 3 * 96 + 2 * 8
    assert time_decode.weight_bytes(model()) == 4 * (2 * layer + 8 + 400)
    tied = model(tie_word_embeddings=True)  # the head is the embedding: read all the same
    assert time_decode.weight_bytes(tied) == 4 * (2 * layer + 8 + 400)
    # two of six experts of 3 x (8 x 5), a router 6 x 8, q- and k-norm of 4 in the place of an MLP
    experts = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 5}
    sparse = layer - 3 * 96 + 2 * 3 * 40 + 48 + 8
    assert time_decode.weight_bytes(model("qwen3_moe", **experts)) == 4 * (2 * sparse + 8 + 400)


def test_bytes_of_the_cache_and_hits_by_hand():
    geometry = model().geometry  # a token of a head is 2 x 4 x 4 bytes
    trace = Trace(2, 3, 2, 1, torch.device("cpu"))
    view = type("View", (), {"live": torch.ones(3, dtype=torch.bool)})
    for tokens in (10, 12):  # two steps
        view.lens = torch.full((3,), tokens)
        trace.read(slice(None), view, tokens, torch.tensor([[tokens], [5], [0]]), 7)
        trace.add(slice(None), "hit", torch.tensor([[1, 0], [0, 0], [1, 1]]))
        trace.commit(view)
    cache, meta = time_decode.read_bytes([trace, trace], geometry)
    assert cache == 2 * 2 * (11 + 5 + 0) * 32  # traces, layers
    assert meta == 2 * 2 * 3 * 7
    assert time_decode.hit_rate([trace]) == 0.5
    assert time_decode.hit_rate([Trace(1, 1, 1, 1, torch.device("cpu"))]) is None


# -- a run with another timer --------------------------------------------------------------------


def test_methods_that_evict_can_be_timed():
    """Of the 300 tokens 18 are decoded steps."""
    rows = measured("method=[snapkv,pyramidkv,h2o,tova]", "around=eager", "batch=2")
    prompt = LENGTH - (rows[0]["n"] + time_decode.WARM)
    assert [row["ok"] for row in rows] == [True] * 4
    geometry = load(Source("tiny", "tiny-llama", init="random", dtype="float32")).geometry
    token = geometry.token_bytes * geometry.kv_heads * geometry.layers * 2
    kept = int(0.2 * prompt)
    steps = range(time_decode.WARM + 1, time_decode.WARM + REPLAYS + 1)
    grown = sum(steps) / len(steps)
    assert rows[0]["cache_bytes"] == (kept + grown) * token
    assert rows[3]["cache_bytes"] == (kept + 1) * token
    scored = int(0.2 * prompt / (1 + 4 / geometry.token_bytes))  # h2o: scores are paid for, too
    assert rows[2]["cache_bytes"] == (scored + 1) * token
    assert rows[2]["meta_bytes"] == 4 * (scored + 1) * geometry.kv_heads * geometry.layers * 2


def test_a_run_counts_and_compares(tmp_path):
    words = [
        "batch=2",
        "method=[full,mac]",
        "mac.K=32",
        "mac.r=8",
        "mixed=true",
        "fused=[false,true]",
    ]
    rows = measured(*words)
    book = Record(tmp_path, "decode", COLUMNS)
    for row in rows:
        book.add(row)
    assert len(read(book.path, COLUMNS)) == len(rows) == 6
    full, mac, mixed = rows[:3]
    geometry = load(Source("tiny", "tiny-llama", init="random", dtype="float32")).geometry
    seen = LENGTH - (REPLAYS - 1) / 2  # mean tokens in the cache of a timed step
    heads = geometry.layers * geometry.kv_heads
    assert full["cache_bytes"] == 2 * seen * heads * geometry.token_bytes
    assert full["meta_bytes"] == 0 and full["hit"] is None
    assert full["floor_us"] == (full["weight_bytes"] + full["cache_bytes"]) / 1000
    assert full["attention_floor_us"] == full["cache_bytes"] / 1000
    assert full["vs_full"] == mac["vs_full"] == 1  # this timer's steps take equally long
    assert mac["meta_bytes"] > 0 and 0 <= mac["hit"] <= 1 and mac["hits"] == "measured"
    assert (full["rows"], mixed["rows"], mixed["n"]) == (2, 4, REPLAYS)
    after = time_decode.WARM + (REPLAYS - 1) / 2  # this timer's median
    for row in rows:
        assert row["ok"] and row["error"] == 0 and row["kv"] == "random"
        assert row["us_median"] == row["rest_us"] == after and row["attention_us"] == 0
    assert mixed["vs_alone"] == 2 and mixed["tokens_s"] == 4e6 / after
    text = table(book.find(rows))
    assert "mixed" in text and "x alone" in text and "FAILED" not in text


def test_the_launches_of_a_step():
    """On a CPU torch's operators: those of two layers, counted a step; times are not touched."""
    words = ["method=[full,mac]", "around=eager", "mac.K=32", "mac.r=8", "batch=1"]
    plain, told = measured(*words), measured(*words, "launches=true")
    full, mac = ({p["launch"]: p for p in row.pop("launches")} for row in told)
    assert full["aten::silu"]["a_step"] == mac["aten::silu"]["a_step"] == 2  # one a layer
    assert sum(p["a_step"] for p in mac.values()) > sum(p["a_step"] for p in full.values())
    times = [part["us_step"] for part in full.values()]
    assert times == sorted(times, reverse=True) and min(times) > 0
    for before, after in zip(plain, told, strict=True):
        late = time_decode.WARM + bench_decode.PROFILED + (REPLAYS - 1) / 2
        assert after["us_median"] == late  # this timer counts steps
        assert (after["n"], after["rows"]) == (before["n"], before["rows"])
    assert told[0]["cache_bytes"] == plain[0]["cache_bytes"]
    about = dict.fromkeys(key_of(COLUMNS), 1)
    text = launch_table([about | part for part in full.values()])
    assert times[0] == full[next(iter(full))]["us_step"] and f"{times[0]:.1f}" in text


def test_names_of_launches_are_short():
    for name in ("_attend", "aten::silu", "nvjet_sm90_tst_64x8_64x16_2x1_v_bz_TNT"):
        assert short(name) == name
    name = "void at::native::(anonymous namespace)::indexSelectSmallIndex<c10::BFloat16, long>(int)"
    assert short(name) == "indexSelectSmallIndex<BFloat16, long>(int)"
    assert len(short("void at::native::" + "x" * 300)) == 100


def test_the_file_of_launches_keeps_other_steps(tmp_path):
    path, key = tmp_path / "x_launches.csv", ["model", "batch"]
    one = {"model": "m", "batch": 1, "launch": "a", "us_step": 2.0}
    keep_launches(path, [one, one | {"launch": "b"}], key)
    keep_launches(path, [one | {"batch": 8}], key)
    keep_launches(path, [one | {"us_step": 3.0}], key)  # again: `b` is gone
    held = pd.read_csv(path)
    assert held[["batch", "launch", "us_step"]].values.tolist() == [[8, "a", 2.0], [1, "a", 3.0]]


def test_a_step_that_disagrees_holds_no_time(monkeypatch):
    monkeypatch.setattr(time_decode, "disagreement", lambda bed: 0.5)
    (row,) = measured("batch=1")
    assert not row["ok"] and "us_median" not in row
    frame = pd.DataFrame([row], columns=list(COLUMNS)).astype(COLUMNS)
    assert "FAILED" in table(frame)


@pytest.mark.parametrize("wrong", range(3))
def test_the_gate_sees_a_piece_that_is_wrong(monkeypatch, wrong):
    tiny = load(Source("tiny", "tiny-llama", init="random", dtype="float32"))
    bed = time_decode.make_bed(tiny, time_decode.Case(100, 2, 3, 0), 2)
    assert time_decode.disagreement(bed) == 0  # nothing is compiled
    tiny.around = "compiled"
    pieces = list(compiled.PIECES)
    monkeypatch.setattr(compiled, "_pieces", lambda options: pieces)
    assert time_decode.disagreement(bed) == 0
    right = pieces[wrong]

    def off(*inputs):
        out = right(*inputs)
        return out * 1.2 if isinstance(out, torch.Tensor) else (*out[:-1], out[-1] * 1.2)

    pieces[wrong] = off
    assert time_decode.disagreement(bed) > 0.1


# -- transformers --------------------------------------------------------------------------------


@torch.inference_mode()
def test_both_caches_give_transformers_the_same_tokens_to_see():
    ours = model(num_attention_heads=4, num_key_value_heads=2)
    static = time_peer.static_cache(ours, 2, 20, 30)
    grown = DynamicCache(config=ours.config)
    for index, layer in enumerate(static.layers):
        grown.update(layer.keys[:, :, :20].clone(), layer.values[:, :, :20].clone(), index)
    assert time_peer.dynamic_cache(ours, 2, 20, 30).get_seq_length() == 20
    with time_peer.own_attention(ours) as lm:
        for position in (20, 21):
            said = [
                lm(
                    input_ids=torch.tensor([[3], [4]]),
                    position_ids=torch.full((2, 1), position),
                    past_key_values=cache,
                    use_cache=True,
                ).logits
                for cache in (static, grown)
            ]
            torch.testing.assert_close(*said)
    assert "forward" in vars(ours.base.layers[0].self_attn)  # ours is back


def test_the_faster_way_of_transformers_counts_and_what_fails_is_told():
    ours, told = model(), []
    found = time_peer.time_peer(ours, 60, 2, 4, Counter(), told.append, ways=("dynamic",))
    assert found == (time_peer.ABOUT["dynamic"], [5.0, 6.0, 7.0, 8.0])
    assert time_peer.time_peer(ours, 60, 2, 4, None, told.append, ways=("dynamic",)) is None
    assert len(told) == 1 and "AttributeError" in told[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_on_a_card(tmp_path):
    words = ["model=tiny-random", "length=2k", "batch=[1,3]", "method=[full,mac]", "mixed=true"]
    more = ["around=[eager,compiled]", "peer=transformers", "replays=20", f"out={tmp_path}"]
    assert main(["bench", "decode", *words, *more]) == 0
    rows = read(tmp_path / "decode.parquet", COLUMNS)
    assert len(rows) == 12 and rows["ok"].all()
    assert (rows["us_median"] > 0).all() and (rows["rest_us"] > 0).all()
    assert rows.loc[rows["method"] != "mixed", "peer_us"].notna().all()
