"""A low-rank adapter of a Llama-shaped model: its file, and merging it into the weights.

Every linear layer becomes W + scale * B @ A (LoRA, Hu et al., arXiv 2106.09685), every RMSNorm
takes the adapter's gains, the embedding stays as it is. The file is safetensors: for each linear
map its A [layers, rank, in] and B [layers, out, rank], for the norms their gains; its metadata say
which base it belongs to and how it was trained.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from macbench.errors import MacbenchError

LINEARS = {  # name in the file: place in a layer
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
NORMS = {"n1": "input_layernorm", "n2": "post_attention_layernorm"}
FINAL = "nf"  # gains of the norm before the head
SHIPPED = ("smollm2-long",)


@dataclass(frozen=True)
class About:
    """The file's metadata."""

    base: str  # identity of the weights it was trained on
    rope_theta: float
    window: int  # tokens it was trained to reach
    rank: int
    scale: float
    seed: int
    steps: int
    recipe: str  # checksum of settings, texts and program


@dataclass(frozen=True)
class Adapter:
    """An adapter as read; checksum: sha256 of the file."""

    tensors: dict[str, Tensor]
    about: About
    checksum: str


def find(name: str) -> Path:
    """The file of a shipped adapter's name, or the path itself."""
    return Path(__file__).with_name(f"{name}.safetensors") if name in SHIPPED else Path(name)


def save(path: Path, tensors: dict[str, Tensor], about: About) -> str:
    """Write the adapter in bfloat16; returns the file's checksum."""
    from safetensors.torch import save as pack

    ready = {name: t.detach().to("cpu", torch.bfloat16).contiguous() for name, t in tensors.items()}
    packed = pack(ready, {"macbench": json.dumps(about.__dict__)})
    path.write_bytes(packed)
    return hashlib.sha256(packed).hexdigest()


def read(name: str) -> Adapter:
    """Read a shipped adapter or a file; MacbenchError where there is none."""
    from safetensors import SafetensorError, safe_open

    path = find(name)
    if not path.is_file():
        raise MacbenchError(
            f"there is no adapter '{path.name}'; make it with `macbench train out=FOLDER` and give "
            f"the file as model.adapter=FOLDER/smollm2-long.safetensors."
        )
    try:
        with safe_open(path, "pt") as file:
            about = About(**json.loads(file.metadata()["macbench"]))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise MacbenchError(
            f"'{path}' is not an adapter of macbench; make one with `macbench train`."
        ) from error
    return Adapter(tensors, about, hashlib.sha256(path.read_bytes()).hexdigest())


def check_base(adapter: Adapter, base: str | None, name: str) -> None:
    """Refuse an adapter that was trained on other weights than `base`."""
    if base != adapter.about.base:
        raise MacbenchError(
            f"model '{name}': its adapter belongs to weights {adapter.about.base[:19]}… but these "
            f"are {(base or 'unknown')[:19]}…; use the base that the adapter was trained on."
        )


def adapt_config(config: Any, about: About) -> None:
    """Set the rotary base and the window that the adapter was trained with."""
    config.rope_parameters = {**config.rope_parameters, "rope_theta": about.rope_theta}
    config.max_position_embeddings = about.window


@torch.no_grad()
def merge(lm: Any, adapter: Adapter) -> None:
    """Put the adapter into a model's float32 weights, in place."""
    tensors = {name: t.float() for name, t in adapter.tensors.items()}
    scale = adapter.about.scale
    for i, layer in enumerate(lm.model.layers):
        for name, place in LINEARS.items():
            weight = layer.get_submodule(place).weight
            weight += (scale * (tensors[f"{name}.B"][i] @ tensors[f"{name}.A"][i])).to(weight)
        for name, place in NORMS.items():
            layer.get_submodule(place).weight.copy_(tensors[name][i])
    lm.model.norm.weight.copy_(tensors[FINAL])
