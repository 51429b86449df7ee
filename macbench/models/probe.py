"""What the adapter can run exactly; everything else is refused before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from macbench.errors import MacbenchError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "phi3", "glm4")
MIXTURES = ("qwen3_moe",)  # families with experts
ROTARY = ("default", "linear", "yarn", "llama3", "longrope")


def check(config: PreTrainedConfig, name: str) -> None:
    """Refuse (MacbenchError) a configuration whose attention we would compute wrongly."""

    def refuse(what: str, way_out: str) -> None:
        raise MacbenchError(f"model '{name}' cannot be run: {what}; {way_out}.")

    if config.is_encoder_decoder or getattr(config, "add_cross_attention", False):
        refuse("it has cross attention", "use a decoder-only model")
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, cap, None):
            refuse(f"it caps its logits ({cap})", "use a model without a soft cap")
    if config.model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        refuse(f"its family '{config.model_type}' is unknown", f"supported families are {known}")
    rotary = config.rope_parameters["rope_type"]
    if rotary not in ROTARY:
        refuse(
            f"its rotary embedding is of type '{rotary}'",
            f"supported types are {', '.join(ROTARY)}",
        )


def window(config: PreTrainedConfig) -> int | None:
    """Tokens a layer with sliding attention sees; None where every layer sees everything."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    return getattr(config, "sliding_window", None)


def check_length(config: PreTrainedConfig, name: str, tokens: int) -> None:
    """Refuse (MacbenchError) a length at which the model is not exact full attention."""
    longest = config.max_position_embeddings
    if tokens > longest:
        raise MacbenchError(
            f"model '{name}' has a window of {longest} tokens but {tokens} are needed (prompt + "
            f"answer); ask for a shorter length or another model."
        )
    sliding = window(config)
    if sliding is not None and tokens > sliding:
        raise MacbenchError(
            f"model '{name}' attends to a sliding window of {sliding} tokens but {tokens} are "
            f"needed (prompt + answer); ask for at most {sliding} or use another model."
        )
