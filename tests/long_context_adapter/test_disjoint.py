"""Nothing of the evaluation is trained on: wordings, words, names, texts."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from itertools import product

import pytest

from macbench import tasks
from macbench.experiments.long_context_adapter import draw as trained
from macbench.experiments.long_context_adapter.draw import Draw, evaluated, word_list
from macbench.experiments.long_context_adapter.lessons import choices, documents, request, writing
from macbench.experiments.long_context_adapter.own import OPENINGS, REQUESTS
from macbench.experiments.long_context_adapter.rows import MAKERS
from macbench.experiments.long_context_adapter.texts import NOISE, works
from macbench.tasks.longbench_v2 import prompts, questions
from macbench.tasks.longgenbench import events
from macbench.tasks.ruler import cwe, fwe, niah, qa, vt
from macbench.tasks.ruler.words import pairs
from macbench.tasks.ruler.words import word_list as official_words
from macbench.tasks.sources import shipped

SHARED = 13  # words: the usual length for contamination
WORDING = 5  # words of a template


class Words:
    """Stands in for a tokenizer: a word is a token."""

    identity = "words"

    def encode(self, user, answer_prefix=""):
        return (user + answer_prefix).split()

    def count(self, user, answer_prefix=""):
        return len(self.encode(user, answer_prefix))

    def plain(self, text):
        return text.split()


def words(text):
    return re.findall(r"[\w'*#]+", text.lower())


def shingles(text, length):
    found = words(text)
    return {tuple(found[i : i + length]) for i in range(len(found) - length + 1)}


@cache
def lessons():
    """Everything that lessons say, many of each kind, trained on and held out."""
    said = []
    for kind, seed, held in product(MAKERS, range(60), (False, True)):
        lesson = MAKERS[kind](Draw(f"{kind}/{seed}", held), lambda s: len(s) // 4, 900)
        for turn in lesson.turns:
            said += [turn.ask, turn.given + "".join(text for text, _ in turn.reply)]
    return said


def templates():
    """The fixed parts of every wording of the evaluation."""
    whole = [niah.TEMPLATE, niah.PREFIX, niah.NEEDLE, niah.NOISE, qa.TEMPLATE]
    whole += [vt.TEMPLATE, vt.PREFIX, cwe.TEMPLATE, cwe.PREFIX, fwe.TEMPLATE, fwe.PREFIX]
    for pair in (prompts.ZERO_SHOT, prompts.COT, prompts.COT_ANSWER, prompts.NO_CONTEXT):
        whole += pair
    for folder in ("prompts", "examples"):
        room = files("macbench.tasks.longgenbench") / folder
        whole += [file.read_text("utf-8") for file in room.iterdir() if file.name.endswith("txt")]
    return [part for text in whole for part in re.split(r"\{\w+\}|\$\w+\$", text)]


def test_no_wording_of_the_evaluation():
    theirs = set().union(*(shingles(part, WORDING) for part in templates()))
    ours = set().union(*(shingles(text, WORDING) for text in lessons()))
    assert len(theirs) > 700 and len(ours) > 50_000
    assert not theirs & ours
    everything = "\n".join(lessons()).lower()
    assert "special magic" not in everything
    assert "#*#" not in everything and "*** finished" not in everything
    assert "the correct answer is" not in everything
    assert not re.search(r"\bvar \w+ =", everything)
    said = {text.strip() for text in lessons()}
    assert qa.PREFIX.strip() not in {s for text in said for s in text.splitlines()}
    openings = {prefix.split("{")[0].strip() for prefix in (niah.PREFIX, vt.PREFIX, cwe.PREFIX)}
    for opening in (*openings, fwe.PREFIX.strip()):
        assert not any(text.startswith(opening) for text in said)


def test_held_out_wordings_are_not_trained_on():
    asked = (request.ASKS, request.RULES, request.SEPARATORS, request.CLOSES, request.BEGINS)
    told = (choices.INTROS, choices.TELL, documents.ASKS, writing.STOPS, NOISE)
    for options in (*asked, *told):
        drawn = {Draw(str(seed)).wording(options) for seed in range(300)}
        assert drawn == set(options[:-1])
        assert {Draw(str(seed), True).wording(options) for seed in range(9)} == {options[-1]}
    assert not set(word_list(True)) & set(word_list(False))


def test_no_word_that_the_evaluation_draws():
    official = {
        w for name in ("nounlist", "adjectivelist", "verblist") for w in official_words(name)
    }
    assert {word.lower() for word in official} <= evaluated()
    ours = {*word_list(False), *word_list(True)}
    assert len(ours) > 10_000
    assert not ours & evaluated()
    rng = Draw("keys")
    for _ in range(2000):  # the evaluation's keys, and ours
        assert not set(rng.choice(pairs()).split("-")) & ours
        assert not set(rng.key("pair").split("-")) & evaluated()


def test_no_name_place_or_event_of_the_evaluation():
    invent = files("macbench.tasks.data") / "invent.py"
    theirs = set(re.findall(r'"([A-Z]\w+)"', invent.read_text()))
    for listed in (questions.FIRST, questions.LAST):
        theirs.update(listed.split())
    theirs.update(events.NAMES)
    ours = {*trained.FIRST.split(), *trained.LAST.split()}
    assert not ours & theirs
    towns = {h + t for h in trained.HEAD.split() for t in trained.TAIL.split()}
    assert not towns & {h + t for h in questions.HEAD.split() for t in questions.TAIL.split()}
    assert not towns & theirs
    asked = {v for name, v in vars(events).items() if name.isupper() for v in _flat(v)}
    scenes = {
        part
        for scene in writing.SCENES
        for listed in (scene.single, scene.lasting, scene.regular)
        for part in listed.split("|")
    }
    assert not {_bare(v) for v in asked} & {_bare(part) for part in scenes}


def _flat(value):
    if isinstance(value, str):
        return [value]
    return [v for part in value for v in _flat(part)] if isinstance(value, list | tuple) else []


def _bare(text):
    return re.sub(r"^(a|an|the) ", "", text.lower())


@cache
def text_shingles():
    return set().union(
        *(shingles(line, SHARED) for lines in works().values() for line in lines),
    )


def test_texts_share_no_thirteen_words_with_the_shipped_texts():
    theirs = shingles(shipped("english.txt").decode(), SHARED)
    for name in ("squad.json", "hotpotqa.json"):
        theirs |= shingles(json.dumps(json.loads(shipped(name))), SHARED)
    assert len(text_shingles()) > 100_000
    assert not theirs & text_shingles()


@pytest.mark.parametrize(
    "name",
    ["niah_single_2", "niah_multikey_2", "niah_multivalue", "vt", "cwe", "fwe", "qa_1", "qa_2"],
)
def test_samples_of_ruler_share_no_thirteen_words_with_lessons_or_texts(name):
    samples = tasks.ruler.make(name, data="embedded").samples(Words(), 1500, 42, 4)
    theirs = set()
    for sample in samples:
        theirs |= shingles(sample.prompt + sample.answer_prefix, SHARED)
    assert theirs and not theirs & text_shingles()
    assert not theirs & set().union(*(shingles(text, SHARED) for text in lessons()))


def test_four_choice_questions_share_no_wording():
    """The sentences of the evaluation's questions, names and numbers apart."""
    theirs, ours = set(), set()
    for kind in questions.KINDS.values():
        for seed in range(30):
            made = kind.make(Draw(f"x{seed}"))
            for text in (made.question, *made.pieces):
                theirs |= shingles(text, SHARED - 8)
    for text in lessons():
        ours |= shingles(text, SHARED - 8)
    assert theirs and not theirs & ours


def test_requests_for_own_chats_are_others():
    theirs = set().union(*(shingles(part, WORDING) for part in templates()))
    assert not theirs & set().union(*(shingles(text, WORDING) for text in (*REQUESTS, *OPENINGS)))
