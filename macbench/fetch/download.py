"""One file over HTTP: continued where it stopped, checked, and in its place only when whole."""

from __future__ import annotations

import hashlib
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from macbench.errors import MacbenchError
from macbench.fetch.meter import Meter
from macbench.fetch.table import Remote

CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte
PAUSES = (1, 2, 4, 8)  # seconds before a broken transfer goes on


class Broken(OSError):
    """The transfer ended before the file did."""


def download(remote: Remote, target: Path, meter: Meter) -> None:
    """Get a file unless it is there. `target`.part keeps what came, for the next call.

    Raises MacbenchError where it cannot be had or is not the published file.
    """
    from filelock import FileLock

    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if not target.is_file():
                _get(remote, part, meter)
                part.replace(target)
    except (OSError, HTTPException) as error:
        raise MacbenchError(
            f"cannot get {target.name} ({_reason(error)}); the same "
            f"command tries again and keeps what it has, or get {remote.url} another way and put "
            f"it at {target}."
        ) from error


def _get(remote: Remote, part: Path, meter: Meter) -> None:
    """The whole file at `part`, checked."""
    for pause in (*PAUSES, None):
        had = _size(part)
        try:
            _transfer(remote, part, meter)
            break
        except (Broken, ConnectionError, TimeoutError, HTTPException):
            if pause is None or _size(part) == had == 0:  # nothing came: no transfer that broke
                raise
            time.sleep(pause)
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != remote.sha256:
        part.unlink()
        raise OSError(
            f"what came is not the published file: sha256 {found[:12]}…, not {remote.sha256[:12]}…"
        )


def _transfer(remote: Remote, part: Path, meter: Meter) -> None:
    """Ask for what is missing and write it; Broken where the rest did not come."""
    had = _size(part)
    try:
        answer = _open(remote.url, had)
    except HTTPError as error:
        if error.code == 416 and had:  # nothing behind what is here: the checksum decides
            return
        raise
    with answer, part.open("ab") as file:
        if had and not _continues(answer, had):
            file.truncate(had := 0)
        length = answer.headers.get("Content-Length")
        total = had + int(length) if length else remote.size
        meter.start(remote.name, total, had)
        try:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                meter.advance(len(chunk))
        finally:
            meter.stop()
    if _size(part) < total:
        raise Broken(f"the transfer ended after {_size(part)} of {total} bytes")


def _open(url: str, had: int) -> Any:
    headers = {"User-Agent": "macbench", "Accept-Encoding": "identity"}
    if had:
        headers["Range"] = f"bytes={had}-"
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)


def _continues(answer: Any, had: int) -> bool:
    """Whether the server sends what follows the first `had` bytes, not all from the start."""
    return answer.status == 206 and answer.headers.get("Content-Range", "").startswith(
        f"bytes {had}-"
    )


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", error)  # an URLError wraps what happened
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror + (f": {inner.filename}" if inner.filename else "")
    return str(inner) or type(inner).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
