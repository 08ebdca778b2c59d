"""Meta's CacheLib block traces: CSV with a header that names block_id, io_size and io_offset.

Requests of Tectonic, Meta's file system, for parts of blocks of some megabytes. The key is the block, the size the
bytes read or written of it; the offset is a column.
"""

from collections.abc import Iterator

from kvpredict.trace.readers._format import Chunk, Format, Head, Options, numbers, others, seconds, texts
from kvpredict.trace.readers._headed import header_of, read_headed
from kvpredict.trace.readers._source import Source

__all__ = ["CacheLibBlock"]

KINDS = {
    "op_time": "float",
    "block_id": "text",
    "io_size": "int",
    "io_offset": "int",
    "user_name": "text",
    "user_namespace": "text",
    "op_name": "text",
    "op_count": "int",
    "host_name": "text",
    "rs_shard_id": "int",
}
REQUIRED = {"op_time", "block_id", "io_size", "io_offset"}


class CacheLibBlock(Format):
    """Block storage at Meta."""

    name = "cachelib_block"
    description = "Meta CacheLib block CSV (header with op_time, block_id, io_size, io_offset)"

    def sniff(self, head: Head) -> float:
        return 0.97 if set(header_of(head, ",")) >= REQUIRED else 0.0

    def read(self, source: Source, options: Options) -> Iterator[Chunk]:
        yield from read_headed(source, KINDS, REQUIRED, ",", _convert)


def _convert(columns: Chunk) -> Chunk:
    chunk: Chunk = {
        "key": texts(columns, "block_id").hashed(),
        "time": seconds(columns, "op_time"),
        "size": numbers(columns, "io_size", 0),
    }
    if "op_name" in columns:
        chunk["op"] = columns["op_name"]
    return chunk | others(columns, "block_id", "op_time", "io_size", "op_name")
