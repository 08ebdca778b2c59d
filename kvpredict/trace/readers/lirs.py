"""LIRS traces: a block number a line; a line that begins with ``*`` is a mark and no request.

Jiang and Zhang, "LIRS: An Efficient Low Inter-reference Recency Set Replacement Policy", SIGMETRICS 2002.
"""

import re
from collections.abc import Iterator

from kvpredict.trace.readers._delimited import read_rows
from kvpredict.trace.readers._format import Chunk, Format, Head, Options
from kvpredict.trace.readers._source import Source

__all__ = ["LIRS"]

MARK = re.compile(rb"^\*.*$", re.MULTILINE)


class LIRS(Format):
    """A block number a line, with marks."""

    name = "lirs"
    description = "LIRS paper's traces: a block number a line, lines with * are marks"

    def sniff(self, head: Head) -> float:
        if head.share(rb"\s*(\d+|\*.*)\s*") < 0.8:
            return 0.0
        marks = any(line.startswith(b"*") for line in head.lines)
        return 0.9 if marks else 0.6 if head.name.endswith((".trace", ".trc", ".lirs")) else 0.2

    def read(self, source: Source, options: Options) -> Iterator[Chunk]:
        yield from read_rows(
            source, {"block": "int"}, " ", lambda c: {"key": c["block"]}, clean=lambda data: MARK.sub(b"", data)
        )
