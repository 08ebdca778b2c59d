"""ARC traces (.lis): each line is a range of 512-byte blocks, expanded to one request a block.

A line is ``start count ignored request``. The request's number is kept in the column ``request``.

Megiddo and Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003.
"""

from collections.abc import Iterator

import numpy as np

from kvpredict.trace.readers._delimited import read_rows
from kvpredict.trace.readers._format import Chunk, Format, Head, Options, numbers
from kvpredict.trace.readers._source import Source

__all__ = ["ARC"]

LONGEST = 1 << 20  # blocks of a range: 512 MB in one request; more is damage


class ARC(Format):
    """Ranges of blocks."""

    name = "arc"
    description = "ARC paper's .lis traces: ranges of blocks, expanded"

    def sniff(self, head: Head) -> float:
        if head.share(rb"\d+ \d+ \d+ \d+ *") < 0.8:
            return 0.0
        return 0.95 if head.name.endswith(".lis") else 0.5

    def read(self, source: Source, options: Options) -> Iterator[Chunk]:
        fields = {"start": "int", "count": "int", "ignored": "", "request": "int"}
        for rows in read_rows(source, fields, " ", _convert):
            start, count, request = numbers(rows, "key"), numbers(rows, "count"), numbers(rows, "request")
            # In portions, for a block of short lines may expand to more than the rest of the trace.
            portion = np.cumsum(count) // (1 << 22)
            for cut in np.split(np.arange(start.size), np.flatnonzero(np.diff(portion)) + 1):
                n = count[cut]
                within = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
                yield {"key": np.repeat(start[cut], n) + within, "request": np.repeat(request[cut], n)}


def _convert(columns: Chunk) -> Chunk:
    return {
        "key": numbers(columns, "start", 0, 2**62),
        "count": numbers(columns, "count", 0, LONGEST),
        "request": columns["request"],
    }
