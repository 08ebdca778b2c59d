"""PrefixIndex: the prefix policies for a live server, whose blocks are known by hash and come without end.

It numbers blocks as they appear, forgets those that no cache holds when numbers run out, and drives the same kernels as
the simulator: what was measured is what is served. Memory is bounded by the capacity. Hosts that keep tensors call
``begin`` and ``end`` for each request and then ask what is held; engines that keep their own books call ``put``,
``drop``, ``pin``, ``unpin``, ``pop`` and ``used``. Calls must come from one thread at a time. A learned policy trains
on a thread of its own, from a copy of what it remembers; the caller's thread adopts the model between two requests.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import types

from kvpredict.cache.keys import HIGHEST, LOWEST
from kvpredict.cache.pinned import entry, open_pinned, pin
from kvpredict.core.arguments import whole_number
from kvpredict.core.errors import KvpredictError
from kvpredict.core.jit import interpreted
from kvpredict.llm.hints import HINTS, hints_of
from kvpredict.llm.prefix.engine import (
    BEGIN,
    CANCEL,
    END,
    EVICT,
    EXTERN,
    NEXT,
    PIN,
    PUT,
    RANK,
    RELIST,
    SHRINK,
    UNPIN,
    Engine,
    bind,
)
from kvpredict.llm.prefix.model import Model
from kvpredict.llm.prefix.policies.learned import Learned
from kvpredict.llm.prefix.policy import PrefixPolicy
from kvpredict.llm.prefix.pool import make_pool, no_requests
from kvpredict.llm.prefix.simulate import as_prefix_policy
from kvpredict.llm.prefix.training import Training

__all__ = ["PrefixIndex"]

ROOM = 12  # nodes remembered for each block held
PLACES = 4096  # requests remembered
MOST = 2**26  # blocks of a tier: its nodes are numbered by 32 bits


class PrefixIndex:
    """Which blocks to keep, by hash.

    It numbers ``12 * (capacity + host_capacity) + 1025`` blocks at once. Where requests in progress use all numbers,
    of a new one only those first blocks count that have a number, and the others are not stored.

    Parameters
    ----------
    capacity : int
        Blocks on the device.
    policy : str, path or PrefixPolicy, default "lru"
    host_capacity : int, default 0
        Blocks in the host tier.
    requests : int, default 256
        Requests in progress at once.
    clock : callable, default ``time.monotonic``
        Seconds; every call may give its own time instead.
    background : bool, default True
        Whether a learned policy trains on a thread of its own; else ``end`` waits for it, and runs are repeatable.
    """

    def __init__(
        self,
        capacity: int,
        policy: str | Path | PrefixPolicy = "lru",
        *,
        host_capacity: int = 0,
        requests: int = 256,
        clock: Any = time.monotonic,
        background: bool = True,
    ) -> None:
        self.capacity = whole_number("capacity", capacity, most=MOST)
        self.host_capacity = whole_number("host_capacity", host_capacity, least=0, most=MOST)
        self._most = whole_number("requests", requests, most=MOST)
        if not callable(clock):
            raise KvpredictError(f"clock must be a callable that returns seconds, got {clock!r}")
        self.policy = as_prefix_policy(policy)
        if self.policy.traits.oracle:
            raise KvpredictError(f"policy {self.policy.name!r} needs the future; a server cannot use it")
        self.clock = clock
        self.tiers = 2 if self.host_capacity else 1
        self._background = background
        self.reset()

    def reset(self) -> None:
        """Be as it was made: forget all blocks and requests, those in progress too, and what the policy has learned."""
        total = self.capacity + self.host_capacity
        shadows = self.policy.traits.rankings if self.policy.traits.rankings > 1 else 0
        rows = [self.capacity, self.host_capacity][: self.tiers] + [total] * shadows
        nodes = ROOM * total + 1025  # odd, and so unlike any other size in a state
        self._engine = bind(self.policy, late=True)
        self.pool = make_pool(np.full(nodes, -1), np.zeros(nodes), rows, self.policy.traits.heaps, True)
        self.pool.follows[len(rows) - shadows :] = np.arange(shadows)
        places = max(self._most, PLACES)  # those that are over are remembered as turns of their sessions
        self.requests = no_requests(places, 1 << 16, len(HINTS))
        self.state = self.policy.state(nodes, total, places)
        self.hits = np.zeros((places, max(2, len(rows))), np.int32)
        self._shadows = np.zeros(shadows)
        self._steer = np.array(self.policy.steer, np.float64)
        ordered = (self.pool.slots, self.pool.timer_slots, self.pool.gone)  # by place, not by node
        by_node = _by_node((self.pool, self.state), nodes)
        self._blank = [(a, axis, a.flat[0]) for a, axis in by_node if not any(a is other for other in ordered)]
        self._node: OrderedDict[int, int] = OrderedDict()  # hash to node, in the order of their last use
        self.hash = [0] * nodes  # a list, since its items are read one by one
        self._below = np.zeros(nodes, np.int32)  # known children
        # Read and written one by one, which costs half as much through a view.
        self._links = self.pool.parent.data, self.pool.depth.data, self._below.data
        self._free = list(range(nodes - 1, -1, -1))
        self._room = np.zeros(places, np.int64)
        self._top = 0
        self._busy: set[int] = set()
        self._cut: set[int] = set()  # of these requests the first blocks only
        self._tally = 0
        self.training = Training(self.policy, self._background) if isinstance(self.policy, Learned) else None
        self._stale: list[int] = []  # caches whose blocks an older model ranked
        self._pin()

    def __len__(self) -> int:
        """Return how many blocks the device holds."""
        return int(self.pool.used[0])

    def __contains__(self, block: int) -> bool:
        node = self._node.get(int(block), -1)
        return node >= 0 and bool(self.pool.resident[node, 0])

    def node(self, block: int, parent: int | None = None) -> int:
        """Return the number of a block, which gets one if it has none; ``parent`` is the hash before it."""
        block = int(block)
        node = self._node.get(block, -1)
        if node >= 0:
            self._node.move_to_end(block)
            return node
        above = self._node.get(int(parent), -1) if parent is not None else -1
        return self._one(block, above)

    def knows(self, block: int) -> bool:
        """Return whether a block has a number, held or not."""
        return block in self._node

    def before(self, block: int) -> int | None:
        """Return the hash of the block that a known one follows; None for a first block and for an unknown one."""
        node = self._node.get(block, -1)
        above = self._links[0][node] if node >= 0 else -1
        return self.hash[above] if above >= 0 else None

    def resize(self, capacity: int, now: float | None = None) -> None:
        """Have the shadows hold as much as an engine turns out to, which stores its blocks itself."""
        self.capacity = whole_number("capacity", capacity, most=MOST)
        self.pool.capacity[0] = self.capacity
        self.pool.capacity[self.tiers :] = self.capacity + self.host_capacity
        for shadow in range(self.tiers, len(self.pool.used)):
            self._act(SHRINK, shadow, now)

    def begin(
        self,
        blocks: Sequence[int],
        input_tokens: int,
        *,
        session: int | None = None,
        hints: Mapping[str, float] | None = None,
        block_size: int | None = None,
        now: float | None = None,
        tiers: int | None = None,
    ) -> tuple[int, int, int]:
        """Start a request with these prompt blocks: look them up and pin them.

        ``block_size`` is the tokens of a full block, by which ``pin_tokens`` counts; default: the prompt's mean.

        Returns
        -------
        A ticket for ``end`` or ``cancel``, and the numbers of blocks found on the device and, after them, in the host
        tier; the latter have moved to the device.
        """
        now = self.clock() if now is None else now
        known = hints_of({"kvpredict": hints}) if hints else {}
        if not isinstance(blocks, Sequence) and not hasattr(blocks, "__array__"):
            raise KvpredictError(f"blocks must be the hashes of a prompt's blocks, got {blocks!r:.60}")
        ticket = self._ticket(len(blocks) + 64)
        r = self.requests
        try:
            r.time[ticket] = now
            r.tokens[ticket] = (input_tokens, 0.0)
            r.block[ticket] = input_tokens / max(1, len(blocks)) if block_size is None else block_size
            r.session[ticket] = -1 if session is None else session
        except (TypeError, ValueError, OverflowError) as error:
            raise KvpredictError(f"input_tokens, block_size, session and now must be numbers: {error}") from None
        r.hint[ticket] = np.nan
        for name, value in known.items():
            r.hint[ticket, HINTS.index(name)] = value
        self._extend(ticket, blocks)
        r = self.requests
        r.prompt[ticket] = r.stop[ticket] - r.start[ticket]
        # Two tiers: what is found in the host's moves up here.
        self._act(BEGIN, ticket, now, tiers)
        self._busy.add(ticket)
        return ticket, int(self.hits[ticket, 0]), int(self.hits[ticket, 1]) if self.tiers == 2 else 0

    def end(
        self,
        ticket: int,
        generated: Sequence[int] = (),
        output_tokens: int = 0,
        *,
        hints: Mapping[str, float] | None = None,
        now: float | None = None,
        tiers: int | None = None,
    ) -> None:
        """End a request that filled the blocks ``generated``: note the use, unpin, and store what the policy wants."""
        now = self.clock() if now is None else now
        known = hints_of({"kvpredict": hints}) if hints else {}
        self._in_progress(ticket)
        r = self.requests
        r.tokens[ticket, 1] = output_tokens
        for name, value in known.items():
            r.hint[ticket, HINTS.index(name)] = value
        self._extend(ticket, generated)
        self._act(END, ticket, now, tiers)
        self._busy.discard(ticket)
        if self.training is not None:
            self._learn(now)

    @property
    def in_progress(self) -> list[int]:
        """Return the tickets of the requests that have begun and not ended."""
        return sorted(self._busy)

    def cancel(self, ticket: int, now: float | None = None) -> None:
        """End a request of which nothing is to be noted or stored."""
        now = self.clock() if now is None else now
        self._in_progress(ticket)
        self._act(CANCEL, ticket, now)
        self._busy.discard(ticket)

    def used(self, blocks: Sequence[int], prompt_blocks: int, tokens: tuple[int, int], **about: Any) -> None:
        """Note a request in one call, for engines that store blocks themselves."""
        begun, ended = about.get("times", (None, None))
        known = {name: about.get(name) for name in ("session", "hints", "block_size")}
        ticket, _, _ = self.begin(blocks[:prompt_blocks], tokens[0], now=begun, tiers=EXTERN, **known)
        self.end(ticket, blocks[prompt_blocks:], tokens[1], now=ended, tiers=EXTERN)

    def put(self, block: int, parent: int | None = None, now: float | None = None) -> None:
        """Note that the engine has stored a block."""
        now = self.clock() if now is None else now
        node = self._node.get(block, -1)  # storing is no use
        if node < 0:
            node = self._one(int(block), -1 if parent is None else self._node.get(parent, -1))
        self._serve(self._handle, PUT, node, now, self.tiers)

    def drop(self, block: int, now: float | None = None) -> None:
        """Note that a block has been dropped by the engine, or from the tier that held it."""
        node = self._node.get(int(block), -1)
        if node >= 0:
            self._act(EVICT, node, now)
            if self.tiers == 2 and self.pool.resident[node, 1]:
                self._leave_host(node, now)

    def pin(self, *blocks: int) -> None:
        """Keep blocks from eviction until ``unpin``; calls nest."""
        for block in blocks:
            node = self._node.get(block, -1)
            if node >= 0:
                self._serve(self._handle, PIN, node, 0.0, self.tiers)

    def unpin(self, *blocks: int, now: float | None = None) -> None:
        """Undo one ``pin`` of each."""
        now = float(self.clock() if now is None else now)
        for block in blocks:
            node = self._node.get(block, -1)
            if node >= 0:
                self._serve(self._handle, UNPIN, node, now, self.tiers)

    def pop(self, now: float | None = None) -> int | None:
        """Choose a block to evict, and note that it is gone; None where everything is pinned."""
        node = int(self._serve(self._handle, EVICT, -1, self.clock() if now is None else now, self.tiers))
        return self.hash[node] if node >= 0 else None

    def pop_some(self, count: int, usable: Callable[[int], bool], now: float | None = None) -> list[int]:
        """Choose ``count`` blocks that may be used, lowest rank first, and note that they are gone; or fewer."""
        now = float(self.clock() if now is None else now)
        popped: list[int] = []
        passed: list[int] = []
        serve, handle, tiers, hashes = self._serve, self._handle, self.tiers, self.hash
        taken = -1
        while len(popped) < count and (node := int(serve(handle, NEXT, taken, now, tiers))) >= 0:
            if usable(hashes[node]):
                popped.append(hashes[node])
                taken = node
            else:  # the policy is to hear of no eviction
                passed.append(node)
                serve(handle, PIN, node, now, tiers)  # keeps what is above it as well
                taken = -1
        if taken >= 0:
            serve(handle, EVICT, taken, now, tiers)
        for node in passed:
            serve(handle, UNPIN, node, now, tiers)
        return popped

    def rank(self, block: int, now: float | None = None) -> float | None:
        """Return what a known block is worth, lower goes first; None for an unknown one."""
        node = self._node.get(block, -1)
        if node < 0:
            return None
        return self._serve(self._handle, RANK, node, self.clock() if now is None else now, self.tiers)

    def held(self, tier: int = 0) -> Iterator[int]:
        """Yield the hashes of the blocks in a tier."""
        for node in np.flatnonzero(self.pool.resident[:, tier]):
            yield self.hash[node]

    def gone(self) -> list[int]:
        """Return the nodes that left a tier since the last call, each once."""
        count = min(int(self.pool.tally[2]), len(self.pool.gone))
        self.pool.tally[2] = 0
        return list(dict.fromkeys(self.pool.gone[:count].tolist()))

    def train(self, now: float | None = None) -> bool:
        """Train a learned policy on what it remembers; return whether there was enough."""
        now = self.clock() if now is None else now
        if self.training is None:
            return False
        model = self.policy.fitted(self.state.turns, now)  # type: ignore[attr-defined]
        if model is not None:
            self._adopt(model)
            self._rerank(now, len(self._stale))
        return model is not None

    def _leave_host(self, node: int, now: float | None) -> None:
        """Take a node out of the host tier."""
        p = self.pool
        family = [node, int(p.parent[node])] if p.parent[node] >= 0 else [node]
        for one in family:  # what is pinned stands in no heap, so that where it is held may be changed
            self._act(PIN, one, now)
        p.resident[node, 1] = 0
        p.used[1] -= 1
        p.children[family[1:], 1] -= 1
        for one in family:
            self._act(UNPIN, one, now)

    def _in_progress(self, ticket: int) -> None:
        if ticket not in self._busy:
            raise KvpredictError(f"no request in progress has the ticket {ticket!r}: give the one that begin returned")

    def _act(self, what: int, i: int, now: float | None, tiers: int | None = None) -> float:
        now = self.clock() if now is None else now
        return self._serve(self._handle, what, i, float(now), tiers or self.tiers)

    def _pin(self) -> None:
        """Give the compiled code the arrays, after some of them have been replaced."""
        self._pinned = pin((self.state, self.pool, self.requests, self.hits, self._steer, self._shadows))
        self._handle = self._pinned.handle
        self._serve = _serve(self._engine, None if interpreted() else numba.typeof(self._pinned.value))

    def _learn(self, now: float) -> None:
        """Train when it is due, and adopt what has been learned."""
        assert self.training is not None
        model = self.training.turn(self.state.turns, now)
        if model is not None:
            self._adopt(model)
        # Ranking a large cache anew takes a while, so a request waits for one of them only.
        self._rerank(now, 1 if self.training.background else len(self._stale))

    def _adopt(self, model: Model) -> None:
        assert isinstance(self.policy, Learned)
        self.state = self.policy.adopted(self.state, model)
        self._pin()
        self._stale = list(range(len(self.pool.used)))[::-1]

    def _rerank(self, now: float, count: int) -> None:
        for _ in range(min(count, len(self._stale))):
            self._act(RELIST, self._stale.pop(), now)

    def _ticket(self, blocks: int) -> int:
        """Return a free place for a request, with room for ``blocks``."""
        if len(self._busy) >= self._most:
            raise KvpredictError(
                f"{self._most} requests are in progress, which is all there is room for: raise requests="
            )
        places = len(self._room)
        while self._tally % places in self._busy:
            self._tally += 1
        ticket = self._tally % places
        self._tally += 1
        self._cut.discard(ticket)
        self.requests.start[ticket] = self.requests.stop[ticket] = 0
        self._give_room(ticket, blocks)
        return ticket

    def _give_room(self, ticket: int, room: int) -> None:
        """Move a request's blocks to where there is room for so many."""
        if self._top + room > len(self.requests.node):
            self._compact(room)
        r = self.requests
        held = int(r.stop[ticket] - r.start[ticket])
        if held:
            r.node[self._top : self._top + held] = r.node[r.start[ticket] : r.stop[ticket]].copy()
        r.start[ticket], r.stop[ticket] = self._top, self._top + held
        self._room[ticket] = room
        self._top += room

    def _compact(self, more: int) -> None:
        """Keep only the blocks of requests in progress, and see that ``more`` fit after them."""
        r = self.requests
        busy = sorted(self._busy, key=lambda k: int(r.start[k]))
        total = int(sum(self._room[k] for k in busy)) + more
        node = np.zeros(max(len(r.node), 4 * total), np.int32)
        self._top = 0
        for k in busy:
            held = r.node[r.start[k] : r.stop[k]]
            node[self._top : self._top + len(held)] = held
            r.start[k], r.stop[k] = self._top, self._top + len(held)
            self._top += int(self._room[k])
        self.requests = r._replace(node=node)
        self._pin()

    def _extend(self, ticket: int, blocks: Sequence[int]) -> None:
        """Give a request more blocks, as far as there are numbers for them: none after one that has none."""
        if len(blocks) == 0 or ticket in self._cut:
            return
        r = self.requests
        held = int(r.stop[ticket] - r.start[ticket])
        if held + len(blocks) > self._room[ticket]:
            self._give_room(ticket, 2 * (held + len(blocks)))
            r = self.requests
        at = int(r.stop[ticket])
        try:
            hashes = list(map(int, blocks))
        except (TypeError, ValueError, OverflowError) as error:
            raise KvpredictError(f"a block's hash must be a whole number of 64 bits: {error}") from None
        known = self._node
        nodes = [known.get(block, -1) for block in hashes]
        again = known.move_to_end
        for block, node in zip(hashes, nodes, strict=True):  # before any new one, which may cost an old one its number
            if node >= 0:
                again(block)
        if -1 in nodes:
            first = nodes.index(-1)
            above = nodes[first - 1] if first else int(r.node[at - 1]) if held else -1
            nodes[first:] = self._number(hashes[first:], above)
            if len(nodes) < len(hashes):
                self._cut.add(ticket)
        r.node[at : at + len(nodes)] = nodes
        r.stop[ticket] = at + len(nodes)

    def _one(self, block: int, above: int) -> int:
        """Return the number of a block that follows node ``above``; KvpredictError where none is left."""
        nodes = self._number([block], above)
        if not nodes:
            raise KvpredictError("no block can be forgotten: more blocks are in use than the index has room for")
        return nodes[0]

    def _number(self, blocks: Sequence[int], above: int) -> list[int]:
        """Return the numbers of blocks that follow each other and node ``above``; the new ones get theirs here.

        They are fewer than the blocks where the numbers run out, because all known blocks are in use.
        """
        known, free, hashes = self._node, self._free, self.hash
        parent, depth, below = self._links
        nodes = []
        for block in blocks:
            node = known.get(block, -1)
            if node < 0:
                if not LOWEST <= block <= HIGHEST:
                    raise KvpredictError(f"a block's hash must be a whole number of 64 bits, got {block}")
                if not free:
                    self._recycle(above)
                if not free:
                    break
                node = free.pop()
                known[block] = node
                hashes[node] = block
                parent[node] = above
                if above >= 0:
                    depth[node] = depth[above] + 1
                    below[above] += 1
                else:
                    depth[node] = 0
            nodes.append(node)
            above = node
        return nodes

    def _recycle(self, above: int) -> None:
        """Forget a sixteenth of all nodes: of what nothing holds the longest unused, and the ends of prompts first.

        Beginnings are remembered longer: more prompts share them.
        """
        wanted = max(1, len(self.hash) // 16)
        pool, below = self.pool, self._below
        held = (pool.running > 0) | pool.resident.any(axis=1)
        held[above] |= above >= 0
        known = np.fromiter(self._node.values(), np.int64, len(self._node))
        ends = known[~held[known] & (below[known] == 0)]
        layers: list[np.ndarray] = []
        while wanted and ends.size:
            ends = ends[:wanted]
            layers.append(ends)
            wanted -= ends.size
            parents = pool.parent[ends]
            parents = parents[parents >= 0]
            np.subtract.at(below, parents, 1)
            parents = np.unique(parents)
            ends = parents[~held[parents] & (below[parents] == 0)]
        freed = np.concatenate([known[:0], *layers])
        for array, axis, value in self._blank:
            if axis == 0:
                array[freed] = value
            else:
                array[:, freed] = value
        for node in freed.tolist():
            del self._node[self.hash[node]]
            self._free.append(node)


@lru_cache(maxsize=64)
def _serve(engine: Engine, kind: Any) -> Any:
    """Return ``serve(handle, what, i, now, tiers)``: ``engine.live`` on a pinned tuple of this type."""
    opened, live = open_pinned(kind), engine.live

    def serve(handle, what, i, now, tiers):
        s, p, r, hits, steer, shadows = opened(handle)
        return live(what, s, p, r, i, now, tiers, hits, steer, shadows)

    if kind is None:
        return serve
    i8, f8 = types.int64, types.float64
    return entry(serve, f8(i8, i8, i8, f8, i8))


def _by_node(value: Any, nodes: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the arrays with one entry a node, and which axis that is."""
    if isinstance(value, np.ndarray):
        for axis in range(value.ndim):
            if value.shape[axis] == nodes:
                yield value, axis
    elif isinstance(value, tuple):
        for item in value:
            yield from _by_node(item, nodes)
