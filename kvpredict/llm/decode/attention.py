"""How a Hugging Face model's attention comes to a decode cache, without patching the model.

transformers looks attention up by name in a registry. ``attach`` registers one more name and sets it on the model; a
hook on each attention module tells the function which layer of which cache it serves, and hands over the hidden state.
What is told is this thread's, so threads may share a model. A forward pass with any other cache, or with none, goes on
to ``sdpa`` as it did before.
"""

import threading
from typing import Any
from uuid import uuid4

from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.layers import attention_windows

__all__ = ["NAME", "attach"]

NAME = "kvpredict_decode"
# What attention functions of some models take and plain attention over slots does not do.
UNKNOWN = ("softcap", "s_aux", "position_bias", "block_mask", "head_mask")
PAST = ("past_key_values", "layer_past")  # what attention modules call the cache that they are given


_serving = threading.local()  # .layer: whom the attention module that runs in this thread serves, or None


def attach(model: Any) -> tuple[str, list[int | None]]:
    """Route a model's attention through decode caches; return a name for it, and each layer's sliding window or None.

    Raises
    ------
    KvpredictError
        For a model that does not look its attention up in the registry, that was loaded with another attention than
        ``sdpa``, or whose layers are not plain or sliding self-attention.
    """
    windows = attention_windows(model, "DecodeCache")
    kind = model.config.model_type
    if not getattr(model, "_supports_attention_backend", False):
        raise KvpredictError(
            f"DecodeCache cannot serve the model type {kind!r}: its attention is not looked up by name"
        )
    config = model.config.get_text_config(decoder=True)
    layers = len(windows)
    modules: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(getattr(module, "layer_idx", None), int) and hasattr(module, "is_causal"):
            modules[module.layer_idx] = module
    if sorted(modules) != list(range(layers)):
        raise KvpredictError(f"DecodeCache cannot serve the model type {kind!r}: found no attention in some layers")
    if not all(module.is_causal for module in modules.values()):
        raise KvpredictError(
            f"DecodeCache cannot serve the model type {kind!r}: its tokens see later ones (is_decoder=False?)"
        )
    now = config._attn_implementation
    if now not in ("sdpa", NAME):
        raise KvpredictError(f"the model computes attention by {now!r}: load it with attn_implementation='sdpa'")
    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    if now != NAME:
        model.set_attn_implementation(NAME)
        if config._attn_implementation != NAME:
            raise KvpredictError(f"DecodeCache cannot serve the model type {kind!r}: its attention cannot be chosen")
    name = getattr(modules[0], "_kvpredict_model", None) or uuid4().hex
    for module in modules.values():
        if not hasattr(module, "_kvpredict_model"):
            module.register_forward_pre_hook(_arrive, with_kwargs=True)
            module.register_forward_hook(_leave, always_call=True)
            module._kvpredict_model = name
    return name, windows


def _arrive(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Note whose layer this forward serves; only a DecodeCache has ``layer_of``."""
    _serving.layer = None
    for name in PAST:
        find = getattr(kwargs.get(name), "layer_of", None)
        if find is not None:
            layer = _serving.layer = find(module._kvpredict_model, module.layer_idx)
            layer.hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]


def _leave(module: Any, args: Any, output: Any) -> None:
    layer = getattr(_serving, "layer", None)
    if layer is not None:
        layer.hidden = None
        _serving.layer = None  # nothing keeps a cache alive


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    layer = getattr(_serving, "layer", None)
    if layer is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    for name in UNKNOWN:
        if kwargs.get(name) is not None:
            raise KvpredictError(f"DecodeCache cannot serve {type(module).__name__}: its attention uses {name!r}")
    # Some models take a view of it.
    return layer.attend(module, query, key, value, attention_mask, scaling).contiguous(), None
