"""Plain text: one key a line.

When the first lines are integers, keys are these integers; otherwise each line, without its end, is hashed as text.
"""

from collections.abc import Iterator

from kvpredict.core.errors import TraceError
from kvpredict.trace.readers._delimited import read_rows
from kvpredict.trace.readers._format import Chunk, Format, Head, Options, Text
from kvpredict.trace.readers._source import Source

__all__ = ["Plain"]

INTEGER = rb"\s*-?(0|[1-9]\d{0,17})\s*"


class Plain(Format):
    """One key a line."""

    name = "plain"
    description = "plain text, one key a line: integers, or any text"

    def sniff(self, head: Head) -> float:
        return 0.5 if head.share(INTEGER) >= 0.8 else 0.3 if head.lines else 0.0

    def read(self, source: Source, options: Options) -> Iterator[Chunk]:
        if not source.head.lines:
            raise TraceError(f"{source.path}: expected lines of text, found {source.head.data[:24]!r}")
        kind = "int" if source.head.share(INTEGER) >= 0.8 else "text"
        # No key holds the byte 0x1f, so that a line is one field.
        yield from read_rows(source, {"key": kind}, "\x1f", _convert)


def _convert(columns: Chunk) -> Chunk:
    key = columns["key"]
    return {"key": key.hashed() if isinstance(key, Text) else key}
