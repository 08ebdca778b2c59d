"""The engine: binds a policy's kernels into what servers do with blocks, one request after the other.

When a request begins, its prompt is looked up, its blocks are pinned and the missing ones stored; when it ends they are
unpinned and their use is noted. ``live`` does that one request at a time, and serves hosts that store blocks themselves
in smaller steps; ``replay`` runs requests by a clock. Everything goes through the same kernels, so hosts decide as the
simulator does; that is why they stand in one file.

A server's rules: a block counts only if all before it hit; blocks in use stay; only leaves go; what finds no room is
computed and not kept. A block evicted from the device goes to the host tier where there is one, and comes back on use.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kvpredict.core.heap import heap_drop, heap_pop, heap_push, heap_update
from kvpredict.core.jit import kernel, lean_kernel, lean_subroutine
from kvpredict.llm.hints import HINTS
from kvpredict.llm.prefix.policy import Kernels, PrefixPolicy
from kvpredict.llm.prefix.pool import DIRTY, LEVEL, ahead, heap_of, standing, timer_of

__all__ = [
    "BEGIN", "CANCEL", "END", "EVICT", "EXTERN", "NEXT", "PIN", "PUT", "RANK", "RELIST", "SHRINK", "UNPIN",
    "Engine", "bind",
]  # fmt: skip

STRAY = LEVEL / 4  # a rank is within a tenth of LEVEL
EXTERN = 3  # tiers of a host that stores blocks itself

# What ``live`` does. BEGIN: a request arrives, and its row of hits is filled. END: it is over. CANCEL: it is over and
# nothing is noted of it. PUT: the host has stored the node, for which there is room. EVICT: the node is out, of -1 the
# one that goes next; returns it, or -1. NEXT: the node is out, of -1 none; returns the one that goes next, or -1.
# RELIST: rank everything in a cache anew. RANK: returns the node's rank in the cache that serves. SHRINK: evict what a
# cache holds beyond its capacity.
BEGIN, END, CANCEL, PUT, EVICT, NEXT, PIN, UNPIN, RELIST, RANK, SHRINK = range(11)

PRIORITY, TTL, PIN_TOKENS, PIN_SECONDS = (HINTS.index(n) for n in ("priority", "ttl", "pin_tokens", "pin_seconds"))


class Engine(NamedTuple):
    """Compiled functions over a pool ``p``, a policy's state ``s`` and requests ``r``."""

    live: Any  # (what, s, p, r, i, now, tiers, hits, steer, shadows): see the codes; i: request, node or cache
    rerank: Any  # (s, p, now): rank everything anew
    replay: Any


def bind(policy: PrefixPolicy, *, late: bool = False) -> Engine:
    """Return the functions compiled for ``policy``'s kernels; with ``late`` blocks are stored at a request's end."""
    kernels = policy.kernels()
    return _bind(kernels._replace(traits=kernels.traits._replace(late=late or kernels.traits.late)))


