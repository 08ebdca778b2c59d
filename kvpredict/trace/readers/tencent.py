"""Tencent's cloud block storage: ``Timestamp,Offset,Size,IOType,VolumeID`` with commas, or three columns with tabs.

The published traces have five columns: Unix seconds, offset and size in 512-byte sectors, 0 for a read and 1 for a
write, and the volume; the key joins volume and offset. Samples of a single volume are also passed around as time,
block and size in bytes, separated by tabs.

Zhang et al., "OSCA: An Online-Model Based Cache Allocation Scheme in Cloud Block Storage Systems", ATC 2020.
"""

from collections.abc import Iterator

from kvpredict.trace.readers._delimited import read_rows
from kvpredict.trace.readers._format import Chunk, Format, Head, Options, Text, numbers, seconds
from kvpredict.trace.readers._source import Source

__all__ = ["Tencent"]

OFFSET_BITS = 40  # sectors of a volume: half a petabyte
SAMPLE = rb"\d+\t\d+\t\d+"


class Tencent(Format):
    """Cloud block storage."""

    name = "tencent"
    description = "Tencent block CSV (time, offset, size, type, volume), or a volume's time, block, size with tabs"

    def sniff(self, head: Head) -> float:
        if head.share(rb"\d+,\d+,\d+,[01],\d+") >= 0.8:
            return 0.8
        return 0.6 if head.share(SAMPLE) >= 0.8 else 0.0

    def read(self, source: Source, options: Options) -> Iterator[Chunk]:
        if source.head.lines and b"\t" in source.head.lines[0]:
            yield from read_rows(source, {"time": "int", "block": "int", "size": "int"}, "\t", _sample)
        else:
            fields = {"time": "int", "offset": "int", "size": "int", "type": "int", "volume": "int"}
            yield from read_rows(source, fields, ",", _convert)


def _sample(columns: Chunk) -> Chunk:
    return {"key": columns["block"], "time": seconds(columns, "time"), "size": numbers(columns, "size", 0)}


def _convert(columns: Chunk) -> Chunk:
    volume = numbers(columns, "volume", 0, 2 ** (63 - OFFSET_BITS) - 1)
    offset = numbers(columns, "offset", 0, 2**OFFSET_BITS - 1)
    size = numbers(columns, "size", 0, 2**40)
    op = numbers(columns, "type", 0, 1)
    return {
        "key": volume << OFFSET_BITS | offset,
        "time": seconds(columns, "time"),
        "size": size * 512,
        "op": Text(op, [b"read", b"write"]),
        "volume": volume,
    }
