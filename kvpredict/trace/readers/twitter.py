"""Twitter's cache traces: timestamp, anonymised key, key size, value size, client, operation, TTL; no header.

The size of an object is that of its key and its value. A value size of 0 in a read means that the cache missed.

Yang et al., "A large scale analysis of hundreds of in-memory cache clusters at Twitter", OSDI 2020.
"""

from collections.abc import Iterator

from kvpredict.trace.readers._delimited import read_rows
from kvpredict.trace.readers._format import Chunk, Format, Head, Options, numbers, seconds, texts
from kvpredict.trace.readers._source import Source

__all__ = ["Twitter"]

OPERATIONS = b"get gets set add replace cas append prepend delete incr decr".split()


class Twitter(Format):
    """In-memory key-value cache."""

    name = "twitter"
    description = "Twitter cache-trace CSV (timestamp, key, key size, value size, client, operation, TTL)"

    def sniff(self, head: Head) -> float:
        pattern = rb"\d+,[^,]*,\d+,\d+,\d+,(%s),\d+" % b"|".join(OPERATIONS)
        return 0.95 if head.share(pattern) >= 0.8 else 0.0

    def read(self, source: Source, options: Options) -> Iterator[Chunk]:
        fields = {
            "time": "int",
            "key": "text",
            "key_size": "int",
            "value_size": "int",
            "client": "int",
            "op": "text",
            "ttl": "int",
        }
        yield from read_rows(source, fields, ",", _convert)


def _convert(columns: Chunk) -> Chunk:
    key_size = numbers(columns, "key_size", 0, 2**40)
    value_size = numbers(columns, "value_size", 0, 2**40)
    return {
        "key": texts(columns, "key").hashed(),
        "time": seconds(columns, "time"),
        "size": key_size + value_size,
        "op": texts(columns, "op", OPERATIONS),
        **{name: columns[name] for name in ("key_size", "value_size", "client", "ttl")},
    }
