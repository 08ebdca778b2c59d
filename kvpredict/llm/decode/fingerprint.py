"""Fingerprint: which model a learned policy belongs to, told from its shape and a few of its weights.

A few of every matrix, so that a fine-tuned model is another one; compared with room for rounding, so that a model is
the same in whatever type it is loaded.
"""

import hashlib
import json
from typing import Any

import numpy as np

from kvpredict.core.errors import ArtifactError, KvpredictError

__all__ = ["IDENTITY", "attention_layers", "check_model", "model_identity", "output_factor"]

IDENTITY = frozenset({"type", "layers", "kv_heads", "head_dim", "width", "digest", "weights"})  # keys of model_identity

_SAMPLE = 4  # weights looked at in each matrix
_ROUNDING = 0.01  # bfloat16 keeps 8 bits


def attention_layers(model: Any) -> list[Any]:
    """Return the self-attention modules of a causal LM, by layer.

    Raises
    ------
    KvpredictError
        When the model has no such modules, or their layers are not numbered 0, 1, 2 ….
    """
    found: dict[int, Any] = {}
    for module in model.modules():
        layer = getattr(module, "layer_idx", None)
        projects = hasattr(module, "o_proj") or hasattr(module, "c_proj")
        if isinstance(layer, int) and projects and not getattr(module, "is_cross_attention", False):
            found.setdefault(layer, module)
    if not found or sorted(found) != list(range(len(found))):
        raise KvpredictError(
            f"{type(model).__name__} has no self-attention that this kvpredict knows (modules with layer_idx and "
            "o_proj or c_proj, numbered from 0): learned decode policies work with Llama-like models and GPT-2"
        )
    return [found[layer] for layer in range(len(found))]


def model_identity(model: Any) -> dict[str, Any]:
    """Return ``type``, ``layers``, ``kv_heads``, ``head_dim``, ``width``, ``digest`` and ``weights`` of a model.

    ``weights`` are floats, some of each matrix; ``digest`` is a short name for them, as they are in bfloat16.
    """
    import torch

    shape = _shape(model)
    some = []
    for tensor in model.parameters():
        if tensor.ndim >= 2 and tensor.is_floating_point():
            flat = tensor.detach().reshape(-1)
            # Spread over the tensor: the first rows may be those of tokens that were never trained.
            some.append(flat[:: max(1, flat.numel() // _SAMPLE)][:_SAMPLE].float())
    weights = torch.cat(some).cpu()
    digest = hashlib.blake2b(json.dumps(shape, sort_keys=True).encode(), digest_size=16)
    digest.update(weights.bfloat16().view(torch.int16).numpy().tobytes())
    return shape | {"digest": digest.hexdigest(), "weights": [float(f"{w:.6g}") for w in weights.tolist()]}


def _shape(model: Any) -> dict[str, Any]:
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    return {
        "type": str(config.model_type),
        "layers": len(attention_layers(model)),
        "kv_heads": int(getattr(config, "num_key_value_heads", None) or heads),
        "head_dim": int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        "width": int(config.hidden_size),
    }


def check_model(trained: dict[str, Any], model: Any) -> None:
    """Raise ``ArtifactError`` unless ``model`` is the one that a policy was ``trained`` for."""
    given = model_identity(model)
    for key in ("layers", "kv_heads", "head_dim", "width"):
        if trained[key] != given[key]:
            raise ArtifactError(
                f"this policy was trained for a model with {key.replace('_', ' ')} {trained[key]}, this one has "
                f"{given[key]}: train a policy for this model (kvpredict pipeline=decode_train)"
            )
    known, found = np.array(trained["weights"]), np.array(given["weights"])
    # Where a matrix has a zero, rounding has nothing to be relative to: a little of the usual size of a weight.
    room = 1e-3 * np.abs(found).mean()
    if known.shape != found.shape or not np.allclose(known, found, rtol=_ROUNDING, atol=room, equal_nan=True):
        raise ArtifactError(
            f"this policy was trained for other weights (fingerprint {trained['digest']}) than this {given['type']} "
            f"model's ({given['digest']}): train a policy for this model (kvpredict pipeline=decode_train)"
        )


def output_factor(model: Any) -> Any:
    """Return float32 [L, H, D, D]: |v @ factor| is the norm of W_o v, a root mean square over the group's heads."""
    import torch

    shape = _shape(model)
    heads, width = shape["kv_heads"], shape["head_dim"]
    factors = []
    for module in attention_layers(model):
        projection = _projection(module)
        weight = projection.weight.detach().float()
        # A linear layer holds [out, in], GPT-2's Conv1D [in, out].
        weight = weight if hasattr(projection, "nf") else weight.T  # [G H D, E]
        grouped = weight.reshape(heads, -1, width, weight.shape[1])  # [H, G, D, E]
        gram = (grouped @ grouped.mT).mean(1).double()  # [H, D, D]
        values, vectors = torch.linalg.eigh(gram)
        factors.append((vectors * values.clamp_min(0).sqrt()[:, None, :]).float().cpu())
    return torch.stack(factors)


def _projection(module: Any) -> Any:
    return module.o_proj if hasattr(module, "o_proj") else module.c_proj
