"""`key=value` words of the command line, through Hydra, into plain nested values.

`method=[full,mac]` cannot be a Hydra group (of a list, a group silently keeps the last name), so
`method` and `task` are handed to Hydra under the names of plain keys, see `conf/config.yaml`, and
every method's and task family's YAML is there under its own key, asked for or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

from macbench import presets
from macbench.errors import MacbenchError, nearest

INNER = {"task": "tasks", "method": "methods"}  # on the command line: for Hydra
SWEPT = ("model", "task", "length", "seed")  # what -m may sweep
OUTCOMES = {"mac": "tau", "twilight": "p"}  # of which the budget is one
TAKE_LISTS = ("task", "method", "length")  # beside every knob of a method


def resolve(words: Sequence[str]) -> tuple[dict[str, Any], set[str]]:
    """One run's values, and the keys that the command line set."""
    given = _parse(words)
    for override in given:
        if override.key_or_group.startswith("hydra"):
            raise MacbenchError(
                f"{override.key_or_group} needs -m, as in `macbench run -m {override.input_line}`."
            )
        if override.is_sweep_override():
            raise MacbenchError(_instead_of_commas(override))
    _check_keys(given)
    return compose([_for_hydra(override) for override in given]), _keys(given)


def split_sweep(words: Sequence[str]) -> tuple[list[str], list[tuple[str, ...]]]:
    """A sweep's words for Hydra, and the words of each of its jobs."""
    given = _parse(words)
    axes = []
    for override in given:
        key = override.key_or_group
        if key.startswith("hydra"):
            continue
        if not override.is_sweep_override():
            axes.append([override.input_line])
        elif key not in SWEPT:
            raise MacbenchError(_instead_of_sweep(override))
        elif override.value_type.name in ("GLOB_CHOICE_SWEEP", "INTERVAL_SWEEP"):
            raise MacbenchError(f"{override.input_line}: write the values out, as in {key}=a,b.")
        else:
            axes.append([f"{key}={value}" for value in override.sweep_string_iterator()])
    return [_for_hydra(override) for override in given], list(product(*axes))


def register() -> None:
    """Tell Hydra of `rooms`: every method's and task family's YAML under its own key."""
    from hydra.core.config_store import ConfigStore

    families = {name: presets.read("task", name) for name in presets.families()}
    rooms = {**presets.defaults("method"), **families}
    ConfigStore.instance().store(name="rooms", node=rooms)


def compose(words: Sequence[str]) -> dict[str, Any]:
    """The values of `conf/` under Hydra's own words."""
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register()
    try:
        with initialize_config_module("macbench.conf", version_base="1.3"):
            cfg = compose("config", list(words))
        return dict(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    except (HydraException, OmegaConfBaseException) as error:
        raise MacbenchError(_first_line(error)) from error


def _parse(words: Sequence[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, parsed = OverridesParser.create(), []
    for word in words:
        key, equals, _ = word.partition("=")
        if not (equals and key) or key[0] in "+~":
            raise MacbenchError(f"'{word}' is not an option; write key=value, as in length=4k.")
        try:
            parsed.append(parser.parse_override(word))
        except HydraException as error:
            raise MacbenchError(
                f"'{word}' cannot be read; a value with special characters needs quotes of its "
                f"own, as in '{key}=\"…\"'."
            ) from error
    return parsed


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") + "."


def _for_hydra(override: Any) -> str:
    key = override.key_or_group
    return INNER.get(key, key) + override.input_line.strip().removeprefix(key)


def _keys(given: Iterable[Any]) -> set[str]:
    return {override.key_or_group for override in given}


def _value(override: Any) -> str:
    return override.input_line.partition("=")[2]


def _is_knob(key: str) -> bool:
    return key.partition(".")[0] in presets.methods()


def _instead_of_commas(override: Any) -> str:
    key, value = override.key_or_group, _value(override)
    if key in TAKE_LISTS or _is_knob(key):
        return f"{key}={value} would be a sweep; write the list {key}=[{value}]."
    if key in SWEPT:
        return f"{key}={value} is a sweep; add -m, as in `macbench run -m {key}={value}`."
    return f"{key}={value}: {key} takes one value."


def _instead_of_sweep(override: Any) -> str:
    key, value = override.key_or_group, _value(override)
    if key == "method" or _is_knob(key):
        return (
            f"{key} is not swept with -m, so that its cells share one prefill; write the list "
            f"{key}=[{value}]."
        )
    return f"{key}={value}: -m sweeps {', '.join(SWEPT)} only."


def _check_keys(given: Iterable[Any]) -> None:
    """Refuse an option that does not exist, and a model without a file."""
    outer = {inner: key for key, inner in INNER.items()}
    known = [outer.get(key, key) for key in _leaves(compose([]))]
    for override in given:
        key = override.key_or_group
        if key == "model":
            _check_model(_value(override).strip("'\" "))
        elif key not in known:
            raise MacbenchError(f"unknown option '{key}': {instead_of_key(key, known)}")


def instead_of_key(key: str, known: list[str]) -> str:
    """The tail of the sentence on an option that does not exist: what does."""
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        return f"give {', '.join(inside)}."
    if _is_knob(key):
        method, _, knob = key.partition(".")
        return _instead_of_knob(method, knob)
    hint = nearest(key, known)
    rooms = list(dict.fromkeys(name.partition(".")[0] for name in known))
    return hint if hint.startswith("did") else nearest(key, rooms)


def _instead_of_knob(method: str, knob: str) -> str:
    from macbench.attention import METHODS

    own = list(presets.read("method", method))
    if knob == "budget" and method in OUTCOMES:
        return (
            f"{method} has no budget, since what it reads is an outcome of "
            f"{method}.{OUTCOMES[method]}; set that, or let `macbench calibrate method={method} "
            "budget=0.4 out=FILE` find it."
        )
    if knob in getattr(METHODS.get(method), "__dataclass_fields__", ()):
        return f"the class has it but its file does not; add it to conf/method/{method}.yaml."
    hint = nearest(knob, own)
    if hint.startswith("did"):
        return hint.replace("'", f"'{method}.", 1)
    return f"{method} has {', '.join(f'{method}.{name}' for name in own) or 'none'}."


def _check_model(name: str) -> None:
    known = presets.models()
    if name not in known:
        raise MacbenchError(
            f"unknown model '{name}': {nearest(name, known)} For any other checkpoint give "
            "model.source=HUB_ID, a folder or a .gguf file."
        )
    presets.read("model", name)  # refuses what cannot be read


def _leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of everything that holds a value."""
    keys = []
    for key, value in values.items():
        if isinstance(value, dict):
            keys += _leaves(value, f"{prefix}{key}.")
        else:
            keys.append(f"{prefix}{key}")
    return keys
