"""Blocks: a prompt's tokens cut into pieces of ``block_size``, each named by a hash of itself and all before it.

Two prompts share a block exactly if they share every token up to its end, so a block's id stands for a whole prefix,
and a set of prompts is a tree of blocks. This is how vLLM names blocks (its hashes differ). Ids are 64-bit BLAKE2b
digests; ``salt`` keeps tenants, models or adapters apart that must not share.
"""

import hashlib
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from kvpredict.core.arguments import whole_number
from kvpredict.core.errors import KvpredictError

__all__ = ["block_hashes", "token_ids"]


def token_ids(name: str, given: Any) -> list[int]:
    """Return a sequence of whole numbers as a list of ints; ``name`` is for the error about any other."""
    try:
        return [operator.index(token) for token in given]
    except (TypeError, ValueError):
        raise KvpredictError(f"{name} must be a sequence of whole token ids, got {given!r:.60}") from None


def block_hashes(
    tokens: Sequence[int] | np.ndarray, block_size: int = 16, *, salt: bytes = b"", partial: bool = False
) -> np.ndarray:
    """Return the chained ids of a prompt's blocks.

    Parameters
    ----------
    tokens : sequence of int, [t]
    block_size : int, default 16
        Tokens a block.
    salt : bytes, default b""
        Prompts of different salts share nothing; at most 64 bytes.
    partial : bool, default False
        Whether a last block with fewer tokens gets an id too. Engines share full blocks only.

    Returns
    -------
    int64 ``[t // block_size]``, or one more with ``partial`` and a rest.

    >>> a, b = block_hashes([1, 2, 3, 4, 5], 2), block_hashes([1, 2, 9, 4], 2)
    >>> len(a), bool(a[0] == b[0]), bool(a[1] == b[1])
    (2, True, False)
    """
    block_size = whole_number("block_size", block_size)
    if not isinstance(salt, bytes) or len(salt) > 64:
        raise KvpredictError(f"salt must be at most 64 bytes, got {salt!r:.80}")
    data = np.asarray(tokens)
    if data.ndim != 1 or (data.size and data.dtype.kind not in "iu"):
        found = f"an array of shape {data.shape} and dtype {data.dtype}"
        raise KvpredictError(f"tokens must be one prompt's sequence of ints, got {found}")
    data = np.ascontiguousarray(data, np.int64)
    count = data.size // block_size + (1 if partial and data.size % block_size else 0)
    ids = np.empty(count, np.int64)
    parent = b""
    for i in range(count):
        piece = data[i * block_size : (i + 1) * block_size].tobytes()
        parent = hashlib.blake2b(parent + piece, digest_size=8, key=salt).digest()
        ids[i] = int.from_bytes(parent, "little", signed=True)
    return ids
