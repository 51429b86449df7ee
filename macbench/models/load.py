"""From a named source to a `Model`."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from macbench.errors import MacbenchError
from macbench.models import lora, probe
from macbench.models.adapter import Model
from macbench.models.configs import CONFIGS
from macbench.models.source import Place, Source, identity, locate
from macbench.models.text import Text

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
VOCABULARIES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken", "tekken.json")  # one is there


def load(source: Source, reads: bool = False) -> Model:
    """Load a model. Raises MacbenchError for whatever cannot be loaded or run exactly.

    reads: it has to read prompts; one without a tokenizer is refused before its weights are made.
    """
    if source.init not in ("weights", "random"):
        raise MacbenchError(f"unknown model.init '{source.init}'; use weights or random.")
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()
    device = pick_device(source.device)
    place = locate(source)
    config = _config(source, place)
    weights = place.weights or (identity(place) if source.adapter else None)
    adapter = None
    if source.adapter:
        adapter = lora.read(source.adapter)
        lora.check_base(adapter, weights, source.name)
        lora.adapt_config(config, adapter.about)
    probe.check(config, source.name)
    dtype = _dtype(source.dtype, config, device)
    tokenizer = _tokenizer(source, place)
    text = Text(tokenizer) if tokenizer else None
    if reads and text is None:
        raise MacbenchError(
            f"model '{source.name}' has no tokenizer, so it cannot read prompts and is for "
            "`macbench bench` only; choose another of `macbench list models`."
        )
    if source.init == "random":
        if adapter:
            raise MacbenchError(f"model '{source.name}': random weights take no model.adapter.")
        lm = _random(config, source.seed, dtype, device)
        return Model(
            lm,
            name=source.name,
            weights=f"random:{source.seed}:{_shape(config)}:{device.type}",
            text=text,
            notes=("random weights",),
        )
    options: dict[str, Any] = {} if device.type == "cpu" else {"device_map": str(device)}
    notes = place.notes
    if adapter:  # rounded once, after merging
        lm = _read(
            source, place, "AutoModelForCausalLM", dtype=torch.float32, config=config, **options
        )
        lora.merge(lm, adapter)
        lm = lm.to(dtype)
        weights = f"{weights}+sha256:{adapter.checksum}"
        notes = (*notes, f"adapter {adapter.checksum[:8]} merged")
    else:
        lm = _read(source, place, "AutoModelForCausalLM", dtype=dtype, **options)
        weights = weights or identity(place)
    return Model(
        lm,
        name=source.name,
        weights=weights,
        text=text,
        stop_ids=_stop_ids(lm, tokenizer),
        notes=notes,
    )


def _config(source: Source, place: Place) -> Any:
    if not place.bare:
        return _read(source, place, "AutoConfig")
    from transformers import AutoConfig

    if str(place.where) in CONFIGS:
        fields = dict(CONFIGS[str(place.where)])
    else:
        fields = _json(Path(place.where), source.name)
    try:
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    except (KeyError, ValueError) as error:
        raise MacbenchError(
            f"model '{source.name}': '{place.where}' has no model_type that transformers knows."
        ) from error


def _random(config: Any, seed: int, dtype: torch.dtype, device: torch.device) -> Any:
    """Random weights, made on the device; the caller's random state is left alone."""
    from transformers import AutoModelForCausalLM

    cuda = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda), device:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _tokenizer(source: Source, place: Place) -> Any | None:
    """The tokenizer; random weights may come without one."""
    if place.bare:
        return None
    folder = place.where
    if source.init == "random" and isinstance(folder, Path) and not any(folder.glob("tokenizer*")):
        return None
    bare = isinstance(folder, Path) and not any(any(folder.glob(x)) for x in VOCABULARIES)
    if bare and not place.options:  # transformers would make an empty one of some families
        raise MacbenchError(
            f"model '{source.name}': folder '{folder}' has no tokenizer; add the checkpoint's "
            "tokenizer.json and tokenizer_config.json."
        )
    return _read(source, place, "AutoTokenizer")


def _read(source: Source, place: Place, auto: str, **options: Any) -> Any:
    """One `from_pretrained`, its failures told in one sentence."""
    import transformers

    try:
        return getattr(transformers, auto).from_pretrained(
            place.where, trust_remote_code=False, **place.options, **options
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        if isinstance(place.where, Path) or isinstance(error, ValueError):
            raise MacbenchError(
                f"model '{source.name}' cannot be read from '{place.where}': {reason}."
            ) from error
        revision = f" --revision {source.revision}" if source.revision else ""
        raise MacbenchError(
            f"model '{source.name}': '{place.where}' is not in the local Hugging Face cache and "
            f"cannot be fetched ({reason}); where there is network, run "
            f"`hf download {place.where}{revision}` (gated models: `hf auth login` first) and give "
            f"the folder as model.source."
        ) from error


def pick_device(asked: str) -> torch.device:
    """The device that `model.device` means."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if asked not in ("cpu", "cuda"):
        raise MacbenchError(f"unknown model.device '{asked}'; use auto, cpu or cuda.")
    if asked == "cuda" and not torch.cuda.is_available():
        raise MacbenchError("model.device=cuda but torch sees no GPU; use model.device=cpu.")
    return torch.device(asked)


def _dtype(asked: str, config: Any, device: torch.device) -> torch.dtype:
    if asked == "auto":
        return torch.float32 if device.type == "cpu" else config.dtype or torch.bfloat16
    if asked not in DTYPES:
        raise MacbenchError(f"unknown model.dtype '{asked}'; use auto, {', '.join(DTYPES)}.")
    return DTYPES[asked]


def _shape(config: Any) -> str:
    """Short checksum of a configuration: random weights of another shape are other weights."""
    fields = config.to_diff_dict()
    for said_elsewhere in ("dtype", "transformers_version", "_name_or_path", "architectures"):
        fields.pop(said_elsewhere, None)
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]


def _stop_ids(lm: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends a turn, by the generation settings, configuration and tokenizer, and
    the special token that opens one: a reply that begins another turn is over."""
    stops: set[int] = set()
    for owner in (lm.generation_config, lm.config, tokenizer):
        found = owner.eos_token_id
        stops.update([found] if isinstance(found, int) else found or [])
    if getattr(tokenizer, "chat_template", None):
        turn = [{"role": "user", "content": "."}]
        opening = tokenizer.apply_chat_template(turn, tokenize=False)
        first = tokenizer(opening, add_special_tokens=False)["input_ids"][0]
        stops |= {first} & {*tokenizer.all_special_ids}
    return tuple(sorted(stops))


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise MacbenchError(f"model '{name}': '{path}' is not valid JSON ({error}).") from error
