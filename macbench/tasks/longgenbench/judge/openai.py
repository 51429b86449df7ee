"""A judge behind an address that speaks OpenAI's chat completions.

The key is read from the environment for each request's header and stands nowhere else: not in the
identity, the cache or a sentence. Redirects are refused, since they would carry it elsewhere.
"""

from __future__ import annotations

import json
import os
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from macbench.errors import MacbenchError
from macbench.tasks.longgenbench.judge import ANSWER, KEY, Question

OFFICIAL = "https://api.openai.com/v1"
LATER = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # worth another try
WORKERS = 8  # questions asked at a time


class _Again(Exception):
    """This try failed and the next may not; `after`: seconds the server asks for."""

    def __init__(self, reason: str, after: float = 0.0):
        super().__init__(reason)
        self.after = after


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def check(model: str | None, url: str | None) -> None:
    """Refuse (MacbenchError) what cannot be asked: before a run, not after it."""
    if not model:
        raise MacbenchError("judge=openai needs judge_model, the name its address knows it by.")
    if url:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise MacbenchError(f"judge_url={url}: write an address such as {OFFICIAL}.")
        if "@" in parts.netloc:
            raise MacbenchError(f"judge_url holds a password; leave it out and set {KEY} instead.")
    key()


def key() -> str:
    """The key of the environment."""
    found = os.environ.get(KEY, "").strip()
    if not found:
        raise MacbenchError(
            f"judge=openai needs its key in the environment variable {KEY} (any word where the "
            "server asks for none)."
        )
    if not (found.isascii() and found.isprintable()) or " " in found:
        raise MacbenchError(f"what {KEY} holds is no key; set it again.")
    return found


@dataclass
class OpenAI:
    """The judge of that name; asks WORKERS questions at a time."""

    model: str
    url: str | None = None
    timeout: float = 60.0  # seconds of one try
    tries: int = 6
    pause: float = 1.0  # seconds before the second try; then doubled, with jitter
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        check(self.model, self.url)
        self.base = (self.url or OFFICIAL).rstrip("/")
        self.name = f"openai {self.model}"
        if self.base != OFFICIAL:
            self.name += f" at {urlsplit(self.base).netloc}"
        self.identity: dict[str, Any] = {
            "name": "openai",
            "version": 1,
            "url": self.base,
            "model": self.model,
            "temperature": 0,
            "max_tokens": ANSWER,
        }
        self._open = urllib.request.build_opener(_Stay).open

    def answer(self, questions: Sequence[Question]) -> Iterator[tuple[int, str]]:
        """Answers as they come; after a failure those still under way, then the error."""
        failure: BaseException | None = None
        self.stop.clear()
        with ThreadPoolExecutor(WORKERS) as pool:
            asked = {pool.submit(self.ask, q.prompt): at for at, q in enumerate(questions)}
            try:
                for future in as_completed(asked):
                    if future.cancelled():
                        continue
                    error = future.exception()
                    if error is None:
                        yield asked[future], future.result()
                        continue
                    failure = failure or error
                    self._give_up([*asked])
            finally:
                self._give_up([*asked])
        if failure is not None:
            raise failure

    def _give_up(self, futures: Sequence[Any]) -> None:
        self.stop.set()
        for future in futures:
            future.cancel()

    def ask(self, prompt: str) -> str:
        """One question, tried again with growing pauses where that may help."""
        for number in range(1, self.tries + 1):
            try:
                return self._once(prompt)
            except _Again as error:
                reason, after = error, error.after
            wait = self.pause * 2 ** (number - 1) * random.uniform(0.5, 1.5)
            if number == self.tries or self.stop.wait(max(min(wait, 60.0), min(after, 300.0))):
                break
        raise MacbenchError(
            f"the judge at {self.base} does not answer ({reason}; {number} tries); what it has "
            "said is kept, and the same command again goes on from there."
        )

    def _once(self, prompt: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": ANSWER,
        }
        request = urllib.request.Request(
            f"{self.base}/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {key()}"},
        )
        try:
            with self._open(request, timeout=self.timeout) as answer:
                return self._said(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                told = self._told(error)
            if error.code in LATER:
                raise _Again(f"HTTP {error.code}", _seconds(error.headers)) from None
            hint = f"; is {KEY} the right key?" if error.code in (401, 403) else ""
            raise MacbenchError(
                f"the judge at {self.base} refuses the question with HTTP {error.code}{told}{hint}."
            ) from None
        except TimeoutError:
            raise _Again(f"nothing within {self.timeout:g} s") from None
        except (OSError, HTTPException) as error:  # URLError is an OSError
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                reason = f"nothing within {self.timeout:g} s"
            raise _Again(str(reason) or type(reason).__name__) from None

    def _said(self, body: bytes) -> str:
        try:
            content = json.loads(body)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            content = 0
        if not isinstance(content, str | None):
            raise MacbenchError(
                f"what {self.base} answers is no chat completion; is judge_url right? It often "
                "ends in /v1."
            )
        return content or ""

    def _told(self, error: urllib.error.HTTPError) -> str:
        """What the server says of its refusal, short, and without the key should it repeat it."""
        try:
            body = json.loads(error.read(10_000))
            told = body["error"]["message"]
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        return f" ({' '.join(str(told).split())[:200].replace(key(), '…').rstrip('.')})"


def _seconds(headers: Any) -> float:
    """The pause a server asks for; 0 where it names none, or a date."""
    try:
        return max(0.0, float(headers.get("Retry-After", 0)))
    except ValueError:
        return 0.0
