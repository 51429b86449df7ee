"""LongBench v2: the published prompts, cut, extraction and figures; records; the embedded set."""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macbench import tasks
from macbench.cli import main
from macbench.errors import MacbenchError
from macbench.tasks.longbench_v2 import breakdown, data, embedded, notes, prompts, title
from macbench.tasks.longbench_v2.answer import extract
from macbench.tasks.longbench_v2.cuts import Cuts
from macbench.tasks.longbench_v2.questions import KINDS
from macbench.tasks.longbench_v2.truncate import cut, middle

ROW = {
    "_id": "66f36490821e116aacb2cc22",
    "domain": "Single-Document QA",
    "sub_domain": "Financial",
    "difficulty": "easy",
    "length": "short",
    "question": "\n Which one? ",
    "choice_A": " a",
    "choice_B": "b ",
    "choice_C": "c\n",
    "choice_D": "d",
    "answer": "C",
    "context": "  Once.\n\nThe end.\n",
}
RECORD = data.to_record(ROW)


class Words:
    """A tokenizer of words with the blank before them; it marks the beginning of a text."""

    identity = "words"
    longest = 0  # text it was given, in characters

    def plain(self, text):
        self.longest = max(self.longest, len(text))
        return ["<s>", *re.findall(r"<\|\w+\|>|\s(?=<\|)|\s?\w+|\s?[^\w\s]|\s", text)]

    def decode(self, ids):
        return "".join(word for word in ids if not re.fullmatch(r"<s>|<\|\w+\|>", word))


def make(length=2048, seed=42, limit=2, **knobs):
    return list(tasks.get("longbench_v2", **knobs).samples(Words(), length, seed, limit))


@pytest.fixture(autouse=True)
def nothing_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("MACBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MACBENCH_DATA", raising=False)


# --- prompts ------------------------------------------------------------------------------------

CHOICES = "Which one?\nChoices:\n(A) a\n(B) b\n(C) c\n(D) d\n\n"
FORMAT = 'Format your response as follows: "The correct answer is (insert answer here)".'
PUBLISHED = [  # template, the prompt for RECORD
    (
        prompts.ZERO_SHOT,
        "Please read the following text and answer the question below.\n\n<text>\nOnce.\n\nThe end."
        f"\n</text>\n\nWhat is the correct answer to this question: {CHOICES}{FORMAT}",
    ),
    (
        prompts.COT,
        "Please read the following text and answer the questions below.\n\n<text>\nOnce.\n\n"
        f"The end.\n</text>\n\nWhat is the correct answer to this question: {CHOICES}"
        "Let\u2019s think step by step:",
    ),
    (
        prompts.COT_ANSWER,
        "Please read the following text and answer the questions below.\n\nThe text is too long "
        f"and omitted here.\n\nWhat is the correct answer to this question: {CHOICES}"
        "Let\u2019s think step by step: Hm.\n\nBased on the above, what is the single, most likely "
        f"answer choice? {FORMAT}",
    ),
    (
        prompts.NO_CONTEXT,
        f"What is the correct answer to this question: {CHOICES}What is the single, most likely "
        f"answer choice? {FORMAT}",
    ),
]


@pytest.mark.parametrize(("template", "prompt"), PUBLISHED)
def test_prompts_are_the_published_ones(template, prompt):
    before, ask = prompts.fill(template, RECORD, " Hm.\n")
    assert before + ask == prompt
    assert ask.startswith("What is the correct answer") and "correct" not in before


def test_marks_in_a_text_are_filled_as_published():
    marked = replace(RECORD, context="see $Q$ and $C_D$, not $COT$")
    for template in (prompts.ZERO_SHOT, prompts.COT):
        assert "see Which one? and d, not $COT$" in prompts.fill(template, marked)[0]
    assert prompts.fill(prompts.COT_ANSWER, marked, "x $Q$")[1].count("Which one?") == 1


# --- extraction ---------------------------------------------------------------------------------

