"""Fetching data from a real server on this machine that can break off, ignore ranges and lie."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from macbench import cli, fetch
from macbench.errors import MacbenchError
from macbench.fetch import download as downloading
from macbench.fetch.download import download
from macbench.fetch.meter import Meter
from macbench.fetch.table import SOURCES, Remote
from macbench.tasks import sources

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Site(ThreadingHTTPServer):
    """Files by path; what it does wrong is in its attributes."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/file": CONTENT}
        self.ranges = True  # serves parts
        self.cuts: list[int] = []  # bytes after which each of the next answers breaks off
        self.asked: list[tuple[str, str | None]] = []  # path and Range of every request

    def remote(self, path: str = "/file", name: str = "file", sha256: str | None = None) -> Remote:
        content = self.files[path]
        return Remote(
            name,
            f"http://127.0.0.1:{self.server_port}{path}",
            sha256 or hashlib.sha256(content).hexdigest(),
            len(content),
            "free",
            "a file",
            "nothing instead",
        )


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if start and self.server.ranges:
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            content = content[start:]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.server.cuts:
            self.wfile.write(content[: self.server.cuts.pop(0)])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.wfile.write(content)

    def log_message(self, format, *args):
        pass


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(downloading, "PAUSES", (0, 0))
    monkeypatch.setenv("MACBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MACBENCH_DATA", raising=False)


@pytest.fixture
def site():
    server = Site()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def get(remote: Remote, target: Path) -> str:
    """Download, and what was said meanwhile."""
    said = io.StringIO()
    download(remote, target, Meter(said))
    return said.getvalue()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


# -- one file --------------------------------------------------------------------------------------


def test_a_file_is_got_once(site, tmp_path):
    target = tmp_path / "new" / "folder" / "file"
    assert "file: 1.0 MB" in get(site.remote(), target)
    assert target.read_bytes() == CONTENT and left(target.parent) == ["file"]
    assert get(site.remote(), target) == "" and len(site.asked) == 1


