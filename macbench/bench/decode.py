"""`macbench bench decode`: from words to decodes of whole models, and the table of their times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from macbench import config, presets
from macbench.bench.shared import (
    begin,
    check_machine,
    combinations,
    draw,
    open_book,
    options,
    read_words,
)
from macbench.checks import check_least, check_types
from macbench.errors import MacbenchError, nearest
from macbench.measure.latency.record import key_of

if TYPE_CHECKING:
    from macbench.attention import Method
    from macbench.bench.time_decode import Case, Timed, Timer
    from macbench.measure.latency.floor import Machine
    from macbench.models import Model

# column: its type; all before `us_median` are the row's identity
COLUMNS = {
    "model": "string",
    "dtype": "string",
    "length": "Int64",  # tokens of a row after the last timed step
    "batch": "Int64",  # rows of each method
    "method": "string",  # with the knobs that vary; `mixed`: all of the run as one batch
    "around": "string",  # eager, compiled, tuned: what stands around attention
    "fused": "boolean",  # q, k and v weights as one matrix
    "backend": "string",
    "kv": "string",  # random: the prompts' keys and values are normal values, nothing is prefilled
    "seed": "Int64",
    "us_median": "float64",  # of a step: one token of every row
    "us_p10": "float64",
    "us_p90": "float64",
    "n": "Int64",  # timed steps
    "rows": "Int64",
    "tokens_s": "float64",  # of all rows together
    "rest_us": "float64",  # median of the same step where attention gives its query back
    "attention_us": "float64",  # the difference
    "attention_share": "float64",
    "attention_floor_us": "float64",  # K, V and metadata of the step / read bandwidth
    "vs_full": "float64",  # full attention's step / this one; above 1: faster than full attention
    "weight_bytes": "Int64",  # of weights read in a step, once for all rows
    "cache_bytes": "Int64",  # of K and V read in a step, as the methods count them
    "meta_bytes": "Int64",  # of rings, page bounds and the like
    "floor_us": "float64",  # these bytes / read bandwidth
    "over_floor": "float64",  # time / floor
    "rest_over_floor": "float64",  # rest / (weights / read bandwidth)
    "hit": "float64",  # MAC's share of (row, layer, head, step) that reused
    "hits": "string",  # measured: as they came, from the model's own queries over random prompts
    "alone_us": "float64",  # of a mixed batch: sum over its methods of each one's own step
    "vs_alone": "float64",  # that / this time; above 1: the mixed batch is faster
    "peer": "string",  # how transformers ran the same step
    "peer_us": "float64",
    "vs_peer": "float64",  # its time / this time; above 1: faster than transformers
    "weights": "string",  # identity of the model's weights
    "bandwidth_gbs": "float64",  # of the best plain read in this run
    "device": "string",
    "ok": "boolean",  # the step agrees with the modules as they are
    "error": "float64",  # largest relative error of a hidden state
    "note": "string",
    "run": "string",  # when the process began
}
MIXED = "mixed"
PROFILED = 3  # steps of which every launch is told
LONGEST = 12  # launches of a step that are printed


@dataclass(frozen=True)
class Values:
    """One decode's options as they are typed; the methods are apart."""

    model: str
    dtype: Literal["bfloat16", "float16", "float32"]
    length: int | str
    batch: int
    around: Literal["eager", "compiled", "tuned"]
    fused: bool


@dataclass(frozen=True)
class Settings:
    """Options of a whole run."""

    backend: Literal["auto", "torch", "triton", "flashinfer"]
    mixed: bool
    rest: bool
    launches: bool
    peer: Literal["none", "transformers"]
    replays: int
    seed: int
    out: str
    name: str | None


AXES = [field.name for field in fields(Values)]
SINGLE = [field.name for field in fields(Settings)]
LEAST = {"batch": 1, "replays": 3, "seed": 0}


@dataclass(frozen=True)
class Plan:
    """What a command line asks for: all methods on every combination of values."""

    values: list[Values]  # lengths as numbers
    methods: list[config.MethodSpec]
    settings: Settings


