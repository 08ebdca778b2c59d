"""CSV, TSV and other delimited text, with or without a header line.

The delimiter, the header and the kind of each column are found from the first rows. A key column of integers keeps
them as they are (unless some have leading zeros); any other key is hashed as text. Times are numbers in s, ms, us or
ns (by the column's name, else by their magnitude) or ISO dates; dates without a zone are UTC.
"""

import csv
import re
from collections.abc import Iterator

from kvpredict.core.errors import TraceError
from kvpredict.trace.readers._delimited import MISSING, read_rows, split_row
from kvpredict.trace.readers._format import Chunk, Format, Head, Options
from kvpredict.trace.readers._mapping import KNOWN, map_columns, plain_name
from kvpredict.trace.readers._source import Source

__all__ = ["CSV"]

INTEGER = re.compile(r"\s*-?(0|[1-9]\d*)\s*")
DIGITS = re.compile(r"\s*[-+]?\d+\s*")
NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?)?(?P<zone>Z|[+-]\d\d:?\d\d)?")
PARTED = re.compile(rb".*[,\t;|]")
MOST = 0.9  # share of rows that must agree, so that some damaged ones change nothing


class CSV(Format):
    """Delimited text with named or guessed columns."""

    name = "csv"
    description = "CSV, TSV and other delimited text; columns named by columns= or guessed"
    named = True

    def sniff(self, head: Head) -> float:
        delimiter = _delimiter(head)
        if delimiter is None:
            if head.name.endswith((".csv", ".tsv")) and head.lines and all(map(PARTED.match, head.lines[:2])):
                return 0.55  # rows of different lengths: reading says which
            first = plain_name(head.lines[0].decode("utf-8", "replace")) if head.lines else ""
            return 0.5 if first in KNOWN["key"] else 0.1 if head.lines else 0.0
        return 0.4 if delimiter != " " or head.name.endswith((".csv", ".tsv")) else 0.2

    def read(self, source: Source, options: Options) -> Iterator[Chunk]:
        head = source.head
        if not head.lines:
            raise TraceError(f"{source.path}: expected lines of text, found {head.data[:24]!r}")
        delimiter = options.delimiter or _delimiter(head) or ","
        if len(delimiter) != 1:
            raise TraceError(f"a delimiter is one character, not {delimiter!r}")
        rows = _rows(head, delimiter)
        header = _has_header(rows) if options.header is None else options.header
        names = _names(rows[0]) if header else [f"column_{i}" for i in range(len(rows[0]))]
        rows = [row for row in rows[header:] if len(row) == len(names)]
        kinds = {name: _kind([row[i] for row in rows]) for i, name in enumerate(names)}
        first = {n: _first([row[i] for row in rows]) for i, n in enumerate(names)}
        mapped = map_columns(source.path, names, kinds, first, options)
        source.info["columns"] = mapped.roles
        key = mapped.roles["key"]
        if options.text_keys or kinds[key] not in ("int", "uint"):
            kinds[key] = "text"
        required = {mapped.roles[role] for role in ("key", "time", "size") if role in mapped.roles}
        yield from read_rows(
            source,
            kinds,
            delimiter,
            mapped.convert,
            quoted=True,
            skip=int(header),
            optional=frozenset(set(names) - required),
        )


def _delimiter(head: Head) -> str | None:
    best, most = None, 1
    for delimiter in ",\t;| ":
        widths = [len(row) for row in _rows(head, delimiter)[:200]]
        width = max(set(widths), key=widths.count) if widths else 1
        if delimiter == " " and best:
            break
        if width > most and widths.count(width) >= MOST * len(widths):
            best, most = delimiter, width
    return best


def _rows(head: Head, delimiter: str) -> list[list[str]]:
    """Return the fields of the first rows."""
    if not any(b'"' in line for line in head.lines):
        return [split_row(line, delimiter, False) for line in head.lines]
    # A quoted field may hold line ends.
    text = [line.decode("utf-8", "replace") + "\n" for line in head.lines]
    try:
        rows = list(csv.reader(text, delimiter=delimiter))
    except csv.Error:
        return [split_row(line, delimiter, True) for line in head.lines]
    return rows if head.whole or len(rows) < 2 else rows[:-1]


def _has_header(rows: list[list[str]]) -> bool:
    if any(NUMBER.fullmatch(cell) or DATE.fullmatch(cell.strip()) or not cell.strip() for cell in rows[0]):
        return False
    known = {name for names in KNOWN.values() for name in names}
    return any(plain_name(cell) in known for cell in rows[0]) or any(
        _kind([row[i] for row in rows[1:] if len(row) == len(rows[0])]) != "text" for i in range(len(rows[0]))
    )


def _names(cells: list[str]) -> list[str]:
    names: list[str] = []
    for i, cell in enumerate(cells):
        name = (cell.lstrip("#") if i == 0 else cell).strip() or f"column_{i}"
        names.append(name if name not in names else f"{name}_{i}")
    return names


def _kind(values: list[str]) -> str:
    """Return the kind that most values have."""
    values = [v for v in values if v not in MISSING]
    enough = MOST * len(values)
    if not values:
        return "text"
    integers = [v for v in values if DIGITS.fullmatch(v)]
    if len(integers) >= enough:
        # 007 and 7 are different keys.
        if sum(INTEGER.fullmatch(v) is not None for v in integers) < enough:
            return "text"
        large = any(int(v) >= 2**63 for v in integers)
        if large and max(len(v) for v in integers) > 20:
            return "text"
        return "uint" if large else "int"
    if sum(NUMBER.fullmatch(v) is not None for v in values) >= enough:
        return "float"
    dates = [m for v in values if (m := DATE.fullmatch(v.strip()))]
    if len(dates) >= enough:
        return "utc" if dates[0]["zone"] else "time"
    return "text"


def _first(values: list[str]) -> float:
    return next((float(v) for v in values if NUMBER.fullmatch(v)), 0.0)
