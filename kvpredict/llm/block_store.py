"""BlockStore: a pool of tensors under a prefix index, of which only whole blocks are ever served.

The index decides which blocks stay and where, the store moves their tensors. An error may come between any two steps
(no memory left, Ctrl-C, a timeout's signal), so two rules hold, and nothing else needs care. A table names a slot only
while it is filled: it is written first, entered last, and taken out before it is moved or given back. And whatever an
error leaves behind, ``mend`` puts right before the store is used again, by what the tables name and nothing else.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any, TypeVar

import numpy as np

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.kv_pool import KVPool
from kvpredict.llm.prefix.index import PrefixIndex

__all__ = ["BlockStore"]

T = TypeVar("T")
# Whether what the store knows is as it should be: all of it; the index, but not the slots and the requests; nothing.
WHOLE, SLOTS, NOTHING = range(3)


class BlockStore:
    """Which block lies in which slot, and what moves when the index changes its mind; all of it within a ``turn``.

    A policy may make room for blocks when their request arrives; they have a slot once their tensors are there.
    """

    def __init__(self, index: PrefixIndex, pool: KVPool) -> None:
        self.index, self.pool = index, pool
        self.slot: tuple[dict[int, int], dict[int, int]] = ({}, {})  # by node: on the device, in the host tier
        self._lock = threading.RLock()
        self._sound = WHOLE

    def turn(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, which alone uses the store meanwhile; an error in it leaves nothing behind.

        Requests that it began and did not end are cancelled then, and their blocks are forgotten unless they are whole.
        """
        # What Condition asks a lock too. An owner noted here would be wrong after an interrupt between the two.
        if self._lock._is_owned():  # type: ignore[attr-defined]
            raise KvpredictError("the cache was called from within another call of it; call it afterwards")
        # On one line, so that no interrupt finds a line between the end of the work and the release.
        with self._lock: return self._alone(work)  # fmt: skip  # noqa: E701

    def _alone(self, work: Callable[[], T]) -> T:
        self.mend()  # where that was cut short itself
        self._sound = SLOTS
        try:
            answer = work()
        except BaseException:
            with suppress(Exception):  # the error at hand is the one to tell; the next turn mends again
                self.mend()
            raise
        self._sound = WHOLE
        return answer

    def mend(self) -> None:
        """Put right what an error left half done: cancel all requests, and forget the blocks that are not whole."""
        if self._sound == SLOTS:
            self._sound = NOTHING  # until this is through
            self._reconcile()
            self._sound = WHOLE
        elif self._sound == NOTHING:
            for slots in self.slot:
                slots.clear()
            self.index.reset()
            self._reconcile()
            self._sound = WHOLE

    def clear(self) -> None:
        """Forget all blocks; what a learned policy knows of requests stays."""
        for slots in self.slot:
            slots.clear()
        self._told(self._reconcile)

    def begin(self, *args: Any, **named: Any) -> tuple[int, int, int]:
        """Begin a request, see ``PrefixIndex.begin``."""
        begun = self._told(self.index.begin, *args, **named)
        self.settle()
        return begun

    def end(self, ticket: int, *args: Any, **named: Any) -> None:
        """End a request, see ``PrefixIndex.end``; ``settle`` is to follow."""
        self._told(self.index.end, ticket, *args, **named)

    def settle(self, fresh: Mapping[int, Callable[[], Sequence[Any]]] | None = None) -> None:
        """Make the slots agree with the index; ``fresh`` returns the tensors of nodes that may have been stored."""
        fresh = fresh or {}
        resident = self.index.pool.resident
        two = self.index.tiers == 2
        moved = [*self.index.gone(), *fresh]
        lifted: dict[int, Sequence[Any]] = {}  # out of the host tier
        arriving: tuple[list[int], list[int]] = ([], [])
        for node in dict.fromkeys(moved):  # what comes up is lifted out first, so that its place is free
            if resident[node, 0] and node not in self.slot[0]:
                if node in self.slot[1]:
                    lifted[node] = self.pool.fetch(self.slot[1].pop(node))
                    arriving[0].append(node)
                elif node in fresh:
                    arriving[0].append(node)
            elif node in self.slot[1]:
                if not (two and resident[node, 1]):
                    self.pool.give(1, self.slot[1].pop(node))
            elif two and resident[node, 1] and node in fresh and node not in self.slot[0]:
                arriving[1].append(node)  # refused by the device, and taken by the host tier
        for node in dict.fromkeys(moved):
            if node in self.slot[0] and not resident[node, 0]:
                slot = self.slot[0].pop(node)
                if two and resident[node, 1]:
                    self.slot[1][node] = self.pool.demote(slot)
                else:
                    self.pool.give(0, slot)
        for tier, nodes in enumerate(arriving):
            for node in nodes:
                slot = self.pool.take(tier)
                if node in lifted:
                    self.pool.restore(slot, lifted[node])
                else:
                    self.pool.write(tier, slot, fresh[node]())
                self.slot[tier][node] = slot

    def found(self, ticket: int, most: int) -> list[int]:
        """Return the nodes of a request's first blocks, at most so many, whose tensors the device holds."""
        return list(takewhile(self.slot[0].__contains__, self.nodes(ticket)[:most]))

    def nodes(self, ticket: int) -> list[int]:
        """Return the nodes of a request's blocks."""
        r = self.index.requests
        return r.node[r.start[ticket] : r.stop[ticket]].tolist()

    def read(self, nodes: Sequence[int]) -> list[Any]:
        """Return the tensors of these nodes, which the device holds."""
        return self.pool.read([self.slot[0][node] for node in nodes])

    def _told(self, call: Callable[..., T], *args: Any, **named: Any) -> T:
        """Call a method that changes the index, of whose books nothing is known unless it comes to its end."""
        self._sound = NOTHING
        try:
            answer = call(*args, **named)
        except KvpredictError:  # it has refused, and its books are in order
            self._sound = SLOTS
            raise
        self._sound = SLOTS
        return answer

    def _reconcile(self) -> None:
        """Cancel all requests, and forget the blocks on which the index and the tables do not agree."""
        for ticket in self.index.in_progress:
            self.index.cancel(ticket)
        resident = self.index.pool.resident[:, : self.index.tiers]
        for node in np.flatnonzero(resident.any(axis=1)).tolist():
            if not all(node in slots for held, slots in zip(resident[node], self.slot, strict=False) if held):
                self.index.drop(self.index.hash[node])
        for tier, slots in enumerate(self.slot):
            for node in [node for node in slots if not resident[node, tier]]:
                del slots[node]
            self.pool.keep(tier, slots.values())
        self.index.gone()
