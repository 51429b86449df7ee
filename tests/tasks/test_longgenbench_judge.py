"""The judges: the published prompt and rule, keywords, and an address spoken to over a socket."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from macbench.errors import MacbenchError
from macbench.store.lines import Lines
from macbench.tasks.longgenbench.judge import (
    Options,
    Question,
    digest,
    make,
    openai,
    says_yes,
    slug,
    unclear,
)
from macbench.tasks.longgenbench.judge.cached import Cached
from macbench.tasks.longgenbench.judge.keyword import Keyword, content, stem

SECRET = "sk-very-secret-41"


class Server(ThreadingHTTPServer):
    """Chat completions on a free port; reply(prompt, number): text, or status, body, headers."""

    daemon_threads = True

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.seen, self.guard = reply, [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for _, _, body in self.seen]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.guard:
            self.server.seen.append((self.path, dict(self.headers), body))
            number = len(self.server.seen)
        said = self.server.reply(body["messages"][0]["content"], number)
        status, answer, headers = (200, chat(said), {}) if isinstance(said, str) else said
        self.send_response(status)
        for name, value in {"Content-Length": str(len(answer)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def chat(content) -> bytes:
    message = {"role": "assistant", "content": content}
    return json.dumps({"choices": [{"index": 0, "message": message}]}).encode()


@pytest.fixture
def serve(monkeypatch):
    """Starts servers and ends them; the key is in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("no_proxy", "*")
    servers = []

    def start(reply) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def questions(*events: str) -> list[Question]:
    return [Question("once", i, event, f" Week {i}: x") for i, event in enumerate(events)]


def client(url, **more) -> openai.OpenAI:
    return openai.OpenAI("m", url, **{"pause": 0.01, **more})


def refusal(act, *args, **kwargs) -> str:
    with pytest.raises(MacbenchError) as caught:
        act(*args, **kwargs)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith((".", "?")) and SECRET not in sentence
    return sentence


def ask(judge, *events) -> dict[int, str]:
    return dict(judge.answer(questions(*events)))


# -- the published prompt and rule ---------------------------------------------------------------


def test_the_published_prompt():
    question = Question("once", 2, "my wife birthday", " Week 2: {a} b\n\n")
    assert question.prompt == (
        "Context:  Week 2: {a} b\n\n### Instruction: Does this context include the my wife "
        "birthday? Please answer with 'yes' or 'no' only."
    )


@pytest.mark.parametrize(
    ("answer", "yes", "strange"),
    [
        ("Yes.", True, False),
        ("no", False, False),
        ("", False, True),
        ("yesterday", True, True),  # the rule's quirk
        ("No, yes is wrong", True, False),
        ("answer with 'YES' or 'no' only.", True, False),
        ("I cannot tell", False, True),
        ("Not at all: nothing", False, True),
    ],
)
def test_yes_or_no(answer, yes, strange):
    assert (says_yes(answer), unclear(answer)) == (yes, strange)


# -- keywords ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "block", "yes"),
    [
        ("restaurant", "The 40th floor is a RESTAURANT.", True),
        ("restaurant", "Two restaurants share the floor", True),
        ("restaurant", "A place to eat", False),
        ("my wife birthday", "It was my wife's birthday today", True),
        ("my wife birthday", "My wife was away", False),
        ("my child_1 birthday", "Our child had her birthday", True),
        ("husband (yourself) birthday", "A birthday for the husband", True),
        ("Lantern Evening featuring Pumpkin Ravioli", "On Lantern Evening: pumpkin ravioli", True),
        ("Lantern Evening featuring Pumpkin Ravioli", "Lantern Evening with soup", False),
        ("Attend a cooking class", "I went to the cooking classes", True),
        ("Attending a planning session", "we planned two sessions", True),
        ("Wild berries week", "wild berry weeks", True),
        ("A and B, C and D", "c then d, b before a", True),
        ("Restaurant's 10th Anniversary", "our restaurant’s 10th anniversary", True),  # noqa: RUF001
        ("my, the", "nothing", False),
    ],
)
def test_keywords(event, block, yes):
    ((at, said),) = Keyword().answer([Question("once", 1, event, block)])
    assert (at, said) == (0, "yes" if yes else "no")