def decode(words: Sequence[str]) -> int:
    """Time the engine's decode step of whole models. Exit code 1 where a gate was red."""
    plan = configure(words)
    check_machine()
    book, say = open_book("decode", plan.settings.out, plan.settings.name, COLUMNS)
    timer, machine, began = begin("decode", words, book, say)
    rows: dict[tuple, dict[str, Any]] = {}
    parts: list[dict[str, Any]] = []
    beside = book.path.with_name(f"{book.path.stem}_launches.csv")
    for row in Bench(plan, timer, machine, say).measure():
        row |= {"run": began}
        told = row.pop("launches", [])
        book.add(row)
        rows[tuple(row[key] for key in book.key)] = row
        say(_line(row))
        if told:
            mine = [{key: row[key] for key in book.key} | part for part in told]
            parts += mine
            keep_launches(beside, mine, book.key)
    print(table(book.find(rows.values())))
    if parts:
        print(launch_table(parts))
        print(f"\nLaunches: {beside}")
    print(f"\nRows: {book.path}; how they were made: {book.about}")
    return 0 if all(row["ok"] for row in rows.values()) else 1


# -- from words to a plan ------------------------------------------------------------------------


def configure(words: Sequence[str]) -> Plan:
    """What the words mean; MacbenchError for whatever is wrong with them."""

    knobs = {
        f"{name}.{knob}" for name in presets.methods() for knob in presets.read("method", name)
    }
    given = read_words(
        words, lambda key: [*AXES, "method", *SINGLE, *(knobs if "." in key else ())]
    )
    typed = {key: given.pop(key) for key in list(given) if "." in key}
    base = options("decode", given) | given
    values = [_values(each) for each in combinations(base, AXES)]
    settings = {key: base[key] for key in SINGLE}
    check_types("", Settings, settings)
    check_least(settings, LEAST)
    plan = Plan(list(dict.fromkeys(values)), _methods(base, typed), Settings(**settings))
    if plan.settings.mixed and len(plan.methods) < 2:
        raise MacbenchError("mixed=true needs at least two methods, as in method=[full,mac].")
    return plan


def _values(values: dict[str, Any]) -> Values:
    check_types("", Values, values)
    check_least(values, LEAST)
    if values["model"] not in presets.models():
        model = values["model"]
        raise MacbenchError(f"unknown model '{model}': {nearest(model, presets.models())}")
    return Values(**values | {"length": config.tokens(values["length"])})


def _methods(base: dict[str, Any], typed: dict[str, Any]) -> list[config.MethodSpec]:
    """The cells of `method=` as `macbench run` makes them; a preset holds knobs by method."""
    asked = base["method"] if isinstance(base["method"], list) else [base["method"]]
    knobs = {
        f"{name}.{knob}": base[name][knob]
        for name in presets.methods()
        for knob in base.get(name, {})
    }
    families = [str(name).partition("/")[0] for name in asked]
    knobs = {key: knobs[key] for key in knobs if key.partition(".")[0] in families} | typed
    values: dict[str, Any] = {"methods": asked}
    for name in presets.methods():
        values[name] = presets.read("method", name)
    for key, value in knobs.items():
        name, _, knob = key.partition(".")
        values[name] = values[name] | {knob: value}
    return config.method_cells(values, set(knobs))


# -- measuring -----------------------------------------------------------------------------------


