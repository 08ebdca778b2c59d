"""SGLang: an ``EvictionStrategy`` for its radix cache, and the plugin that installs it.

``python/sglang/srt/mem_cache/evict_policy.py``: the cache asks ``get_priority(node)`` of its leaves and evicts the
lowest. A node is a run of tokens; its worth is that of its last block, whose id follows from the tokens on the way from
the root. ``observe`` tells the policy of requests as they end. After an error the priority is SGLang's own LRU's.

Installed by the entry point ``sglang.srt.plugins``, unless ``$KVPREDICT_PREFIX_POLICY`` is not set.
"""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from kvpredict.llm.blocks import block_hashes
from kvpredict.llm.engines.guard import (
    POLICY,
    Safely,
    engine_module,
    install_into,
    lenient_hints,
    policy_from_environment,
)
from kvpredict.llm.prefix.index import PrefixIndex
from kvpredict.llm.prefix.policy import PrefixPolicy

try:
    from sglang.srt.mem_cache.evict_policy import EvictionStrategy as _Base
except ImportError:
    _Base = object

__all__ = ["KvpredictStrategy", "register"]


class KvpredictStrategy(_Base):
    """Priority by a kvpredict prefix policy.

    Parameters
    ----------
    policy : str or PrefixPolicy, optional
        Default: what ``$KVPREDICT_PREFIX_POLICY`` names.
    capacity : int, default 65536
        Blocks that the policy's shadows hold; about the cache's tokens over ``block_size``.
    block_size : int, default 64
        Tokens a block of the policy's; SGLang's own pages may differ.
    """

    def __init__(self, policy: str | PrefixPolicy | None = None, capacity: int = 65536, block_size: int = 64) -> None:
        self.block_size = block_size
        self.safely = Safely("SGLang radix cache")
        self.index: PrefixIndex | None = self.safely(lambda: PrefixIndex(capacity, policy or policy_from_environment()))

    def get_priority(self, node: Any, now_time: float | None = None) -> tuple[int, float]:
        """Return the rank of a node: known blocks by worth, above unknown ones by their last use."""
        worth = self.safely(self._worth, node)
        return (0, float(node.last_access_time)) if worth is None else (1, worth)

    def observe(
        self,
        tokens: Sequence[int],
        prompt_tokens: int,
        params: Mapping[str, Any] | None = None,
        begun: float | None = None,
    ) -> None:
        """Tell the policy of a request that has ended, prompt and answer in one sequence."""
        self.safely(self._observe, tokens, prompt_tokens, params, begun)

    def _observe(
        self, tokens: Sequence[int], prompt_tokens: int, params: Mapping[str, Any] | None, begun: float | None
    ) -> None:
        assert self.index is not None
        blocks = block_hashes(tokens, self.block_size).tolist()
        hints, session = lenient_hints(params)
        self.index.used(
            blocks,
            min(len(blocks), prompt_tokens // self.block_size),
            (prompt_tokens, len(tokens) - prompt_tokens),
            session=session,
            hints=hints,
            times=(begun, time.monotonic()),
        )

    def _worth(self, node: Any) -> float | None:
        assert self.index is not None
        block = getattr(node, "kvpredict_block", None)
        if block is None:
            pieces = []
            above = node
            while above is not None and getattr(above, "key", None) is not None:
                pieces.append(list(getattr(above.key, "token_ids", above.key)))
                above = above.parent
            tokens = [t for piece in reversed(pieces) for t in piece]
            blocks = block_hashes(tokens, self.block_size)
            if not len(blocks):
                return None
            block = node.kvpredict_block = (len(tokens), int(blocks[-1]))
        return self.index.rank(block[1])


def register() -> None:
    """Install the strategy into SGLang's radix cache."""
    if POLICY not in os.environ:
        return
    install_into("sglang", lambda: _install(engine_module("sglang.srt.mem_cache.radix_cache").RadixCache))


def _install(Cache: Any) -> None:
    if getattr(Cache, "kvpredict", False):
        return
    make, finished = Cache.__init__, Cache.cache_finished_req

    def made(self: Any, *positional: Any, **named: Any) -> None:
        make(self, *positional, **named)
        self.eviction_strategy = KvpredictStrategy()

    def noted(self: Any, req: Any, *positional: Any, **named: Any) -> Any:
        result = finished(self, req, *positional, **named)
        tokens = [*req.origin_input_ids, *req.output_ids]
        params = getattr(getattr(req, "sampling_params", None), "custom_params", None)
        self.eviction_strategy.observe(tokens, len(req.origin_input_ids), params)
        return result

    Cache.__init__, Cache.cache_finished_req, Cache.kvpredict = made, noted, True
