"""Belady with bypass: keep what is used again soonest, and do not store what is used later than all that is held.

It needs the future. A block is used whenever one of those after it is, so the order never conflicts with the rule that
only leaves go. Blocks of one size make it the bound for every policy where nothing is pinned.

Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 1966.
"""

from dataclasses import dataclass

from kvpredict.core.jit import lean_kernel
from kvpredict.llm.prefix.policy import PrefixPolicy, Traits

__all__ = ["Belady"]


@dataclass(frozen=True)
class Belady(PrefixPolicy):
    """Latest next use goes first."""

    name = "belady"
    traits = Traits(oracle=True)

    @staticmethod
    @lean_kernel
    def rank(s, p, node, which, now):
        return -min(p.next_use[node], 1e10)

    @staticmethod
    @lean_kernel
    def worth(s, p, r, j, now):
        return -min(r.next_use[j], 1e10)