@lru_cache(maxsize=64)
def _bind(kernels: Kernels) -> Engine:
    rank, until, told, ended, stored, evicted, worth, side, choose, traits = kernels
    heaps, rankings, late, early = traits.heaps, traits.rankings, traits.late, traits.early

    @lean_kernel
    def listed(s, p, c, node):
        return p.place[c * heaps + side(s, node), node] >= 0

    @lean_kernel
    def leader(p):
        """Return the shadow that the serving cache follows."""
        return p.used.size - rankings + p.follows[0]

    @lean_kernel
    def value(s, p, c, node, now):
        """Return what decides whether a node goes: hints, then the shadow followed, then the policy's rank."""
        found = rank(s, p, node, p.follows[c], now) + standing(p, node, now)
        if rankings > 1 and c < p.used.size - rankings and not p.resident[node, leader(p)]:
            found -= STRAY
        return found

    @lean_subroutine
    def valued(s, p, c, node, now):
        """Return the same, not inline."""
        return value(s, p, c, node, now)

    @lean_subroutine
    def expose(s, p, c, node, now):
        which = p.follows[c]
        heap_push(heap_of(p, c * heaps + side(s, node)), node, value(s, p, c, node, now), p.order[node])
        if p.timer_slots.shape[1] > 0:
            when = min(until(s, p, node, which, now), ahead(p, node, now))
            if when < np.inf:
                heap_push(timer_of(p, c), node, when, p.order[node])

    @lean_kernel
    def hide(s, p, c, node):
        heap_drop(heap_of(p, c * heaps + side(s, node)), node)
        if p.timer_slots.shape[1] > 0 and p.timer_place[c, node] >= 0:
            heap_drop(timer_of(p, c), node)

    @lean_subroutine
    def again(s, p, c, node, now):
        """Rank a listed node anew."""
        which = p.follows[c]
        heap_update(heap_of(p, c * heaps + side(s, node)), node, value(s, p, c, node, now), p.order[node])
        if p.timer_slots.shape[1] > 0:
            # By rounding, last use + age may be now while now - last use is less than the age: ``tick`` must go on.
            when = max(min(until(s, p, node, which, now), ahead(p, node, now)), np.nextafter(now, np.inf))
            timer = timer_of(p, c)
            if p.timer_place[c, node] >= 0:
                heap_drop(timer, node)
            if when < np.inf:
                heap_push(timer, node, when, p.order[node])

    @lean_kernel
    def tick(s, p, c, now):
        """Rank anew what has reached the time at which its rank changes."""
        while p.timer_held[c, 0] > 0 and p.timer_rank[c, p.timer_slots[c, 0]] <= now:
            again(s, p, c, p.timer_slots[c, 0], now)

    @lean_kernel
    def refresh(s, p, now):
        """Rank the dirty nodes anew."""
        for k in range(min(p.tally[1], DIRTY)):
            node = p.dirty[k]
            for c in range(p.used.size):
                if p.resident[node, c] and listed(s, p, c, node):
                    again(s, p, c, node, now)
        p.tally[1] = 0

    @lean_kernel
    def heeded(s, p, c, node, now):
        """Have the caches that serve heed what the shadow they follow did."""
        if rankings > 1 and c == leader(p):
            for k in range(p.used.size - rankings):
                if p.resident[node, k] and listed(s, p, k, node):
                    again(s, p, k, node, now)

    @lean_kernel
    def leave(s, p, c, node, now):
        """Take a held node out of cache ``c``."""
        if listed(s, p, c, node):
            hide(s, p, c, node)
        p.resident[node, c] = 0
        p.used[c] -= 1
        if c < 2:
            p.gone[p.tally[2] % p.gone.size] = node
            p.tally[2] += 1
        heeded(s, p, c, node, now)
        above = p.parent[node]
        if above >= 0:
            p.children[above, c] -= 1
            if p.children[above, c] == 0 and p.resident[above, c] and p.running[above] == 0:
                expose(s, p, c, above, now)

    @lean_kernel
    def enter(s, p, c, node, now):
        """Put a node into a cache with room for it."""
        p.resident[node, c] = 1
        p.used[c] += 1
        heeded(s, p, c, node, now)
        above = p.parent[node]
        if above >= 0:
            p.children[above, c] += 1
            if p.children[above, c] == 1 and p.resident[above, c] and listed(s, p, c, above):
                hide(s, p, c, above)
        if p.running[node] == 0 and p.children[node, c] == 0:
            expose(s, p, c, node, now)

    @lean_kernel
    def store(s, p, c, node, now):
        """Put in a node that is new to the cache; the policy is told first, for the heap that it stands in."""
        if c == 0:
            stored(s, p, node)
        enter(s, p, c, node, now)

    @lean_kernel
    def lose(s, p, c, node, now):
        """Take out a node, and tell the policy."""
        leave(s, p, c, node, now)
        if c == 0:
            evicted(s, p, node, now)

    @lean_kernel
    def exposed(p, c):
        total = p.held[c * heaps, 0]
        if heaps > 1:
            total += p.held[c * heaps + 1, 0]
        return total

    @lean_subroutine
    def foremost(s, p, c, now):
        """Return the node that goes first by the ranks of now; -1 where none may go."""
        if exposed(p, c) == 0:
            return -1
        if p.timer_slots.shape[1] > 0:
            tick(s, p, c, now)
        return choose(s, p, c, now)

    @lean_subroutine
    def evict(s, p, c, now):
        node = foremost(s, p, c, now)
        if node >= 0:
            lose(s, p, c, node, now)
        return node

    @lean_subroutine
    def demote(s, p, c, node, now):
        """Put what was evicted from ``c`` into the tier below, if that has or finds room."""
        if p.capacity[c] <= 0 or p.resident[node, c]:
            return
        while p.used[c] >= p.capacity[c]:
            if evict(s, p, c, now) < 0:
                return
        enter(s, p, c, node, now)

    @lean_kernel
    def room(s, p, c, least, tiers, now):
        """Make room for one block worth ``least``; return whether there is some."""
        while p.used[c] >= p.capacity[c]:
            if least < np.inf:
                lowest = foremost(s, p, c, now)
                if lowest < 0 or p.rank[c * heaps + side(s, lowest), lowest] >= least:
                    return False
            node = evict(s, p, c, now)
            if node < 0:
                return False
            if c == 0 and tiers == 2:
                demote(s, p, 1, node, now)
        return True

    @lean_subroutine
    def keep(s, p, r, j, c, least, tiers, now):
        """Store block ``r.node[j]`` in cache ``c``, which does not hold it; return whether it is there now."""
        node = r.node[j]
        if not room(s, p, c, least, tiers, now):
            return False
        if c == 0 and tiers == 2 and p.resident[node, 1]:  # it comes back up
            leave(s, p, 1, node, now)
        store(s, p, c, node, now)
        return True

    @lean_kernel
    def seize(s, p, node):
        """Count one more request that uses a node, which may not be evicted then."""
        if p.running[node] == 0:
            for c in range(p.used.size):
                if p.resident[node, c] and p.children[node, c] == 0:
                    hide(s, p, c, node)
        p.running[node] += 1

    @lean_kernel
    def release(s, p, node, now):
        p.running[node] -= 1
        if p.running[node] == 0:
            for c in range(p.used.size):
                if p.resident[node, c] and p.children[node, c] == 0:
                    expose(s, p, c, node, now)

    @lean_kernel
    def on_arrival(p, c):
        """Return whether cache ``c`` stores a request's blocks when it arrives."""
        return not late or p.follows[c] == early

    @lean_subroutine
    def arrive(s, p, r, i, now, tiers, hits):
        low = r.start[i]
        high = low + r.prompt[i]
        told(s, p, r, i, now)
        refresh(s, p, now)
        for j in range(low, high):
            seize(s, p, r.node[j])
        for c in range(p.used.size - 1, -1, -1):  # shadows first, so that the caches that serve can follow them
            if c == 1 and tiers == 2:
                continue
            j = low
            while j < high and p.resident[r.node[j], c]:
                j += 1
            hits[i, c] = j - low
            if c == 0 and tiers == 2:
                while j < high and (p.resident[r.node[j], 1] or p.resident[r.node[j], 0]):
                    # What the host tier holds counts if it can come back up.
                    if not p.resident[r.node[j], 0] and not keep(s, p, r, j, 0, np.inf, tiers, now):
                        break
                    j += 1
                hits[i, 1] = j - low - hits[i, 0]
            if on_arrival(p, c) and not (c == 0 and tiers == EXTERN):
                while j < high:
                    if p.resident[r.node[j], c]:
                        j += 1
                        continue
                    least = worth(s, p, r, j, now)
                    if rankings > 1 and c == 0 and not p.resident[r.node[j], leader(p)]:
                        least = valued(s, p, c, r.node[j], now)
                    if not keep(s, p, r, j, c, least, tiers, now):
                        break
                    j += 1

    @lean_kernel
    def heed(p, r, i, j, now):
        """Note what a request's hints say of its block ``j``."""
        node = r.node[j]
        # The latest request decides, except that a pin holds for as long as it was given.
        p.priority[node] = 0.0 if np.isnan(r.hint[i, PRIORITY]) else r.hint[i, PRIORITY]
        p.expires[node] = np.inf if np.isnan(r.hint[i, TTL]) else now + r.hint[i, TTL]
        if r.hint[i, PIN_SECONDS] > 0.0 and p.depth[node] * r.block[i] < r.hint[i, PIN_TOKENS]:
            p.pinned[node] = max(p.pinned[node], now + r.hint[i, PIN_SECONDS])

    @lean_subroutine
    def finish(s, p, r, i, now, tiers):
        low = r.start[i]
        middle = low + r.prompt[i]
        high = r.stop[i]
        for j in range(middle, high):  # blocks that generation filled
            seize(s, p, r.node[j])
        ended(s, p, r, i, now)
        refresh(s, p, now)
        for j in range(high - 1, low - 1, -1):
            node = r.node[j]
            if p.touches[node] == 0:
                p.first[node] = now
            p.touches[node] += 1
            p.last[node] = now
            p.order[node] = p.tally[0]
            p.tally[0] += 1
            if r.next_use.size > 0:
                p.next_use[node] = max(p.next_use[node], r.next_use[j])  # requests need not end in order
            heed(p, r, i, j, now)
        for c in range(p.used.size - 1, -1, -1):
            if (c == 1 and tiers == 2) or (c == 0 and tiers == EXTERN):
                continue
            at_end = not on_arrival(p, c)
            # Policies of queues rank what is stored only.
            at_rank = at_end and heaps == 1
            j = low if at_end else middle
            tier = c  # the host's, from the first block on that the device refuses
            if c == 0 and tiers == 2 and j > low and not p.resident[r.node[j - 1], 0]:
                tier = 1
            if j > low and not p.resident[r.node[j - 1], tier]:
                continue
            while j < high:
                node = r.node[j]
                if p.resident[node, c] or p.resident[node, tier]:
                    j += 1
                    continue
                least = valued(s, p, tier, node, now) if at_rank else worth(s, p, r, j, now)
                if not keep(s, p, r, j, tier, least, tiers, now):
                    if c > 0 or tier == 1 or tiers != 2:
                        break
                    tier = 1
        for j in range(high - 1, low - 1, -1):
            release(s, p, r.node[j], now)

    @lean_subroutine
    def relist(s, p, c, now):
        for row in range(c * heaps, (c + 1) * heaps):
            count = p.held[row, 0]
            p.held[row, 0] = 0
            for k in range(count):  # pushing the first k nodes anew leaves the places from k on as they are
                node = p.slots[row, k]
                p.place[row, node] = -1
                if p.timer_slots.shape[1] > 0 and p.timer_place[c, node] >= 0:
                    heap_drop(timer_of(p, c), node)
                expose(s, p, c, node, now)

    @lean_kernel
    def lead(s, p, shadows, steer, now):
        """Let the serving cache follow the ranking whose shadow has hit most lately."""
        best = p.follows[0]
        most = -1.0
        for k in range(shadows.size):
            said = shadows[k] * (1.0 + steer[4] if k == p.follows[0] else 1.0)
            if said > most:
                best, most = k, said
        if best != p.follows[0]:
            for c in range(p.used.size - rankings):
                p.follows[c] = best
            for c in range(p.used.size - rankings):
                relist(s, p, c, now)

    @lean_subroutine
    def follow(s, p, shadows, steer, now, hits, i):
        """Count request ``i``'s hits in the shadows, and choose whom to follow when it is time."""
        fade = 0.5 ** ((now - steer[1]) / steer[0])
        steer[1] = now
        first = p.used.size - shadows.size
        common = hits[i, first]  # hits of all tell nothing of whom to follow
        for k in range(shadows.size):
            common = min(common, hits[i, first + k])
        for k in range(shadows.size):
            shadows[k] = shadows[k] * fade + hits[i, first + k] - common
        if now >= steer[2]:
            steer[2] = now + steer[3]
            lead(s, p, shadows, steer, now)

    @kernel
    def replay(s, p, r, clock, first, last, server, tiers, hits, steer, shadows):
        """Run requests ``first … last - 1``; requests still running stay in ``clock``."""
        ends = clock
        for i in range(first, last):
            now = r.time[i]
            while ends.held[0] > 0 and ends.priority[ends.slots[0]] <= now:
                done = heap_pop(ends)
                finish(s, p, r, done, ends.priority[done], tiers)
            arrive(s, p, r, i, now, tiers, hits)
            if rankings > 1:
                follow(s, p, shadows, steer, now, hits, i)
            whole = r.tokens[i, 0]
            known = whole * min(1.0, (hits[i, 0] + (hits[i, 1] if tiers == 2 else 0)) / max(1, r.prompt[i]))
            busy = (server[0] * (whole - known) + server[1] * (whole * whole - known * known)
                    + server[2] * r.tokens[i, 1])  # fmt: skip
            heap_push(ends, i, now + busy, i)

    @lean_kernel
    def live(what, s, p, r, i, now, tiers, hits, steer, shadows):
        """Do one thing: together they compile in a fraction of the time."""
        if what == BEGIN:
            arrive(s, p, r, i, now, tiers, hits)
            if rankings > 1:
                follow(s, p, shadows, steer, now, hits, i)
        elif what == END:
            finish(s, p, r, i, now, tiers)
        elif what == CANCEL:
            for j in range(r.start[i] + r.prompt[i] - 1, r.start[i] - 1, -1):
                release(s, p, r.node[j], now)
        elif what == PUT:
            if not p.resident[i, 0]:
                if p.touches[i] == 0:  # until its request ends it is the newest
                    p.last[i] = now
                    p.order[i] = p.tally[0]
                    p.tally[0] += 1
                store(s, p, 0, i, now)
        elif what == EVICT and i < 0:
            return float(evict(s, p, 0, now))
        elif what in (EVICT, NEXT):
            if i >= 0 and p.resident[i, 0]:
                lose(s, p, 0, i, now)
            return float(foremost(s, p, 0, now)) if what == NEXT else float(i)
        elif what == PIN:
            seize(s, p, i)
        elif what == UNPIN:
            if p.running[i] > 0:
                release(s, p, i, now)
        elif what == RELIST:
            relist(s, p, i, now)
        elif what == RANK:
            return valued(s, p, 0, i, now)
        elif what == SHRINK:
            while p.used[i] > p.capacity[i] and evict(s, p, i, now) >= 0:
                pass
        return 0.0

    @kernel
    def rerank(s, p, now):
        for c in range(p.used.size):
            relist(s, p, c, now)

    return Engine(live, rerank, replay)