def test_a_broken_transfer_goes_on_by_itself_where_it_stopped(site, tmp_path):
    site.cuts = [300_000, 200_000]
    get(site.remote(), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [r for _, r in site.asked] == [None, "bytes=300000-", "bytes=500000-"]


def test_what_came_is_kept_for_the_next_command(site, tmp_path):
    site.cuts = [100_000, 0, 0]
    with pytest.raises(MacbenchError, match=r"ended after 100000 of 1048576 bytes.*put it at"):
        get(site.remote(), tmp_path / "file")
    assert left(tmp_path) == ["file.part"]
    assert "0.1 MB of them here" in get(site.remote(), tmp_path / "file")
    assert site.asked[-1] == ("/file", "bytes=100000-")
    assert (tmp_path / "file").read_bytes() == CONTENT and left(tmp_path) == ["file"]


def test_a_server_without_ranges_starts_again(site, tmp_path):
    site.ranges, site.cuts = False, [100_000]
    get(site.remote(), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_that_is_whole_only_needs_its_name(site, tmp_path):
    (tmp_path / "file.part").write_bytes(CONTENT)
    get(site.remote(), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT and left(tmp_path) == ["file"]


def test_a_part_of_something_else_is_thrown_away(site, tmp_path):
    (tmp_path / "file.part").write_bytes(b"x" * 1000)
    with pytest.raises(MacbenchError, match="not the published file"):
        get(site.remote(), tmp_path / "file")
    assert left(tmp_path) == []
    get(site.remote(), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(site, tmp_path):
    with pytest.raises(MacbenchError, match=r"sha256 fbbab289f7f9…, not 000000000000…"):
        get(site.remote(sha256="0" * 64), tmp_path / "file")
    assert left(tmp_path) == []


def test_a_missing_file_and_a_missing_server_are_said_at_once(site, tmp_path):
    gone = Remote("file", site.remote().url + "s", "", 1, "", "", "")
    with pytest.raises(MacbenchError, match=r"Not Found.*get http://127.*put it at"):
        get(gone, tmp_path / "file")
    assert len(site.asked) == 1
    with pytest.raises(MacbenchError, match="Connection refused"):
        get(Remote("file", "http://127.0.0.1:9/x", "", 1, "", "", ""), tmp_path / "file")


def test_a_full_disk_is_a_sentence(site, tmp_path):
    (tmp_path / "file.part").symlink_to("/dev/full")
    with pytest.raises(MacbenchError, match="No space left on device"):
        get(site.remote(), tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_folder_that_cannot_be_made_is_a_sentence(site, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(MacbenchError, match=r"cannot get file \((Not a directory|File exists)"):
        get(site.remote(), tmp_path / "taken" / "file")


def test_a_folder_that_cannot_be_written_is_a_sentence(site, tmp_path):
    tmp_path.chmod(0o500)
    user = os.geteuid()
    try:
        if user == 0:  # who may write everywhere
            os.seteuid(65534)
        with pytest.raises(MacbenchError, match="Permission denied"):
            get(site.remote(), tmp_path / "file")
    finally:
        os.seteuid(user)


def test_two_at_once_get_it_once(site, tmp_path):
    threads = [
        threading.Thread(target=get, args=(site.remote(), tmp_path / "file")) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() == CONTENT and len(site.asked) == 1


# -- the table -------------------------------------------------------------------------------------


@pytest.fixture
def ruler(site, monkeypatch):
    """RULER's files on the site, in the place of the real ones."""
    files = []
    for remote in SOURCES["ruler"]:
        site.files[f"/{remote.name}"] = json.dumps({"text": f"this is {remote.name}"}).encode()
        files.append(site.remote(f"/{remote.name}", remote.name))
    monkeypatch.setitem(SOURCES, "ruler", tuple(files))
    return site


def test_every_entry_is_pinned():
    for files in SOURCES.values():
        for remote in files:
            assert remote.url.startswith("https://") and remote.size > 0
            assert len(remote.sha256) == 64 and int(remote.sha256, 16)
            assert remote.licence and remote.about and remote.instead
            assert "/main/" not in remote.url and "/master/" not in remote.url


def test_fetched_files_are_found(ruler, tmp_path, capsys):
    assert cli.main(["fetch", "ruler"]) == 0
    folder = tmp_path / "cache" / "data" / "ruler"
    assert capsys.readouterr().out.strip() == str(folder)
    assert left(folder) == sorted(remote.name for remote in SOURCES["ruler"])
    assert sources.essays(None) == ("this is PaulGrahamEssays.json", "official")
    asked = len(ruler.asked)
    assert cli.main(["fetch", "ruler"]) == 0 and len(ruler.asked) == asked
    assert "squad.json: there" in capsys.readouterr().err


def test_one_bad_file_does_not_lose_the_others(ruler, tmp_path, capsys):
    content = ruler.files.pop("/hotpotqa.json")
    assert cli.main(["fetch", "ruler"]) == 2
    assert "cannot get hotpotqa.json" in capsys.readouterr().err
    assert left(tmp_path / "cache" / "data" / "ruler") == ["squad.json"]
    ruler.files["/hotpotqa.json"] = content
    assert cli.main(["fetch", "ruler"]) == 0
    assert [path for path, _ in ruler.asked].count("/squad.json") == 1


def test_the_list_says_what_is_there_and_what_is_missing(ruler, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "cache" / "data" / "ruler"
    folder.mkdir(parents=True)
    (folder / "squad.json").write_bytes(ruler.files["/squad.json"])
    (folder / "hotpotqa.json").write_bytes(b"another")
    (folder / "english_words.json.part").write_bytes(bytes(200_000))
    states = {row["file"]: row["state"] for row in fetch.listing() if row["name"] == "ruler"}
    assert states == {
        "squad.json": f"there: {folder / 'squad.json'}",
        "hotpotqa.json": f"there, but not the published file: {folder / 'hotpotqa.json'}",
        "PaulGrahamEssays.json": "missing: `macbench fetch ruler`; until then nothing instead",
        "english_words.json": "missing, 0.2 MB of it here: `macbench fetch ruler`; until then "
        "nothing instead",
    }
    assert cli.main(["fetch", "--list"]) == 0
    out = capsys.readouterr().out
    for name in fetch.NAMES:
        assert f"{name}/" in out
    assert cli.main(["fetch", "--list", "smollm2"]) == 0
    assert capsys.readouterr().out.startswith("smollm2/")
    assert not ruler.asked


def test_fetch_without_a_name_says_the_names(capsys):
    assert cli.main(["fetch"]) == 2
    assert "ruler, longbench_v2, longgenbench, smollm2" in capsys.readouterr().err


def test_a_prepared_folder_comes_first_and_must_be_one(tmp_path, monkeypatch):
    cached, given = fetch.folder("ruler"), tmp_path / "given" / "ruler"
    for folder in (cached, given):
        folder.mkdir(parents=True)
        (folder / "squad.json").write_text("{}")
    assert fetch.find("ruler", "squad.json") == cached / "squad.json"
    monkeypatch.setenv("MACBENCH_DATA", str(given.parent))
    assert fetch.find("ruler", "squad.json") == given / "squad.json"
    (cached / "hotpotqa.json").write_text("[]")
    assert fetch.find("ruler", "hotpotqa.json") == cached / "hotpotqa.json"
    monkeypatch.setenv("MACBENCH_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(MacbenchError, match=r"MACBENCH_DATA=.*nowhere is not a folder"):
        fetch.find("ruler", "squad.json")
