"""The file of a calibration: a method's knobs that read an asked share of bytes, and where that was
found. `method=[mac@FILE]` runs it; never on the prompts that it was found on. (RULER's qa asks the
same questions of other contexts under another seed.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from macbench.checks import check_types
from macbench.errors import MacbenchError

if TYPE_CHECKING:
    from macbench.models import Model

SOLVED = ("tau", "K", "budget", "p")  # knobs that follow from the budget


@dataclass(frozen=True)
class Calibration:
    """budget, predicted, checked: shares of full attention's bytes (`budgets` of a table)."""

    method: str
    knobs: dict[str, Any]  # all of the method's
    budget: float  # asked for
    predicted: float | None  # by the dense pass, or by the knob
    checked: float  # by a run on the same samples
    per: str  # "global" or "layer"
    model: str
    weights: str
    tasks: list[str]
    length: int
    seed: int
    prompts: list[str]  # identities of the prompts

    def label(self, defaults: dict[str, Any]) -> str:
        """Such as "mac budget=0.2": with the knobs that were not solved for and not left alone."""
        apart = {k: v for k, v in self.knobs.items() if k not in SOLVED and v != defaults[k]}
        told = [f"per={self.per}"] if self.per != "global" else []
        told += [f"{knob}={value}" for knob, value in apart.items()]
        return " ".join([self.method, *told, f"budget={self.budget:g}"])

    def check(self, model: Model, task: str, seed: int, prompts: Iterable[str]) -> None:
        """Refuse (MacbenchError) another model, and samples that were used to calibrate."""
        if model.weights != self.weights:
            told, here = self.model, model.name
            if told == here:
                told, here = f"{told} ({_short(self.weights)})", f"{here} ({_short(model.weights)})"
            raise MacbenchError(
                f"{self.label(self.knobs)} was calibrated for {told}, not for {here}; run "
                "macbench calibrate with this model."
            )
        if (task in self.tasks and seed == self.seed) or {*prompts} & {*self.prompts}:
            raise MacbenchError(
                f"{self.label(self.knobs)} was calibrated on samples of {task} that this run would "
                f"report (seed {seed}); calibrate with another seed= or, where the samples are the "
                "same for every seed, on another task."
            )


def _short(weights: str) -> str:
    """An identity of weights with the first digits of its checksums."""
    return re.sub(r"[0-9a-f]{9,}", lambda found: found[0][:8], weights)


def check_writable(path: Path) -> None:
    """Refuse (MacbenchError) a file that could not be written, before there is work to lose."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a"):
            pass
        if not path.stat().st_size:
            path.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> MacbenchError:
    return MacbenchError(f"cannot write {path} ({error.strerror}); choose another out=.")


def write(path: Path, found: Calibration) -> None:
    """Save a calibration."""
    try:
        text = yaml.safe_dump(asdict(found), sort_keys=False, default_flow_style=None, width=100)
        path.write_text(f"# macbench run 'method=[full,{found.method}@{path}]'\n{text}", "utf-8")
    except OSError as error:
        raise _unwritable(path, error) from error


def read(path: Path) -> Calibration:
    """A saved calibration; MacbenchError where there is none."""
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise MacbenchError(
            f"there is no calibration {path}; make one with macbench calibrate out={path}."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError):
        values = None
    if not isinstance(values, dict) or {*values} != {field.name for field in fields(Calibration)}:
        raise MacbenchError(f"{path} is not a file that macbench calibrate has written.")
    check_types(f"{path}: ", Calibration, values)
    return Calibration(**values)
