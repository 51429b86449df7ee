"""From the command line to a checked `RunConfig`; whatever is wrong with it is one sentence.

A variant's YAML lies over its method's, and the command line over both. A list-valued knob makes
one cell per value; several such knobs, one cell per combination.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from macbench import overrides, presets
from macbench.calibrate import saved
from macbench.calibrate.saved import Calibration
from macbench.checks import brief, check_least, check_types, show
from macbench.errors import MacbenchError, nearest

if TYPE_CHECKING:
    from macbench.attention import Method

LEAST = {"limit": 1, "block": 1, "max_new": 1, "seed": 0, "checkpoint": 0, "audit": 0}


@dataclass(frozen=True)
class MethodSpec:
    """The method of a cell."""

    name: str
    variant: str | None
    knobs: dict[str, Any]  # all of them
    label: str  # such as "mac tau=0.45": with the knobs that vary or were given
    calibration: Calibration | None = None  # of `mac@FILE`


@dataclass(frozen=True)
class RunConfig:
    """What `macbench.run.run.run` runs: tasks x lengths x cells of one model."""

    model: dict[str, Any]  # the fields of macbench.models.Source
    tasks: list[str]
    task_knobs: dict[str, dict[str, Any]]  # of each task
    lengths: list[int]  # tokens; each task says of what
    cells: list[MethodSpec]
    limit: int
    seed: int
    hold: Literal[0, 1, "question"]
    max_new: int | None
    block: int
    checkpoint: int
    audit: int
    unreachable: Literal["refuse", "floor"]
    backend: Literal["auto", "torch", "triton", "flashinfer"]
    out: Path
    decoding: dict[str, Any]  # the fields of macbench.engine.sampling.Decoding; None: the task's


def configure(words: Sequence[str]) -> RunConfig:
    """The run that `macbench run WORDS` means; MacbenchError for whatever is wrong with it."""
    return build(*overrides.resolve(words))


def build(values: dict[str, Any], given: set[str]) -> RunConfig:
    """The run that composed values mean. given: the keys that the command line set."""
    tasks, task_knobs = _tasks(values, given)
    config = RunConfig(
        model=_model(values["model"], given),
        tasks=tasks,
        task_knobs=task_knobs,
        lengths=_lengths(values, given, task_knobs),
        cells=method_cells(values, given),
        decoding=_decoding(values["decoding"]),
        out=_folder(values["out"]),
        **{key: values[key] for key in (*LEAST, "hold", "unreachable", "backend")},
    )
    check_types("", RunConfig, {f.name: getattr(config, f.name) for f in fields(config)})
    check_least(values, LEAST)
    return config


def _lengths(values: dict[str, Any], given: set[str], knobs: dict[str, dict]) -> list[int]:
    """As given, else the tasks' own; tasks of different ones cannot share a run without."""
    from macbench import tasks

    if "length" in given:
        return [tokens(length) for length in _list("length", values["length"])]
    own = {name: tasks.published_length(name, knobs[name]) or values["length"] for name in knobs}
    if len({*own.values()}) > 1:
        told = ", ".join(dict.fromkeys(f"{_family(n)} {show(length)}" for n, length in own.items()))
        raise MacbenchError(f"these tasks have different lengths ({told}); give length=.")
    return [tokens(length) for length in _list("length", next(iter(own.values())))]


def tokens(length: Any) -> int:
    """Tokens as people write them: 4096, "4k" (4096) or "1m" (1048576)."""
    text = str(length).strip().lower()
    unit = {"k": 1024, "m": 1024 * 1024}.get(text[-1:], 1)
    digits = text[:-1] if unit > 1 else text
    if not (digits.isascii() and digits.isdigit()) or int(digits) == 0:
        raise MacbenchError(f"length={show(length)}: write tokens as 4096 or 4k.")
    return int(digits) * unit


def _folder(out: Any) -> Path:
    if not isinstance(out, str | int) or out == "":
        raise MacbenchError("out= must name the folder that keeps the results.")
    return Path(str(out)).expanduser()


def _model(model: dict[str, Any], given: set[str]) -> dict[str, Any]:
    from macbench.models import Source

    check_types("model.", Source, model)
    if "model.source" in given and "model.name" not in given:  # no longer the preset
        return {**model, "name": Path(model["source"]).name}
    return model


