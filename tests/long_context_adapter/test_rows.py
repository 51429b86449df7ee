"""Rows: whole, with what is learnt marked where it is, and the same for the same seed."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macbench.errors import MacbenchError
from macbench.experiments.long_context_adapter.draw import FIRST, LAST, Draw
from macbench.experiments.long_context_adapter.lessons import (
    choices,
    lists,
    questions,
    retrieval,
    writing,
)
from macbench.experiments.long_context_adapter.lessons.base import Lesson, Turn
from macbench.experiments.long_context_adapter.rows import (
    KINDS,
    MAKERS,
    PLAIN,
    Frame,
    Writer,
    positions,
)
from macbench.experiments.long_context_adapter.supply import Order, Supply, gather

SCHEDULE = [[0.5, [512], [1.0]], [1.0, [1024], [1.0]]]


@given(st.integers(), st.integers(16, 600), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_positions_rise_and_stay_below_the_span(seed, length, share):
    made = positions(Draw(str(seed)), length, share, (700, 1400))
    assert made[0] == 0 and (np.diff(made) >= 1).all()
    assert made[-1] < 1400 and (np.diff(made) > 1).sum() <= 8
    if share == 0:
        assert made.tolist() == list(range(length))


def test_a_lesson_word_by_word(writer):
    lesson = Lesson(
        "x", (Turn("Ask", "It is", ((" 12", "answer"),)), Turn("And?", "", (("No.", "text"),)))
    )
    pieces = writer.framed(lesson)
    assert "".join(text for text, _ in pieces) == (
        "<|s|>system\nBe brief.<|e|>\n<|s|>user\nAsk<|e|>\n<|s|>assistant\nIt is 12<|e|>"
        "\n<|s|>user\nAnd?<|e|>\n<|s|>assistant\nNo.<|e|>"
    )
    assert [text for text, name in pieces if name == "answer"] == [" 12<|e|>"]
    assert [text for text, name in pieces if name == "text"] == ["No.<|e|>"]


def test_a_frame_needs_the_token_that_ends_a_reply(tokenizer):
    assert Frame.of(tokenizer).end == "<|e|>"
    wrong = copy.deepcopy(tokenizer)
    wrong.eos_token = "<|s|>"  # what opens a turn
    with pytest.raises(MacbenchError, match="does not end a reply with"):
        Frame.of(wrong)


@pytest.mark.parametrize("kind", [*MAKERS, PLAIN])
def test_rows_of_each_kind(writer, kind):
    learnt = 0
    for seed in range(4):
        row = writer.row(Draw(f"{kind}/{seed}"), 2048, kind)
        learnt += (row.learnt == 1).any()
        assert row.tokens.shape == (2049,)
        assert row.positions.shape == row.learnt.shape == row.span.shape == (2048,)
        assert ((row.span > 0) == (row.learnt == 1)).all()
        again = writer.row(Draw(f"{kind}/{seed}"), 2048, kind)
        assert (row.tokens == again.tokens).all() and (row.positions == again.positions).all()
        if kind == PLAIN:
            assert (row.learnt == 2).all()
    assert learnt == 0 if kind == PLAIN else learnt >= 2


@pytest.mark.parametrize("kind", ["retrieval", "tracing", "documents", "coded", "repeated"])
def test_answers_are_in_the_text_before_them(writer, kind):
    """Every answer can be read off the text: nothing is to be guessed."""
    for seed in range(12):
        seen = ""
        for text, name in writer.pieces(Draw(f"{kind}-{seed}"), kind, 1500):
            if name == "answer":
                text = text.removesuffix(writer.spec.frame.end)
                for part in text.replace(" and ", " ").replace(",", " ").split():
                    bare = part.strip(".;:").lower()
                    assert bare in seen.lower() or bare.isdigit(), (text, seed)
            seen += text


@pytest.mark.parametrize("kind", dict.fromkeys(choices.KINDS))
def test_a_reason_ends_with_the_right_choice(kind):
    """Of the four choices a reply's reason names the right one last; the text says all four."""
    for seed in range(150):
        made = kind(Draw(f"{kind.__name__}/{seed}", held=seed % 5 == 0))
        assert len(set(made.four)) == 4
        text, reason = "\n".join(made.said).lower(), made.reason(made.four).lower()
        ends = {}
        for choice in made.four:
            found = [m.end() for m in re.finditer(rf"\b{re.escape(choice.lower())}\b", reason)]
            ends[choice] = max(found, default=-1)
            parts = choice.lower().split() if kind is questions.words else [choice.lower()]
            assert kind is lists.tally or all(part in text for part in parts)
        assert max(ends, key=ends.get) == made.four[0] and ends[made.four[0]] > 0, (made, reason)


