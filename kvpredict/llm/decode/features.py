"""What a learned policy knows of a token, written once: recording, training and serving all call these functions.

At its arrival a token in one layer and KV head has the hidden state that feeds the projections and four norms; later it
has an age (KVzap, arXiv:2601.07891; its importance is per token, this one's also knows the age). No attention is among
them unless it is asked for, so any attention kernel will do.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "AGES",
    "NORMS",
    "RECEIVED",
    "SPAN",
    "age_features",
    "early_feature",
    "fading",
    "importance",
    "later",
    "norm_features",
    "received_features",
]

NORMS = ("key", "value", "output", "hidden")  # logarithms of |k|, |v|, |W_o v| and |x|
FLAGS = (64, 128, 256, 512)  # tokens; one feature each: younger than that
AGES = ("log_age", *(f"younger_than_{age}" for age in FLAGS))
SPAN = 16  # tokens; attention counts from the span after a token's own on: nearly all are looked at by their neighbours
HALF = 64  # queries after which attention of late counts half
RECEIVED = ("most", "mean", "recent")
_TINY, _LITTLE = 1e-6, 1e-5
_SPREAD = 1.6  # of the logarithms of attention received, so that their weights learn as fast as others


def norm_features(hidden: "Tensor", key: "Tensor", value: "Tensor", factor: "Tensor") -> "Tensor":
    """Return float32 [B, H, T, 4], the logarithms of |k|, |v|, |W_o v| and |x|.

    Parameters
    ----------
    hidden : Tensor [B, T, E]
    key, value : Tensor [B, H, T, D]
        Rotation by positions does not change a norm.
    factor : Tensor [H, D, D], float32
        |v @ factor| is the norm of what the output projection makes of v, a root mean square over the query heads that
        share the KV head.
    """
    import torch

    plain = value.float()
    three = torch.stack([key.float(), plain, plain @ factor], dim=-2)  # [B, H, T, 3, D]
    inner = torch.linalg.vector_norm(three, dim=-1)
    own = torch.linalg.vector_norm(hidden.float(), dim=-1)[:, None, :, None].expand(*key.shape[:3], 1)
    return torch.cat([inner, own], dim=-1).clamp_min_(_TINY).log_()


def age_features(age: "Tensor", longest: int) -> "Tensor":
    """Return float32 [..., 5] for ages in tokens; beyond ``longest``, the context trained on, they all look alike."""
    import torch

    age = age.clamp(0, longest)
    return torch.stack([age.float().log1p(), *((age < flag).float() for flag in FLAGS)], dim=-1)


def early_feature(attention: "Tensor") -> "Tensor":
    """Return the logarithm of the most ``attention`` that a token got in its first steps, from 0 for none."""
    return (attention.float().clamp_min(_TINY) / _TINY).log()


def later(query: "Tensor", token: "Tensor") -> "Tensor":
    """Tell whose attention counts for whom: bool, for positions of queries and tokens that broadcast."""
    return token < query // SPAN * SPAN


def fading(query: "Tensor", now: "Tensor") -> "Tensor":
    """Return what attention of the ``query`` at a position counts at the position ``now``, among that of late."""
    return 0.5 ** ((now // SPAN - query // SPAN) * (SPAN / HALF))


def received_features(received: "Tensor", age: "Tensor") -> "Tensor":
    """Return float32 [..., 3], logarithms from 0 for none of the most, the mean and the recent attention.

    ``received`` [..., 3] are the most that any query paid, the sum over queries, and the sum in which they fade
    (``later``, ``fading``); over query heads that share the KV head, the highest and means. ``age`` [...] in tokens.
    """
    import torch

    most, total, recent = received.unbind(-1)
    return (torch.stack([most, total / age.clamp_min(1), recent / HALF], dim=-1) / _LITTLE).log1p() / _SPREAD


def importance(attention: "Tensor", norms: "Tensor") -> "Tensor":
    """Return the label: the logarithm of ``attention`` times |W_o v| / |x|, float32 of the same shape.

    ``attention`` [..., H, T] is the most that any of the queries to come pays; ``norms`` are [..., H, T, 4].
    """
    return attention.float().clamp_min(_TINY).log() + norms[..., 2] - norms[..., 3]
