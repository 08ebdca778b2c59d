"""What a trace format is: a name, a way to recognise a file by its first bytes, and a parser of its stream.

A parser yields chunks: dictionaries from column name to equally long arrays. ``key`` (int64) is required; ``time``
(float64 seconds) and ``size`` (int64 bytes) are the trace's own; any other name becomes an extra column.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from kvpredict.core.errors import unknown_name
from kvpredict.trace.trace import hash_texts

if TYPE_CHECKING:
    from kvpredict.trace.readers._source import Source

__all__ = [
    "BadRecord",
    "Chunk",
    "Format",
    "Head",
    "Options",
    "Text",
    "expect_finite",
    "in_seconds",
    "likely_unit",
    "numbers",
    "others",
    "seconds",
    "texts",
    "ticks_in",
]

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # ticks a second

FOREIGN = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive (unpack it first)",
    b"7z\xbc\xaf": "a 7-Zip archive (unpack it first)",
    b"\x7fELF": "a program",
    b"SQLite format 3": "an SQLite database",
    b"RIFF": "a RIFF media file",
    b"\xff\xfe": "UTF-16 text (convert it to UTF-8)",
    b"\xfe\xff": "UTF-16 text (convert it to UTF-8)",
}


class BadRecord(ValueError):
    """Some record of the data at hand does not fit; the message says what was expected and what was found."""


class Text(NamedTuple):
    """A column of texts: ``texts[codes[i]]`` is that of request ``i``."""

    codes: np.ndarray  # int32 or int64 [n]
    texts: list[bytes]

    def hashed(self) -> np.ndarray:
        """Return each text's 64-bit hash, int64 ``[n]``, as ``hash_keys`` has it."""
        return hash_texts(self.texts)[self.codes]


Chunk = dict[str, np.ndarray | Text]


@dataclass(frozen=True)
class Options:
    """What the caller of ``read_trace`` says about a file."""

    columns: Mapping[str, str | int] = field(default_factory=dict)
    delimiter: str | None = None
    header: bool | None = None
    time_unit: str | None = None
    text_keys: bool = False

    @property
    def describes_table(self) -> bool:
        """Whether something is said that only formats with named columns can use."""
        return bool(self.columns) or self.delimiter is not None or self.header is not None or self.text_keys


@dataclass(frozen=True)
class Head:
    """The first bytes of a file, decompressed; ``whole`` when there are no others.

    ``line`` is the first line of a text where that goes on beyond them. Only formats of a record a line look at it: a
    table of a hundred thousand columns is none.
    """

    path: str
    name: str  # the file's name in lower case, without folder and compression suffix
    data: bytes
    whole: bool
    line: bytes = b""

    @property
    def foreign(self) -> str | None:
        """What the file is when it is certainly not a trace."""
        if self.data[257:262] == b"ustar":
            return "a tar archive (unpack it first)"
        return next((what for magic, what in FOREIGN.items() if self.data.startswith(magic)), None)

    @cached_property
    def is_text(self) -> bool:
        control = len(self.data) - len(self.data.translate(None, bytes(set(range(32)) - {9, 10, 13})))
        return not self.foreign and b"\0" not in self.data and control <= len(self.data) // 1000

    @cached_property
    def lines(self) -> list[bytes]:
        """The first complete lines, at most 1000, without line ends and empty ones; none of a binary file."""
        if not self.is_text:
            return []
        data = self.data.removeprefix(b"\xef\xbb\xbf")
        lines = data.split(b"\n", 4000)
        if len(lines) > 1 and not self.whole:
            lines.pop()
        return [line.rstrip(b"\r") for line in lines[:4000] if line.strip()][:1000]

    def share(self, pattern: bytes, start: int = 0) -> float:
        """Return the share of lines, from ``start``, that are ``pattern`` from end to end."""
        lines = self.lines[start:]
        matches = re.compile(pattern).fullmatch
        return sum(matches(line) is not None for line in lines) / len(lines) if lines else 0.0

    def records(self, dtype: np.dtype[Any]) -> np.ndarray:
        """Return the first complete binary records, at most 8192."""
        count = min(len(self.data) // dtype.itemsize, 8192)
        return np.frombuffer(self.data, dtype, count)


class Format:
    """A trace format; a subclass in ``readers/x.py`` whose ``name`` is ``"x"`` is all it takes to add one."""

    name: ClassVar[str]
    description: ClassVar[str]
    named: ClassVar[bool] = False  # whether columns= and the like mean something to it

    def sniff(self, head: Head) -> float:
        """Return how sure it is that ``head`` is of this format: 0 no, 0.3 possible, 0.9 all lines agree."""
        raise NotImplementedError

    def read(self, source: "Source", options: Options) -> Iterator[Chunk]:
        """Yield the file's chunks, in order; tell ``source.faults`` of every record that does not fit."""
        raise NotImplementedError


def numbers(columns: Chunk, name: str, low: int = -(2**63), high: int = 2**63 - 1) -> np.ndarray:
    """Return the column ``name``; raises ``BadRecord`` when it is text or some value is outside ``[low, high]``."""
    values = columns[name]
    if isinstance(values, Text):
        raise BadRecord(f"expected a number as {name}, found {values.texts[:1]}")
    if values.size and (low > -(2**63) or high < 2**63 - 1):
        least, most = values.min(), values.max()
        if least < low or most > high:
            at_most = "" if high == 2**63 - 1 else f" and at most {high}"
            raise BadRecord(f"expected a {name} of at least {low}{at_most}, found {least if least < low else most}")
    return values


def seconds(columns: Chunk, name: str, ticks: int = 1) -> np.ndarray:
    """Return the column ``name``, in ``ticks`` a second, as float64 seconds.

    Raises ``BadRecord`` when it is text or not finite.
    """
    return in_seconds(expect_finite(name, numbers(columns, name)), ticks)


def in_seconds(times: np.ndarray, ticks: int) -> np.ndarray:
    """Return ``times``, in ``ticks`` a second, as float64 seconds; none is rounded twice."""
    if times.dtype.kind == "f" or ticks == 1:
        return np.asarray(times, np.float64) / ticks
    times = times.astype(np.int64, copy=False)
    return times // ticks + times % ticks / ticks


def ticks_in(unit: str) -> int:
    """Return how many of a time's unit are a second; raises ``UnknownName`` for what is no unit."""
    if unit not in UNITS:
        raise unknown_name("time unit", unit, UNITS)
    return UNITS[unit]


def likely_unit(value: float) -> str:
    """Return the unit of a time, from its magnitude.

    Seconds since 1970 have ten digits, milliseconds thirteen, and so on; smaller numbers count from some start.
    """
    value = abs(value)
    return "s" if value < 1e11 else "ms" if value < 1e14 else "us" if value < 1e17 else "ns"


def texts(columns: Chunk, name: str, known: Collection[bytes] = ()) -> Text:
    """Return the text column ``name``; raises ``BadRecord`` when some text is not one of ``known``."""
    column = columns[name]
    assert isinstance(column, Text)
    for text in column.texts:
        if known and text not in known:
            raise BadRecord(f"expected {b', '.join(known).decode()} as {name}, found {text[:80]!r}")
    return column


def others(columns: Chunk, *used: str) -> Chunk:
    """Return ``columns`` without those ``used`` already."""
    return {name: column for name, column in columns.items() if name not in used}


def expect_finite(name: str, values: np.ndarray) -> np.ndarray:
    """Return ``values``; raises ``BadRecord`` when one is nan or infinite."""
    if not np.isfinite(values).all():
        raise BadRecord(f"expected a finite number as {name}, found {values[~np.isfinite(values)][0]}")
    return values
