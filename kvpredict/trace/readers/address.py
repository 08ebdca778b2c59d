"""Memory address traces: ``l 0x1fffff50 1``, a load or store, the address, and instructions since the last access.

Addresses are folded to the 64-byte lines that a processor's cache holds.
"""

from collections.abc import Iterator

from kvpredict.trace.readers._delimited import read_rows
from kvpredict.trace.readers._format import Chunk, Format, Head, Options, Text, numbers, texts
from kvpredict.trace.readers._source import Source

__all__ = ["Address"]

LINE = 64
NAMES = {b"l": b"load", b"s": b"store"}


class Address(Format):
    """Loads and stores."""

    name = "address"
    description = "memory addresses (l or s, hexadecimal address, instructions), folded to 64-byte lines"

    def sniff(self, head: Head) -> float:
        return 0.95 if head.share(rb"[ls] 0x[0-9a-fA-F]+ \d+ *") >= 0.8 else 0.0

    def read(self, source: Source, options: Options) -> Iterator[Chunk]:
        yield from read_rows(source, {"op": "text", "address": "int", "instructions": "int"}, " ", _convert)


def _convert(columns: Chunk) -> Chunk:
    op = texts(columns, "op", NAMES)
    return {
        "key": numbers(columns, "address") // LINE,
        "op": Text(op.codes, [NAMES[text] for text in op.texts]),
        "instructions": columns["instructions"],
    }