def test_stems():
    assert stem("restaurants") == stem("restaurant") and stem("the") == "the"
    assert stem("planning") == stem("plans") == stem("planned") == "plan"
    assert stem("as") == "as" and stem("bus") == "bus"
    assert content("Attend a wine tasting") == {stem("wine"), stem("tasting")}


# -- options -------------------------------------------------------------------------------------


def test_what_cannot_be_asked(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "OPENAI_API_KEY" in refusal(Options, "openai", "m")
    monkeypatch.setenv("OPENAI_API_KEY", "two words\nof it")
    assert "is no key" in refusal(Options, "openai", "m")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert "judge_model" in refusal(Options, "openai")
    assert "write an address" in refusal(Options, "openai", "m", "localhost:8000")
    assert "password" in refusal(Options, "openai", "m", "http://a:b@host/v1")
    assert "'keyword'" in refusal(Options, "keyworb")
    assert "neither" in refusal(Options, "keyword", "m")
    assert "judge_url" in refusal(Options, "local", "m", "http://host/v1")


def test_the_key_is_not_part_of_a_judge(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    judge = make(Options("openai", "m", "http://host/v1/"))
    assert SECRET not in f"{judge} {judge.identity} {slug(judge)}"
    assert slug(judge) == f"openai-m-at-host-{digest(judge.identity)[:8]}"
    assert make(Options("openai", "m")).name == "openai m"


# -- an address ----------------------------------------------------------------------------------


def test_what_is_sent(serve):
    server = serve(lambda prompt, number: "Yes")
    assert ask(client(server.url), "a") == {0: "Yes"}
    ((path, headers, body),) = server.seen
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {SECRET}"
    (question,) = questions("a")
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": question.prompt}],
        "temperature": 0,
        "max_tokens": 50,
    }


def test_answers_find_their_questions(serve):
    def reply(prompt, number):
        time.sleep(0.02 * (number % 3))
        return prompt

    events = [f"event {i}" for i in range(30)]
    server = serve(reply)
    said = ask(client(server.url), *events)
    assert [said[i] for i in range(30)] == [q.prompt for q in questions(*events)]
    assert len(server.seen) == 30


@pytest.mark.parametrize("status", [429, 500, 503])
def test_another_try(serve, status):
    def reply(prompt, number):
        return "no" if number == 3 else (status, b"busy", {"Retry-After": "0.1"})

    server = serve(reply)
    began = time.monotonic()
    assert ask(client(server.url), "a") == {0: "no"}
    assert len(server.seen) == 3 and time.monotonic() - began >= 0.2


def test_pauses_grow(serve, monkeypatch):
    monkeypatch.setattr(openai.random, "uniform", lambda low, high: high)
    server = serve(lambda prompt, number: (503, b"", {}))
    began = time.monotonic()
    sentence = refusal(ask, client(server.url, pause=0.05, tries=3), "a")
    assert time.monotonic() - began >= 1.5 * (0.05 + 0.1)
    assert "HTTP 503; 3 tries" in sentence and "goes on from there" in sentence


def test_timeouts(serve):
    server = serve(lambda prompt, number: time.sleep(0.5) or "yes")
    sentence = refusal(ask, client(server.url, timeout=0.1, tries=2), "a")
    assert "nothing within 0.1 s; 2 tries" in sentence
    assert len(server.seen) == 2


def test_nobody_there(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sentence = refusal(ask, client(f"http://127.0.0.1:{port}/v1", tries=2), "a")
    assert "refused" in sentence and str(port) in sentence


def test_a_connection_that_breaks(serve):
    server = serve(lambda prompt, number: (200, b"{", {"Content-Length": "100"}))
    assert "does not answer" in refusal(ask, client(server.url, timeout=0.2, tries=2), "a")


@pytest.mark.parametrize(
    "body", [b"<html>hello</html>", b"{}", b'{"choices": []}', b"[1]", chat(["yes"]), b"\xff"]
)
def test_what_is_no_chat_completion(serve, body):
    server = serve(lambda prompt, number: (200, body, {}))
    assert "no chat completion" in refusal(ask, client(server.url), "a")
    assert len(server.seen) == 1


def test_an_empty_answer_is_an_answer(serve):
    server = serve(lambda prompt, number: (200, chat(None), {}))
    assert ask(client(server.url), "a") == {0: ""}


def test_a_refusal_is_told_without_the_key(serve):
    told = json.dumps({"error": {"message": f"Incorrect API key:\n {SECRET}."}}).encode()
    server = serve(lambda prompt, number: (401, told, {}))
    sentence = refusal(ask, client(server.url), "a")
    assert "HTTP 401 (Incorrect API key: …)" in sentence and "right key?" in sentence
    assert len(server.seen) == 1
    assert "HTTP 404." in refusal(ask, client(serve(lambda *_: (404, b"no", {})).url), "a")


def test_the_key_follows_no_redirect(serve):
    thief = serve(lambda prompt, number: "yes")
    for status in (301, 302, 307, 308):
        there = {"Location": f"{thief.url}/chat/completions"}
        server = serve(lambda *_, status=status, there=there: (status, b"", there))
        assert f"HTTP {status}" in refusal(ask, client(server.url), "a")
    assert not thief.seen


def test_what_was_said_before_a_failure_comes_first(serve):
    def reply(prompt, number):
        if "bad" in prompt:
            return (400, b"", {})
        time.sleep(0.05)
        return "yes"

    server = serve(reply)
    said = []
    with pytest.raises(MacbenchError):
        said.extend(client(server.url).answer(questions("a", "bad", *"cdefghijklmnop")))
    fine = [prompt for prompt in server.prompts if "bad" not in prompt]
    assert len(said) == len(fine) < 15  # those under way were heard, the others not asked


# -- nothing is asked twice ----------------------------------------------------------------------


def heard(answer: str) -> None:
    pass


def test_answers_are_kept(serve, tmp_path):
    server = serve(lambda prompt, number: f"yes {number}")
    for round_ in range(2):
        with Lines(tmp_path / "judge.jsonl") as lines:
            told: list[str] = []
            cached = Cached(client(server.url), lines, told.append)
            first = cached.answers(questions("a", "b"))
            assert first == cached.answers(questions("a", "b"))
            assert len(told) == (0 if round_ else 2)
    with Lines(tmp_path / "judge.jsonl") as lines:
        other = openai.OpenAI("another", server.url)
        Cached(other, lines, heard).answers(questions("a"))
    assert len(server.seen) == 3
    kept = (tmp_path / "judge.jsonl").read_text()
    assert SECRET not in kept and "Week" not in kept
    assert {*json.loads(kept.splitlines()[0])} == {"key", "judge", "answer"}


def test_equal_questions_are_one(serve, tmp_path):
    server = serve(lambda prompt, number: "no")
    question = Question("range", 3, "x", "y")
    with Lines(tmp_path / "judge.jsonl") as lines:
        assert Cached(client(server.url), lines, heard).answers([question] * 3) == ["no"] * 3
    assert len(server.seen) == 1


def test_a_torn_line_is_asked_again(serve, tmp_path):
    server = serve(lambda prompt, number: "no")
    path = tmp_path / "judge.jsonl"
    with Lines(path) as lines:
        Cached(client(server.url), lines, heard).answers(questions("a", "b"))
    path.write_bytes(path.read_bytes()[:-9])
    with Lines(path) as lines:
        Cached(client(server.url), lines, heard).answers(questions("a", "b"))
    assert len(server.seen) == 3 and len(path.read_bytes().splitlines()) == 2


def test_lines_that_cannot_be(tmp_path):
    path = tmp_path / "judge.jsonl"
    path.write_text('{"key": 1}\nnonsense\n{"key": 2}\n')
    assert "line 2, is damaged" in refusal(Lines, path)
    assert "cannot write" in refusal(Lines, tmp_path / "nowhere" / "judge.jsonl")
    other = tmp_path / "other.jsonl"
    with Lines(other):
        assert "another process" in refusal(Lines, other)
