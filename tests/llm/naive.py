"""The slow, obvious twin of the prefix simulator: dictionaries, and a scan over all blocks for every eviction."""

import math
from collections.abc import Callable
from typing import Any

from kvpredict.llm.prefix.result import Server
from kvpredict.llm.requests import RequestTrace

Rank = Callable[["NaiveServer", int, float], float]

RANKS: dict[str, Rank] = {
    "lru": lambda s, b, now: s.order.get(b, 0),
    "lfu": lambda s, b, now: s.touches.get(b, 0),
    "belady": lambda s, b, now: -min(s.next_use.get(b, 0.0), 1e10),
}
ALWAYS = (math.inf, 0.0)  # worth more than all that is held


class NaiveServer:
    def __init__(self, trace: RequestTrace, policy: str, capacity: int, host: int, server: Server, late: bool) -> None:
        self.trace, self.rank, self.server, self.late = trace, RANKS[policy], server, late
        self.bypass = policy == "belady"
        self.capacity, self.host = capacity, host
        self.tiers: list[set[int]] = [set(), set()]
        self.running: dict[int, int] = {}
        self.touches: dict[int, int] = {}
        self.order: dict[int, int] = {}
        self.next_use: dict[int, float] = {}
        self.priority: dict[int, float] = {}
        self.expires: dict[int, float] = {}
        self.pinned: dict[int, float] = {}
        self.uses = 0
        self.clock: list[tuple[float, int]] = []
        self.hits: list[tuple[int, int]] = []

    def worth(self, block: int, now: float) -> tuple[float, float]:
        """Return what hints make of a block now, and after that its rank."""
        if now < self.pinned.get(block, -math.inf):
            standing = 1000.0
        elif now >= self.expires.get(block, math.inf):
            standing = -1000.0
        else:
            standing = self.priority.get(block, 0.0)
        return standing, self.rank(self, block, now)

    def offered(self, block: int, next_use: float, now: float, at_rank: bool) -> tuple[float, float]:
        """Return what a block about to be stored is worth."""
        if at_rank:
            return self.worth(block, now)
        return (0.0, -min(next_use, 1e10)) if self.bypass else ALWAYS

    def free(self, tier: int) -> list[int]:
        held = self.tiers[tier]
        above = {int(self.trace.parent[b]) for b in held}
        return [b for b in held if b not in above and not self.running.get(b)]

    def evict(self, tier: int, now: float, least: tuple[float, float] = ALWAYS) -> bool:
        free = self.free(tier)
        if not free:
            return False
        victim = min(free, key=lambda b: (self.worth(b, now), self.order.get(b, 0)))
        if self.worth(victim, now) >= least:
            return False
        self.tiers[tier].remove(victim)
        if tier == 0 and self.host:
            while len(self.tiers[1]) >= self.host:
                if not self.evict(1, now):
                    return True
            self.tiers[1].add(victim)
        return True

    def keep(self, block: int, least: tuple[float, float], now: float, tier: int = 0) -> bool:
        if block in self.tiers[tier]:
            return True
        while len(self.tiers[tier]) >= (self.capacity, self.host)[tier]:
            if not self.evict(tier, now, least):
                return False
        self.tiers[1].discard(block)
        self.tiers[tier].add(block)
        return True

    def blocks(self, i: int) -> tuple[list[int], list[float], int]:
        low, high = self.trace.starts[i], self.trace.starts[i + 1]
        return self.trace.ids[low:high].tolist(), self.trace.next_use[low:high].tolist(), int(self.trace.prompts[i])

    def arrive(self, i: int, now: float) -> None:
        ids, nexts, prompt = self.blocks(i)
        for b in ids[:prompt]:
            self.running[b] = self.running.get(b, 0) + 1
        j = 0
        while j < prompt and ids[j] in self.tiers[0]:
            j += 1
        device = j
        if self.host:
            while j < prompt and (ids[j] in self.tiers[0] or ids[j] in self.tiers[1]):
                if not self.keep(ids[j], ALWAYS, now):
                    break
                j += 1
        self.hits.append((device, j - device))
        while not self.late and j < prompt and self.keep(ids[j], self.offered(ids[j], nexts[j], now, False), now):
            j += 1

    def finish(self, i: int, now: float) -> None:
        ids, nexts, prompt = self.blocks(i)
        for b in ids[prompt:]:
            self.running[b] = self.running.get(b, 0) + 1
        for b, n in zip(reversed(ids), reversed(nexts), strict=True):
            self.touches[b] = self.touches.get(b, 0) + 1
            self.order[b] = self.uses
            self.uses += 1
            self.next_use[b] = max(self.next_use.get(b, 0.0), n)
        self.heed(i, ids, now)
        places = [0, 1] if self.host else [0]
        first = 0 if self.late else prompt
        while first and places and ids[first - 1] not in self.tiers[places[0]]:
            places.pop(0)
        for b, n in zip(ids[first:], nexts[first:], strict=True):
            while places and b not in self.tiers[0]:
                if self.keep(b, self.offered(b, n, now, self.late), now, places[0]):
                    break
                places.pop(0)  # what one tier refuses goes to the next, and so does all that follows
        for b in ids:
            self.running[b] -= 1

    def heed(self, i: int, ids: list[int], now: float) -> None:
        """Note what the request's hints say of its blocks."""
        said = {name: float(column[i]) for name, column in self.trace.hints.items() if not math.isnan(column[i])}
        for depth, b in enumerate(ids):
            self.priority[b] = said.get("priority", 0.0)
            self.expires[b] = now + said.get("ttl", math.inf)
            if "pin_seconds" in said and depth * self.trace.block_size < said.get("pin_tokens", 0.0):
                self.pinned[b] = max(self.pinned.get(b, -math.inf), now + said["pin_seconds"])

    def run(self) -> list[tuple[int, int]]:
        a, b, c = self.server.coefficients()
        for i in range(len(self.trace)):
            now = float(self.trace.times[i])
            while self.clock and min(self.clock)[0] <= now:
                end, done = min(self.clock)
                self.clock.remove((end, done))
                self.finish(done, end)
            self.arrive(i, now)
            whole = float(self.trace.input_tokens[i])
            known = whole * min(1.0, sum(self.hits[-1]) / max(1, int(self.trace.prompts[i])))
            busy = a * (whole - known) + b * (whole**2 - known**2) + c * float(self.trace.output_tokens[i])
            self.clock.append((now + busy, i))
        return self.hits


def naive_hits(
    trace: RequestTrace, policy: str, capacity: int, host: int, server: Server, store: str = "arrival"
) -> list[Any]:
    return NaiveServer(trace, policy, capacity, host, server, store == "end").run()
