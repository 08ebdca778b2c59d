"""GDSF: keep what is used often and dear to recompute, with an inflation that lets old merit fade.

A block's merit is uses since it was stored times the cost of its prefill, which grows with depth because attention
does, plus the merit of the last block evicted. Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-
Frequency Caching Policy", HP Labs 1998; all blocks have one size.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel
from kvpredict.llm.prefix.policy import PrefixPolicy, require

__all__ = ["GDSF"]


class State(NamedTuple):
    uses: np.ndarray  # int32 [n], since stored
    merit: np.ndarray  # float64 [n]
    floor: np.ndarray  # float64 [1], merit of the last victim
    growth: np.ndarray  # float64 [1]


@dataclass(frozen=True)
class GDSF(PrefixPolicy):
    """Frequency times recompute cost.

    Parameters
    ----------
    growth : float, default 0.008
        By how much of the first block's prefill a block's costs more for each block before it. The default is an
        8-billion-parameter model's (32 layers of width 4096) with 512-token blocks; it is in proportion to block size.
    """

    name = "gdsf"

    growth: float = 0.008

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.growth >= 0, self, f"growth must be at least 0, got {self.growth}")

    def state(self, nodes: int, capacity: int, requests: int) -> State:
        return State(np.zeros(nodes, np.int32), np.zeros(nodes), np.zeros(1), np.array([self.growth]))

    @staticmethod
    @lean_kernel
    def rank(s, p, node, which, now):
        return s.merit[node]

    @staticmethod
    @lean_kernel
    def stored(s, p, node):
        s.uses[node] = 0

    @staticmethod
    @lean_kernel
    def finish(s, p, r, i, now):
        for j in range(r.start[i], r.stop[i]):
            node = r.node[j]
            s.uses[node] += 1
            s.merit[node] = s.floor[0] + s.uses[node] * (1.0 + s.growth[0] * p.depth[node])

    @staticmethod
    @lean_kernel
    def evicted(s, p, node, now):
        s.floor[0] = max(s.floor[0], s.merit[node])
