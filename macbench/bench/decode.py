"""`macbench bench decode`: from words to decodes of whole models, and the rows of their times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from macbench import config, presets
from macbench.bench.decode_table import (
    COLUMNS,
    keep_launches,
    launch_table,
    sentence,
    table,
    title,
)
from macbench.bench.shared import (
    begin,
    check_machine,
    combinations,
    open_book,
    options,
    read_words,
)
from macbench.checks import check_least, check_types
from macbench.errors import MacbenchError, nearest

if TYPE_CHECKING:
    from macbench.attention import Method
    from macbench.bench.time_decode import Case, Timed, Timer
    from macbench.measure.latency.floor import Machine
    from macbench.models import Model

MIXED = "mixed"
PROFILED = 3  # steps of which every launch is told


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
        launches = row.pop("launches", [])
        book.add(row)
        rows[tuple(row[key] for key in book.key)] = row
        say(sentence(row))
        if launches:
            mine = [{key: row[key] for key in book.key} | part for part in launches]
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

    knobs = {f"{name}.{knob}" for name, own in presets.defaults("method").items() for knob in own}
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
    values: dict[str, Any] = {"methods": asked, **presets.defaults("method")}
    for key, value in knobs.items():
        name, _, knob = key.partition(".")
        values[name] = {**values.get(name, {}), knob: value}
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
        from macbench.attention import create
        from macbench.engine.memory import release
        from macbench.models import Source, load

        for name, dtype in dict.fromkeys((v.model, v.dtype) for v in self.plan.values):
            self.say(f"{name}: loading")
            model = load(Source(**presets.read("model", name) | {"dtype": dtype}))
            model.stop_ids = ()  # every row decodes to the end of the timing
            mine = [v for v in self.plan.values if (v.model, v.dtype) == (name, dtype)]
            for spec, values in product(self.plan.methods, mine):  # before there are times to lose
                assert isinstance(values.length, int)
                create(spec.name, spec.knobs).check(model.geometry, values.length)
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
                self.say(f"{title(row)}: skipped, it does not fit in the GPU's memory.")
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
