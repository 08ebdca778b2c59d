"""SGLang: an ``EvictionStrategy`` for its radix cache, and the plugin that installs it.

``python/sglang/srt/mem_cache/evict_policy.py``: the cache asks ``get_priority(node)`` of its leaves and evicts the
lowest. A node is a run of tokens; its worth is that of its last block, whose id follows from the tokens on the way from
the root. ``observe`` tells the policy of requests as they end. After an error the priority is SGLang's own LRU's.

Installed by the entry point ``sglang.srt.plugins``, unless ``$KVPREDICT_PREFIX_POLICY`` is not set, in ``RadixCache``
and, in versions that have it, ``UnifiedRadixCache``. The latter asks a strategy only where its tree is in Python, which
the plugin chooses unless ``$SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND`` says otherwise.
"""

import logging
import os
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from kvpredict.core.errors import MissingExtra
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

__all__ = ["TREE", "KvpredictStrategy", "register"]

TREE = "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND"
BLOCK = 64  # tokens of a block of the policy's
BLOCKS = 65536  # that its shadows hold, where SGLang does not say how many tokens it has room for
log = logging.getLogger("kvpredict.llm")


class KvpredictStrategy(_Base):
    """Priority by a kvpredict prefix policy.

    Parameters
    ----------
    policy : str or PrefixPolicy, optional
        Default: what ``$KVPREDICT_PREFIX_POLICY`` names.
    capacity : int, default 65536
        Blocks that the policy's shadows hold: the cache's tokens over ``block_size``, which is what the plugin gives.
    block_size : int, default 64
        Tokens a block of the policy's; SGLang's own pages may differ.
    """

    def __init__(
        self, policy: str | PrefixPolicy | None = None, capacity: int = BLOCKS, block_size: int = BLOCK
    ) -> None:
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
        self.safely(lambda: self._observe(_bytes(tokens), prompt_tokens, params, begun, _namespace(None)))

    def ended(self, request: Any) -> None:
        """Tell the policy of a request of SGLang's, if it has ended."""
        self.safely(self._ended, request)

    def _ended(self, request: Any) -> None:
        finished = getattr(request, "finished", None)
        if finished is not None and not finished():  # stored on the way, or put off
            return
        prompt = request.origin_input_ids
        params = getattr(getattr(request, "sampling_params", None), "custom_params", None)
        tokens = _bytes(prompt) + _bytes(request.output_ids)
        self._observe(tokens, len(prompt), params, None, _namespace(request))

    def _observe(
        self, tokens: bytes, prompt_tokens: int, params: Mapping[str, Any] | None, begun: float | None, namespace: int
    ) -> None:
        assert self.index is not None
        blocks = _names(namespace, tokens, 8 * self.block_size)
        hints, session = lenient_hints(params)
        self.index.used(
            blocks,
            min(len(blocks), prompt_tokens // self.block_size),
            (prompt_tokens, len(tokens) // 8 - prompt_tokens),
            session=session,
            hints=hints,
            block_size=self.block_size,
            times=(begun, None),
        )

    def _worth(self, node: Any) -> float | None:
        assert self.index is not None
        found = getattr(node, "kvpredict", None)
        if found is None or found[0] != len(node.key):  # new, or split since
            found = self._place(node)
        return self.index.rank(found[1]) if found[2] else None

    def _place(self, node: Any) -> tuple[int, int, bool, bytes]:
        """Return and remember the node's own tokens, its last block, whether it has one, and the tokens after that."""
        path: list[Any] = []
        above: tuple[int, int, bool, bytes]
        while node.parent is not None:  # the root has no tokens
            path.append(node)
            node = node.parent
            known = getattr(node, "kvpredict", None)
            if known is not None and known[0] == len(node.key):
                above = known
                break
        else:
            above = 0, _namespace(path[-1].key) if path else 0, False, b""
        size = 8 * self.block_size
        for step in reversed(path):
            _, last, whole, rest = above
            own = getattr(step.key, "token_ids", step.key)
            length = len(step.key)  # of pairs of tokens, where SGLang keys by those, there is one token more
            rest += _bytes(own if length == len(own) else own[:length])
            names = _names(last, rest, size)
            above = length, names[-1] if names else last, whole or bool(names), rest[len(names) * size :]
            step.kvpredict = above
        return above


def _bytes(tokens: Sequence[int]) -> bytes:
    if isinstance(tokens, array) and tokens.typecode == "q":
        return tokens.tobytes()
    return array("q", tokens).tobytes()


def _names(above: int, tokens: bytes, size: int) -> list[int]:
    """Return a number for each whole block of ``size`` bytes, which stands for all tokens up to its end.

    They hold within this process, which is all that is asked of them, and cost a fifth of ``block_hashes``.
    """
    names = []
    for low in range(0, len(tokens) - size + 1, size):
        above = hash((above, tokens[low : low + size]))
        names.append(above)
    return names


def _namespace(key: Any) -> int:
    """Return a number for what keeps equal tokens apart: adapter and salt, of a request or a node's key."""
    return hash((getattr(key, "extra_key", None), getattr(key, "cache_salt", None) or None))


def register() -> None:
    """Install the strategy into SGLang's radix caches."""
    if POLICY not in os.environ:
        return
    install_into("sglang", _install_all)


def _install_all() -> None:
    _install(engine_module("sglang.srt.mem_cache.radix_cache").RadixCache)
    try:
        unified = engine_module("sglang.srt.mem_cache.unified_radix_cache").UnifiedRadixCache
    except MissingExtra:  # an earlier version
        return
    os.environ.setdefault(TREE, "python")
    _install(unified)


def _install(Cache: Any) -> None:
    if getattr(Cache, "kvpredict", False):
        return
    name = "checkpoint" if hasattr(Cache, "checkpoint") else "cache_finished_req"  # 0.5.23, and before
    make, store = Cache.__init__, getattr(Cache, name)

    def made(self: Any, *positional: Any, **named: Any) -> None:
        make(self, *positional, **named)
        tree = getattr(self, "tree_core", self)
        if hasattr(tree, "eviction_strategy"):
            tree.eviction_strategy = self.kvpredict_strategy = KvpredictStrategy(capacity=_capacity(self))
        else:
            log.warning("SGLang's tree of nodes asks no strategy and keeps its own policy: set %s=python", TREE)

    def stored(self: Any, req: Any, *positional: Any, **named: Any) -> Any:
        result = store(self, req, *positional, **named)
        strategy = getattr(self, "kvpredict_strategy", None)
        if strategy is not None:
            strategy.ended(req)
        return result

    Cache.__init__, Cache.kvpredict = made, True
    setattr(Cache, name, stored)


def _capacity(cache: Any) -> int:
    """Return how many blocks SGLang has room for."""
    tokens = getattr(getattr(cache, "token_to_kv_pool_allocator", None), "size", None)
    return max(1, tokens // BLOCK) if isinstance(tokens, int) and tokens > 0 else BLOCKS
