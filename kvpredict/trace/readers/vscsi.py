"""VSCSI traces of VMware disks (CloudPhysics, libCacheSim), versions 1 and 2; little-endian binary records.

A record holds the SCSI command, the length in bytes, the logical block and the time in microseconds; version 2 adds
the response time. The version stands in the upper byte of each record's ``version`` field.

Waldspurger et al., "Efficient MRC Construction with SHARDS", FAST 2015, describes the traces.
"""

from collections.abc import Iterator

import numpy as np

from kvpredict.trace.readers._format import Chunk, Format, Head, Options, Text, in_seconds
from kvpredict.trace.readers._source import Source

__all__ = ["VSCSI"]

RECORDS = {
    1: np.dtype([("serial", "<u4"), ("size", "<u4"), ("segments", "<u4"), ("command", "<u2"), ("version", "<u2"),
                 ("block", "<u8"), ("time", "<u8")]),
    2: np.dtype([("command", "<u2"), ("version", "<u2"), ("serial", "<u4"), ("size", "<u4"), ("segments", "<u4"),
                 ("block", "<u8"), ("time", "<u8"), ("response_time", "<u8")]),
}  # fmt: skip
READS, WRITES = (0x08, 0x28, 0xA8, 0x88), (0x0A, 0x2A, 0xAA, 0x8A)


class VSCSI(Format):
    """Disk commands of virtual machines."""

    name = "vscsi"
    description = "VSCSI disk traces of libCacheSim and CloudPhysics, versions 1 and 2"

    def sniff(self, head: Head) -> float:
        return 0.95 if not head.is_text and not head.foreign and max(_shares(head).values()) >= 0.8 else 0.0

    def read(self, source: Source, options: Options) -> Iterator[Chunk]:
        shares = _shares(source.head)
        version = max(shares, key=shares.__getitem__)
        for offset, records in source.records(RECORDS[version]):
            wrong = records["version"] >> 8 != version
            if wrong.any():
                at = int(np.argmax(wrong))
                source.faults.bad(
                    f"byte {offset + at * RECORDS[version].itemsize}",
                    f"expected a VSCSI record of version {version}, found version {records['version'][at] >> 8}",
                    int(wrong.sum()),
                )
                records = records[~wrong]
            commands, codes = np.unique(records["command"], return_inverse=True)
            chunk: Chunk = {
                "key": records["block"].astype(np.uint64).view(np.int64),
                "time": in_seconds(records["time"].astype(np.int64), 10**6),
                "size": records["size"].astype(np.int64),
                "op": Text(codes.astype(np.int32), [_operation(int(c)) for c in commands]),
            }
            if version == 2:
                chunk["response_time"] = records["response_time"] / 1e6
            yield chunk


def _shares(head: Head) -> dict[int, float]:
    """Return for each version the share of records that carry it."""
    shares = {}
    for version, dtype in RECORDS.items():
        records = head.records(dtype)
        shares[version] = float((records["version"] >> 8 == version).mean()) if records.size else 0.0
    return shares


def _operation(command: int) -> bytes:
    return b"read" if command in READS else b"write" if command in WRITES else f"0x{command:02x}".encode()
