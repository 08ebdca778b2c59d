"""MQSim traces: ``time device address sectors type``; time in ns, 512-byte sectors, type 1 for a read.

The key is the logical sector address alone, as the figures published for these traces count blocks; the device is a
column, and a caller who wants one block for each device and address joins the two.

Tavakkol et al., "MQSim: A Framework for Enabling Realistic Studies of Modern Multi-Queue SSD Devices", FAST 2018.
"""

from collections.abc import Iterator

from kvpredict.trace.readers._delimited import read_rows
from kvpredict.trace.readers._format import Chunk, Format, Head, Options, Text, numbers, seconds
from kvpredict.trace.readers._source import Source

__all__ = ["MQSim"]


class MQSim(Format):
    """SSD simulator's block trace."""

    name = "mqsim"
    description = "MQSim: lines of time in ns, device, address, sectors, 1 for a read"

    def sniff(self, head: Head) -> float:
        return 0.8 if head.share(rb"\d+ \d+ \d+ \d+ [01] *") >= 0.8 else 0.0

    def read(self, source: Source, options: Options) -> Iterator[Chunk]:
        fields = {"time": "int", "device": "int", "address": "int", "sectors": "int", "type": "int"}
        yield from read_rows(source, fields, " ", _convert)


def _convert(columns: Chunk) -> Chunk:
    sectors = numbers(columns, "sectors", 0, 2**40)
    return {
        "key": columns["address"],
        "time": seconds(columns, "time", 10**9),
        "size": sectors * 512,
        "op": Text(numbers(columns, "type", 0, 1), [b"write", b"read"]),
        "device": columns["device"],
    }
