"""Stop strings: where an answer ends, whoever is beside it and however late it is seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from macbench.attention import create
from macbench.engine import Engine, cut, decode
from macbench.models import Model
from macbench.run.resume import join, rest

METHODS = [("full", {}), ("mac", {"tau": 0.3, "K": 16, "r": 6}), ("streaming_llm", {"budget": 0.3})]
NEW = 20


class Letters:
    """Every token is a letter."""

    def decode(self, ids):
        return "".join(chr(200 + i) for i in ids)


@pytest.fixture(scope="module")
def model(make_model):
    made = make_model()
    made.text = Letters()
    return made


def answer(model, requests, methods=METHODS):
    size = max(len(r.tokens) for r in requests), max(r.max_new for r in requests)
    hold = max(r.hold for r in requests)
    made = max(r.made for r in requests)
    kinds = [create(name, knobs) for name, knobs in methods]
    return Engine(model, kinds, len(requests), *size, max_hold=hold, max_made=made).run(requests)


def text(answer):
    return Letters().decode(answer.tokens)


def with_stop(requests, *strings):
    return [replace(request, stop=strings) for request in requests]


@pytest.mark.parametrize("hold", [0, 7])
@pytest.mark.parametrize("late", [1, 4, 16])
def test_a_row_ends_soon_after_its_stop_string(model, ask, monkeypatch, hold, late):
    """Looked for at every `late`-th step only, as on a card."""
    monkeypatch.setitem(decode.POLL, "cpu", late)
    check(model, ask(50, 33, max_new=NEW, hold=hold), hold, late)


@pytest.mark.gpu
def test_a_row_of_a_captured_step_ends(make_model, ask):
    on_card = Model(make_model().lm.cuda(), name="tiny", weights="random:5", text=Letters())
    check(on_card, ask(50, 33, max_new=NEW), 0, decode.POLL["cuda"])


def check(model, requests, hold, late):
    """The first row's text holds the string, the second's does not."""
    free = answer(model, requests)
    string = text(free[0][0])[6:9]
    assert string not in text(free[0][1])
    for before, said in zip(free, answer(model, with_stop(requests, string, "#")), strict=True):
        for whole, short in zip(before, said, strict=True):
            assert text(whole).startswith(text(short))
            assert short.reads["steps"] == len(short.tokens) - 1 + hold
            if string in text(whole):
                end = text(whole).index(string)
                assert (
                    short.stopped == "stop_string"
                    and cut(text(short), [string]) == (text(whole)[:end])
                )
                assert len(short.tokens) < min(end + len(string) + late, NEW + 1)
            else:
                assert (short.tokens, short.stopped) == (whole.tokens, "length")
                assert short.reads == whole.reads


def test_the_first_and_the_last_token_may_complete_it(model, ask):
    requests = ask(50, 33, max_new=NEW)
    free = [text(a) for a in answer(model, requests, METHODS[:1])[0]]
    first, last = free[0][0], free[1][-2:]
    assert last not in free[1][:-1]
    requests = [replace(r, stop=(stop,)) for r, stop in zip(requests, (first, last), strict=True)]
    one, two = answer(model, requests, METHODS[:1])[0]
    assert (text(one), one.stopped, one.reads["steps"]) == (first, "stop_string", 0)
    assert (text(two), two.stopped) == (free[1], "stop_string")


def test_prompts_and_what_held_tokens_would_have_been_followed_by_do_not_count(model, ask):
    (request,) = ask(50, max_new=NEW, hold=20)
    free = answer(model, [request])
    in_prompt = Letters().decode(request.tokens)[-2:]
    foretold = answer(model, [replace(request, tokens=request.tokens[:-3], hold=1, max_new=2)])
    stops = {in_prompt, *(text(said[0]) for said in foretold)}
    assert not any(stop in text(said[0]) for stop in stops for said in free)
    for before, said in zip(free, answer(model, with_stop([request], *stops)), strict=True):
        assert before[0].tokens == said[0].tokens and said[0].stopped == "length"


@pytest.mark.parametrize("at", [6, 7, 8])
def test_it_is_found_where_an_answer_was_continued(model, ask, at):
    """The string is tokens 6 to 8; the answer was cut off after `at` tokens."""
    (request,) = ask(50, max_new=NEW)
    whole = answer(model, [request], METHODS[:1])[0][0]
    (stopping,) = with_stop([request], text(whole)[6:9])
    before = replace(
        answer(model, [replace(request, max_new=at)], METHODS[:1])[0][0],
        stopped="",
    )
    after = answer(model, [rest(stopping, before)], METHODS[:1])[0][0]
    both = join(before, after)
    assert text(both) == text(whole)[:9] and both.stopped == "stop_string"
    assert both.reads["steps"] == 8 and both.resumed == [at]


def test_a_stop_token_ends_a_row_as_before(make_model, ask):
    requests = ask(50, 33, max_new=NEW)
    made = make_model()
    made.text = Letters()
    free = answer(made, requests, METHODS[:1])[0][0]
    made.stop_ids = (free.tokens[9],)
    end = free.tokens.index(free.tokens[9])
    said = answer(made, with_stop(requests, text(free)[-2:]), METHODS[:1])[0][0]
    assert (said.tokens, said.stopped, said.end) == (free.tokens[:end], "stop", free.tokens[9])


def test_the_text_ends_before_the_first_string():
    assert cut("one *** two", ["***", "one *"]) == ""
    assert cut("one. *** two", ["***", "two"]) == "one. "
    assert cut("one", ["***"]) == cut("one", ()) == "one"
