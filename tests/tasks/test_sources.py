"""The shipped texts and questions, and what a data folder may be."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from macbench.errors import MacbenchError
from macbench.tasks import sources


@pytest.fixture(autouse=True)
def nothing_official(monkeypatch, tmp_path):
    monkeypatch.setenv("MACBENCH_CACHE", str(tmp_path))
    monkeypatch.delenv("MACBENCH_DATA", raising=False)


def test_the_shipped_text_is_long_connected_prose():
    text, source = sources.essays(None)
    words = text.split(" ")
    assert source == "embedded"
    assert len(words) > 60_000 and "" not in words
    assert not any(mark in text for mark in (">>>", "::=", "\n", "  "))


def test_what_is_shipped_is_small_and_has_its_licence():
    folder = files("macbench.tasks") / "data"
    packed = [path for path in folder.iterdir() if path.name.endswith(".xz")]
    assert {path.name for path in packed} == {f"{name}.xz" for name in sources.SHA256}
    assert sum(len(path.read_bytes()) for path in packed) <= 300_000
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in (folder / "LICENSE-english.txt").read_text()


@pytest.mark.parametrize("kind", ["squad", "hotpotqa"])
def test_a_shipped_answer_is_in_its_own_documents(kind):
    found, docs, source = sources.questions(kind, None)
    assert source == "embedded" and len(found) >= 120 and len(docs) >= 150
    assert len({q.query for q in found}) == len(found)
    for asked in found:
        assert any(asked.answers[0] in docs[i] for i in asked.own)
        assert not {*asked.own} & {*asked.more}


def test_a_two_hop_question_names_no_document_with_its_answer():
    found, docs, _ = sources.questions("hotpotqa", None)
    for asked in found:
        title = asked.query.partition("maker of ")[2].removesuffix(" born?")
        about = [docs[i] for i in asked.own if docs[i].startswith(f"{title}\n")]
        assert len(about) == 1
        maker = about[0].partition("work of ")[2].partition(".")[0]
        born = [docs[i] for i in asked.own if docs[i].startswith(f"{maker}\n")]
        assert len(born) == 1 and asked.answers[0] in born[0].partition("\n")[2]
        assert asked.answers[0] not in about[0]


def test_a_data_folder_comes_first(monkeypatch, tmp_path):
    folder = tmp_path / "data" / "ruler"
    folder.mkdir(parents=True)
    (folder / "PaulGrahamEssays.json").write_text(json.dumps({"text": "from the cache"}))
    assert sources.essays(None) == ("from the cache", "official")
    named = tmp_path / "named" / "ruler"
    named.mkdir(parents=True)
    (named / "PaulGrahamEssays.json").write_text(json.dumps({"text": "from the folder"}))
    monkeypatch.setenv("MACBENCH_DATA", str(named.parent))
    assert sources.essays(None) == ("from the folder", "official")


def test_squad_leaves_out_the_impossible_and_keeps_the_article(tmp_path):
    def ask(text, impossible=False):
        answers = [{"text": "x"}, {"text": "x"}]
        return {"question": text, "is_impossible": impossible, "answers": answers}

    paragraphs = [
        {"context": "b", "qas": [ask("one"), ask("no", True)]},
        {"context": "a", "qas": [ask("two")]},
    ]
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    found, docs, _ = sources.questions("squad", str(tmp_path))
    assert docs == ["a", "b"]
    assert [(q.query, q.answers, q.own, q.more) for q in found] == [
        ("one", ("x", "x"), (1,), (0,)),
        ("two", ("x", "x"), (0,), (1,)),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [("[1,\n2,\nx]", "line 3"), ('[{"question": 1}]', "expected fields"), (b"\xff", "UTF-8")],
)
def test_a_bad_file_is_named(tmp_path, content, said):
    path = tmp_path / "hotpotqa.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(MacbenchError, match=r"hotpotqa\.json") as error:
        sources.questions("hotpotqa", str(tmp_path))
    assert said in str(error.value)


def test_a_folder_without_the_file_is_refused(tmp_path):
    with pytest.raises(MacbenchError, match="does not exist"):
        sources.essays(str(tmp_path / "nothing"))


def test_an_empty_essay_is_refused(tmp_path):
    (tmp_path / "PaulGrahamEssays.json").write_text('{"text": " "}')
    with pytest.raises(MacbenchError, match="text is empty"):
        sources.essays(str(tmp_path))


def test_official_and_embedded_can_be_asked_for(tmp_path):
    with pytest.raises(MacbenchError, match=r"squad\.json is not in .*`macbench fetch ruler`"):
        sources.questions("squad", "official")
    folder = tmp_path / "data" / "ruler"
    folder.mkdir(parents=True)
    (folder / "PaulGrahamEssays.json").write_text(json.dumps({"text": "from the cache"}))
    assert sources.essays("official") == ("from the cache", "official")
    assert sources.essays("embedded")[1] == "embedded"


def test_the_longer_word_list_is_in_the_order_of_its_file(tmp_path):
    assert sources.more_words(None) == sources.more_words(str(tmp_path)) == ()
    path = tmp_path / "english_words.json"
    path.write_text('{"0": "b", "1": "a"}')
    assert sources.more_words(str(tmp_path)) == ("b", "a")
    assert sources.more_words("embedded") == ()


@pytest.mark.parametrize("content", ["[1]", '{"0": ""}', '{"0": 3}'])
def test_a_bad_word_list_is_named(tmp_path, content):
    path = tmp_path / "english_words.json"
    path.write_text(content)
    with pytest.raises(MacbenchError, match=r"english_words\.json has not the expected fields"):
        sources.more_words(str(tmp_path))