ANSWERS = [  # the published function's own results
    ("The correct answer is (B)", "B"),
    ("The correct answer is B.", "B"),
    ("**The correct answer is (C)**", "C"),
    ("The correct answer is **(C)**", "C"),
    ("the correct answer is (A)", None),
    ("The correct answer is (E)", None),
    ("The correct answer is A or (B)", "A"),
    ("The correct answer is: (A)", None),
    ("The correct answer is Apple", "A"),
    ("The correct answer is D ... The correct answer is (A)", "A"),
    ("The correct answer is (A). The correct answer is (B).", "A"),
    ("The correct answer is\n(A)", None),
    ('"The correct answer is (D)".', "D"),
    ("The correct answer is (insert answer here)", None),
    ("(B)", None),
    ("", None),
]


@pytest.mark.parametrize(("response", "letter"), ANSWERS)
def test_the_letter_is_read_as_published(response, letter):
    assert extract(response) == letter


def test_an_empty_output_is_wrong_and_said_to_be_empty():
    task, (sample,) = tasks.get("longbench_v2"), make(limit=1)
    right = f" The correct answer is ({sample.references[0]})\n"
    assert task.score(sample, right).value == 1
    empty, blank = task.score(sample, ""), task.score(sample, " \n")
    assert empty.value == blank.value == 0
    assert empty.details == {"answer": None, "no_answer": True, "empty": True}
    assert blank.details["no_answer"] and not blank.details["empty"]  # as published


# --- the cut ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "kept"),
    [
        (4, [0, 1, 9, 10]),
        (5, [0, 1, 8, 9, 10]),
        (1, [10]),
        (2, [0, 10]),
        (10, [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]),
        (11, list(range(11))),
        (12, list(range(11))),
    ],
)
def test_the_middle_is_cut_as_published(most, kept):
    assert middle(range(11), most) == kept


