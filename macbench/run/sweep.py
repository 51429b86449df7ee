"""`macbench run -m`: Hydra's sweeper and launchers over runs that share one store."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from omegaconf import OmegaConf

from macbench import overrides
from macbench.config import build, configure
from macbench.errors import MacbenchError
from macbench.progress import Progress

EXTRAS = {"joblib": "launchers", "submitit": "slurm", "ray": "ray"}  # of pyproject.toml


class JobFailed(Exception):
    """A job's exit code, carried through the launcher; what went wrong is already printed."""


def sweep(words: Sequence[str]) -> int:
    """Run every job of a sweep; all are checked before the first starts. Returns the exit code."""
    from macbench.store.cell import check_writable

    for_hydra, jobs = overrides.split_sweep(words)
    outs = dict.fromkeys(configure(job).out for job in jobs)
    for out in outs:
        check_writable(out)
    overrides.register()
    code = 0
    try:
        with _arguments(["macbench", "-m", *for_hydra]):
            hydra.main("pkg://macbench.conf", "config", version_base="1.3")(_job)()
    except JobFailed as failed:
        code = int(failed.args[0])
    except hydra.errors.HydraException as error:  # such as an unknown launcher
        told = " ".join(str(error).split()).partition(" Config search path")[0]
        if missing := re.search(rf"Could not find 'hydra/launcher/({'|'.join(EXTRAS)})", told):
            raise MacbenchError(
                f"the launcher {missing[1]} is not installed; "
                f"pip install 'macbench[{EXTRAS[missing[1]]}]'."
            ) from error
        raise MacbenchError(f"the sweep cannot start: {told}.") from error
    print("\n".join(f"Tables of what there is: macbench show {out}" for out in outs))
    return code


def _job(cfg: Any) -> None:
    """One job, in whatever process the launcher chose."""
    from hydra.core.hydra_config import HydraConfig

    from macbench.run.run import run

    words = list(HydraConfig.get().overrides.task)
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    with Progress() as progress:
        try:
            config = build(values, {word.partition("=")[0] for word in words})
            tasks, lengths = ",".join(config.tasks), ",".join(map(str, config.lengths))
            progress.note(f"{config.model['name']}, {tasks}, {lengths} tokens, seed {config.seed}")
            code = run(config, progress)
        except MacbenchError as error:
            progress.note(f"macbench: {error}")
            code = 2
    if code:
        raise JobFailed(code)


@contextmanager
def _arguments(argv: list[str]) -> Iterator[None]:
    """What hydra.main reads: the program's arguments, and that errors are raised, not printed."""
    before, sys.argv = sys.argv, argv
    full = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before
        del os.environ["HYDRA_FULL_ERROR"]
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full
