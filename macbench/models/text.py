"""A model's own text: chat template, answer prefix, tokens."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, Any

import tokenizers

from macbench.errors import MacbenchError

if TYPE_CHECKING:
    from collections.abc import Sequence

MARK = "\u2402user\u2403"  # stands in for the user's turn to find its place in the template


class Text:
    """Renders prompts with a tokenizer's chat template (plain text where it has none)."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.chat = bool(tokenizer.chat_template)

    @cached_property
    def identity(self) -> str:
        """Checksum of the tokenizer (not of its chat template) and of the library's version."""
        if self.tokenizer.is_fast:
            rules = self.tokenizer.backend_tokenizer.to_str()
        else:
            rules = f"{self.tokenizer.get_vocab()} {self.tokenizer}"
        return hashlib.sha256(f"{tokenizers.__version__} {rules}".encode()).hexdigest()[:16]

    def render(self, user: str, answer_prefix: str = "") -> str:
        """The prompt as one string: template around the user's turn, then the answer prefix."""
        if not self.chat:
            return user + answer_prefix
        turns = [{"role": "user", "content": user}]
        prompt = self.tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # only templates of thinking models look at it
        )
        return prompt + answer_prefix

    def encode(self, user: str, answer_prefix: str = "") -> list[int]:
        """Tokens of the rendered prompt, encoded once as a whole.

        A chat template writes its own beginning-of-text token, so none is added there; plain text
        gets what the tokenizer adds.
        """
        return self._tokens(user, answer_prefix)["input_ids"]

    def count(self, user: str, answer_prefix: str = "") -> int:
        """Length of `encode` in tokens."""
        return len(self.encode(user, answer_prefix))

    def plain(self, text: str) -> list[int]:
        """Tokens of a text without template, with what the tokenizer adds to any text."""
        return self.tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, without special tokens."""
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def question_tokens(self, user: str, answer_prefix: str, question: int) -> int:
        """Index of the prompt token that holds character `question` of the user's turn.

        Raises MacbenchError where the tokenizer keeps no character offsets or the template rewrites
        the user's turn.
        """
        if not self.tokenizer.is_fast:
            raise MacbenchError(
                "hold=question needs a tokenizer with character offsets (tokenizer.json), which "
                "this model does not have; use hold=0 or hold=1."
            )
        at = self._start(user) + question
        offsets = self._tokens(user, answer_prefix, offsets=True)["offset_mapping"]
        return next((i for i, (_, end) in enumerate(offsets) if end > at), len(offsets))

    def _start(self, user: str) -> int:
        """Where character 0 of the user's turn is (or would be, if trimmed) in the prompt."""
        if not self.chat:
            return 0
        start = self.render(MARK).find(MARK)
        prompt = self.render(user)
        if start >= 0 and prompt.startswith(user.rstrip(), start):
            return start
        if start >= 0 and prompt.startswith(user.strip(), start):  # e.g. Llama 3 trims the turn
            return start - (len(user) - len(user.lstrip()))
        raise MacbenchError(
            "hold=question cannot find the question: this model's chat template rewrites the "
            "user's turn; use hold=0 or hold=1."
        )

    def _tokens(self, user: str, answer_prefix: str, offsets: bool = False) -> dict:
        return self.tokenizer(
            self.render(user, answer_prefix),
            add_special_tokens=not self.chat,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=offsets,
            verbose=False,  # lengths are checked against the model's window, not the tokenizer's
        )
