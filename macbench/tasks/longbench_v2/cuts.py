"""Where prompts were cut, kept in the cache: long texts go through a tokenizer once.

A line per prompt and length says how much of the prompt's beginning and end was left. It is found
by a checksum of the whole prompt, in the file of its tokenizer, so other records, another template
or another tokenizer find nothing. Lines are appended in one write each, by any number of processes.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress

from macbench.cache import cache_folder
from macbench.tasks.base import Renderer
from macbench.tasks.longbench_v2.truncate import Cut, cut

VERSION = 1  # raised by any edit that changes what `cut` returns
FIELDS = ("head", "tail", "question", "tokens", "original")


class Cuts:
    """`cut` with the tokens of one text renderer, from memory where it was done before."""

    def __init__(self, text: Renderer):
        self.text = text
        name = f"cuts-{VERSION}-{text.identity}.jsonl"
        self.path = cache_folder() / "longbench_v2" / name
        self.known: dict[tuple[str, int], tuple[int, ...]] = {}
        with suppress(OSError):
            for line in self.path.read_bytes().splitlines():
                with suppress(ValueError, KeyError, TypeError):  # torn or damaged: cut again
                    row = json.loads(line)
                    self.known[row["prompt"], row["most"]] = tuple(int(row[f]) for f in FIELDS)

    def cut(self, before: str, ask: str, most: int) -> Cut:
        """What `truncate.cut` returns."""
        prompt = before + ask
        key = hashlib.sha256(f"{len(before)} {prompt}".encode()).hexdigest()[:32], most
        if key in self.known:
            head, tail, *rest = self.known[key]
            return Cut(prompt[:head] + prompt[len(prompt) - tail :], *rest)
        made = cut(self.text, before, ask, most)
        pairs = enumerate(zip(made.prompt, prompt, strict=False))
        head = next((at for at, (a, b) in pairs if a != b), len(made.prompt))
        end = made.prompt[head:]
        if prompt.endswith(end):  # not where decoding has changed the text
            places = (head, len(end), made.question, made.tokens, made.original)
            self._keep(key, places)
        return made

    def _keep(self, key: tuple[str, int], places: tuple[int, ...]) -> None:
        row = {"prompt": key[0], "most": key[1], **dict(zip(FIELDS, places, strict=True))}
        with suppress(OSError):  # no room for it: the next start cuts again
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                file.write(json.dumps(row).encode() + b"\n")
