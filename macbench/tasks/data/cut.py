"""How `english.txt.xz` was cut; run once with CPython 3.11.7, never at run time.

Language-reference topics (`pydoc_data.topics`), then docstrings of the standard library's own .py
files in path order. A paragraph is kept if it is connected prose: it starts with a capital, ends
with a full stop, has more than 120 characters, holds no code or markup, and was not kept before.
Whitespace is collapsed and paragraphs are joined by blanks.
"""

from __future__ import annotations

import ast
import lzma
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

REJECT = re.compile(r"::=|>>>|\||    |``|\*\*|__|[{}<>=\\@#_^~]|\w\(\)")
WORDS = 92_000


def docstrings() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root).parts
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & {*inside}:
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""


def paragraphs(text: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", text):
        lines = block.splitlines()
        prose = " ".join(" ".join(lines).split())
        indented = any(line.startswith("    ") for line in lines)
        if (
            len(prose) > 120
            and prose[0].isupper()
            and prose[-1] == "."
            and not indented
            and not REJECT.search(prose)
        ):
            yield prose


def main(target: Path) -> None:
    from pydoc_data.topics import topics

    kept: dict[str, None] = {}
    for source in [*(topics[name] for name in sorted(topics)), *docstrings()]:
        for paragraph in paragraphs(source):
            kept.setdefault(paragraph)
    words = " ".join(kept).split(" ")[:WORDS]
    text = " ".join(words).encode()
    target.write_bytes(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    print(len(words), "words", len(text), "bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
