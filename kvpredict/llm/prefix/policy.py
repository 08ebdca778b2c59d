"""The contract of prefix policies: rank a block when it becomes an unused leaf; the lowest rank is evicted.

A policy is a frozen dataclass of hyper-parameters with ``state(nodes, capacity)`` and kernels, of which a simple one
writes ``rank`` alone. ``s`` is its state, ``p`` the pool, ``r`` the requests and ``i`` one of them:

- ``rank(s, p, node, which, now)``: float, lower goes first, within ±1e11; ties go by order of use, deepest first.
  ``which`` numbers the policy's rankings where it has several;
- ``until(s, p, node, which, now)``: when that rank changes by the passing of time, inf for never;
- ``arrive(s, p, r, i, now)`` before a request's blocks are looked up, ``finish(s, p, r, i, now)`` after it has ended
  and before the pool notes the use. Both may name nodes whose rank they changed in ``p.dirty``;
- ``stored(s, p, node)`` before the device takes a node in, ``evicted(s, p, node, now)`` after it lost one, to the host
  tier or for good: what a policy counts is of the device alone, and the host tier goes by ``rank`` and ``side`` as they
  are then;
- ``worth(s, p, r, j, now)``: the rank of a block about to be stored (``r.node[j]``), which is refused when the lowest
  rank in a full cache is higher; by default everything is stored;
- ``side(s, node)`` and ``choose(s, p, c, now)``: in which of the cache's heaps a node stands, and which node goes.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import numpy as np

from kvpredict.core.arguments import real_number, whole_number
from kvpredict.core.errors import KvpredictError
from kvpredict.core.heap import heap_lowest
from kvpredict.core.jit import lean_kernel
from kvpredict.llm.prefix.pool import heap_of

__all__ = ["Kernels", "PrefixPolicy", "Traits", "require"]


class Traits(NamedTuple):
    """What a host must provide.

    ``oracle``: needs the future. ``timed``: ranks change with time. ``heaps``: how many a cache. ``rankings``: how many
    rankings the policy has; with several, each runs in a shadow, and the cache that serves follows one of them.
    ``late``: blocks are stored when their request ends, if they rank above the lowest, instead of when it arrives.
    ``early``: the ranking of a late policy under which blocks are stored on arrival all the same, -1 for none.
    """

    oracle: bool = False
    timed: bool = False
    heaps: int = 1
    rankings: int = 1
    late: bool = False
    early: int = -1


class Kernels(NamedTuple):
    """The compiled functions of a policy, and its traits."""

    rank: Any
    until: Any
    arrive: Any
    finish: Any
    stored: Any
    evicted: Any
    worth: Any
    side: Any
    choose: Any
    traits: Traits


class NoState(NamedTuple):
    """The state of a policy that needs none."""

    nothing: np.ndarray


@lean_kernel
def _never(s, p, node, which, now):
    return np.inf


@lean_kernel
def _unheeded(s, p, r, i, now):
    pass


@lean_kernel
def _unnoted(s, p, node):
    pass


@lean_kernel
def _unseen(s, p, node, now):
    pass


@lean_kernel
def _always(s, p, r, j, now):
    return np.inf


@lean_kernel
def _one_side(s, node):
    return 0


@lean_kernel
def _lowest(s, p, c, now):
    return heap_lowest(heap_of(p, c))


def require(condition: bool, policy: "PrefixPolicy", message: str) -> None:
    """Raise ``KvpredictError`` naming the policy unless a hyper-parameter's ``condition`` holds."""
    if not condition:
        raise KvpredictError(f"prefix policy {policy.name!r}: {message}")


@dataclass(frozen=True)
class PrefixPolicy:
    """Base of all prefix policies; a subclass adds hyper-parameters as fields, ``name`` and ``rank``."""

    name: ClassVar[str]
    traits: ClassVar[Traits] = Traits()

    rank: ClassVar[Any]
    until: ClassVar[Any] = staticmethod(_never)
    arrive: ClassVar[Any] = staticmethod(_unheeded)
    finish: ClassVar[Any] = staticmethod(_unheeded)
    stored: ClassVar[Any] = staticmethod(_unnoted)
    evicted: ClassVar[Any] = staticmethod(_unseen)
    worth: ClassVar[Any] = staticmethod(_always)
    side: ClassVar[Any] = staticmethod(_one_side)
    choose: ClassVar[Any] = staticmethod(_lowest)

    def __post_init__(self) -> None:
        """Check that what is a number by default is one; a subclass that checks more calls this first."""
        for f in fields(self):
            given, what = getattr(self, f.name), f"prefix policy {self.name!r}: {f.name}"
            if isinstance(f.default, int):
                whole_number(what, given, least=None)
            elif isinstance(f.default, float):
                real_number(what, given)

    @property
    def steer(self) -> tuple[float, ...]:
        """How to choose among several rankings: half-life of the shadows' hits in seconds, times of the last decay and
        of the next choice, seconds between choices, favour for the ranking followed."""
        return (200.0, 0.0, 0.0, 1.0, 0.0)

    def kernels(self) -> Kernels:
        """Return the compiled functions; a host compiles one loop for each distinct tuple."""
        return Kernels._make((*(getattr(self, name) for name in Kernels._fields[:-1]), self.traits))

    def state(self, nodes: int, capacity: int, requests: int) -> Any:
        """Make the state of an empty cache.

        Parameters
        ----------
        nodes : int
            Nodes that the host can number.
        capacity : int
            Blocks that the cache holds, all tiers together.
        requests : int
            Requests that the host can number at once.
        """
        return NoState(np.zeros(1, np.int64))

    def params(self) -> dict[str, Any]:
        """Return the hyper-parameters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
