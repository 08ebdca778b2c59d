"""libCacheSim's oracleGeneral: 24-byte little-endian records of time (s), object id, size and next access.

The next access is derived from the trace itself (``Trace.next_use``), so the file's is not kept.
"""

from collections.abc import Iterator

import numpy as np

from kvpredict.trace.readers._format import Chunk, Format, Head, Options
from kvpredict.trace.readers._source import Source

__all__ = ["OracleGeneral"]

RECORD = np.dtype([("time", "<u4"), ("key", "<u8"), ("size", "<u4"), ("next", "<i8")])


class OracleGeneral(Format):
    """Binary trace with known future."""

    name = "oracle_general"
    description = "libCacheSim oracleGeneral: 24-byte records of time, id, size, next access"

    def sniff(self, head: Head) -> float:
        if head.is_text or head.foreign:
            return 0.0
        records = head.records(RECORD)
        if not records.size:
            return 0.0
        later = (records["next"] == -1) | (records["next"] > np.arange(records.size))
        forward = np.diff(records["time"].astype(np.int64)) >= 0
        named = "oraclegeneral" in head.name.replace("_", "").replace("-", "")
        if later.mean() < 0.95 or (forward.size and forward.mean() < 0.95):
            return 0.2 if named else 0.0
        return 0.97 if named else 0.9

    def read(self, source: Source, options: Options) -> Iterator[Chunk]:
        for _, records in source.records(RECORD):
            yield {
                "key": records["key"].astype(np.uint64).view(np.int64),
                "time": records["time"].astype(np.float64),
                "size": records["size"].astype(np.int64),
            }
