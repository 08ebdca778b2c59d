"""vLLM's own prefix cache: a plugin that evicts its free blocks by a kvpredict prefix policy.

``vllm/v1/core/block_pool.py`` keeps free blocks in a ``FreeKVCacheBlockQueue`` and takes the oldest. The plugin puts in
a subclass whose ``popleft_n`` asks the policy, and wraps ``BlockPool.cache_full_blocks`` and ``KVCacheManager.free`` to
learn which blocks follow which and when requests end. Blocks without content go first, in the queue's order. Installed
by the entry point ``vllm.general_plugins``; it does nothing unless ``$KVPREDICT_PREFIX_POLICY`` is set.

``$KVPREDICT_REQUEST_LOG`` names a file to which each request is written as it ends, which ``read_requests`` reads and
``pipeline=prefix_train`` learns from.
"""

import logging
import os
import time
from typing import Any

from llvmlite.binding import ffi  # type: ignore[import-untyped]

from kvpredict.llm.engines.guard import (
    POLICY,
    Safely,
    engine_module,
    install_into,
    key_number,
    lenient_hints,
    policy_from_environment,
)
from kvpredict.llm.prefix.index import PrefixIndex
from kvpredict.llm.request_files import RequestLog

__all__ = ["LOG", "Books", "register"]

# vLLM for CPU looks through the attributes of all loaded modules for an instance dictionary; llvmlite's library object,
# which comes with Numba, answers any name with a C function, and vLLM 0.32 fails on that. So it gets one.
ffi.lib._fntab.setdefault("__dict__", {})

LOG = "KVPREDICT_REQUEST_LOG"
log = logging.getLogger("kvpredict.llm")


