"""The settings of a training: conf/train/smollm2-long.yaml under key=value words."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from typing import Any

import yaml

from macbench import presets
from macbench.checks import check_types
from macbench.errors import MacbenchError, nearest
from macbench.experiments.long_context_adapter.rows import KINDS, PLAIN
from macbench.experiments.long_context_adapter.supply import ANCHOR_ROW

PRESET = "smollm2-long"
WHERE = {  # what does not change the adapter
    *("out", "seconds", "workers", "device", "compile", "source"),
    *("save_every", "held_every", "held_length"),
}


@dataclass(frozen=True)
class Settings:
    """See the YAML file for what they mean."""

    source: str
    device: str
    steps: int
    tokens: int
    lr: float
    warmup: int
    rank: int
    scale: float
    theta: float
    window: int
    text_weight: float
    anchor: int
    anchor_weight: float
    clip: float
    seed: int
    shares: dict[str, float]
    schedule: list[list]
    skipping: float
    spans: list[int]
    own: int
    own_passages: int
    own_tokens: int
    workers: int
    compile: bool
    held_every: int
    held_length: int
    save_every: int
    seconds: int | None
    out: str

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.shares if kind not in KINDS]
        if unknown:
            raise MacbenchError(f"shares.{unknown[0]}: {nearest(unknown[0], [*KINDS])}")
        if self.shares.get(PLAIN, 0) < 0 or sum(self.shares.values()) <= 0:
            raise MacbenchError("shares must not be negative and not all be 0.")
        for name in ("steps", "tokens", "rank"):
            if getattr(self, name) < 1:
                raise MacbenchError(f"{name}={getattr(self, name)}: give at least 1.")
        if self.anchor < 0 or (self.anchor > ANCHOR_ROW and self.anchor % ANCHOR_ROW):
            raise MacbenchError(
                f"anchor={self.anchor}: give 0, fewer than {ANCHOR_ROW} tokens, or whole rows of "
                f"{ANCHOR_ROW}."
            )
        for name in ("anchor_weight", "own", "own_passages"):
            if getattr(self, name) < 0:
                raise MacbenchError(f"{name}={getattr(self, name)}: give 0 or more.")
        held = [self.held_length] if self.held_every else []
        for lengths in (held, *(lengths for _, lengths, _ in self.schedule)):
            for length in lengths:
                if length < 512 or self.tokens % length:
                    raise MacbenchError(
                        f"rows of {length} tokens do not divide tokens={self.tokens}; "
                        "give lengths of at least 512 that do."
                    )

    def recipe(self) -> str:
        """Checksum of what determines the adapter: settings, texts and the program's files."""
        told = {k: v for k, v in asdict(self).items() if k not in WHERE}
        digest = hashlib.sha256(repr(sorted(told.items())).encode())
        room = files("macbench.experiments.long_context_adapter")
        for folder in (room, room / "lessons"):
            for file in sorted(folder.iterdir(), key=lambda f: f.name):
                if file.name.endswith((".py", ".xz")):
                    digest.update(file.read_bytes())
        return digest.hexdigest()


def configure(words: Sequence[str]) -> Settings:
    """Settings from key=value words; MacbenchError for what is unknown or does not fit."""
    values: dict[str, Any] = presets.read("train", PRESET)
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise MacbenchError(f"'{word}' is not an option; write key=value, as in steps=400.")
        inside = values
        name = key
        if key.startswith("shares."):
            inside, name = values["shares"], key.removeprefix("shares.")
        if name not in inside and inside is values:
            raise MacbenchError(f"unknown option '{key}': {nearest(key, [*values])}")
        try:
            inside[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise MacbenchError(f"'{word}' cannot be read; write key=value.") from error
    for field in fields(Settings):  # 1e-3 is text to YAML
        if field.type == "float" and isinstance(values[field.name], str | int):
            with suppress(ValueError):
                values[field.name] = float(values[field.name])
    check_types("", Settings, values)
    return Settings(**values)
