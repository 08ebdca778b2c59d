"""cache2k's traces: each key a big-endian 32-bit integer, nothing else."""

from collections.abc import Iterator

from kvpredict.trace.readers._binary_keys import is_keys, is_wide, read_keys
from kvpredict.trace.readers._format import Chunk, Format, Head, Options
from kvpredict.trace.readers._source import Source

__all__ = ["Cache2k"]


class Cache2k(Format):
    """Object caches of web applications."""

    name = "cache2k"
    description = "cache2k: binary keys, big-endian int32"

    def sniff(self, head: Head) -> float:
        if not is_keys(head, ">i4") or is_wide(head):
            return 0.0
        return 0.6 if "cache2k" in head.name else 0.5

    def read(self, source: Source, options: Options) -> Iterator[Chunk]:
        yield from read_keys(source, ">i4")
