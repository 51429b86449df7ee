"""docs/architecture.md names every file."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_module_has_its_line():
    text = (ROOT / "docs" / "architecture.md").read_text()
    (tree,) = [block for block in text.split("```") if block.startswith("\nmacbench/\n")]
    told, folders = [], []
    for line in tree.strip().splitlines():
        name, _, about = line.strip().partition(" ")
        folders[(len(line) - len(line.lstrip())) // 2 :] = [name]
        assert about.strip() or name == "macbench/"
        told.append("".join(folders))
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "macbench").rglob("*.py")}
    modules = {path for path in files if not path.endswith("__init__.py")}
    packages = {path.removesuffix("__init__.py") for path in files - modules}
    assert sorted(told) == sorted(modules | packages)
