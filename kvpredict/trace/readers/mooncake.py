"""Mooncake's LLM traces: JSON lines of requests with ``hash_ids``, one for each 512-token block of the prompt.

A block's id stands for its tokens and all before it. Timestamps are milliseconds.

Qin et al., "Mooncake: Trading More Storage for Less Computation", FAST 2025.
"""

from collections.abc import Iterator

from kvpredict.trace.readers._format import Chunk, Format, Head, Options
from kvpredict.trace.readers._requests import looks_like_requests, read_requests
from kvpredict.trace.readers._source import Source

__all__ = ["Mooncake"]

KINDS = {"timestamp": float, "input_length": int, "output_length": int}


class Mooncake(Format):
    """Prompts of an LLM service, as KV blocks."""

    name = "mooncake"
    description = "Mooncake LLM JSON lines (timestamp in ms, input_length, output_length, hash_ids)"

    def sniff(self, head: Head) -> float:
        return 0.9 if looks_like_requests(head) else 0.0

    def read(self, source: Source, options: Options) -> Iterator[Chunk]:
        yield from read_requests(source, KINDS, options.time_unit or "ms")
