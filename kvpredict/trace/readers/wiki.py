"""Wikimedia's CDN traces (2019 release): TSV with a header; seconds, hashed URL, response size, time to first byte.

The upload traces name the URL's hash ``hashed_path_query`` and add ``image_type``; the text ones
``hashed_host_path_query``.
"""

from collections.abc import Iterator

from kvpredict.trace.readers._format import Chunk, Format, Head, Options, numbers, others, seconds
from kvpredict.trace.readers._headed import header_of, read_headed
from kvpredict.trace.readers._source import Source

__all__ = ["Wiki"]

KEYS = ("hashed_host_path_query", "hashed_path_query")
KINDS = {
    "relative_unix": "int",
    **dict.fromkeys(KEYS, "int"),
    "image_type": "text",
    "response_size": "int",
    "time_firstbyte": "float",
}


class Wiki(Format):
    """Content delivery at Wikimedia."""

    name = "wiki"
    description = "Wikimedia CDN TSV (header with relative_unix, hashed_path_query, response_size)"

    def sniff(self, head: Head) -> float:
        names = set(header_of(head, "\t"))
        return 0.97 if names & set(KEYS) and names >= {"relative_unix", "response_size"} else 0.0

    def read(self, source: Source, options: Options) -> Iterator[Chunk]:
        key = next((k for k in KEYS if k in header_of(source.head, "\t")), KEYS[1])
        yield from read_headed(source, KINDS, {"relative_unix", key, "response_size"}, "\t", _convert)


def _convert(columns: Chunk) -> Chunk:
    key = next(k for k in KEYS if k in columns)
    chunk: Chunk = {
        "key": columns[key],
        "time": seconds(columns, "relative_unix"),
        "size": numbers(columns, "response_size", 0),
    }
    return chunk | others(columns, key, "relative_unix", "response_size")
