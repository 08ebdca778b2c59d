"""Objective: what a miss counts for, and so what an object is worth to the cache.

A cache that is to miss few objects counts each miss as one; one that is to fetch few bytes counts the object's size;
one that is to save time or money counts the cost of the miss, which the host knows (``Event.hint``). An object that
will be reused is worth that much for every unit of capacity it takes.
"""

from functools import lru_cache
from typing import Any

from kvpredict.core.arithmetic import compress
from kvpredict.core.errors import unknown_name
from kvpredict.core.jit import lean_kernel

__all__ = ["MOST_COST", "OBJECTIVES", "check_objective", "weigher", "worth"]

OBJECTIVES = ("objects", "bytes", "cost")
MOST_COST = 1e100  # of a miss: sums of costs, and their squares, stay finite


def check_objective(name: str) -> None:
    """Raise ``UnknownName`` for an objective that does not exist."""
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, list(OBJECTIVES))


@lru_cache(maxsize=8)
def weigher(objective: str) -> Any:
    """Return the kernel ``weigh(size, hint)``, what a miss counts for."""
    by_object, by_cost = objective == "objects", objective == "cost"

    @lean_kernel
    def weigh(size, hint):
        if by_object:
            return 1.0
        return max(float(hint), 1e-12) if by_cost else float(size)

    return weigh


@lean_kernel
def worth(weight, size):
    """Return the log of a miss's weight for each unit of capacity."""
    x = weight / size
    return compress(x - 1.0) if x >= 1.0 else -compress(1.0 / x - 1.0)
