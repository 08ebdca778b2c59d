"""From a budget in tokens to slots for each layer and KV head.

Heads differ much in what they need: some look at a few tokens, some at everything. So a budget is a mean; the slots
of all heads together are exactly ``layers * heads * budget``, and every head has at least what must be kept anyway.
The pyramid gives early layers more than late ones, after PyramidKV, arXiv:2406.02069 (its beta is 20 here).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kvpredict.core.errors import KvpredictError, unknown_name

__all__ = ["SPLITS", "allocate", "shares"]

SPLITS = ("equal", "pyramid")
BETA = 20.0  # the last layer gets 1 / BETA of the mean


def shares(split: Any, layers: int, heads: int) -> np.ndarray:
    """Return how a budget is split, float64 ``[layers, heads]`` with mean 1.

    Parameters
    ----------
    split : {"equal", "pyramid"} or array [layers, heads]
        An array holds positive numbers of any scale.
    layers, heads : int

    Raises
    ------
    KvpredictError
        On an unknown word, an array of another shape, or numbers that are not positive and finite.
    """
    if isinstance(split, str):
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        if split == "equal" or layers == 1:
            return np.ones((layers, heads))
        return np.repeat(np.linspace(2 - 1 / BETA, 1 / BETA, layers)[:, None], heads, axis=1)
    given = split.detach().cpu() if hasattr(split, "detach") else split
    try:
        array = np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise KvpredictError(f"split must be one of {', '.join(SPLITS)} or an array, got {split!r}") from error
    if array.shape != (layers, heads):
        raise KvpredictError(
            f"split has the shape {array.shape}, this model's is ({layers}, {heads}): its layers and their KV heads"
        )
    if not np.isfinite(array).all() or (array <= 0).any():
        raise KvpredictError("split must hold positive finite numbers: how much of the budget each head gets")
    return array / array.mean()


def allocate(budget: int, split: Any, layers: int, heads: int, least: int | Sequence[Sequence[int]]) -> np.ndarray:
    """Return slots, int64 ``[layers, heads]``, whose sum is exactly ``layers * heads * budget``.

    Heads whose share is below ``least`` get ``least``; the others share what remains in proportion. Fractions are
    rounded by largest remainder, ties to the first.

    Parameters
    ----------
    budget : int
        Tokens a head, on average.
    split : {"equal", "pyramid"} or array [layers, heads]
    layers, heads : int
    least : int or array [layers, heads]
        What every head must have.

    Raises
    ------
    KvpredictError
        If the budget is below what every head must have, or ``split`` is none.

    >>> allocate(8, [[1.0, 3.0]], 1, 2, 2).tolist()
    [[4, 12]]
    """
    wish = shares(split, layers, heads).ravel() * budget
    floor = np.broadcast_to(np.asarray(least, np.int64), (layers, heads)).ravel()
    total = layers * heads * budget
    if floor.sum() > total:
        raise KvpredictError(f"a budget of {budget} tokens is below the {int(np.ceil(floor.mean()))} that must be kept")
    exact = floor.astype(np.float64)
    free = np.ones(wish.size, bool)
    while free.any():  # each round settles one head at least
        scaled = wish * (total - floor[~free].sum()) / wish[free].sum()
        short = free & (scaled < floor)
        if not short.any():
            exact[free] = scaled[free]
            break
        free &= ~short
    slots = np.floor(exact + 1e-9).astype(np.int64)
    rest = int(total - slots.sum())
    order = np.argsort(slots - exact, kind="stable")
    if not free.any():  # all heads have exactly what they must
        order = np.arange(wish.size)
    slots[order[:rest]] += 1
    return slots.reshape(layers, heads)
