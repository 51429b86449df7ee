"""Long answers: what a cell keeps of them while they grow, and how another process goes on.

What was generated is prefilled exactly behind the prompt and the rest decoded. A method's own state
is then that of a longer prompt, not what it had become, so such an answer names the places; what a
method's budget is a share of stays the prompt that was prefilled at first.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from macbench.engine import Answer, Request


def saved(index: int, prompt: str, answer: Answer) -> dict[str, Any]:
    """The line of partial.jsonl of an unfinished answer to the sample `index`.

    prompt: identity of its tokens.
    """
    return {"index": index, "prompt_sha": prompt, "answer": asdict(answer)}


def loaded(line: dict[str, Any] | None, prompt: str) -> Answer | None:
    """The answer of such a line; None, so that it begins anew, where it had no token yet or
    belongs to another prompt."""
    if line is None or line.get("prompt_sha") != prompt or not line["answer"]["tokens"]:
        return None
    return Answer(**line["answer"])


def rest(request: Request, before: Answer | None) -> Request:
    """What is left of a request: the last token made is decoded through the method, as it was going
    to be, so that steps are counted as if nothing had happened."""
    if before is None:
        return request
    return replace(
        request,
        tokens=request.tokens + before.tokens,
        max_new=request.max_new - len(before.tokens),
        hold=1,
        made=len(before.tokens),
        steps=int(before.reads["steps"]),
        decoded=min(request.hold, len(request.tokens) - 1) + len(before.tokens) - 1,
    )


def join(before: Answer | None, after: Answer) -> Answer:
    """One answer of two parts; `after` answers rest(request, before)."""
    if before is None:
        return after
    return replace(
        after,
        tokens=before.tokens + after.tokens,
        reads=_add(before.reads, after.reads),
        prefill_s=before.prefill_s + after.prefill_s,
        decode_s=before.decode_s + after.decode_s,
        resumed=[*before.resumed, len(before.tokens)],
        begin_s=before.begin_s,
    )


def _add(before: Any, after: Any) -> Any:
    """Sums of both parts. What only one counted (an audit that was switched on or off) is lost, and
    so are histograms over steps whose buckets became wider."""
    if isinstance(before, dict):
        both = {name: _add(before[name], after[name]) for name in before if name in after}
        if "width" in both:
            both["width"] = before["width"]
            if before["width"] != after["width"]:
                del both["width"], both["histograms"]
        return both
    if isinstance(before, list):
        return [_add(*parts) for parts in zip(before, after, strict=True)]
    return before + after