def test_every_value_of_a_key_is_asked_for(writer):
    """With several values a key, the answer holds all of them, in the order of the text."""
    checked = 0
    for seed in range(60):
        lesson = MAKERS["retrieval"](Draw(f"values-{seed}"), writer.size, 1500)
        first = lesson.turns[0]
        answer = first.reply[-1][0]
        numbers = [w.strip(",.;") for w in answer.split() if w.strip(",.;").isdigit()]
        if len(numbers) < 3 or len(numbers[0]) < 4 or len(lesson.turns) == 1:
            continue
        places = [first.ask.find(number) for number in numbers]
        assert min(places) >= 0
        checked += 1
    assert checked > 3


def test_most_frequent_words_are_the_answer(writer):
    checked = 0
    for seed in range(20):
        turn = MAKERS["coded"](Draw(f"coded-{seed}"), writer.size, 1500).turns[0]
        answer = turn.reply[-1][0].replace(" and ", " ").replace(",", " ").split()
        answer = [word for word in answer if word.isalpha()]
        text = max(turn.ask.split("\n"), key=len).split()
        counts = {word: text.count(word) for word in text if word.isalpha()}
        ranked = sorted(counts.values(), reverse=True)
        assert [counts[word] for word in answer] == ranked[: len(answer)]
        checked += len(answer) > 1
    assert checked == 20


def test_letters_are_balanced(writer):
    letters = []
    for seed in range(80):
        lesson = MAKERS["choices"](Draw(f"choice-{seed}"), writer.size, 1800)
        for turn in lesson.turns:
            reply = "".join(text for text, _ in turn.reply)
            letters += [letter for letter in "ABCD" if f"({letter})" in reply or reply == letter]
    shares = [letters.count(letter) / len(letters) for letter in "ABCD"]
    assert len(letters) > 150 and min(shares) > 0.17 and max(shares) < 0.33, shares


@pytest.mark.parametrize("room", [1200, 6000])
def test_writing_is_what_was_asked_for(writer, monkeypatch, room):
    """Every section under its heading, with its events and length, and the line at the end."""
    plans = []
    made = writing.make_plan
    monkeypatch.setattr(writing, "make_plan", lambda *a: plans.append(made(*a)) or plans[-1])
    given = 0
    for seed in range(30):
        (turn,) = MAKERS["writing"](Draw(f"w-{seed}"), writer.size, room).turns
        plan = plans[-1]
        reply = "".join(part for part, _ in turn.reply)
        headings = [plan.number(i) + plan.rest(i) for i in range(1, plan.count + 1)]
        if turn.ask.endswith("\n" + headings[0]):
            given += 1
            assert headings[0] + plan.gap not in reply
            reply = headings[0] + plan.gap + reply
        rest = reply
        for i, heading in enumerate(headings, 1):
            assert rest.startswith(heading + plan.gap), (seed, i)
            follows = headings[i] if i < plan.count else plan.stop
            body, _, rest = rest.removeprefix(heading).partition(plan.between + follows)
            rest = follows + rest
            assert len(body.split()) >= plan.words
            due = [event for at, event in plan.single.items() if at == i]
            due += [plan.lasting[2]] * (i in range(plan.lasting[0], plan.lasting[1] + 1))
            due += [plan.regular[2]] * (
                i in range(plan.regular[0], plan.count + 1, plan.regular[1])
            )
            told = (plan.lasting[2], plan.regular[2], *plan.single.values())
            assert sorted(due) == sorted(event for event in told if event in body)
        assert rest == plan.stop
        assert turn.reply[-1] == (plan.stop, "text")
        asked = turn.ask.lower()
        for told in (
            plan.mark,
            headings[0],
            plan.stop,
            f"{plan.words} words",
            *plan.single.values(),
        ):
            assert told.lower() in asked
    assert 15 < given < 29


@pytest.mark.parametrize("room", [400, 700, 1500, 5000, 16000, 32768])
def test_writing_fits_its_room(writer, room):
    """Whole documents but for the smallest rooms, and never a longer one."""
    whole = 0
    for seed in range(8):
        pieces = writer.pieces(Draw(f"room-{seed}"), "writing", room)
        assert sum(writer.size(text) for text, _ in pieces) <= room
        whole += len(pieces) > 1  # else plain text in its place
    assert whole >= (6 if room > 1000 else 0), whole


def test_few_headings_and_events_are_learnt_in_full(writer):
    """A long document does not outweigh the other lessons of a batch."""
    counts = []
    for room in (3000, 30_000):
        (turn,) = MAKERS["writing"](Draw("weight"), writer.size, room).turns
        counts.append(sum(kind == "answer" for _, kind in turn.reply))
        assert counts[-1] < 45
    assert counts[0] > 8


