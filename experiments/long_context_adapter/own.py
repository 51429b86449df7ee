"""What the base writes itself, to keep its language: replies to requests, and free passages."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from macbench.experiments.long_context_adapter.draw import Draw
from macbench.experiments.long_context_adapter.network import Network, norm, rotate
from macbench.experiments.long_context_adapter.rows import Frame
from macbench.experiments.long_context_adapter.texts import prose

REQUESTS = (
    "Write a short story about {a} and {b}.",
    "Explain to a child what {a} means.",
    "Give me five ideas for a weekend that have to do with {a}.",
    "What is the difference between {a} and {b}?",
    "Write a friendly letter to a neighbour about {a}.",
    "Summarize the following passage in two sentences.\n\n{text}",
    "How do I learn to cook a meal with few ingredients?",
    "Write a poem about {a}.",
    "Describe a place where one would find {a}. Use at least three paragraphs.",
    "What are the advantages and disadvantages of {a}?",
    "Write a paragraph that uses the words {a}, {b} and {c}.",
    "Give me a plan for a week in which I want to get better at {a}.",
    "Rewrite this in simple words.\n\n{text}",
    "What does this passage tell us about the person who speaks?\n\n{text}",
    "Tell me something interesting about the history of {a}.",
    "I feel tired and think a lot about {a}. What should I do?",
    "Write instructions in numbered steps for a job of your choice.",
    "Write a dialogue between two people who disagree about {a}.",
    "Name ten things that people connect with {a}, and say why.",
    "Write an essay of about 400 words on {a} and {b}.",
    "How does {a} work? Explain it step by step.",
    "Make up three questions about this passage and answer them.\n\n{text}",
    "Write a diary entry of somebody who has seen {a} for the first time.",
    "Who would need {a} in their work, and what for?",
)

OPENINGS = (  # of free passages: of every kind of text, from a word or two
    *("{A}", "The {a}", "A {a} is", "{A} and {b}", "How {a}", "{A}\n\n", "When the {a}"),
    *("In this", "{A}: an introduction\n\n", "The history of {a}", "Abstract\n\n", "Chapter 1\n\n"),
    *("Question: ", "# {A}\n\n", "I ", "We ", '"', "If you", "Step 1: ", "import ", "{text}"),
)

SHORT = 30  # characters: a reply of no more is left out


def requests(count: int, seed: int) -> list[str]:
    """What is asked."""
    draw = Draw(f"{seed}/own")
    made = []
    for _ in range(count):
        a, b, c = draw.words(3)
        text = " ".join(s.strip() for s in prose(draw, lambda s: len(s) // 4, 110))
        made.append(draw.choice(REQUESTS).format(a=a, b=b, c=c, text=text))
    return made


def openings(count: int, seed: int) -> list[str]:
    """How free passages begin."""
    draw = Draw(f"{seed}/passages")
    made = []
    for _ in range(count):
        a, b = draw.words(2)
        text = "".join(prose(draw, lambda s: len(s) // 4, 200)[:1]).strip() or a
        made.append(draw.choice(OPENINGS).format(a=a, A=a.capitalize(), b=b, text=text))
    return made


def write(
    network: Network,
    tokenizer: Any,
    frame: Frame,
    chats: int,
    passages: int,
    length: int,
    seed: int,
) -> dict[str, list]:
    """Of the base: `chats` as [request, reply], and `passages` that it has gone on with."""
    asked, begun = requests(chats, seed), openings(passages, seed)
    prompts = [frame.opening + ask + frame.to_reply for ask in asked] + begun
    said = sample(network, tokenizer, prompts, frame.end, length, seed)
    replies, rest = said[:chats], said[chats:]
    return {
        "chats": [pair for pair in zip(asked, replies, strict=True) if len(pair[1]) > SHORT],
        "passages": [start + more for start, more in zip(begun, rest, strict=True)],
    }


@torch.no_grad()
def sample(
    network: Network, tokenizer: Any, prompts: list[str], stop: str, length: int, seed: int
) -> list[str]:
    """How the base goes on, at temperature 1, for up to `length` tokens or until the token `stop`.

    All rows decode as one batch with a cache of fixed size; prompts are padded on the left.
    """
    device = network.embedding.device
    end = tokenizer.convert_tokens_to_ids(stop)
    rows = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width + length), end)
    starts = torch.tensor([width - len(row) for row in rows])
    for place, row in zip(tokens, rows, strict=True):
        place[width - len(row) : width] = torch.tensor(row)
    tokens, starts = tokens.to(device), starts.to(device)
    decode = _Decoder(network, len(rows), width + length, starts)
    draws = torch.Generator(device).manual_seed(seed)
    states = decode(tokens[:, :width], 0)
    done = torch.zeros(len(rows), dtype=torch.bool, device=device)
    for at in range(width, width + length):
        chances = torch.softmax(network.logits(states[:, -1]).float(), -1)
        drawn = torch.multinomial(chances, 1, generator=draws)[:, 0]
        tokens[:, at] = torch.where(done, end, drawn)
        done |= drawn == end
        if at % 32 == 0 and bool(done.all()):
            break
        states = decode(tokens[:, at : at + 1], at)
    new = [row[: row.index(end)] if end in row else row for row in tokens[:, width:].tolist()]
    return [tokenizer.decode(row, skip_special_tokens=True) for row in new]


class _Decoder:
    """The base with a key-value cache [layers, 2, rows, KV heads, tokens, head_dim]."""

    def __init__(self, network: Network, rows: int, tokens: int, starts: Tensor):
        shape = network.shape
        self.network, self.starts = network, starts
        self.weights = network.untouched
        self.cache = network.embedding.new_zeros(
            shape.layers, 2, rows, shape.kv_heads, tokens, shape.head_dim
        )
        d, device = shape.head_dim, starts.device
        steps = torch.arange(0, d, 2, device=device, dtype=torch.float32)
        places = (torch.arange(tokens, device=device) - starts[:, None]).clamp(min=0)
        angles = places[..., None].float() * self.weights.theta ** (-steps / d)
        angles = torch.cat((angles, angles), -1)[:, :, None]  # [rows, tokens, 1, head_dim]
        self.cos, self.sin = angles.cos(), angles.sin()
        self.places = torch.arange(tokens, device=device)

    def __call__(self, tokens: Tensor, at: int) -> Tensor:
        """States before the head of tokens [rows, new] that stand at `at`."""
        network, shape = self.network, self.network.shape
        rows, new = tokens.shape
        end = at + new
        x = F.embedding(tokens, network.embedding)
        cos, sin = self.cos[:, at:end], self.sin[:, at:end]
        seen = self.places[:end] <= self.places[at:end, None]
        seen = seen & (self.places[:end] >= self.starts[:, None, None])
        # a padded place sees itself, so that no row of the softmax is empty
        seen = (seen | (self.places[:end] == self.places[at:end, None]))[:, None]
        group = shape.heads // shape.kv_heads
        for weights, cache in zip(self.weights.layers, self.cache, strict=True):
            q, k, v, o, gate, up, down, n1, n2 = weights
            y = norm(x, n1, shape.eps)
            heads = [F.linear(y, w).unflatten(-1, (-1, shape.head_dim)) for w in (q, k, v)]
            query = rotate(heads[0], cos, sin).transpose(1, 2)
            cache[0, :, :, at:end] = rotate(heads[1], cos, sin).transpose(1, 2)
            cache[1, :, :, at:end] = heads[2].transpose(1, 2)
            if new == 1:  # queries of a group as rows, so that the cache is read once
                query = query.reshape(rows, shape.kv_heads, group, shape.head_dim)
                keys, values = cache[0, :, :, :end], cache[1, :, :, :end]
            else:
                keys, values = cache[:, :, :, :end].repeat_interleave(group, 2)
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen)
            mixed = mixed.reshape(rows, shape.heads, new, shape.head_dim)
            x = x + F.linear(mixed.transpose(1, 2).flatten(2), o)
            y = norm(x, n2, shape.eps)
            x = x + F.linear(F.silu(F.linear(y, gate)) * F.linear(y, up), down)
        return norm(x, self.weights.final, shape.eps)
