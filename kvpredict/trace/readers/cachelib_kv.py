"""Meta's CacheLib key-value traces: CSV with a header that names key, op, size, op_count and key_size.

Later releases add op_time, cache_hits, ttl, usecase and sub_usecase. ``op_count`` says how many equal operations a
line stands for; it is kept as a column, and the line is one request. The size of an object is that of its key and
its value.

Berg et al., "The CacheLib Caching Engine: Design and Experiences at Scale", OSDI 2020.
"""

from collections.abc import Iterator

from kvpredict.trace.readers._format import Chunk, Format, Head, Options, numbers, others, seconds, texts
from kvpredict.trace.readers._headed import header_of, read_headed
from kvpredict.trace.readers._source import Source

__all__ = ["CacheLibKV"]

KINDS = {
    "op_time": "int",
    "key": "text",
    "key_size": "int",
    "op": "text",
    "op_count": "int",
    "size": "int",
    "cache_hits": "int",
    "ttl": "int",
    "usecase": "text",
    "sub_usecase": "text",
}
REQUIRED = {"key", "op", "size", "op_count", "key_size"}


class CacheLibKV(Format):
    """Key-value cache at Meta."""

    name = "cachelib_kv"
    description = "Meta CacheLib key-value CSV (header with key, op, size, op_count, key_size)"

    def sniff(self, head: Head) -> float:
        return 0.97 if set(header_of(head, ",")) >= REQUIRED else 0.0

    def read(self, source: Source, options: Options) -> Iterator[Chunk]:
        timed = {"op_time"} & set(header_of(source.head, ","))
        yield from read_headed(source, KINDS, REQUIRED | timed, ",", _convert)


def _convert(columns: Chunk) -> Chunk:
    value_size = numbers(columns, "size", 0, 2**40)
    key_size = numbers(columns, "key_size", 0, 2**40)
    chunk: Chunk = {"key": texts(columns, "key").hashed(), "size": key_size + value_size, "value_size": value_size}
    if "op_time" in columns:
        chunk["time"] = seconds(columns, "op_time")
    return chunk | others(columns, "key", "size", "op_time")
