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
from collections.abc import Iterable
from functools import partial
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
        # A block's number is Python's hash of vLLM's, which holds within this process; the log's holds everywhere.
        self.by_number: dict[int, Any] = {}
        self.number: dict[int, int] = {}  # by block id
        self.passed: set[int] = set()  # numbers of blocks that were in use when their turn came, and are pinned since
        # Arrival, and vLLM's hashes in order by how many of them make a block.
        self.requests: dict[str, tuple[float, dict[int, list[Any]]]] = {}
        self.index: PrefixIndex | None = self.safely(
            lambda: PrefixIndex(blocks, policy_from_environment(), requests=4096)
        )
        self.log: RequestLog | None = None

    def freed(self, blocks: Iterable[Any]) -> None:
        """Note that no request uses these blocks any more."""
        assert self.index is not None
        if self.passed:
            back = self.passed.intersection(self.number.get(block.block_id) for block in blocks)
            self.passed -= back
            self.index.unpin(*back)

    def forget(self, block: Any) -> None:
        """Note that a block has lost its content."""
        assert self.index is not None
        number = self.number.pop(block.block_id, None)
        if number is not None:
            del self.by_number[number]
            if number in self.passed:
                self.passed.remove(number)
                self.index.unpin(number)
            self.index.drop(number)

    def victim(self, now: float) -> Any:
        """Return the free block that the policy would lose first; None where it knows none."""
        assert self.index is not None
        for number in self.index.pop_some(1, self._free, now):
            block = self.by_number.pop(number)
            del self.number[block.block_id]
            return block
        return None

    def _free(self, number: int) -> bool:
        block = self.by_number[number]
        if block.ref_cnt == 0 and block.prev_free_block is not None:
            return True
        # Few of the blocks in use ever stand in the way: to pin these alone costs less than to pin all on each use.
        assert self.index is not None
        self.index.pin(number)
        self.passed.add(number)
        return False

    def full(self, request: Any, blocks: Any, first: int, count: int | None, ratio: int) -> None:
        """Note blocks ``first … count - 1`` of a request in progress, which are complete from now on."""
        _, chains = self.requests.setdefault(request.request_id, (self.clock(), {}))
        chain = chains.setdefault(ratio, [])
        hashes = request.block_hashes
        count = len(hashes) // ratio if count is None else min(count, len(hashes) // ratio)
        chain += hashes[ratio * len(chain) + ratio - 1 : ratio * count : ratio]
        self.safely(self.stored, blocks[first:count], chain[first:count], chain[first - 1] if first else None)

    def stored(self, blocks: Iterable[Any], hashes: Iterable[Any], before: Any) -> int:
        """Note that these blocks' content is complete, the first after that with the hash ``before``.

        Return how many are new: another block may have the same content.
        """
        assert self.index is not None
        known, now, above = len(self.number), self.index.clock(), None if before is None else hash(before)
        for block, block_hash in zip(blocks, hashes, strict=False):
            number = hash(block_hash)
            fresh = block.block_hash is not None and block.block_id not in self.number
            if fresh and number not in self.by_number:
                self.by_number[number], self.number[block.block_id] = block, number
                self.index.put(number, above, now)
            above = number
        return len(self.number) - known

    def ended(self, request: Any, hash_size: int) -> None:
        """Note a request's end: the index learns of its use, and the log gets a line.

        ``hash_size`` is how many tokens one of vLLM's hashes stands for.
        """
        begun, chains = self.requests.pop(request.request_id, (self.clock(), {}))
        if not chains:
            return
        chain, block_size = chains[min(chains)], hash_size * min(chains)
        inputs = int(getattr(request, "num_prompt_tokens", 0) or len(chain) * block_size)
        if len(chain) < inputs // block_size:  # aborted in its prefill: what was computed counts
            inputs = len(chain) * block_size
        outputs = int(getattr(request, "num_output_tokens", 0))
        prompt = min(len(chain), inputs // block_size)
        hints, session = _hints(request)
        if os.environ.get(LOG):
            write = partial(self._write, prompt_blocks=prompt, input_tokens=inputs, output_tokens=outputs,
                            session=session, hints=hints)  # fmt: skip
            self.writing(write, block_size, begun, chain)
        numbers = [hash(block_hash) for block_hash in chain]
        used = partial(self._used, session=session, hints=hints, block_size=block_size, times=(begun, None))
        self.safely(used, numbers, prompt, (inputs, outputs))

    def _used(self, *request: Any, **about: Any) -> None:
        assert self.index is not None
        self.index.used(*request, **about)

    def _write(self, block_size: int, begun: float, chain: list[Any], **about: Any) -> None:
        if self.log is None:
            self.log = RequestLog(os.environ[LOG], block_size, self.clock)
        self.log.write(begun, [key_number(block_hash) for block_hash in chain], **about)


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
            blocks: list[Any] = []
            self.books.safely(self._choose, blocks, n)
            while len(blocks) < n:
                block = super().popleft()
                self.books.safely(self.books.forget, block)
                blocks.append(block)
            return blocks

        def _choose(self, blocks: list[Any], n: int) -> None:
            """Add free blocks up to ``n``, first to go first; fewer where the policy knows no more."""
            books, head = self.books, self.fake_free_list_head
            assert books.index is not None
            now = books.index.clock()
            while len(blocks) < n:
                if head.next_free_block.block_id not in books.number:
                    blocks.append(super().popleft())
                    continue
                chosen = books.victim(now)
                if chosen is None:
                    return
                super().remove(chosen)
                blocks.append(chosen)

        def popleft(self) -> Any:
            return self.popleft_n(1)[0]

        def append(self, block: Any) -> None:
            super().append(block)
            self.books.safely(self.books.freed, [block])

        def append_n(self, blocks: list[Any]) -> None:
            super().append_n(blocks)
            self.books.safely(self.books.freed, blocks)

    cache_full_blocks, free = Pool.cache_full_blocks, manager.KVCacheManager.free

    def noted_blocks(self: Any, request: Any, blocks: Any, *positional: Any, **named: Any) -> Any:
        result = cache_full_blocks(self, request, blocks, *positional, **named)
        books = getattr(self.free_block_queue, "books", None)
        if books is not None:
            books.following(partial(_note_full, **named), self, books, request, blocks)
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
    books.ended(request, manager.block_pool.hash_block_size)
