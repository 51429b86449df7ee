"""From the command line to a checked `RunConfig`.

Hydra composes the values; everything is checked here before any work, and whatever is wrong is one
sentence (MacbenchError). A method's YAML lands under the method's name, a variant's lies over it,
and the command line over both. `method` is a plain list of names; a list-valued knob makes one cell
per value.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from hashlib import sha256
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from macbench.errors import MacbenchError, nearest

SWEPT = ("model", "task", "length", "seed")  # what -m may sweep
LISTS = {"task": "tasks", "method": "methods"}  # on the command line: in conf/config.yaml
RANGES = {"limit": 1, "block": 1, "max_new": 1, "seed": 0}  # least value of a number


@dataclass(frozen=True)
class MethodSpec:
    """One cell's method, with every knob it has."""

    name: str
    variant: str | None
    knobs: dict[str, Any]
    label: str  # such as "mac tau=0.45": only knobs that vary or were given


@dataclass(frozen=True)
class RunConfig:
    """What `macbench.run.run` runs: tasks x lengths x cells, of one model."""

    model: dict[str, Any]  # the fields of macbench.models.Source
    tasks: list[str]
    task_knobs: dict[str, dict[str, Any]]  # of each task
    lengths: list[int]  # tokens, prompt and answer together
    cells: list[MethodSpec]
    limit: int
    seed: int
    hold: int | Literal["question"]
    out: Path
    block: int
    unreachable: Literal["refuse", "floor"]
    backend: Literal["auto", "torch", "triton", "flashinfer"]
    decoding: dict[str, Any] = field(default_factory=dict)  # the fields of macbench.engine.Decoding
    max_new: int | None = None


def configure(overrides: Sequence[str]) -> RunConfig:
    """The run that `macbench run OVERRIDES` means; MacbenchError for whatever is wrong with it."""
    given = _parse(overrides)
    for override in given:
        if override.is_sweep_override():
            _refuse_comma(override)
        if override.key_or_group.startswith("hydra"):
            raise MacbenchError(f"{override.key_or_group} needs -m: `macbench run -m …`.")
    _check_keys(given)
    return build(_compose([_rename(o) for o in given]), {o.key_or_group for o in given})


def sweep(overrides: Sequence[str]) -> tuple[list[str], list[RunConfig]]:
    """What `macbench run -m OVERRIDES` means: Hydra's arguments, and the run of every job.

    Every job is checked before the first starts.
    """
    given = _parse(overrides)
    axes, own = [], []
    for override in given:
        if override.key_or_group.startswith("hydra"):
            continue
        own.append(override)
        if not override.is_sweep_override():
            axes.append([override.input_line])
            continue
        key = override.key_or_group
        if key not in SWEPT:
            _refuse_comma(override, sweeping=True)
        if not (override.is_choice_sweep() or override.is_range_sweep()):
            raise MacbenchError(f"{override.input_line}: write the values out, as {key}=a,b.")
        axes.append([f"{key}={value}" for value in override.sweep_string_iterator()])
    _check_keys(own)
    return [_rename(o) for o in given], [configure(job) for job in product(*axes)]


def build(cfg: dict[str, Any], given: set[str]) -> RunConfig:
    """A composed configuration, checked. given: the keys that the command line set."""
    names = _names("method", cfg["methods"])
    model = _model(cfg["model"], given)
    tasks, task_knobs = _tasks(cfg, given)
    unused = sorted({k.partition(".")[0] for k in given} & set(methods()) - {*map(_base, names)})
    if unused:
        raise MacbenchError(
            f"options of {unused[0]} are given but it does not run; add it to method=[…]."
        )
    cells = [cell for name in names for cell in _cells(name, cfg[_base(name)], given)]
    labels = [cell.label for cell in cells]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice:
        raise MacbenchError(f"'{twice}' is asked for twice; every method and value once.")
    decoding = _decoding(cfg["decoding"])
    config = RunConfig(
        model=model,
        tasks=tasks,
        task_knobs=task_knobs,
        lengths=[tokens(length) for length in _list("length", cfg["length"])],
        cells=cells,
        out=Path(str(cfg["out"])).expanduser(),
        decoding=decoding,
        **{
            key: cfg[key]
            for key in ("limit", "seed", "hold", "block", "unreachable", "backend", "max_new")
        },
    )
    _check_types("", RunConfig, {f.name: getattr(config, f.name) for f in fields(config)})
    for key, least in RANGES.items():
        value = getattr(config, key)
        if value is not None and value < least:
            raise MacbenchError(f"{key}={value} must be at least {least}.")
    if config.hold not in (0, 1, "question"):
        raise MacbenchError(f"hold={config.hold}: choose 0, 1 or question.")
    return config


