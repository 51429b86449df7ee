"""Cutting a prompt in the middle to a number of tokens, as the published script does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from macbench.tasks.base import LengthUnfit, Renderer


@dataclass(frozen=True)
class Cut:
    """A prompt after the cut."""

    prompt: str
    question: int  # character offset
    tokens: int  # kept
    original: int  # before the cut


def middle(ids: Sequence[int], most: int) -> list[int]:
    """The first and the last tokens, `most` together; the tail has one more where `most` is odd."""
    if len(ids) <= most:
        return list(ids)
    return [*ids[: most // 2], *ids[-(most - most // 2) :]]


def cut(text: Renderer, before: str, ask: str, most: int) -> Cut:
    """The prompt `before + ask` in at most `most` tokens; LengthUnfit where `ask` would be cut.

    Only a prompt that is too long is decoded from its tokens. That drops the text of special
    tokens, may split a character where the halves meet, and may change how many tokens it is.
    """
    prompt = before + ask
    ids = text.plain(prompt)
    if len(ids) <= most:
        return Cut(prompt, len(before), len(ids), len(ids))
    needed = len(text.plain(ask))
    if needed > most - most // 2:
        raise LengthUnfit(
            f"longbench_v2 at {most} tokens would cut into a question of {needed} tokens; ask for "
            f"length={2 * needed} or more."
        )
    kept = middle(ids, most)
    prompt = text.decode(kept)
    # the question starts where its first words do, if decoding has changed the rest
    start = len(prompt) - len(ask) if prompt.endswith(ask) else prompt.rfind(ask.partition(":")[0])
    return Cut(prompt, max(start, 0), len(kept), len(ids))