def _tasks(values: dict[str, Any], given: set[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The tasks asked for, families expanded, and the options of each."""
    from macbench import tasks

    asked = _list("task", values["tasks"])
    names = list(dict.fromkeys(name for ask in asked for name in tasks.expand(str(ask))))
    _check_used(given, presets.families(), names, "task")
    return names, {name: dict(values.get(_family(name)) or {}) for name in names}


def _decoding(values: dict[str, Any]) -> dict[str, Any]:
    from macbench.engine.sampling import Decoding

    given = {key: value for key, value in values.items() if value is not None}
    check_types("decoding.", Decoding, given)
    Decoding(**given)  # refuses what is out of range
    return values


def method_cells(values: dict[str, Any], given: set[str]) -> list[MethodSpec]:
    from macbench.attention import METHODS

    names = [str(name) for name in _list("method", values["methods"])]
    variants = [f"{name}/{v}" for name, all_ in presets.methods().items() for v in all_]
    known = list(dict.fromkeys([*presets.methods(), *variants, *METHODS]))
    for name in names:
        if name.partition("@")[0] not in known:
            raise MacbenchError(f"unknown method '{name}': {nearest(name, known)}")
        method_class(_family(name))
    _check_used(given, presets.methods(), names, "method")
    for key in sorted(given):  # a calibrated method takes none: its file has all of its knobs
        own = [name for name in names if _family(name) == key.partition(".")[0]]
        if own and all("@" in name for name in own):
            raise MacbenchError(
                f"{key} is given but {own[0]} has its knobs from the file; leave it out, or give "
                f"it to macbench calibrate."
            )
    cells = [cell for name in names for cell in _variants(name, values[_family(name)], given)]
    labels = [cell.label for cell in cells]
    for label in labels:
        if labels.count(label) > 1:
            raise MacbenchError(f"'{label}' is asked for twice; give each method and value once.")
    return cells


def method_class(name: str) -> type[Method]:
    """The class of a method; MacbenchError where the class or its YAML is not as it must be."""
    from macbench.attention import METHODS

    file = f"conf/method/{name}.yaml"
    if name not in presets.methods():
        raise MacbenchError(
            f"method '{name}' has no {file}; add it, with its knobs and their defaults."
        )
    presets.read("method", name)  # refuses what cannot be read
    if name not in METHODS:
        bare = ", ".join(sorted({*METHODS} - {*presets.methods()}))
        told = f" (those without a file: {bare})" if bare else ""
        raise MacbenchError(
            f"{file} is no method's: no class in macbench/attention/ has name = '{name}'{told}; "
            "add it, or give class and file one name."
        )
    found = METHODS[name]
    if "__dataclass_params__" not in vars(found):
        raise MacbenchError(
            f"{found.__name__} in {found.__module__.replace('.', '/')}.py is no dataclass, so it "
            "has no knobs; write @dataclass above it."
        )
    return found


def _variants(name: str, base: dict[str, Any], given: set[str]) -> list[MethodSpec]:
    """The cells of one name of `method=[…]`: one per combination of its list-valued knobs."""
    from macbench.attention import METHODS, create

    if "@" in name:
        return [_calibrated(name)]
    method, _, variant = name.partition("/")
    knobs = dict(base)
    if variant:
        over = presets.read("method", name)
        knobs |= {knob: over[knob] for knob in over if f"{method}.{knob}" not in given}
    shown = [k for k in knobs if isinstance(knobs[k], list) or f"{method}.{k}" in given]
    cells = []
    for combination in product(*(_list(f"{method}.{k}", v) for k, v in knobs.items())):
        chosen = dict(zip(knobs, combination, strict=True))
        check_types(f"{method}.", METHODS[method], chosen)
        create(method, chosen)  # refuses what is out of range
        label = " ".join([name, *(f"{knob}={brief(chosen[knob])}" for knob in shown)])
        cells.append(MethodSpec(method, variant or None, chosen, label))
    return cells


def _calibrated(name: str) -> MethodSpec:
    """The cell of `mac@FILE`: the method as it was calibrated; options of its name are others'."""
    from macbench.attention import METHODS, create

    method, _, file = name.partition("@")
    if not file:
        raise MacbenchError(f"'{name}' names no file; write {method}@FILE.")
    found = saved.read(Path(file).expanduser())
    if found.method != method:
        raise MacbenchError(f"{file} calibrates {found.method}; write {found.method}@{file}.")
    defaults = presets.read("method", method)
    if {*found.knobs} != {*defaults}:
        raise MacbenchError(
            f"{file} does not hold the knobs that {method} has ({', '.join(defaults)}), so it was "
            "edited or is of another version; run macbench calibrate again."
        )
    check_types(f"{method}.", METHODS[method], found.knobs)
    create(method, found.knobs)
    label = found.label(defaults)
    return MethodSpec(method, None, found.knobs, label, found)


def _check_used(given: set[str], rooms: Sequence[str] | dict, names: list[str], kind: str) -> None:
    """Refuse options of a method or task family that does not run."""
    for key in sorted(given):
        room = key.partition(".")[0]
        if room in rooms and room not in map(_family, names):
            raise MacbenchError(f"{key} is given but {room} is not in {kind}={show(names)}.")


def _family(name: str) -> str:
    """mac of mac, mac/authors and mac@FILE."""
    return name.partition("@")[0].partition("/")[0]


def _list(key: str, value: Any) -> list[Any]:
    if value == [] or (value is None and key in overrides.TAKE_LISTS):
        raise MacbenchError(f"{key} is empty; give at least one value.")
    return value if isinstance(value, list) else [value]
