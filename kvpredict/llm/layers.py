"""What a causal LM's attention layers are like, as far as a cache of their keys and values must know."""

from typing import Any

from kvpredict.core.errors import KvpredictError

__all__ = ["attention_windows", "check_positions", "last_position", "moving_rope"]

POSITIONS = ("max_position_embeddings", "max_seq_len")  # MPT has the second name only
KINDS = {"full_attention", "sliding_attention"}
MOVING = {"dynamic", "longrope"}  # rotations that change with the length of the text, and with them keys already made


def attention_windows(model: Any, who: str) -> list[int | None]:
    """Return each layer's sliding window in tokens, None without one.

    Raises
    ------
    KvpredictError
        For what is no decoder, or has layers other than plain or sliding self-attention; ``who`` is named in it.
    """
    whole: Any = getattr(model, "config", None)
    kind = getattr(whole, "model_type", type(model).__name__)
    refusal = f"{who} cannot serve the model type {kind!r}"
    if not callable(getattr(whole, "get_text_config", None)) or not callable(getattr(model, "can_generate", None)):
        raise KvpredictError(f"{refusal}: give a causal language model of transformers")
    config = whole.get_text_config(decoder=True)
    if getattr(whole, "is_encoder_decoder", False):
        raise KvpredictError(f"{refusal}: it has an encoder")
    if not model.can_generate():
        raise KvpredictError(f"{refusal}: it does not generate text; give the class with a language model's head")
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if getattr(config, "attention_chunk_size", None) is not None:
        raise KvpredictError(f"{refusal}: chunked attention")
    if getattr(config, "kv_sharing_modes", None) is not None:
        raise KvpredictError(f"{refusal}: its layers share keys and values")
    if types is None:
        types = ["full_attention" if window is None else "sliding_attention"] * config.num_hidden_layers
    for name in types:
        if name not in KINDS:
            raise KvpredictError(f"{refusal}: it has layers of {name!r}")
    return [window if name == "sliding_attention" else None for name in types]


def moving_rope(model: Any) -> str | None:
    """Return the kind of a rotation of positions that changes with the length of the text; None for a steady one."""
    config = model.config.get_text_config(decoder=True)
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    by_type = [part for part in given.values() if isinstance(part, dict)]
    for found in (given, *by_type):
        kind = found.get("rope_type", found.get("type"))
        if kind in MOVING:
            return str(kind)
    return None


def last_position(model: Any) -> int | None:
    """Return how many positions a model has; None where they are rotated, which does not end."""
    config = model.config.get_text_config(decoder=True)
    if any(getattr(config, name, None) for name in ("rope_parameters", "rope_scaling", "rope_theta")):
        return None
    return next((getattr(config, name) for name in POSITIONS if getattr(config, name, None) is not None), None)


def check_positions(model: Any, tokens: int, what: str) -> None:
    """Raise ``KvpredictError`` if a model lacks positions for ``tokens``, which ``what`` asks for."""
    longest = last_position(model)
    if longest is not None and tokens > longest:
        raise KvpredictError(f"{what} needs {tokens} positions, this model has {longest}: ask for fewer tokens")
