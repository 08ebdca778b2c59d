"""The slow, obvious twin of the prefix simulator: dictionaries, and a scan over all blocks for every eviction."""

import math
from collections.abc import Callable
from typing import Any

from kvpredict.llm.prefix.result import Server
from kvpredict.llm.requests import RequestTrace

Rank = Callable[["NaiveServer", int, float], float]

RANKS: dict[str, Rank] = {
    "lru": lambda s, b, now: s.order[b],
    "lfu": lambda s, b, now: s.touches[b],
    "belady": lambda s, b, now: -min(s.next_use.get(b, 0.0), 1e10),
}


class NaiveServer:
    def __init__(self, trace: RequestTrace, policy: str, capacity: int, host: int, server: Server) -> None:
        self.trace, self.rank, self.server = trace, RANKS[policy], server
        self.bypass = policy == "belady"
        self.capacity, self.host = capacity, host
        self.tiers: list[set[int]] = [set(), set()]
        self.running: dict[int, int] = {}
        self.touches: dict[int, int] = {}
        self.order: dict[int, int] = {}
        self.next_use: dict[int, float] = {}
        self.uses = 0
        self.clock: list[tuple[float, int]] = []
        self.hits: list[tuple[int, int]] = []

    def free(self, tier: int) -> list[int]:
        held = self.tiers[tier]
        above = {int(self.trace.parent[b]) for b in held}
        return [b for b in held if b not in above and not self.running.get(b)]

    def evict(self, tier: int, now: float, least: float = math.inf) -> bool:
        free = self.free(tier)
        if not free:
            return False
        victim = min(free, key=lambda b: (self.rank(self, b, now), self.order.get(b, 0)))
        if least < math.inf and self.rank(self, victim, now) >= least:
            return False
        self.tiers[tier].remove(victim)
        if tier == 0 and self.host:
            while len(self.tiers[1]) >= self.host:
                if not self.evict(1, now):
                    return True
            self.tiers[1].add(victim)
        return True

    def keep(self, block: int, next_use: float, now: float, bypass: bool = True, tier: int = 0) -> bool:
        if block in self.tiers[tier]:
            return True
        while len(self.tiers[tier]) >= (self.capacity, self.host)[tier]:
            if not self.evict(tier, now, -min(next_use, 1e10) if self.bypass and bypass else math.inf):
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
                if not self.keep(ids[j], nexts[j], now, bypass=False):
                    break
                j += 1
        self.hits.append((device, j - device))
        while j < prompt and self.keep(ids[j], nexts[j], now):
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
        places = [0, 1] if self.host else [0]
        while prompt and places and ids[prompt - 1] not in self.tiers[places[0]]:
            places.pop(0)
        for b, n in zip(ids[prompt:], nexts[prompt:], strict=True):
            while places and not (b in self.tiers[0] or self.keep(b, n, now, tier=places[0])):
                places.pop(0)  # what one tier refuses goes to the next, and so does all that follows
        for b in ids:
            self.running[b] -= 1

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


def naive_hits(trace: RequestTrace, policy: str, capacity: int, host: int, server: Server) -> list[Any]:
    return NaiveServer(trace, policy, capacity, host, server).run()
