"""Tail-optimised LRU: evict first what a slow request would not miss; otherwise LRU.

A session's next prompt is expected to be its present one and some more. If its prefix is cached but for a tail of no
more than ``threshold`` tokens, its time to first token stays under the target; so blocks beyond that point go first.

"Tail-Optimized Caching for LLM Inference", arXiv:2510.15152, section 4 (T-LRU). The tokens that a turn adds are
estimated by a running mean over all requests that went on from a known prefix.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel
from kvpredict.llm.prefix.policy import PrefixPolicy, require

__all__ = ["TailLRU"]


class State(NamedTuple):
    spare: np.ndarray  # uint8 [n], whether the block is beyond what the target needs
    added: np.ndarray  # float64 [1], tokens that a turn adds
    threshold: np.ndarray  # float64 [1]


@dataclass(frozen=True)
class TailLRU(PrefixPolicy):
    """LRU that trims prefixes to what a latency target needs.

    Parameters
    ----------
    threshold : int, default 4096
        Tokens whose prefill still meets the target.
    """

    name = "taillru"

    threshold: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.threshold >= 0, self, f"threshold must be at least 0 tokens, got {self.threshold}")

    def state(self, nodes: int, capacity: int, requests: int) -> State:
        return State(np.zeros(nodes, np.uint8), np.zeros(1), np.array([float(self.threshold)]))

    @staticmethod
    @lean_kernel
    def rank(s, p, node, which, now):
        return float(p.order[node]) - (1e11 if s.spare[node] else 0.0)

    @staticmethod
    @lean_kernel
    def finish(s, p, r, i, now):
        low = r.start[i]
        high = r.stop[i]
        known = 0
        while low + known < high and p.touches[r.node[low + known]] > 0:
            known += 1
        size = r.tokens[i, 0] / max(1, r.prompt[i])
        if known > 1:
            s.added[0] += 0.02 * (r.tokens[i, 0] - known * size - s.added[0])
        need = r.tokens[i, 0] + r.tokens[i, 1] + s.added[0] - s.threshold[0]
        for j in range(low, high):
            # A block that several requests share is spare only if the last of them can do without.
            s.spare[r.node[j]] = 1 if (j - low) * size >= need else 0
