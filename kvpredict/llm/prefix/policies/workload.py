"""Workload-aware eviction: the block least likely to be reused soon goes first, by what its kind of request has shown.

Requests are sorted by kind (hint ``kind``) and turn; of each sort the policy learns how many blocks are reused at all
and how long that takes, taken as exponential. A block's rank is the probability of a reuse within the time that blocks
stay in the cache, given that it has waited so long already; of equals the deepest goes first.

Wang et al., "KVCache Cache in the Wild: Characterizing and Optimizing KVCache Cache at a Large Cloud Provider", ATC
2025, section 5. Departures: statistics fade with a weight instead of a window; turns count up to three.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel
from kvpredict.llm.hints import HINTS
from kvpredict.llm.prefix.policy import PrefixPolicy, Traits

__all__ = ["Workload"]

KIND = HINTS.index("kind")
KINDS, TURNS = 16, 4
USED, REUSED, GAPS = 0, 1, 2


class State(NamedTuple):
    sort: np.ndarray  # int16 [n], of the request that used the node last
    turn: np.ndarray  # int16 [n], of it
    seen: np.ndarray  # float64 [sorts, 3]: blocks, those reused, seconds until then
    stay: np.ndarray  # float64 [1], age of victims, a running mean


@dataclass(frozen=True)
class Workload(PrefixPolicy):
    """Probability of reuse by kind of request and turn."""

    name = "workload"
    traits = Traits(timed=True)

    def state(self, nodes: int, capacity: int, requests: int) -> State:
        seen = np.zeros((KINDS * TURNS, 3))
        seen[:] = (2.0, 1.0, 100.0)  # until something is known, all sorts are alike
        return State(np.zeros(nodes, np.int16), np.zeros(nodes, np.int16), seen, np.array([100.0]))

    @staticmethod
    @lean_kernel
    def rank(s, p, node, which, now):
        seen = s.seen[s.sort[node]]
        share = min(0.999, seen[REUSED] / seen[USED])
        rate = seen[REUSED] / max(seen[GAPS], 1e-3)
        left = share * np.exp(-rate * max(0.0, now - p.last[node]))
        return left * (1.0 - np.exp(-rate * s.stay[0])) / (left + 1.0 - share)

    @staticmethod
    @lean_kernel
    def until(s, p, node, which, now):
        return now + max(5.0, 0.2 * (now - p.last[node]))

    @staticmethod
    @lean_kernel
    def arrive(s, p, r, i, now):
        for j in range(r.start[i], r.start[i] + r.prompt[i]):
            node = r.node[j]
            if p.touches[node] > 0 and p.running[node] == 0:
                seen = s.seen[s.sort[node]]
                seen[REUSED] += 1.0
                seen[GAPS] += max(0.0, now - p.last[node])

    @staticmethod
    @lean_kernel
    def finish(s, p, r, i, now):
        turn = 0
        for j in range(r.start[i], r.stop[i]):
            if p.touches[r.node[j]] == 0:
                break
            turn = s.turn[r.node[j]] + 1 if j > r.start[i] else 0  # a prompt's first block is shared by many
        turn = min(turn, TURNS - 1)
        kind = 0 if np.isnan(r.hint[i, KIND]) else int(abs(r.hint[i, KIND])) % KINDS
        sort = kind * TURNS + turn
        for j in range(r.start[i], r.stop[i]):
            s.sort[r.node[j]] = sort
            s.turn[r.node[j]] = turn
            seen = s.seen[sort]
            if seen[USED] > 20000.0:
                for k in range(3):
                    seen[k] *= 0.5
            seen[USED] += 1.0

    @staticmethod
    @lean_kernel
    def evicted(s, p, node, now):
        s.stay[0] += 0.01 * (max(1.0, now - p.last[node]) - s.stay[0])
