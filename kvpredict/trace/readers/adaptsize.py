"""AdaptSize traces: ``time id size`` in integers, separated by a space; also webcachesim's, with further features.

Berger et al., "AdaptSize: Orchestrating the Hot Object Memory Cache in a Content Delivery Network", NSDI 2017.
"""

from collections.abc import Iterator

from kvpredict.trace.readers._delimited import read_rows
from kvpredict.trace.readers._format import Chunk, Format, Head, Options, numbers, seconds
from kvpredict.trace.readers._source import Source

__all__ = ["AdaptSize"]


class AdaptSize(Format):
    """Time, id and size."""

    name = "adaptsize"
    description = "AdaptSize and webcachesim: lines of time, id, size"

    def sniff(self, head: Head) -> float:
        return 0.8 if head.share(rb"\d+ \d+ \d+ *") >= 0.8 else 0.0

    def read(self, source: Source, options: Options) -> Iterator[Chunk]:
        yield from read_rows(source, {"time": "int", "id": "int", "size": "int"}, " ", _convert)


def _convert(columns: Chunk) -> Chunk:
    return {"key": columns["id"], "time": seconds(columns, "time"), "size": numbers(columns, "size", 0)}