class Books:
    """What the plugin knows of one block pool: vLLM's blocks by hash, and the index over them."""

    def __init__(self, blocks: int) -> None:
        self.safely = Safely("vLLM prefix cache")
        self.following = Safely(
            "vLLM prefix cache", "requests cannot be followed: the policy learns of none, none is logged"
        )
        self.writing = Safely("vLLM prefix cache", f"${LOG} cannot be written; no request is logged from now on")
        self.clock = time.monotonic
        self.by_hash: dict[int, Any] = {}
        self.number: dict[int, int] = {}  # block id to hash
        # Arrival, and hashes in order by how many of vLLM's hashes make a block of theirs.
        self.requests: dict[str, tuple[float, dict[int, list[int]]]] = {}
        self.index: PrefixIndex | None = self.safely(
            lambda: PrefixIndex(blocks, policy_from_environment(), requests=4096)
        )
        self.log: RequestLog | None = None

    def cached(self, block: Any, number: int, parent: int | None) -> None:
        """Note that a block's content is complete and in use."""
        assert self.index is not None
        known = self.number.get(block.block_id)
        if known is not None and known != number:
            self.forget(block)
        if number in self.by_hash:  # another block has the same content
            return
        self.by_hash[number], self.number[block.block_id] = block, number
        self.index.put(number, parent)
        self.index.pin(number)

    def freed(self, *blocks: Any) -> None:
        """Note that no request uses these blocks any more."""
        assert self.index is not None
        known = self.number
        self.index.unpin(*(known[block.block_id] for block in blocks if block.block_id in known))

    def taken(self, block: Any) -> None:
        """Note that a request uses a free block again."""
        assert self.index is not None
        number = self.number.get(block.block_id)
        if number is not None:
            self.index.pin(number)

    def forget(self, block: Any) -> None:
        """Note that a block has lost its content."""
        assert self.index is not None
        number = self.number.pop(block.block_id, None)
        if number is not None:
            self.by_hash.pop(number, None)
            self.index.drop(number)

    def victim(self) -> Any:
        """Return the block that the policy would lose first; None where it knows none."""
        assert self.index is not None
        number = self.index.pop()
        if number is None:
            return None
        block = self.by_hash.pop(number)
        del self.number[block.block_id]
        return block

    def full(self, request: Any, blocks: Any, first: int, count: int | None, ratio: int) -> None:
        """Note blocks ``first … count - 1`` of a request in progress, which are complete from now on."""
        _, chains = self.requests.setdefault(request.request_id, (self.clock(), {}))
        chain = chains.setdefault(ratio, [])
        hashes = request.block_hashes
        count = len(hashes) // ratio if count is None else min(count, len(hashes) // ratio)
        chain += [key_number(hashes[ratio * k + ratio - 1]) for k in range(len(chain), count)]
        self.safely(self._full, blocks[first:count], chain, first)

    def _full(self, blocks: Any, chain: list[int], first: int) -> None:
        for k, block in enumerate(blocks, first):
            if block.block_hash is not None and block.block_id not in self.number:
                self.cached(block, chain[k], chain[k - 1] if k else None)

    def ended(self, request: Any, block_size: int) -> None:
        """Note a request's end: the index learns of its use, and the log gets a line."""
        begun, chains = self.requests.pop(request.request_id, (self.clock(), {}))
        if not chains:
            return
        chain = chains[min(chains)]
        inputs = int(getattr(request, "num_prompt_tokens", 0) or len(chain) * block_size)
        outputs = int(getattr(request, "num_output_tokens", 0))
        prompt = min(len(chain), inputs // block_size)
        hints, session = _hints(request)
        if os.environ.get(LOG):
            self.writing(self._write, block_size, begun, chain, prompt_blocks=prompt, input_tokens=inputs,
                         output_tokens=outputs, session=session, hints=hints)  # fmt: skip
        self.safely(self._used, chain, prompt, (inputs, outputs), session=session, hints=hints, block_size=block_size,
                    times=(begun, None))  # fmt: skip

    def _used(self, *request: Any, **about: Any) -> None:
        assert self.index is not None
        self.index.used(*request, **about)

    def _write(self, block_size: int, *line: Any, **about: Any) -> None:
        if self.log is None:
            self.log = RequestLog(os.environ[LOG], block_size)
        self.log.write(*line, **about)


def _hints(request: Any) -> tuple[dict[str, float], int | None]:
    extra = getattr(getattr(request, "sampling_params", None), "extra_args", None) or {}
    return lenient_hints(extra.get("kv_transfer_params") or getattr(request, "kv_transfer_params", None))


def register() -> None:
    """Install the plugin; called by vLLM in each of its processes."""
    if POLICY not in os.environ:
        if LOG in os.environ:
            log.warning(
                "nothing is written to $%s without $%s: set it to lru to record under vLLM's order", LOG, POLICY
            )
        return
    install_into(
        "vllm",
        lambda: _install(engine_module("vllm.v1.core.block_pool"), engine_module("vllm.v1.core.kv_cache_manager")),
    )


def _install(block_pool: Any, manager: Any) -> None:
    """Put subclass and wrappers into vLLM's modules, once."""
    Queue: Any = block_pool.FreeKVCacheBlockQueue
    if getattr(Queue, "kvpredict", False):
        return
    Pool = block_pool.BlockPool

    class LearnedQueue(Queue):
        kvpredict = True

        def __init__(self, blocks: Any) -> None:
            super().__init__(blocks)
            self.books = Books(max(1, len(blocks)))

        def popleft_n(self, n: int) -> list[Any]:
            if not self.books.safely.works:
                return super().popleft_n(n)
            return [self.popleft() for _ in range(n)]

        def popleft(self) -> Any:
            head = self.fake_free_list_head.next_free_block
            books = self.books
            if books.safely.works and head is not None and head.block_id in books.number:
                chosen = books.safely(books.victim)
                if chosen is not None and chosen.ref_cnt == 0 and chosen.prev_free_block is not None:
                    super().remove(chosen)
                    return chosen
            block = super().popleft()
            books.safely(books.forget, block)
            return block

        def append(self, block: Any) -> None:
            super().append(block)
            self.books.safely(self.books.freed, block)

        def append_n(self, blocks: list[Any]) -> None:
            super().append_n(blocks)
            self.books.safely(self.books.freed, *blocks)

        def remove(self, block: Any) -> None:
            super().remove(block)
            self.books.safely(self.books.taken, block)

    cache_full_blocks, free = Pool.cache_full_blocks, manager.KVCacheManager.free

    def noted_blocks(self: Any, request: Any, blocks: Any, *positional: Any, **named: Any) -> Any:
        result = cache_full_blocks(self, request, blocks, *positional, **named)
        books = getattr(self.free_block_queue, "books", None)
        if books is not None:
            books.following(_note_full, self, books, request, blocks, **named)
        return result

    def noted_free(self: Any, request: Any, *positional: Any, **named: Any) -> Any:
        result = free(self, request, *positional, **named)
        if not request.is_finished():  # preempted: it will come back
            return result
        books = getattr(self.block_pool.free_block_queue, "books", None)
        if books is not None:
            books.following(_note_end, self, books, request)
        return result

    block_pool.FreeKVCacheBlockQueue = LearnedQueue
    Pool.cache_full_blocks = noted_blocks
    manager.KVCacheManager.free = noted_free


def _note_full(pool: Any, books: Books, request: Any, blocks: Any, *_: Any, **named: Any) -> None:
    ratio = max(1, named.get("block_size", pool.hash_block_size) // pool.hash_block_size)
    books.full(request, blocks, named.get("num_cached_blocks", 0), named.get("num_full_blocks"), ratio)


def _note_end(manager: Any, books: Books, request: Any) -> None:
    size = next((g.kv_cache_spec.block_size for g in manager.kv_cache_config.kv_cache_groups), 16)
    books.ended(request, size)
