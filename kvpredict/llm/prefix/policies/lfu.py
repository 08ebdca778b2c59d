"""LFU: the block used by the fewest requests goes first; of equals the least recently used.

Counts outlive eviction, as long as the host remembers the block ("perfect" LFU).
"""

from dataclasses import dataclass

from kvpredict.core.jit import lean_kernel
from kvpredict.llm.prefix.policy import PrefixPolicy

__all__ = ["LFU"]


@dataclass(frozen=True)
class LFU(PrefixPolicy):
    """Least frequently used."""

    name = "lfu"

    @staticmethod
    @lean_kernel
    def rank(s, p, node, which, now):
        return float(p.touches[node])