def test_batches_follow_the_seed_the_step_and_the_schedule(spec):
    order = Order(4, 2048, SCHEDULE)
    one, two = Supply(spec, order), Supply(spec, order)
    two.batch(0)  # what was made before does not matter
    for step, length in ((1, 512), (3, 1024)):
        a, b = one.batch(step), two.batch(step)
        assert a.tokens.shape == (2048 // length, length)
        assert (a.tokens == b.tokens).all() and (a.places == b.places).all()
    assert (one.batch(0).tokens != one.batch(1).tokens).any()


def test_the_anchor_follows_the_seed_and_the_step_and_leaves_the_lessons(spec):
    order = Order(4, 2048, SCHEDULE, 4096)
    one, two = Supply(spec, order), Supply(spec, order)
    two.batch(0)
    a, b = one.batch(3), two.batch(3)
    for mine, other in zip(a.anchor, b.anchor, strict=True):
        assert mine.shape == (2, 2048) and (mine == other).all()
    assert (one.batch(0).anchor[0] != a.anchor[0]).any()
    without = Supply(spec, replace(order, anchor=0)).batch(3)
    assert without.anchor is None and (without.tokens == a.tokens).all()


def test_the_anchor_is_half_of_the_books_and_half_the_models_own(spec, tmp_path):
    file = tmp_path / "own.json"
    said = {"chats": [["QQ ask", "QQ reply " * 200]], "passages": ["QQ passage " * 200]}
    file.write_text(json.dumps(said))
    writer = Writer(replace(spec, own=str(file)))
    whole = writer.tokenizer.decode
    chat = "<|s|>user\nQQ ask<|e|>\n<|s|>assistant\nQQ reply"
    own, chats, skips = 0, 0, 0
    for seed in range(30):
        tokens, positions = writer.anchor(Draw(str(seed)), 2048)
        assert tokens.shape == positions.shape == (2048,)
        text = whole(tokens.tolist(), skip_special_tokens=False)
        own += text.count("QQ reply") + text.count("QQ passage")
        chats += chat in text
        steps = np.diff(positions)
        (places,) = np.nonzero(steps != 1)
        assert positions[0] == 0 and positions[-1] < 8192 and len(places) <= 1
        for place in places:  # only where a piece begins
            assert steps[place] > 1
            skips += 1
            near = whole(tokens[place - 20 : place + 21].tolist())
            assert ("QQ" in near) and near.replace("QQ", "").strip()
    share = own * len(writer.ids(" QQ passage")) / (30 * 2048)
    assert 0.3 < share < 0.7 and chats > 5 and 5 < skips < 25, (share, chats, skips)
    near = Writer(replace(spec, spans=()))  # no span to skip in, and nothing of the base's own
    for seed in range(5):
        tokens, positions = near.anchor(Draw(str(seed)), 2048)
        assert (positions == np.arange(2048)).all() and "QQ" not in whole(tokens.tolist())


def test_a_batch_points_at_what_follows(writer):
    rows = [writer.row(Draw(f"g{i}"), 2048, "retrieval") for i in range(3)]
    batch = gather(rows)
    for place, target, answer, span in zip(
        batch.places, batch.targets, batch.answer, batch.span, strict=True
    ):
        row, at = divmod(int(place), 2048)
        assert target == rows[row].tokens[at + 1]
        assert answer == (rows[row].learnt[at] == 1) and (span > 0) == answer
    assert len(batch.places) == sum(int((row.learnt > 0).sum()) for row in rows)
    count = sum(len(set(row.span.tolist()) - {0}) for row in rows)
    assert len(set(batch.span.tolist()) - {0}) == count  # no two answers share a number
    assert batch.weight[batch.answer].sum() == pytest.approx(1, abs=1e-4)
    assert batch.weight[~batch.answer].sum() == pytest.approx(1, abs=1e-4)


def test_kinds_are_drawn_by_their_shares(writer):
    draw = Draw("shares")
    kinds = [writer.kind(draw, 1000) for _ in range(4000)]
    assert set(kinds) == set(KINDS) - {"own"}  # there are no own chats here
    assert all(kinds.count(kind) > 350 for kind in set(kinds))


def test_a_key_has_no_value_but_its_own(writer, monkeypatch):
    """With few possible keys, no other needle is about one that is asked for."""
    monkeypatch.setattr(retrieval, "KEYS", ("name",))
    name = re.compile(f"(?:{FIRST.replace(' ', '|')}) (?:{LAST.replace(' ', '|')})")
    checked = 0
    for seed in range(60):
        first, *others = MAKERS["retrieval"](Draw(f"crowd-{seed}"), writer.size, 9000).turns
        lines = first.ask.splitlines()
        for turn in others:  # their questions do not stand in the text
            said = turn.reply[-1][0]
            for key in name.findall(turn.ask):
                for line in (line for line in lines if key in line):
                    values = [word.strip(".,;:[]|") for word in line.replace(key, "").split()]
                    assert any(len(v) > 3 and v in said for v in values), (key, line, said)
                    checked += len(lines) > 100
    assert checked > 50
