"""RULER's texts: the official ones where they are, else the shipped ones.

`data` of each function is a folder, "official" (refused where they are not), "embedded" (the
shipped ones in any case) or None. Official files are looked for by `macbench.fetch.find`; their
names and formats: PaulGrahamEssays.json {"text": …}, squad.json (SQuAD v2 dev), hotpotqa.json (a
list of records with question, answer and context), english_words.json {"0": word, …}.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from macbench import fetch
from macbench.errors import MacbenchError

ESSAYS, SQUAD, HOTPOT = "PaulGrahamEssays.json", "squad.json", "hotpotqa.json"
WORDS = "english_words.json"
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
    path = fetch.locate("ruler", ESSAYS, data)
    if path is None:
        return shipped("english.txt").decode(), "embedded"
    return _field(path, _parse(path), _text), "official"


def questions(kind: str, data: str | None) -> tuple[list[Question], list[str], str]:
    """Questions of "squad" or "hotpotqa" in file order, their documents sorted, and the source."""
    name, read = {"squad": (SQUAD, _squad), "hotpotqa": (HOTPOT, _hotpot)}[kind]
    path = fetch.locate("ruler", name, data)
    if path is None:
        return *read(json.loads(shipped(name))), "embedded"
    return *_field(path, _parse(path), read), "official"


def more_words(data: str | None) -> tuple[str, ...]:
    """The longer official word list in the order of its file; empty where it is not there."""
    path = None
    if data in (None, "official"):
        path = fetch.find("ruler", WORDS)
    elif data != "embedded" and (Path(data).expanduser() / WORDS).is_file():
        path = Path(data).expanduser() / WORDS
    return _read_words(path) if path else ()


@cache
def _read_words(path: Path) -> tuple[str, ...]:
    return _field(path, _parse(path), _words)


@cache
def shipped(name: str) -> bytes:
    """A file that comes with the package, unpacked and checked."""
    packed = (files("macbench.tasks") / "data" / f"{name}.xz").read_bytes()
    content = lzma.decompress(packed)
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise MacbenchError(f"{name} of this installation is damaged; install macbench again.")
    return content


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
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise MacbenchError(
            f"{path} has not the expected fields ({error!r}); fetch the file again."
        ) from error


def _text(value: Any) -> str:
    if not isinstance(value["text"], str) or not value["text"].strip():
        raise ValueError("text is empty")
    return value["text"]


def _words(value: Any) -> tuple[str, ...]:
    if not all(isinstance(word, str) and word for word in value.values()):
        raise ValueError("a word is empty")
    return tuple(value.values())


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
