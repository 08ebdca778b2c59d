"""LRU as vLLM has it: freed blocks queue up in the order of their requests' ends, a request's last block first.

vLLM, ``vllm/v1/core/kv_cache_utils.py``, ``FreeKVCacheBlockQueue``.
"""

from dataclasses import dataclass

from kvpredict.core.jit import lean_kernel
from kvpredict.llm.prefix.policy import PrefixPolicy

__all__ = ["LRU"]


@dataclass(frozen=True)
class LRU(PrefixPolicy):
    """Least recently used, tails first."""

    name = "lru"

    @staticmethod
    @lean_kernel
    def rank(s, p, node, which, now):
        return float(p.order[node])
