"""Reading the chosen letter out of a response, as the published script does."""

from __future__ import annotations

import re

BRACKETED = re.compile(r"The correct answer is \(([A-D])\)")
BARE = re.compile(r"The correct answer is ([A-D])")


def extract(response: str) -> str | None:
    """A to D, or None. Case-sensitive; a bracketed letter anywhere goes before a bare one."""
    text = response.replace("*", "")
    found = BRACKETED.search(text) or BARE.search(text)
    return found[1] if found else None