def tokens(text: Any) -> int:
    """Tokens as people write them: 4096, '4k' (4096), '1m' (1048576)."""
    scale = {"k": 1024, "m": 1024 * 1024}
    digits = str(text).strip().lower()
    unit = scale.get(digits[-1:], 1)
    digits = digits[:-1] if unit > 1 else digits
    if isinstance(text, bool) or not digits.isdecimal() or int(digits) == 0:
        raise MacbenchError(f"length={text}: write tokens as 4096 or 4k.")
    return int(digits) * unit


@cache
def methods() -> dict[str, list[str]]:
    """Every method that has a YAML, with its variants ("authors" is run as mac/authors)."""
    folder = files("macbench.conf") / "method"
    return {
        name: sorted(_stems(folder / name)) if (folder / name).is_dir() else []
        for name in sorted(_stems(folder))
    }


@cache
def models() -> list[str]:
    """The names that `model=` takes."""
    return sorted(_stems(files("macbench.conf") / "model"))


def variant_knobs(name: str, variant: str) -> dict[str, Any]:
    """What a variant's YAML lays over its method's."""
    import yaml

    text = (files("macbench.conf") / "method" / name / f"{variant}.yaml").read_text("utf-8")
    return yaml.safe_load(text) or {}


def _stems(folder: Any) -> list[str]:
    """Names of the YAML files of a configuration folder."""
    return [f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")]


def _base(name: str) -> str:
    return name.partition("/")[0]


# --- Hydra -------------------------------------------------------------------------------------


def register() -> None:
    """Tell Hydra of the node `rooms`: every method's and task family's YAML under its own key."""
    from hydra.core.config_store import ConfigStore

    defaults = [{f"method@{name}": name} for name in methods()]
    defaults += [{f"task@{name}": name} for name in _families()]
    ConfigStore.instance().store(name="rooms", node={"defaults": defaults})


@cache
def _families() -> list[str]:
    return sorted(_stems(files("macbench.conf") / "task"))


def _compose(overrides: list[str]) -> dict[str, Any]:
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register()
    try:
        with initialize_config_module("macbench.conf", version_base="1.3"):
            cfg = OmegaConf.to_container(compose("config", overrides), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise MacbenchError(_sentence(error)) from error
    assert isinstance(cfg, dict)
    return {str(key): value for key, value in cfg.items()}


def _parse(overrides: Sequence[str]) -> list[Any]:
    """Hydra's Override objects, of the plain `key=value` form."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    for text in overrides:
        if "=" not in text or text[0] in "+~":
            raise MacbenchError(f"'{text}' is not an option; write key=value, as in length=4k.")
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise MacbenchError(f"cannot read the options: {_sentence(error)}") from error


def _sentence(error: Exception) -> str:
    """The first sentence of an error of Hydra's, on one line."""
    first = str(error).strip().split("\n")[0].rstrip(".")
    return f"{first}."


def _rename(override: Any) -> str:
    """The override as Hydra is given it: with the key that conf/config.yaml uses."""
    key = override.key_or_group
    return LISTS.get(key, key) + override.input_line.strip().removeprefix(key)


def _refuse_comma(override: Any, sweeping: bool = False) -> None:
    """Values with commas and no brackets: a list was meant, or they cannot be swept."""
    key, _, value = override.input_line.partition("=")
    if key in ("method", "task", "length") or _base(key.replace(".", "/")) in methods():
        if sweeping:
            raise MacbenchError(
                f"{key} is not swept with -m: its cells share one prefill, so write the list "
                f"{key}=[{value}]."
            )
        raise MacbenchError(f"{key}={value} is a sweep; write the list {key}=[{value}].")
    if key in SWEPT:
        raise MacbenchError(f"{key}={value} is a sweep; add -m: `macbench run -m {key}={value}`.")
    raise MacbenchError(f"{key}={value}: {key} takes one value; -m sweeps {', '.join(SWEPT)}.")


def _check_keys(given: Iterable[Any]) -> None:
    """Refuse keys that do not exist, and names of models that do not."""
    names = {inner: outer for outer, inner in LISTS.items()}
    known = [names.get(key, key) for key in _leaves(_compose([]))]
    for override in given:
        key = override.key_or_group
        if key == "model":
            for name in _values(override):
                if name not in models():
                    raise MacbenchError(
                        f"unknown model '{name}': {nearest(name, models())} Any other: "
                        f"model.source=HUB_ID, a folder or a .gguf file."
                    )
        elif key not in known:
            inside = [k for k in known if k.startswith(f"{key}.")]
            hint = f"write one of {', '.join(inside)}." if inside else nearest(key, known)
            raise MacbenchError(f"unknown option '{key}': {hint}")


def _values(override: Any) -> list[str]:
    if override.is_sweep_override():
        return list(override.sweep_string_iterator())
    return [override.get_value_string().strip("'\"")]


def _leaves(cfg: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of everything that takes a value; `model` itself is a name too."""
    keys = []
    for key, value in cfg.items():
        if isinstance(value, dict):
            keys += _leaves(value, f"{prefix}{key}.")
        else:
            keys.append(f"{prefix}{key}")
    return keys


# --- checks ------------------------------------------------------------------------------------


def _model(model: dict[str, Any], given: set[str]) -> dict[str, Any]:
    from macbench.models import Source

    _check_types("model.", Source, model)
    if "model.source" in given and "model.name" not in given:
        model = {**model, "name": Path(model["source"]).name}  # not the preset's name
    return model


def _tasks(cfg: dict[str, Any], given: set[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    from macbench import tasks

    asked = _names("task", cfg["tasks"])
    names = list(dict.fromkeys(task for name in asked for task in tasks.expand(name)))
    for family in _families():
        if any(key.startswith(f"{family}.") for key in given) and family not in map(_base, names):
            raise MacbenchError(
                f"options of {family} are given but none of its tasks runs; add one to task=[…]."
            )
    return names, {name: dict(cfg.get(_base(name)) or {}) for name in names}


def _decoding(values: dict[str, Any]) -> dict[str, Any]:
    from macbench.engine.sampling import Decoding

    _check_types("decoding.", Decoding, values)
    Decoding(**values)  # refuses what is out of range
    return values


def _cells(name: str, base: dict[str, Any] | None, given: set[str]) -> list[MethodSpec]:
    """The cells of one name of `method=[…]`: one per combination of its list-valued knobs."""
    from macbench.attention import METHODS, create

    method, _, variant = name.partition("/")
    known = [*methods(), *(f"{m}/{v}" for m, variants in methods().items() for v in variants)]
    if name not in known:
        raise MacbenchError(f"unknown method '{name}': {nearest(name, known)}")
    knobs = dict(base or {})
    if variant:
        over = variant_knobs(method, variant)
        knobs |= {k: v for k, v in over.items() if f"{method}.{k}" not in given}
    shown = [k for k, v in knobs.items() if isinstance(v, list) or f"{method}.{k}" in given]
    cells = []
    for values in product(*(_list(f"{method}.{k}", v) for k, v in knobs.items())):
        chosen = dict(zip(knobs, values, strict=True))
        _check_types(f"{method}.", METHODS[method], chosen)
        create(method, chosen)  # refuses what is out of range
        label = " ".join([name, *(f"{k}={_text(chosen[k])}" for k in shown)])
        cells.append(MethodSpec(method, variant or None, chosen, label))
    return cells


def _names(key: str, value: Any) -> list[str]:
    return [str(name) for name in _list(key, value)]


def _list(key: str, value: Any) -> list[Any]:
    if value == []:
        raise MacbenchError(f"{key}=[] is empty; give at least one value.")
    return value if isinstance(value, list) else [value]


def _text(value: Any) -> str:
    """A knob's value in a label, as it is written on the command line."""
    if isinstance(value, list) and len(value) > 3:  # one value per layer
        digest = sha256(repr(value).encode()).hexdigest()[:4]
        return f"[{len(value)} values {digest}]"
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return {True: "true", False: "false", None: "null"}.get(value, str(value)) if (
        value is None or isinstance(value, bool)
    ) else str(value)


def _check_types(prefix: str, schema: type, values: dict[str, Any]) -> None:
    """Refuse a value that does not fit the annotation of its field in `schema`, a dataclass."""
    hints = get_type_hints(schema)
    for key, value in values.items():
        hint = hints.get(key, Any)
        if not _fits(value, hint):
            raise MacbenchError(f"{prefix}{key}={_text(value)} must be {_wanted(hint)}.")


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if hint is Any or hint is Path or origin is dict:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is list:
        inner = get_args(hint)[0]
        return isinstance(value, list) and all(_fits(item, inner) for item in value)
    if hint in (int, float):
        numbers = int if hint is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool)
    return isinstance(value, hint)


def _wanted(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a name"}
    if hint in words:
        return words[hint]
    if hint is type(None):
        return "null"
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(_wanted, get_args(hint)))
    if get_origin(hint) is list:
        return f"a list, each {_wanted(get_args(hint)[0])}"
    return "one of " + ", ".join(map(str, get_args(hint)))
