"""Prompt text: chat template, answer prefix, and where the question's tokens start."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macbench.errors import MacbenchError
from macbench.models import Text

NAMES = ("plain", "chat", "trims", "system", "thinks")


@pytest.fixture(scope="module")
def texts(zoo):
    """One tokenizer under several templates."""
    chat = zoo.chat
    templates = {
        "plain": None,
        "chat": chat,
        "trims": chat.replace("m['content']", "m['content'] | trim"),  # as Llama 3's does
        "system": chat.replace("{{ bos_token }}", "{{ bos_token }}what is it? the cat<end>"),
        "thinks": chat.replace(
            "<assistant>", "<assistant>{% if enable_thinking is false %}<think></think>{% endif %}"
        ),
    }
    assert tuple(templates) == NAMES
    return {name: Text(zoo.tokenizer(template)) for name, template in templates.items()}


turns = st.text(st.characters(codec="utf-8", exclude_characters="<>"), min_size=1, max_size=60)


@pytest.mark.parametrize("name", NAMES)
def test_one_beginning_of_text_token(texts, name):
    ids = texts[name].encode("the cat", "The number is")
    assert ids[0] == 0
    assert ids.count(0) == 1


def test_answer_prefix_follows_the_generation_prompt(texts):
    text = texts["chat"]
    assert text.render("the cat", " is") == "<bos><user>the cat<end><assistant> is"
    ids = text.encode("the cat", " is")
    assert text.tokenizer.convert_ids_to_tokens(ids)[-2:] == ["<assistant>", "Ġis"]


def test_thinking_is_switched_off(texts):
    assert texts["thinks"].render("hi").endswith("<assistant><think></think>")


def test_plain_text_of_a_base_model(texts):
    text = texts["plain"]
    assert text.render("the cat", " is") == "the cat is"
    assert text.encode("the cat", " is") == text.encode("the cat is")


def test_a_tokenizer_is_told_from_another(texts, zoo):
    assert len({text.identity for text in texts.values()}) == 1  # whatever the template
    other = zoo.tokenizer(None)
    other.add_tokens(["<other>"])
    assert Text(zoo.tokenizer(None)).identity == texts["chat"].identity != Text(other).identity


@given(user=turns, prefix=turns)
def test_prompt_is_encoded_as_one_string(texts, user, prefix):
    """Decoding gives the rendered string back, and `count` is the length of `encode`."""
    for text in texts.values():
        ids = text.encode(user, prefix)
        shown = text.tokenizer.decode(ids, skip_special_tokens=False)
        assert shown.removeprefix("<bos>") == text.render(user, prefix).removeprefix("<bos>")
        assert text.count(user, prefix) == len(ids)


@given(user=turns)
def test_decode_leaves_special_tokens_and_spaces_alone(texts, user):
    assert texts["chat"].decode(texts["plain"].encode(user)) == user


@given(user=st.text("abc .?\n", min_size=1, max_size=40), data=st.data())
def test_question_tokens(texts, user, data):
    """The prompt's text before the found token ends at or before the character, and no later one.

    ASCII only, so that any run of tokens decodes to its own characters.
    """
    at = data.draw(st.integers(0, len(user) - 1))
    for name, text in texts.items():
        shown = user.strip() if name == "trims" else user
        lead = len(user) - len(user.lstrip()) if name == "trims" else 0
        if not 0 <= at - lead < len(shown):
            continue  # a trimmed space is nowhere in the prompt
        head = {"plain": "<bos>", "system": "<bos>what is it? the cat<end><user>"}.get(
            name, "<bos><user>"
        )
        target = len(head) + at - lead
        ids = text.encode(user, " is")
        index = text.question_tokens(user, " is", at)

        def length(count, text=text, ids=ids):
            return len(text.tokenizer.decode(ids[:count], skip_special_tokens=False))

        assert length(index) <= target < length(index + 1)


def test_question_is_not_mistaken_for_the_system_turn(texts):
    text = texts["system"]
    index = text.question_tokens("what is it? the cat", "", 0)
    assert text.tokenizer.convert_ids_to_tokens(text.encode("what is it? the cat"))[index - 1] == (
        "<user>"
    )


def test_question_after_the_end_is_the_whole_prompt(texts):
    text = texts["plain"]
    assert text.question_tokens("the cat", "", 7) == text.count("the cat")


def test_a_template_that_rewrites_the_turn_is_refused(zoo):
    text = Text(zoo.tokenizer(zoo.chat.replace("m['content']", "m['content'] | upper")))
    with pytest.raises(MacbenchError, match="hold=question cannot find the question"):
        text.question_tokens("the cat", "", 2)