@dataclass
class Bench:
    """A plan on a card. capture: what makes a step something to replay; None: a CUDA graph."""

    plan: Plan
    timer: Timer
    machine: Machine
    say: Callable[[str], None]
    capture: Callable | None = None

    def measure(self) -> Iterator[dict[str, Any]]:
        """Rows as they are made; a row comes again with what transformers took, once that is
        known."""
        from macbench.engine.memory import release
        from macbench.models import Source, load

        for name, dtype in dict.fromkeys((v.model, v.dtype) for v in self.plan.values):
            self.say(f"{name}: loading")
            model = load(Source(**presets.read("model", name) | {"dtype": dtype}))
            model.stop_ids = ()  # every row decodes to the end of the timing
            mine = [v for v in self.plan.values if (v.model, v.dtype) == (name, dtype)]
            rows = []
            for values in mine:
                for row in self.decodes(values, model):
                    rows.append(row)
                    yield row
            if self.plan.settings.peer == "transformers":
                yield from self.beside_peer(mine, rows, model)
            del model
            release()

    def decodes(self, values: Values, model: Model) -> Iterator[dict[str, Any]]:
        """Every method alone, then all of them as one batch."""
        import torch

        from macbench.attention import create
        from macbench.bench.time_decode import Case
        from macbench.engine.memory import release
        from macbench.models.adapter import fuse

        settings, methods = self.plan.settings, self.plan.methods
        assert isinstance(values.length, int)
        steps = (settings.replays, settings.seed, settings.backend)
        case = Case(values.length, values.batch, *steps, PROFILED if settings.launches else 0)
        if case.prompt < 1:
            raise MacbenchError(
                f"length={case.length} is too short for {case.steps} steps (replays and warm-up)."
            )
        around = values.around if model.compilable else "eager"
        model.around = around
        fuse(model, values.fused)
        groups = [(spec.label, [spec]) for spec in methods]
        if settings.mixed:
            groups.append((MIXED, methods))
        alone: list[float] = []
        full: float | None = None
        for label, specs in groups:
            row = identity(values, around, label, settings)
            try:
                row |= self.one(model, case, [create(spec.name, spec.knobs) for spec in specs])
            except torch.OutOfMemoryError:
                self.say(f"{_title(row)}: skipped, it does not fit in the GPU's memory.")
                continue
            finally:
                release()
            row |= {"weights": model.weights, "device": self.machine.device}
            row |= {"bandwidth_gbs": self.machine.bandwidth / 1000}
            if label == MIXED:
                if row["ok"] and len(alone) == len(methods):
                    row |= {"alone_us": sum(alone), "vs_alone": sum(alone) / row["us_median"]}
            elif row["ok"]:
                alone.append(row["us_median"])
                full = row["us_median"] if label == "full" else full
                row |= {"vs_full": full / row["us_median"] if full else None}
            yield row

    def one(self, model: Model, case: Case, methods: list[Method]) -> dict[str, Any]:
        """The measured columns of one batch; a row that is wrong holds no time."""
        from macbench.bench import time_decode as td
        from macbench.engine.memory import release

        capture = self.capture or td.graph
        bed = td.make_bed(model, case, len(methods))
        error = td.disagreement(bed)
        row: dict[str, Any] = {"rows": bed.rows, "error": error, "ok": td.close(model, error)}
        if not row["ok"]:
            return row | {"note": "the step and the modules as they are disagree"}
        timed = td.time_step(bed, methods, self.timer, capture)
        row |= td.spread(timed.times) | {"n": len(timed.times)}
        row |= _against_floor(row["us_median"], model, timed, self.machine)
        row |= {"tokens_s": 1e6 * bed.rows / row["us_median"], "hit": td.hit_rate(timed.traces)}
        row |= {"hits": None if row["hit"] is None else "measured"}
        if timed.launches:
            row |= {"launches": timed.launches}
        del timed
        if self.plan.settings.rest:
            release()
            passing: list = [td.PassThrough() for _ in methods]
            left = td.spread(td.time_step(bed, passing, self.timer, capture).times)["us_median"]
            attention = row["us_median"] - left
            row |= {"rest_us": left, "attention_us": attention}
            row |= {"attention_share": attention / row["us_median"]}
            row |= {"rest_over_floor": left * self.machine.bandwidth / row["weight_bytes"]}
        return row

    def beside_peer(
        self, values: list[Values], rows: list[dict[str, Any]], model: Model
    ) -> Iterator[dict[str, Any]]:
        """The same rows with what transformers took for that length and batch."""
        from macbench.bench.time_peer import time_peer
        from macbench.engine.memory import release

        for length, batch in dict.fromkeys((v.length, v.batch) for v in values):
            mine = [r for r in rows if (r["length"], r["batch"]) == (length, batch)]
            mine = [row for row in mine if row["ok"] and row["method"] != MIXED]
            if not mine:
                continue
            assert isinstance(length, int)
            replays = self.plan.settings.replays
            found = time_peer(model, length, batch, replays, self.timer, self.say)
            release()
            if found:
                about, times = found
                took = sorted(times)[len(times) // 2]
                for row in mine:
                    yield row | {"peer": about, "peer_us": took, "vs_peer": took / row["us_median"]}


def identity(values: Values, around: str, method: str, settings: Settings) -> dict[str, Any]:
    """The columns before `us_median`."""
    return {
        "model": values.model,
        "dtype": values.dtype,
        "length": values.length,
        "batch": values.batch,
        "method": method,
        "around": around,
        "fused": values.fused,
        "backend": settings.backend,
        "kv": "random",
        "seed": settings.seed,
    }


def _against_floor(time: float, model: Model, timed: Timed, machine: Machine) -> dict[str, Any]:
    from macbench.bench import time_decode as td

    weights = td.weight_bytes(model)
    cache, meta = td.read_bytes(timed.traces, model.geometry)
    floor = (weights + cache + meta) / machine.bandwidth
    return {
        "weight_bytes": weights,
        "cache_bytes": round(cache),
        "meta_bytes": round(meta),
        "attention_floor_us": (cache + meta) / machine.bandwidth,
        "floor_us": floor,
        "over_floor": time / floor,
    }


# -- the table -----------------------------------------------------------------------------------

NOTES = (
    "ms: median of n captured steps (10th to 90th percentile); a step is one token of every row.",
    "rest: the same step where attention only gives its query back; attention: the difference.",
    "must: what the bytes that the method reads take at read bandwidth; the rest of `attention` is "
    "our code and its launches.",
    "x full: full attention's step in this run / this one.",
    "floor: bytes of weights (once), K, V and metadata that the step reads / read bandwidth of "
    "this run.",
    "Prompts are random keys and values, nothing is prefilled; hit is what MAC then did.",
)
_HEADER = (
    *("model", "length", "batch", "method", "around", "fused", "ms", "10-90 %", "tokens/s", "rest"),
    *("x weights", "attention", "must", "share", "x full", "floor", "x floor", "hit", "alone"),
    *("x alone", "peer"),
    *("x peer", "note"),
)


def table(rows: pd.DataFrame) -> str:
    """Rows for reading."""
    cells = [_cells(row) for _, row in rows.iterrows()]
    peers = sorted({str(peer) for peer in rows["peer"].dropna()})
    lines = [f"peer: transformers, {peer}" for peer in peers]
    return draw(cells, _HEADER, lines, NOTES)


def keep_launches(path: Path, parts: Sequence[dict[str, Any]], key: Sequence[str]) -> None:
    """Add a step's launches to a file, in place of older ones of the same step."""
    new = pd.DataFrame(parts).round(2)
    if path.exists():
        old = pd.read_csv(path)
        same = (old[[*key]].astype(str) == new.loc[0, [*key]].astype(str)).all(axis=1)
        new = pd.concat([old[~same], new])
    new.to_csv(path, index=False, lineterminator="\n")


def launch_table(parts: Sequence[dict[str, Any]]) -> str:
    """The longest launches of every step, for reading."""
    header = ("model", "length", "batch", "method", "launch", "a step", "us a step")
    cells = []
    for _, found in pd.DataFrame(parts).groupby(key_of(COLUMNS), sort=False):
        for part in found.head(LONGEST).to_dict("records"):
            cell = {key: str(part[key]) for key in header[:4]} | {"launch": part["launch"][:60]}
            cell |= {"a step": f"{part['a_step']:.4g}", "us a step": f"{part['us_step']:.1f}"}
            cells.append(cell)
    return draw(cells, header, [], ["of all layers, by torch's profiler; the file has the rest."])


def _cells(row: pd.Series) -> dict[str, str]:
    def number(key: str, form: str = ".2f", unit: float = 1) -> str:
        return "" if pd.isna(row[key]) else format(row[key] / unit, form)

    def ms(key: str) -> str:
        return number(key, ".3f", 1000)

    cells = {key: str(row[key]) for key in ("model", "length", "batch", "method", "around")}
    cells |= {"fused": "yes" if row["fused"] else "no", "ms": ms("us_median")}
    cells["10-90 %"] = f"{ms('us_p10')} to {ms('us_p90')}" if cells["ms"] else ""
    cells |= {"tokens/s": number("tokens_s", ".0f"), "rest": ms("rest_us")}
    cells |= {"x weights": number("rest_over_floor"), "attention": ms("attention_us")}
    cells |= {"must": ms("attention_floor_us"), "x full": number("vs_full")}
    cells |= {"share": number("attention_share"), "floor": ms("floor_us")}
    cells |= {"x floor": number("over_floor"), "hit": number("hit")}
    cells |= {"alone": ms("alone_us"), "x alone": number("vs_alone")}
    cells |= {"peer": ms("peer_us"), "x peer": number("vs_peer")}
    cells["note"] = "" if row["ok"] else f"FAILED: {row['note']}"
    return cells


def _title(row: dict[str, Any]) -> str:
    words = [row["model"], f"length {row['length']} batch {row['batch']}", row["method"]]
    return " ".join([*words, row["around"], "" if row["fused"] else "not fused"]).strip()


def _line(row: dict[str, Any]) -> str:
    """A row as it is told while the run goes on."""
    if not row["ok"]:
        return f"{_title(row)}: FAILED, {row['note']} (error {row['error']:.2g})"
    line = f"{_title(row)}: {row['us_median'] / 1000:.3f} ms, {row['over_floor']:.2f} x floor"
    if row.get("rest_us"):
        line += f", {row['rest_us'] / 1000:.3f} ms without attention"
    if row.get("vs_alone"):
        line += f", {row['vs_alone']:.2f} x as fast as each method alone"
    if row.get("vs_peer"):
        line += f", {row['vs_peer']:.2f} x as fast as transformers"
    return line
