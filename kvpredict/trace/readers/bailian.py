"""Qwen-Bailian's LLM traces: JSON lines of requests with ``hash_ids``, one for each 16-token block of the prompt.

Besides what Mooncake's lines hold, each names its chat, the chat that it goes on from (-1 for none), the turn and the
type. Timestamps are seconds.

Wang et al., "KVCache Cache in the Wild", ATC 2025.
"""

from collections.abc import Iterator

from kvpredict.trace.readers._format import Chunk, Format, Head, Options
from kvpredict.trace.readers._requests import looks_like_requests, read_requests
from kvpredict.trace.readers._source import Source

__all__ = ["Bailian"]

KINDS = {
    "timestamp": float,
    "input_length": int,
    "output_length": int,
    "chat_id": int,
    "parent_chat_id": int,
    "turn": int,
    "type": str,
}


class Bailian(Format):
    """Chats of an LLM service, as KV blocks."""

    name = "bailian"
    description = "Qwen-Bailian LLM JSON lines (chat_id, parent_chat_id, timestamp in s, turn, type, hash_ids)"

    def sniff(self, head: Head) -> float:
        return 0.95 if {"chat_id", "parent_chat_id"} <= looks_like_requests(head) else 0.0

    def read(self, source: Source, options: Options) -> Iterator[Chunk]:
        yield from read_requests(source, KINDS, options.time_unit or "s")
