"""Where RULER's texts come from: the official ones where they are, else the shipped ones.

Looked for in the folder asked for, then `$MACBENCH_DATA/ruler`, then the cache that
`macbench fetch ruler` fills. File names and formats: PaulGrahamEssays.json {"text": …}, squad.json
(SQuAD v2 dev), hotpotqa.json (a list of records with question, answer and context).
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException
from importlib.resources import files
from pathlib import Path
from typing import Any

from macbench.cache import cache_folder
from macbench.errors import MacbenchError

ESSAYS, SQUAD, HOTPOT = "PaulGrahamEssays.json", "squad.json", "hotpotqa.json"
SHA256 = {  # of the shipped files, unpacked
    "english.txt": "489b9cb9998c498c15e88627e09e2b94893014f78b8ddd30a00ff2a75b85c800",
    SQUAD: "6cef6e062d498ad5b5663ed6775c4eaf9e44aa294a4fc32664dcc0b8dd9bfc2b",
    HOTPOT: "e5c5bd693e9b138ff4d162086859a667044adecc71994cd6657106f24c811e59",
}


@dataclass(frozen=True)
class Question:
    """A question over a list of documents."""

    query: str
    answers: tuple[str, ...]  # paraphrases: one of them suffices
    own: tuple[int, ...]  # documents that belong to it: they hold the answer
    more: tuple[int, ...]  # documents of the same article, drawn before others


def essays(data: str | None) -> tuple[str, str]:
    """The long text, and "official" or "embedded"."""
    path = _find(ESSAYS, data)
    if path is None:
        return shipped("english.txt").decode(), "embedded"
    return _field(path, _parse(path), _text), "official"


def questions(kind: str, data: str | None) -> tuple[list[Question], list[str], str]:
    """Questions of "squad" or "hotpotqa" in file order, their documents sorted, and the source."""
    name, read = {"squad": (SQUAD, _squad), "hotpotqa": (HOTPOT, _hotpot)}[kind]
    path = _find(name, data)
    if path is None:
        return *read(json.loads(shipped(name))), "embedded"
    return *_field(path, _parse(path), read), "official"


@cache
def shipped(name: str) -> bytes:
    """A file that comes with the package, unpacked and checked."""
    packed = (files("macbench.tasks") / "data" / f"{name}.xz").read_bytes()
    content = lzma.decompress(packed)
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise MacbenchError(f"{name} of this installation is damaged; install macbench again.")
    return content


def _find(name: str, data: str | None) -> Path | None:
    if data is not None:
        path = Path(data).expanduser() / name
        if not path.is_file():
            raise MacbenchError(f"{path} does not exist; put it there or leave ruler.data out.")
        return path
    places = [cache_folder() / "data" / "ruler" / name]
    if os.environ.get("MACBENCH_DATA"):
        places.insert(0, Path(os.environ["MACBENCH_DATA"], "ruler", name))
    return next((place for place in places if place.is_file()), None)


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise MacbenchError(
            f"{path} line {error.lineno} is not JSON ({error.msg}); fetch the file again."
        ) from error
    except UnicodeDecodeError as error:
        raise MacbenchError(f"{path} is not UTF-8 text; fetch the file again.") from error


def _field(path: Path, value: Any, read: Callable[[Any], Any]) -> Any:
    try:
        return read(value)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise MacbenchError(
            f"{path} has not the expected fields ({error!r}); fetch the file again."
        ) from error


def _text(value: Any) -> str:
    if not isinstance(value["text"], str) or not value["text"].strip():
        raise ValueError("text is empty")
    return value["text"]


def _squad(value: Any) -> tuple[list[Question], list[str]]:
    articles = value["data"]
    docs = sorted({p["context"] for article in articles for p in article["paragraphs"]})
    at = {text: i for i, text in enumerate(docs)}
    found = []
    for article in articles:
        own = [at[p["context"]] for p in article["paragraphs"]]
        for paragraph, place in zip(article["paragraphs"], own, strict=True):
            others = tuple(i for i in own if i != place)
            for asked in paragraph["qas"]:
                if not asked["is_impossible"]:
                    answers = tuple(answer["text"] for answer in asked["answers"])
                    found.append(Question(asked["question"], answers, (place,), others))
    return found, docs


def _hotpot(value: Any) -> tuple[list[Question], list[str]]:
    def texts(record: Any) -> list[str]:
        return [f"{title}\n{''.join(sentences)}" for title, sentences in record["context"]]

    docs = sorted({text for record in value for text in texts(record)})
    at = {text: i for i, text in enumerate(docs)}
    found = [
        Question(r["question"], (r["answer"],), tuple(at[t] for t in texts(r)), ()) for r in value
    ]
    return found, docs


# --- macbench fetch ruler -------------------------------------------------------------------------


@dataclass(frozen=True)
class Remote:
    """A file as published: where, and its SHA-256."""

    url: str
    sha256: str


REMOTE = {
    # SQuAD v2 dev (CC BY-SA 4.0), as RULER downloads it
    SQUAD: Remote(
        "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json",
        "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
    ),
    # HotpotQA dev, distractor setting (CC BY-SA 4.0): RULER's mirror, as the first host is gone
    HOTPOT: Remote(
        "https://huggingface.co/datasets/namlh2004/hotpotqa/resolve/"
        "7e54db4656209750ff487f6fdf8e39a66dba136b/hotpot_dev_distractor_v1.json",
        "e3da074df24e8369009918aa5cdbdd254dadcde4c63f7569d36afd6f2268caa8",
    ),
    # Paul Graham's essays (his copyright, no licence). RULER collects them from two sites that
    # change; this is what its script made at one time, so that the haystack stays the same.
    ESSAYS: Remote(
        "https://raw.githubusercontent.com/Rya-Sanovar/RULER/"
        "174598e1c0c3b88badb9a87fb95b16cc744612b8/scripts/data/synthetic/json/"
        "PaulGrahamEssays.json",
        "1af094ff36d47893ea3c09cc570038053b711a9ba728c9d2dca036dbb231fa41",
    ),
}


def fetch_ruler(say: Callable[[str], None]) -> Path:
    """Download what is missing of the official sources into the cache; the folder they are in.

    A file appears under its name only when it is complete and has the known checksum.
    """
    folder = cache_folder() / "data" / "ruler"
    for name, remote in REMOTE.items():
        target = folder / name
        if target.is_file():
            say(f"{name}: there")
            continue
        say(f"{name}: downloading")
        part = target.with_suffix(".part")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with urllib.request.urlopen(remote.url, timeout=60) as answer, part.open("wb") as file:
                shutil.copyfileobj(answer, file)
            with part.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != remote.sha256:
                    raise OSError("what came is not the known file")
            part.replace(target)
        except (OSError, HTTPException) as error:
            part.unlink(missing_ok=True)
            raise MacbenchError(
                f"cannot download {name} ({error or type(error).__name__}); get {remote.url} "
                f"another way and put it at {target}."
            ) from error
    return folder
