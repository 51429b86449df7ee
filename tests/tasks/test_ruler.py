"""RULER: official scoring, sizes, reproducibility, and the official generators' own samples."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macbench import tasks
from macbench.errors import MacbenchError
from macbench.tasks.ruler import TASKS, fwe
from macbench.tasks.ruler.score import clean, match_all, match_part
from macbench.tasks.ruler.sentences import sentences
from macbench.tasks.ruler.words import Pairs

QA = ("squad", "hotpotqa")


class Words:
    """A tokenizer of words and signs behind a template of 7 tokens."""

    def encode(self, user, answer_prefix=""):
        return re.findall(r"\w{1,4}|[^\w\s]", user + answer_prefix) + [""] * 7

    def count(self, user, answer_prefix=""):
        return len(self.encode(user, answer_prefix))


def make(name, length=4096, seed=42, limit=2, **knobs):
    return list(tasks.get(f"ruler/{name}", **knobs).samples(Words(), length, seed, limit))


@pytest.fixture(autouse=True)
def shipped_sources(monkeypatch, tmp_path):
    monkeypatch.setenv("MACBENCH_CACHE", str(tmp_path))
    monkeypatch.delenv("MACBENCH_DATA", raising=False)


# Every task on the shipped sources and, where MACBENCH_DATA names the official ones, on those too.
DATA = Path(os.environ.get("MACBENCH_DATA", "nowhere")).absolute() / "ruler"
OFFICIAL_DATA = pytest.mark.skipif(not DATA.is_dir(), reason="MACBENCH_DATA has no folder ruler")
TEXTUAL = [n for n, (_, has, _) in TASKS.items() if {"essay", *QA} & {*has.values()}]
CASES = [pytest.param(name, None, id=name) for name in TASKS]
CASES += [
    pytest.param(name, str(DATA), id=f"{name}-official", marks=OFFICIAL_DATA) for name in TEXTUAL
]
each_source = pytest.mark.parametrize(("name", "data"), CASES)
each_needle_task = pytest.mark.parametrize(
    ("name", "data"), [case for case in CASES if case.values[0].startswith("niah")]
)


# --- scoring ------------------------------------------------------------------------------------

OFFICIAL = [  # metric, output, references, score: the official functions' own results
    (match_all, "1234567", ["1234567"], 1.0),
    (match_all, "a", ["a", "b"], 0.5),
    (match_all, "A B C", ["a", "b", "d"], 2 / 3),
    (match_all, "x91234567y", ["1234567"], 1.0),
    (match_all, "3123", ["12"], 1.0),
    (match_part, "paris", ["London", "Paris"], 1.0),
    (match_part, "", ["x"], 0.0),
    # the best reference, not their mean, and control characters separate words
    (match_part, "It is Paris.", ["Paris", "paris, france", "City of Paris"], 1.0),
    (match_all, "12\x0034", ["1234"], 0.0),
]


@pytest.mark.parametrize(("metric", "output", "references", "score"), OFFICIAL)
def test_scores_are_the_official_ones(metric, output, references, score):
    assert metric(output, references) == pytest.approx(score)


def test_control_characters_become_newlines():
    assert clean(" a\tb\x00 ") == "a\nb"


def test_qa_takes_the_best_reference_and_the_option_takes_the_mean():
    (sample, _) = make("qa_1", 8192)
    output = sample.references[0]
    assert tasks.get("ruler/qa_1").score(sample, output).value == 1
    mean = tasks.get("ruler/qa_1", qa_metric="all").score(sample, output).value
    assert mean == match_all(output, sample.references)


@given(st.lists(st.text("ab1 \n", min_size=1).filter(str.strip), min_size=1), st.text("abAB1 \n\t"))
@settings(derandomize=True)
def test_part_bounds_all(references, output):
    assert 0 <= match_all(output, references) <= match_part(output, references) <= 1
    assert match_all(" ".join(references), [r.strip() for r in references]) == 1


# --- samples ------------------------------------------------------------------------------------

LENGTHS = (2048, 4096, 8192)


@pytest.mark.parametrize("length", LENGTHS)
@each_source
def test_a_sample_fills_its_length_with_prompt_and_answer(name, data, length):
    try:
        samples = make(name, length, data=data)
    except tasks.LengthUnfit as error:
        assert name == "qa_2" and str(length) in str(error)  # ten documents need room
        return
    for sample in samples:
        total = Words().count(sample.prompt, sample.answer_prefix) + sample.max_new_tokens
        assert 0.6 * length <= total <= length
        assert sample.max_new_tokens == TASKS[name][2]
        assert sample.source in ("official" if data else "embedded", "synthetic")
        assert (sample.source == "synthetic") == (name not in TEXTUAL)


@each_source
def test_samples_come_from_the_seed_alone(name, data):
    few, more = make(name, limit=1, data=data), make(name, limit=3, data=data)
    other = make(name, limit=1, seed=7, data=data)
    assert more[:1] == few
    assert len({s.id for s in more}) == len({s.prompt for s in more}) == 3
    assert other[0].prompt != few[0].prompt


@each_source
def test_the_question_starts_where_it_is_said_to(name, data):
    start = {"niah": "What ", "vt": "Question: ", "cwe": "Question: ", "fwe": "Question: "}
    for sample in make(name, data=data):
        question = sample.prompt[sample.question :]
        assert question.startswith(start.get(name.partition("_")[0], "Answer the question"))
        assert len(question) < 400


@each_needle_task
def test_every_answer_is_a_needle_of_a_queried_key_in_query_order(name, data):
    for sample in make(name, limit=3, data=data):
        found = []
        for key in re.findall(r"[\w-]+", sample.prompt[sample.question :]):
            needle = rf"special magic \w+ for {re.escape(key)} is: ([\w-]+)\."
            found.append(re.findall(needle, sample.prompt))
        expected = [value for values in found for value in values]
        assert sorted(expected) == sorted(sample.references)
        if name == "niah_multiquery":
            assert expected == list(sample.references)
        assert len(sample.references) == (4 if "multiv" in name or "multiq" in name else 1)


def test_single_needles_are_asked_for_in_the_singular():
    (one, _), (four, _) = make("niah_single_1"), make("niah_multivalue")
    assert one.prompt.startswith("A special magic number is hidden within")
    assert one.answer_prefix.endswith("mentioned in the provided text is")
    assert four.prompt.startswith("Some special magic numbers are hidden within")
    assert four.answer_prefix.endswith("mentioned in the provided text are")


def test_variables_are_the_chain_of_the_asked_value():
    for sample in make("vt", limit=3):
        task = sample.prompt.split("Memorize and track")[-1]
        value = re.search(r"assigned the value (\d+)", sample.prompt[sample.question :])[1]
        chain = re.findall(rf"VAR (\w+) = {value}", task)
        for name, source in re.findall(r"VAR (\w+) = VAR (\w+) ?", task):
            if source == chain[-1]:
                chain.append(name)
        assert chain == list(sample.references)
        assert "5 variables" in sample.answer_prefix


def test_common_words_are_the_most_frequent_of_the_last_list():
    from collections import Counter

    for sample in make("cwe"):
        text = sample.prompt[sample.prompt.rindex("Below is") : sample.question]
        counts = Counter(re.findall(r"\d+\. (\S+)", text)).most_common()
        assert {word for word, _ in counts[:10]} == set(sample.references)
        assert counts[9][1] > counts[10][1]


def test_frequent_words_are_in_order_behind_the_dots():
    from collections import Counter

    for sample in make("fwe"):
        text = sample.prompt[: sample.question].partition("coded words. ")[2]
        counts = Counter(text.split()).most_common(4)
        assert [word for word, _ in counts] == ["...", *sample.references]


@pytest.mark.parametrize(
    "data", [None, pytest.param(str(DATA), id="official", marks=OFFICIAL_DATA)]
)
@pytest.mark.parametrize("name", ["qa_1", "qa_2"])
def test_qa_documents_hold_the_answer(name, data):
    for sample in make(name, 8192, limit=5, data=data):
        text = sample.prompt[: sample.question]
        if sample.references not in (("yes",), ("no",)):
            assert match_part(text, sample.references) == 1
        assert sample.extra["documents"] == text.count("\nDocument ")


def test_questions_about_one_paragraph_are_one_cluster():
    samples = make("qa_1", 4096, limit=12)
    clusters = [sample.cluster for sample in samples]
    assert 1 < len(set(clusters)) < len(samples)
    assert len({s.cluster for s in make("niah_single_1", limit=3)}) == 3


@pytest.mark.parametrize("name", ["vt", "cwe"])
def test_the_worked_example_comes_first_and_is_another(name):
    for sample in make(name):
        prefix = sample.answer_prefix.strip()[:40]
        example, _, task = sample.prompt.partition(prefix)
        assert task and prefix not in task
        solved = task.partition("\n")[0]
        assert not any(word in solved.split() for word in sample.references)
        assert example.count("Question: ") == 1 and task.count("Question: ") == 1


def test_the_prefix_can_be_left_out():
    (sample, _) = make("niah_single_1", prefix="none")
    assert sample.answer_prefix == ""


def test_a_needle_at_either_end_keeps_the_blank_of_the_empty_stretch():
    needle, ends = "One of the special magic numbers", 0
    for sample in make("niah_multiquery", limit=20):
        context = sample.prompt.partition("afterwards.\n")[2].rpartition("\nWhat are all")[0]
        assert not context.startswith(needle)
        last = context.rstrip().rpartition(needle)[2]
        assert not re.fullmatch(r" for [\w-]+ is: \d+\.", last) or context.endswith(" ")
        ends += context.startswith(f" {needle}") + context.endswith(" ")
    assert ends  # the case does occur


def test_a_shortened_text_of_frequent_words_keeps_its_words():
    maker = fwe.Maker(4096, 42, None, alpha=2.0, letters=6)
    draws = [maker.draw(600, 0), maker.draw(500, 0), maker.draw(600, 1)]
    assert draws[0].answers == draws[1].answers != draws[2].answers
    assert len(draws[0].prompt) > len(draws[1].prompt)


def test_the_example_of_vt_is_as_long_under_any_template():
    class Long(Words):
        def encode(self, user, answer_prefix=""):
            return super().encode(user, answer_prefix) + [""] * 200

    (long,) = tasks.get("ruler/vt").samples(Long(), 4096, 42, 1)
    (short,) = make("vt", limit=1)

    def example(sample):
        return sample.prompt[: sample.prompt.rindex("Memorize")].count("The grass is green")

    assert example(long) == example(short) > 5


def test_cwe_goes_on_with_the_longer_word_list_where_it_is_there(tmp_path):
    class Pairs(Words):
        def count(self, user, answer_prefix=""):
            return len(user + answer_prefix) // 2

    def sample(words):
        folder = tmp_path / str(words)
        if words:
            folder.mkdir()
            (folder / "english_words.json").write_text(
                json.dumps({str(i): f"word{i}" for i in range(words)})
            )
        task = tasks.get("ruler/cwe", data=str(folder))
        return next(task.samples(Pairs(), 260_000, 42, 1))

    with pytest.raises(tasks.LengthUnfit, match="macbench fetch ruler"):
        sample(0)
    with pytest.raises(tasks.LengthUnfit, match="1000 words"):
        sample(1000)
    found = sample(30_000)
    assert {*found.references} <= {f"word{i}" for i in range(30_000)}
    assert 500_000 < len(found.prompt) < 520_000


def test_a_row_says_what_its_length_counts():
    assert tasks.counts("ruler/vt") == "row"
    for sample in make("qa_1"):
        assert sample.extra["length_counts"] == "prompt + answer"
        assert sample.extra["documents"] > 5


@pytest.mark.parametrize(
    ("name", "length"), [("cwe", 200_000), ("qa_2", 300), ("vt", 300), ("fwe", 200)]
)
def test_a_length_that_cannot_be_made_is_a_sentence_not_a_loop(name, length):
    with pytest.raises(tasks.LengthUnfit, match=str(length)):
        make(name, length)


@pytest.mark.parametrize("name", ["vt", "niah_multivalue", "qa_2"])
def test_what_does_not_fit_says_how_long_it_is(name):
    with pytest.raises(tasks.LengthUnfit, match="shortest sample takes about") as refusal:
        make(name, 64)
    takes = int(re.search(r"about (\d+)", str(refusal.value))[1])
    assert make(name, round(1.1 * takes), limit=1)
    with pytest.raises(tasks.LengthUnfit):
        make(name, round(0.9 * takes), limit=1)


def test_unknown_names_and_options():
    with pytest.raises(MacbenchError, match="ruler/niah_single_1"):
        tasks.get("ruler/niah_singel_1")
    with pytest.raises(MacbenchError, match="official or none"):
        tasks.get("ruler/vt", prefix="off")
    assert len(tasks.expand("ruler")) == 13


# --- words and sentences --------------------------------------------------------------------------


@given(
    st.sets(st.text("ab-", min_size=1), min_size=1, max_size=6),
    st.sets(st.text("ab-", min_size=1), min_size=1, max_size=5),
)
@settings(derandomize=True)
def test_pairs_are_the_sorted_list_of_all(adjectives, nouns):
    assert list(Pairs(adjectives, nouns)) == sorted({f"{a}-{n}" for a in adjectives for n in nouns})


@pytest.mark.parametrize(
    "parts",
    [
        ["It works.", "He said so.", "2 of them?", "Yes!", "the rest"],
        ["Dr. Smith met J. R. Jones in the U.S. Army.", "Then he left."],
        ['She said "go."', "They went (all of them.)", "Nobody stayed."],
        ["More harm than good.", "[2] Technology helps."],
        ["He waited...", "Nothing came.", "It was ... odd."],
        ["It begins at 9 p.m. on Mondays.", "Chapter 2. is short."],
        ["It was written in C. But not well.", "Who is J. Bach to a variable x.", "[1] So?"],
        ["He sets x.", "Then E. B.", "White wrote.", "See p."],
        ["It was ok. Few cared.", "It is like ... Google.Hackers know."],
    ],
)
def test_sentences_end_where_punkt_ends_them(parts):
    assert sentences(" ".join(parts)) == parts


@pytest.mark.skipif(not DATA.is_dir(), reason="MACBENCH_DATA has no folder ruler")
def test_the_official_essays_end_their_sentences_where_punkt_does():
    essays = json.loads((DATA / "PaulGrahamEssays.json").read_text())["text"]
    words = re.sub(r"\s+", " ", essays).split(" ")[:105_000]  # more than 128K tokens
    found = hashlib.sha256("\n".join(sentences(" ".join(words))).encode()).hexdigest()
    assert found[:16] == "73b8694981ca2f7b"  # of nltk's sent_tokenize


def test_a_note_mark_begins_a_sentence():
    assert sentences("See p. 166.[10] There. End") == ["See p.", "166.", "[10] There.", "End"]
    assert sentences("Than good.[2] So it is. End") == ["Than good.", "[2] So it is.", "End"]


@given(st.lists(st.text("ab.A?\"')([", min_size=1)))
@settings(derandomize=True)
def test_sentences_lose_nothing(words):
    text = " ".join(words)
    assert "".join(sentences(text)).replace(" ", "") == text.replace(" ", "")


# --- the official generators ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def cl100k():
    tiktoken = pytest.importorskip("tiktoken", reason="the golden samples count cl100k tokens")
    try:
        encoding = tiktoken.get_encoding("cl100k_base")
    except OSError:
        pytest.skip("cl100k_base cannot be had here")

    class Cl100k:
        def count(self, user, answer_prefix=""):
            return len(encoding.encode(user + answer_prefix, disallowed_special=()))

    return Cl100k()


@OFFICIAL_DATA
@pytest.mark.parametrize("name", TASKS)
def test_the_official_sample_comes_out_to_the_byte(name, cl100k):
    golden = json.loads((DATA / "golden" / f"{name}.4096.jsonl").read_text())
    task = tasks.get(f"ruler/{name}", data=str(DATA))
    (sample,) = task.samples(cl100k, 4096, 42, 1)
    assert sample.prompt == golden["input"]
    assert sample.answer_prefix == golden["answer_prefix"]
    assert list(sample.references) == golden["outputs"]
    total = cl100k.count(sample.prompt, sample.answer_prefix) + sample.max_new_tokens
    assert total == golden["length"]


# Of prompt with prefix and answers of 12 samples at 4096 tokens, seed 42: from a second program
# that follows the official scripts line by line. Sample 0 alone would not show a stream that goes
# astray later.
TWELVE = {
    "niah_single_1": "fd8ce6068756364a",
    "niah_single_2": "c7b26123642ecd88",
    "niah_single_3": "bab4acc232aa10b3",
    "niah_multikey_1": "bc408a5ee97568ad",
    "niah_multikey_2": "e42ed44f0bd608b9",
    "niah_multikey_3": "495731e166645b31",
    "niah_multivalue": "3bc8befc0ae6ebb5",
    "niah_multiquery": "84d15cf7aa7c7390",
    "vt": "37a49bbae12acd77",
    "cwe": "b8b4add988e05366",
    "fwe": "f145675c60f28da3",
    "qa_1": "d0ea490b19fa2f56",
    "qa_2": "02be893bf97bf897",
}


@OFFICIAL_DATA
@pytest.mark.parametrize("name", TASKS)
def test_later_samples_are_the_official_ones_too(name, cl100k):
    digest = hashlib.sha256()
    for sample in tasks.get(f"ruler/{name}", data=str(DATA)).samples(cl100k, 4096, 42, 12):
        text = [sample.prompt + sample.answer_prefix, list(sample.references)]
        digest.update(json.dumps(text).encode())
    assert digest.hexdigest()[:16] == TWELVE[name]
