"""Scarab's traces: each key a big-endian 64-bit integer, nothing else."""

from collections.abc import Iterator

from kvpredict.trace.readers._binary_keys import is_keys, is_wide, read_keys
from kvpredict.trace.readers._format import Chunk, Format, Head, Options
from kvpredict.trace.readers._source import Source

__all__ = ["Scarab"]


class Scarab(Format):
    """Look-ups of product recommendations."""

    name = "scarab"
    description = "Scarab: binary keys, big-endian int64"

    def sniff(self, head: Head) -> float:
        if not is_keys(head, ">i8") or not is_wide(head):
            return 0.0
        return 0.6 if "scarab" in head.name else 0.5

    def read(self, source: Source, options: Options) -> Iterator[Chunk]:
        yield from read_keys(source, ">i8")
