"""What a run stores: the rows of samples.jsonl, and what a cell's config.yaml says of it."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from macbench import tasks
from macbench.attention import Method, create
from macbench.engine import Answer, Request, cut
from macbench.engine.audit import full_attention, summary
from macbench.models import Model
from macbench.run.groups import Group, decoding, prompt_sha
from macbench.tasks.base import Sample

if TYPE_CHECKING:
    from macbench.config import MethodSpec

SCHEMA = 1  # of identities and rows; raised when either changes meaning


def identify(group: Group, spec: MethodSpec, method: Method) -> dict[str, Any]:
    """All that determines a cell's numbers, and nothing else."""
    config, model = group.config, group.model
    knobs = {f.name: getattr(method, f.name) for f in fields(method) if f.init}  # type: ignore[arg-type]
    return {
        "schema": SCHEMA,
        "model": {"name": model.name, "weights": model.weights},
        "dtype": str(model.geometry.dtype).removeprefix("torch."),
        "task": {
            "name": group.task_name,
            "version": group.task.version,
            "knobs": tasks.determining(group.task_name, config.task_knobs.get(group.task_name, {})),
        },
        "length": group.length,
        "seed": config.seed,
        "hold": config.hold,
        "max_new": config.max_new,
        "decoding": decoding(group),
        "method": {"name": spec.name, "version": method.version, "knobs": knobs},
    }


def describe(group: Group, spec: MethodSpec, floor: float | None) -> dict[str, Any]:
    """How a cell is presented; changes no number."""
    g = group.model.geometry
    asked = {k: spec.knobs[k] for k in ("budget", "tokens", "tau") if k in spec.knobs}
    calibrated = {}
    if found := spec.calibration:
        asked |= {"budget": found.budget}
        about = {k: v for k, v in asdict(found).items() if k not in ("knobs", "prompts")}
        calibrated = {"calibration": about}
    sources = {s.source for s in group.samples}
    notes = [*group.model.notes, *(f"source={s}" for s in sorted(sources))]
    return {
        "label": spec.label,
        "method": spec.name,
        "variant": spec.variant,
        "asked": asked,
        "control": create(spec.name, spec.knobs).control,
        "notes": notes,
        "floor": floor,
        **calibrated,
        "block": group.config.block,
        "geometry": {
            "layers": g.layers,
            "q_heads": g.q_heads,
            "kv_heads": g.kv_heads,
            "head_dim": g.head_dim,
            "token_bytes": g.token_bytes,
        },
    }


def written(model: Model, sample: Sample, answer: Answer) -> str:
    """An answer's text, up to a stop string."""
    assert model.text is not None
    return cut(model.text.decode(answer.tokens), sample.stop)


def make_row(
    group: Group, i: int, method: Method, resident: int, slot: int, answer: Answer
) -> dict[str, Any]:
    """A line of samples.jsonl, of a group's sample i. slot: the method's; resident: bytes that it
    holds of a slot beside keys and values."""
    sample, request, reads = group.samples[i], group.requests[i], answer.reads
    g = group.model.geometry
    output = written(group.model, sample, answer)
    score = group.task.score(sample, output)
    sums = {
        name: float(sum(map(sum, reads.get(name, ()))))
        for name in ("head_tokens", "kv_tokens", "meta_bytes")
    }
    context = {
        "context_head": reads["context"] * g.layers * g.q_heads,
        "context_kv": reads["context"] * g.layers * g.kv_heads,
    }
    held = len(request.tokens) + len(answer.tokens)
    token_bytes = g.token_bytes * g.kv_heads * g.layers
    kept = method.capacity(slot, held) * token_bytes + resident
    prompt = len(request.tokens) - min(request.hold, len(request.tokens) - 1)
    return {
        "index": sample.index,
        "id": sample.id,
        "cluster": sample.cluster,
        "source": sample.source,
        "prompt_tokens": len(request.tokens),
        "prompt_sha": prompt_sha(request),
        "hold": request.hold,
        "references": list(sample.references),
        "output": output,
        "new_tokens": len(answer.tokens),
        "stopped": answer.stopped,
        "score": score.value,
        "details": score.details,
        "steps": reads["steps"],
        "context": reads["context"],
        **sums,
        **context,
        "planned": method.predicted(g, prompt, prompt),
        "resident": kept / (held * token_bytes),
        "acted": reads["steps"] == 0 or method.witness({**sums, **context}),
        "extra": sample.extra,
        **({"resumed": answer.resumed} if answer.resumed else {}),
        **({"audit": drift(group, request, answer)} if "audited" in reads else {}),
        "time": {
            "prefill_s": answer.prefill_s,
            "begin_s": answer.begin_s,
            "decode_s": answer.decode_s,
        },
    }


def drift(group: Group, request: Request, answer: Answer) -> dict[str, Any]:
    """The audit of an answer, its stop token included."""
    model = group.model
    said = answer.tokens + ([] if answer.end is None else [answer.end])
    regime = model.regime(len(request.tokens) + request.max_new)
    full = full_attention(model, request.tokens, said, int(answer.reads["chosen"]), regime)
    return summary(answer.reads, group.config.audit, full)