@given(st.lists(st.integers(), max_size=40), st.integers(1, 50))
def test_the_cut_is_the_published_expression(ids, most):
    want = ids[: most // 2] + ids[-most // 2 :] if len(ids) > most else ids
    assert middle(ids, most) == want and len(want) <= most


def test_only_a_prompt_that_is_too_long_goes_through_the_tokenizer():
    before, ask = "one <|end|> " + "two " * 50, "What is the correct answer to this: now"
    whole = len(Words().plain(before + ask))
    same = cut(Words(), before, ask, whole)
    assert same.prompt == before + ask and same.tokens == same.original == whole
    assert same.prompt[same.question :] == ask
    short = cut(Words(), before, ask, whole - 1)
    assert (short.tokens, short.original) == (whole - 1, whole)
    assert short.prompt == (before + ask).replace("<|end|>", "").replace(" two", "", 1)
    assert short.prompt[short.question :] == ask


def test_a_question_that_decoding_changes_is_still_found():
    ask = "What is the correct answer to this question: what does <|end|> mean?"
    short = cut(Words(), "x " * 100, ask, 60)
    assert short.prompt[short.question :] == ask.replace(" <|end|>", " ")


def test_a_length_that_cuts_into_the_question_is_refused():
    ask = "What is the correct answer to this question: " + "why " * 30
    needed = len(Words().plain(ask))
    cut(Words(), "x " * 100, ask, 2 * needed)
    with pytest.raises(tasks.LengthUnfit, match=f"ask for length={2 * needed} or more"):
        cut(Words(), "x " * 100, ask, 2 * needed - 2)


def test_a_real_tokenizer_cuts_to_the_tokens(tiny):
    from transformers import AutoTokenizer

    from macbench.models.text import Text

    folder = tiny[0].partition("=")[2]
    text = Text(AutoTokenizer.from_pretrained(folder))
    before, ask = prompts.fill(
        prompts.ZERO_SHOT, replace(RECORD, context="naïve </s> — 日本 " * 99)
    )
    for most in (400, 401):
        made = cut(text, before, ask, most)
        ids = text.plain(before + ask)
        assert made.prompt == text.decode([*ids[: most // 2], *ids[-most // 2 :]])
        assert made.tokens == most and made.original == len(ids) > most
        assert "</s>" not in made.prompt and made.prompt[made.question :] == ask


# --- cuts from the cache ------------------------------------------------------------------------


class Pairs(Words):
    """Another tokenizer."""

    identity = "pairs"

    def plain(self, text):
        super().plain(text)
        return ["<s>", *(text[i : i + 2] for i in range(0, len(text), 2))]


ASK = "What is the correct answer to this question: now"
TEXTS = [
    "short. ",
    "one two. " * 40,
    "an <|end|> of " + "four " * 60,
    "of " + "four " * 90 + "<|a|> ",
]


@pytest.mark.parametrize("most", [52, 61])
def test_a_cut_from_the_cache_is_the_cut(most):
    for text in (Words(), Pairs()):
        want = [cut(text, before, ASK, most) for before in TEXTS]
        for _ in range(2):
            assert [Cuts(text).cut(before, ASK, most) for before in TEXTS] == want
        assert Cuts(text).cut(TEXTS[1], ASK, most + 1) == cut(text, TEXTS[1], ASK, most + 1)
        other = f"{TEXTS[1]}x "
        assert Cuts(text).cut(other, ASK, most) == cut(text, other, ASK, most)
        assert Cuts(text).cut(TEXTS[1], f"{ASK}?", most) == cut(text, TEXTS[1], f"{ASK}?", most)


def test_a_prompt_goes_through_the_tokenizer_once(folder):
    """All but one whose text decoding has changed in a way that no cut describes."""
    for name, again in (("other " * 500, 0), ("<|a|> other " * 500, 6000)):
        rows = json.loads((folder / "data.json").read_text())
        rows[1]["context"] = name
        (folder / "data.json").write_text(json.dumps(rows))
        task = tasks.get("longbench_v2", data=str(folder))
        first, second = Words(), Words()
        samples = list(task.samples(first, 400, 0, 3))
        assert samples == list(task.samples(second, 400, 0, 3))
        assert first.longest > 3000 and (second.longest > again if again else not second.longest)


def test_damage_to_the_cache_is_mended():
    made = Cuts(Words())
    want = [made.cut(before, ASK, 40) for before in TEXTS]
    whole = made.path.read_bytes()
    for left in (b"", b"\xff\x00\n[1]\n{}\n" + whole[:-20]):
        made.path.write_bytes(left)
        assert [Cuts(Words()).cut(before, ASK, 40) for before in TEXTS] == want
    made.path.unlink()
    made.path.mkdir()  # neither readable nor writable as a file
    assert [Cuts(Words()).cut(before, ASK, 40) for before in TEXTS] == want


# --- samples ------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Three records; the third is about the first one's text."""
    third = {**ROW, "_id": "3", "length": "long", "answer": "A"}
    rows = [ROW, {**ROW, "_id": "2", "context": "other " * 500, "difficulty": "hard"}, third]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    return tmp_path


def test_a_sample_is_a_record(folder):
    first, second, third = make(400, limit=3, data=str(folder))
    assert first.prompt == PUBLISHED[0][1] and first.answer_prefix == ""
    assert (first.id, first.references, first.max_new_tokens) == (ROW["_id"], ("C",), 128)
    assert first.prompt[first.question :].startswith("What is the correct answer")
    bins = {name: ROW[name] for name in ("domain", "sub_domain", "difficulty", "length")}
    size = len(Words().plain(first.prompt))
    assert first.extra == {
        **bins,
        "tokens": size,
        "original_tokens": size,
        "truncated_in": False,
    }
    assert first.cluster == third.cluster != second.cluster
    assert second.extra["truncated_in"] and second.extra["tokens"] == 400
    assert second.extra["original_tokens"] > 500
    assert make(400, seed=1, limit=3, data=str(folder)) == [first, second, third]
    assert {s.source for s in (first, second, third)} == {"local"}  # not the 503
    assert title([{"source": "local"}]) == "source=local" and not title([{"source": "official"}])


def test_the_published_settings():
    task = tasks.get("longbench_v2")
    assert task.decoding == {"temperature": 0.1} and tasks.counts("longbench_v2") == "prompt"


def test_without_the_text(folder):
    (sample, *_) = make(400, limit=2, data=str(folder), context="none")
    assert sample.prompt == PUBLISHED[3][1] and sample.question == 0


def test_a_thought_comes_before_the_letter(folder):
    task = tasks.get("longbench_v2", prompt="cot", data=str(folder))
    (sample,) = task.samples(Words(), 400, 0, 1)
    assert sample.prompt == PUBLISHED[1][1] and sample.max_new_tokens == 1024
    second = task.follow_up(sample, " Hm.\n")
    assert second.prompt == PUBLISHED[2][1] and second.max_new_tokens == 128
    assert second.prompt[second.question :].startswith("What is the correct answer")
    assert second.id == sample.id and second.extra == sample.extra
    assert task.follow_up(sample, "") is None  # as published
    assert "by step: \n\nBased" in task.follow_up(sample, " \n").prompt
    assert tasks.get("longbench_v2").follow_up(sample, "x") is None


@pytest.mark.parametrize(
    ("knobs", "part"),
    [
        ({"prompt": "few"}, "choose zero_shot or cot"),
        ({"context": "rag"}, "choose full or none"),
        ({"prompt": "cot", "context": "none"}, "leave prompt=cot out"),
    ],
)
def test_bad_options(knobs, part):
    with pytest.raises(MacbenchError, match=part):
        tasks.get("longbench_v2", **knobs)


# --- figures ------------------------------------------------------------------------------------


def graded(rng, count):
    """Rows as stored, and the same as the published script keeps them (empty outputs left out)."""
    rows, published = [], []
    for i in range(count):
        empty, judge = rng.random() < 0.1, rng.random() < 0.4
        bins = {"difficulty": rng.choice(["easy", "hard"])}
        bins["length"] = rng.choice(["short", "medium", "long"])
        domain = rng.choice(["Single-Document QA", "Multi-Document QA"])
        details = {"empty": empty, "no_answer": empty or (not judge and rng.random() < 0.5)}
        extra = {**bins, "domain": domain, "truncated_in": rng.random() < 0.3}
        score = float(judge and not empty)
        rows.append({"id": str(i), "score": score, "details": details, "extra": extra})
        if not empty:
            published.append({**bins, "judge": judge})
    return rows, published


def script(rows):
    """The published figures: overall, easy, hard, short, medium, long."""
    bins = ["easy", "hard", "short", "medium", "long"]
    groups = [rows, *([r for r in rows if b in (r["difficulty"], r["length"])] for b in bins)]
    return [round(100 * sum(r["judge"] for r in group) / len(group), 1) for group in groups]


def test_figures_are_the_published_ones():
    rows, published = graded(random.Random(0), 200)
    figures = {label: (value, n) for label, value, n in breakdown(rows)}
    order = ["overall", "easy", "hard", "short", "medium", "long", "non-empty"]
    assert list(figures)[:7] == order
    as_wrong = [{**r["extra"], "judge": r["score"]} for r in rows]
    assert [round(100 * figures[label][0], 1) for label in order[:6]] == script(as_wrong)
    assert round(100 * figures["non-empty"][0], 1) == script(published)[0]
    assert figures["non-empty"][1] == len(published) < figures["overall"][1] == 200
    assert figures["Multi-Document QA"][1] + figures["Single-Document QA"][1] == 200
    frame = pd.DataFrame([{**r["details"], **r["extra"]} for r in rows])
    assert figures["no answer"][0] == pytest.approx(frame["no_answer"].mean())
    assert figures["prompt cut"][0] == pytest.approx(frame["truncated_in"].mean())
    assert "thought cut" not in figures
    assert "overall 200" in notes(rows + rows)[1]  # two methods on the same samples


def test_figures_of_few_rows_have_no_empty_bins():
    rows, _ = graded(random.Random(1), 1)
    rows[0]["extra"]["first"] = {"stopped": "length"}
    figures = {label: value for label, value, n in breakdown(rows) if n}
    assert figures["thought cut"] == 1 and len({"easy", "hard"} & figures.keys()) == 1
    assert breakdown([]) == []


# --- where records come from --------------------------------------------------------------------


def test_the_first_place_with_a_file_counts(monkeypatch, tmp_path, folder):
    def ids(**knobs):
        return [sample.id for sample in make(600, limit=1, **knobs)]

    assert make(600, limit=1)[0].source == "embedded"
    cached = tmp_path / "cache" / "data" / "longbench_v2"
    cached.mkdir(parents=True)
    (cached / "data.jsonl").write_text(json.dumps({**ROW, "_id": "cached"}) + "\n")
    assert ids() == ids(data="official") == ["cached"]
    named = tmp_path / "named" / "longbench_v2"
    named.mkdir(parents=True)
    pd.DataFrame([{**ROW, "_id": "named"}]).to_parquet(named / "data.parquet")
    monkeypatch.setenv("MACBENCH_DATA", str(named.parent))
    assert ids() == ["named"]
    assert ids(data=str(folder)) == ids(data=str(folder / "data.json")) == [ROW["_id"]]
    assert make(600, limit=1, data="embedded")[0].source == "embedded"


def test_official_alone_says_how_to_get_it():
    with pytest.raises(MacbenchError, match="run `macbench fetch longbench_v2` where"):
        make(data="official")


def test_more_samples_than_records_are_refused(folder):
    with pytest.raises(MacbenchError, match="has 3 local records and limit=4 was asked"):
        make(600, limit=4, data=str(folder))
    with pytest.raises(MacbenchError, match="has 256 embedded records and limit=257"):
        make(600, limit=257, context="none")


WHOLE = json.dumps([ROW, {**ROW, "_id": "2"}])
BAD = [  # file, content, what the sentence says
    ("data.json", WHOLE[:-300], "cut off or damaged"),
    ("data.jsonl", json.dumps(ROW) + "\n" + json.dumps(ROW)[:-40], "cut off or damaged"),
    ("data.parquet", "PAR1", "cut off or damaged"),
    ("data.json", "", "cut off or damaged"),
    ("data.json", "[]", "cut off or damaged"),
    ("data.json", '{"a": 1}', "no field '_id'"),
    ("data.json", json.dumps([ROW, {**ROW, "answer": None}]), "record 2 .*: no answer .A, B, C, D"),
    ("data.json", json.dumps([ROW, {**ROW, "answer": "E"}]), "record 2 .*: no answer"),
    ("data.json", json.dumps([ROW, {**ROW, "answer": ""}]), "record 2 .*: no answer"),
    ("data.json", json.dumps([{k: v for k, v in ROW.items() if k != "answer"}]), "field 'answer'"),
    ("data.json", json.dumps([{**ROW, "length": "huge"}]), "record 1 .*: no length .short"),
    ("data.json", json.dumps([{**ROW, "choice_B": None}]), "record 1 .*: no choice_B"),
    ("data.json", json.dumps([{**ROW, "context": " "}]), "record 1 .*: no text"),
    ("data.json", json.dumps([ROW, ROW]), f"record {ROW['_id']} 2 times"),
    ("data.csv", "a,b", "is none of .json, .jsonl, .parquet"),
]


@pytest.mark.parametrize(("name", "content", "said"), BAD)
def test_a_bad_file_gives_one_sentence(tmp_path, capfd, name, content, said):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(MacbenchError, match=said) as error:
        make(600, data=str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_mended_file_is_read_again(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(WHOLE[:-300])
    with pytest.raises(MacbenchError, match="cut off"):
        make(600, data=str(path))
    path.write_text(WHOLE)
    assert len(make(600, data=str(path))) == 2


def test_a_place_without_records_is_named(tmp_path):
    with pytest.raises(MacbenchError, match="holds no LongBench v2 records"):
        make(data=str(tmp_path))


# --- the embedded set ---------------------------------------------------------------------------


def bare(seed=42):
    return [draft.grown(0) for draft in embedded.drafts(seed)]


def test_the_embedded_set_is_balanced_and_in_the_real_format():
    records = bare()
    assert len(records) == len({r.id for r in records}) == embedded.SIZE >= 200
    for start in range(0, len(records), 4):
        assert {r.answer for r in records[start : start + 4]} == set("ABCD")
    assert set(Counter((r.sub_domain, r.answer) for r in records).values()) == {8}
    for r in records:
        assert len(r.id) == 24 and len({*r.choices}) == 4
        assert r.difficulty in ("easy", "hard") and r.length == "short"
        assert all(text == text.strip() != "" for text in (*r.choices, r.question, r.context))
    assert bare() == records != bare(7)


def test_a_question_does_not_depend_on_the_length():
    short, long = make(900, limit=8), make(3000, limit=8)
    for one, other in zip(short, long, strict=True):
        assert one.id == other.id and one.references == other.references
        assert one.prompt[one.question :] == other.prompt[other.question :]
        assert len(one.prompt) < len(other.prompt)


@pytest.mark.parametrize(("length", "limit"), [(1024, 16), (8192, 4), (131_072, 1)])
def test_a_text_fills_the_length_and_nothing_is_cut(length, limit):
    for sample in make(length, limit=limit):
        assert 0.95 * length < sample.extra["tokens"] <= length
        assert not sample.extra["truncated_in"] and sample.source == "embedded"
    words = len(sample.prompt.split())
    assert sample.extra["length"] == ("short" if words < 32_000 else "medium")


def test_a_real_tokenizer_fills_the_length_too(tiny):
    from transformers import AutoTokenizer

    from macbench.models.text import Text

    text = Text(AutoTokenizer.from_pretrained(tiny[0].partition("=")[2]))
    for sample in tasks.get("longbench_v2").samples(text, 2000, 42, 4):
        assert 1900 < len(text.plain(sample.prompt)) <= 2000


def test_a_length_without_room_for_the_evidence_is_refused():
    with pytest.raises(tasks.LengthUnfit, match=r"\(embedded\) at 100 tokens .* longer length"):
        make(100)


def find(pattern, text):
    return re.findall(pattern, text)


def solve(question, context):
    """The answer, by reading the text as the question demands."""
    context = " ".join(context.split(" "))
    if ask := re.match(r"Who opened the first library of (\w+)", question):
        (person,) = find(rf"library of {ask[1]} was opened by (\w+ \w+)", context)
        return person
    if ask := re.match(
        r"What was the price in crowns of the (.+) at the auction at (\w+)", question
    ):
        sale = context.partition(f"auction at {ask[2]}\n")[2].partition("\n\n")[0]
        (price,) = find(rf"\| {ask[1]} \| .+ \| (\d+)", sale)
        return price
    if ask := re.match(r"How many visits of (.+) to the observatory of (\w+)", question):
        return str(len(find(rf"{ask[1]} visited the observatory of {ask[2]}", context)))
    if ask := re.match(r"Which of these was finished (\w+) in (\w+)", question):
        said = find(rf"In {ask[2]} the (\w+) was finished \d+ years after the (\w+)", context)
        late, early = ({pair[i] for pair in said} for i in (0, 1))
        (found,) = early - late if ask[1] == "first" else late - early
        return found
    if ask := re.match(r"The merchants of which of these towns sold the (\w+) (\w+)", question):
        sold = find(rf"merchants of (\w+) sold (\d+) barrels of {ask[2]}", context)
        pick = max if ask[1] == "most" else min
        return pick(sold, key=lambda pair: int(pair[1]))[0]
    if ask := re.match(r"Which animal .* where (.+) has a house", question):
        (town,) = find(rf"{ask[1]} has a house in (\w+)", context)
        (animal,) = find(rf"coat of arms of {town} stands the (\w+)", context)
        return animal
    if ask := re.match(r"Where was the (.+) in the end", question):
        (place,) = find(rf"At first the {ask[1]} was in the (\w+)", context)
        for start, end in find(rf"carried the {ask[1]} from the (\w+) to the (\w+)", context):
            assert start == place
            place = end
        return f"the {place}"
    ask = re.match(r'What does "(\w+) (\w+)" mean in the old tongue of (\w+)', question)
    said = dict(find(rf'tongue of {ask[3]} the word "(\w+)" means "(\w+)"', context))
    return f"{said[ask[1]]} {said[ask[2]]}"


@pytest.mark.parametrize("seed", [42, 1])
def test_whoever_reads_the_text_answers_everything(seed):
    for draft in embedded.drafts(seed):
        record = draft.grown(60)
        assert solve(record.question, record.context) == record.choices["ABCD".index(record.answer)]


def test_evidence_and_wrong_choices_lie_all_over_the_text():
    depths = defaultdict(list)
    for draft in embedded.drafts(42):
        record = draft.grown(200)
        for piece in draft.pieces:
            depths[record.sub_domain].append(record.context.index(piece) / len(record.context))
        if record.sub_domain != "count":  # there they are how often others came
            words = {word for choice in record.choices for word in choice.split()}
            assert all(word in record.context for word in words)
    assert set(depths) == set(KINDS)
    for found in depths.values():
        tenths = Counter(int(10 * depth) for depth in found)
        assert len(tenths) == 10 and max(tenths.values()) < 0.3 * len(found)


def guess_by_form(pick, key):
    return lambda record, _: pick(range(4), key=lambda i: key(record, record.choices[i]))


def words_of(text):
    return {*re.findall(r"\w+", text.lower())}


def number(choice):
    return int(choice) if choice.isdigit() else len(choice)


def overlap(record, choice):
    others = " ".join(c for c in record.choices if c != choice)
    return len(words_of(choice) & words_of(others))


def letters_of_question(record, choice):
    return sum(record.question.lower().count(letter) for letter in choice.lower()) / len(choice)


def habit(record, learnt):
    """The choice that was right most often where it was offered, by kind of question."""
    right, offered = learnt
    keys = [(record.question.split()[:3], choice) for choice in record.choices]
    return max(range(4), key=lambda i: (right[str(keys[i])] + 1) / (offered[str(keys[i])] + 4))


GUESSES = {
    **{f"always {letter}": lambda r, _, i=i: i for i, letter in enumerate("ABCD")},
    "longest": guess_by_form(max, lambda r, c: len(c)),
    "shortest": guess_by_form(min, lambda r, c: len(c)),
    "largest": guess_by_form(max, lambda r, c: number(c)),
    "smallest": guess_by_form(min, lambda r, c: number(c)),
    "middle": lambda r, _: sorted(range(4), key=lambda i: number(r.choices[i]))[1],
    "first in the alphabet": guess_by_form(min, lambda r, c: c),
    "words of the question": guess_by_form(
        max, lambda r, c: len(words_of(c) & words_of(r.question))
    ),
    "letters of the question": guess_by_form(max, letters_of_question),
    "most like the others": guess_by_form(max, overlap),
    "least like the others": guess_by_form(min, overlap),
    "habit": habit,
}


@pytest.fixture(scope="module")
def many():
    """Questions of many seeds, half of them to learn from."""
    records = [record for seed in range(12) for record in bare(seed)]
    right, offered = Counter(), Counter()
    for record in records[: len(records) // 2]:
        for letter, choice in zip("ABCD", record.choices, strict=True):
            key = str((record.question.split()[:3], choice))
            offered[key] += 1
            right[key] += letter == record.answer
    return records[len(records) // 2 :], (right, offered)


@pytest.mark.parametrize("name", GUESSES)
def test_whoever_does_not_read_the_text_is_at_chance(many, name):
    from scipy.stats import binom

    records, learnt = many
    right = sum("ABCD"[GUESSES[name](r, learnt)] == r.answer for r in records)
    low, high = binom.interval(0.99, len(records), 0.25)
    assert low <= right <= high, (name, right / len(records))


# --- the official records, where MACBENCH_DATA has them -------------------------------------------

DATA = Path(os.environ.get("MACBENCH_DATA", "nowhere")).absolute() / "longbench_v2"
official = pytest.mark.skipif(not DATA.is_dir(), reason="MACBENCH_DATA has no folder longbench_v2")


@official
def test_official_records_make_the_published_prompts():
    rows = json.loads((DATA / "data.json").read_text("utf-8"))
    samples = make(1_000_000, limit=len(rows), data=str(DATA))
    for row, sample in zip(rows, samples, strict=True):
        values = {name: row[name].strip() for name in data.FIELDS}
        assert sample.prompt == (
            "Please read the following text and answer the question below.\n\n<text>\n"
            "{context}\n</text>\n\nWhat is the correct answer to this question: {question}\n"
            "Choices:\n(A) {choice_A}\n(B) {choice_B}\n(C) {choice_C}\n(D) {choice_D}\n\n" + FORMAT
        ).format(**values)
        assert sample.id == row["_id"] and sample.references == (row["answer"],)
        assert not sample.extra["truncated_in"]


@official
@pytest.mark.parametrize("length", [8192, 16_001])
def test_official_records_keep_their_question_in_the_cut(length):
    for sample in make(length, limit=74, data=str(DATA)):
        record = replace(sample.record, context="")
        ask = prompts.fill(prompts.ZERO_SHOT, record)[1]
        assert sample.prompt[sample.question :] == ask
        assert sample.extra["tokens"] == min(length, sample.extra["original_tokens"])


@official
def test_the_digest_is_that_of_the_503_ids():
    lines = (DATA / "questions_without_context.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 503 and data._digest([row["_id"] for row in rows]) == data.IDS
    counts = Counter(row["answer"] for row in rows)
    assert counts == {"A": 96, "B": 127, "C": 148, "D": 132}
    assert all(row[name] in values for row in rows for name, values in data.VALUES.items())
    assert tasks.get("longbench_v2", data=str(DATA)).template == prompts.ZERO_SHOT


# --- runs ---------------------------------------------------------------------------------------


def run(tiny, *words):
    base = ["task=longbench_v2", "length=1k", "limit=2", "max_new=6", "out=results"]
    return main(["run", *tiny, *base, "method=[full,mac]", "mac.K=64", "mac.r=16", *words])


def stored(folder):
    return [
        json.loads(line)
        for path in sorted(folder.glob("results/*/samples.jsonl"))
        for line in path.read_text().splitlines()
    ]


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_run_shows_the_figures_and_where_the_records_are_from(tiny, here, capsys):
    assert run(tiny) == 0
    out = capsys.readouterr().out
    named = [line for line in out.splitlines() if "LongBench v2" in line]
    assert named and all("LongBench v2 source=embedded" in line for line in named)
    assert "at most 1024 prompt tokens" in out and "temperature=0.1" in out
    for label in ("overall", "non-empty", "no answer", "prompt cut"):
        assert label in out
    rows = stored(here)
    assert len(rows) == 4 and all(row["source"] == "embedded" for row in rows)
    assert all(row["prompt_tokens"] <= 1024 and "no_answer" in row["details"] for row in rows)
    before = {path: path.read_bytes() for path in here.glob("results/*/samples.jsonl")}
    assert run(tiny) == 0
    assert before == {path: path.read_bytes() for path in here.glob("results/*/samples.jsonl")}


def test_a_thought_is_kept_beside_the_answer(tiny, here, capsys):
    words = ["longbench_v2.prompt=cot", "quest.budget=0.9", "quest.dense_layers=1"]
    assert run(tiny, *words, "method=[full,mac,quest]") == 0
    out = capsys.readouterr().out
    assert "chain of thought" in out and "thought cut" in out
    for row in stored(here):
        first = row["extra"]["first"]
        assert first["new_tokens"] <= 6 and first["stopped"] in ("stop", "length")
        assert row["prompt_tokens"] > 800  # of the first question
    assert run(tiny, *words, "method=[full,mac,quest]", "limit=3", "checkpoint=2") == 0
    last = json.loads((here / "results" / "runs.jsonl").read_text().splitlines()[-1])
    assert last["repeat_mismatch"] == 0 and len(stored(here)) == 9


def test_records_that_came_since_are_not_mixed_in(tiny, here, capsys, folder, monkeypatch):
    assert run(tiny, "limit=1") == 0
    place = folder / "named" / "longbench_v2"
    place.mkdir(parents=True)
    (folder / "data.json").rename(place / "data.json")
    monkeypatch.setenv("MACBENCH_DATA", str(place.parent))
    capsys.readouterr()
    assert run(tiny, "limit=1") == 2
    assert "the task's data have changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["length=64"], "ask for a longer length"),
        (["longbench_v2.data=nowhere"], "nowhere holds no LongBench v2 records"),
        (["longbench_v2.prompt=few"], "choose zero_shot or cot"),
        (["length=2k", "max_new=128"], "window of 2048 tokens"),  # the answer comes on top
    ],
)
def test_refusals_are_one_sentence(tiny, here, capsys, words, part):
    assert run(tiny, *words) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and part in err
