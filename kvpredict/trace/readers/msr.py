"""MSR Cambridge block traces: ``Timestamp,Hostname,DiskNumber,Type,Offset,Size,ResponseTime``, no header.

Timestamps are Windows file times (100 ns since 1601) and become Unix seconds; response times become seconds. The key
joins the volume (host and disk, numbered as they appear) and the offset.

Narayanan, Donnelly and Rowstron, "Write Off-Loading: Practical Power Management for Enterprise Storage", FAST 2008.
"""

from collections.abc import Iterator

import numpy as np

from kvpredict.trace.readers._delimited import read_rows
from kvpredict.trace.readers._format import BadRecord, Chunk, Format, Head, Options, Text, in_seconds, numbers, texts
from kvpredict.trace.readers._source import Source

__all__ = ["MSR"]

EPOCH = 116_444_736_000_000_000  # the file time of 1970-01-01
OFFSET_BITS = 48


class MSR(Format):
    """Block I/O of enterprise servers."""

    name = "msr"
    description = "MSR Cambridge block CSV (Windows file time, host, disk, Read or Write, offset, size, response time)"

    def sniff(self, head: Head) -> float:
        return 0.95 if head.share(rb"\d{16,19},[^,]*,\d+,(Read|Write),\d+,\d+,\d+") >= 0.8 else 0.0

    def read(self, source: Source, options: Options) -> Iterator[Chunk]:
        fields = {
            "timestamp": "int",
            "host": "text",
            "disk": "int",
            "type": "text",
            "offset": "int",
            "size": "int",
            "response_time": "int",
        }
        volumes: dict[tuple[bytes, int], int] = {}
        yield from read_rows(source, fields, ",", lambda columns: _convert(columns, volumes))


def _convert(columns: Chunk, volumes: dict[tuple[bytes, int], int]) -> Chunk:
    host, op = texts(columns, "host"), texts(columns, "type", (b"Read", b"Write", b"read", b"write"))
    disk = numbers(columns, "disk", 0, 10_000)
    offset = numbers(columns, "offset", 0, 2**OFFSET_BITS - 1)
    size = numbers(columns, "size", 0)
    pairs, first, which = np.unique(host.codes.astype(np.int64) * 10_001 + disk, return_index=True, return_inverse=True)
    numbered = np.zeros(pairs.size, np.int64)
    for i in np.argsort(first):
        pair = host.texts[int(pairs[i]) // 10_001], int(pairs[i]) % 10_001
        numbered[i] = volumes.setdefault(pair, len(volumes))
    volume = numbered[which]
    if len(volumes) >= 2**15:
        raise BadRecord(f"expected fewer than {2**15} volumes")
    return {
        "key": volume << OFFSET_BITS | offset,
        "time": in_seconds(numbers(columns, "timestamp", 0) - EPOCH, 10**7),
        "size": size,
        "op": Text(op.codes, [text.lower() for text in op.texts]),
        "volume": volume,
        "response_time": numbers(columns, "response_time") / 1e7,
    }
