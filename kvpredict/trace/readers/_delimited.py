"""Rows of delimited text, parsed by Arrow a block at a time, with the exact line of what does not fit.

Arrow parses a block at once and is fast, but says little about errors. So a block that fails is cut in half, and the
halves parsed again, until the failing row stands alone: its line number is known, its neighbours are kept, and there
is no second parser whose opinion could differ.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from kvpredict.core.errors import MissingExtra
from kvpredict.trace.readers._format import BadRecord, Chunk, Text, in_seconds, numbers
from kvpredict.trace.readers._source import Lines, Source, line_break

__all__ = ["array_of", "arrow", "read_rows", "split_row"]

MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "-"]
EXPECTED = {"int": "an integer", "uint": "a non-negative integer", "float": "a number", "time": "an ISO date and time"}
SMALL = 1 << 20  # bytes that Arrow hands to one thread


def arrow() -> Any:
    """Return pyarrow, with ``csv`` loaded; raises ``MissingExtra``."""
    try:
        import pyarrow
        import pyarrow.csv
    except ImportError:
        raise MissingExtra('text and Parquet traces need pyarrow: pip install "kvpredict[train]"') from None
    return pyarrow


def read_rows(
    source: Source,
    fields: Mapping[str, str],
    delimiter: str,
    convert: Callable[[Chunk], Chunk],
    *,
    quoted: bool = False,
    skip: int = 0,
    optional: frozenset[str] = frozenset(),
    clean: Callable[[bytes], bytes] | None = None,
) -> Iterator[Chunk]:
    """Yield a chunk for each block of rows.

    Parameters
    ----------
    fields : mapping of name to kind
        The columns in the file's order. Kinds: int, uint, float, time or utc (ISO dates without and with a zone),
        text, and "" for what is not wanted. Hexadecimal integers start with 0x.
    convert : callable
        Turns the columns of a block into a chunk; raises ``BadRecord`` when some row does not fit.
    quoted : bool
        Whether fields may stand in double quotes.
    skip : int
        Lines before the first row.
    optional : set of names
        Columns in which a value may be missing: nan then.
    clean : callable, optional
        Takes lines out that are no rows.
    """
    table = _Table(arrow(), dict(fields), delimiter, quoted, optional)

    def parse(lines: Lines) -> Iterator[Chunk]:
        data = clean(lines.data) if clean else lines.data
        if not data.strip():
            return
        try:
            yield convert(table.parse(data))
            return
        except (BadRecord, table.arrow.ArrowException) as error:
            problem = table.explain(data, error)
        half = line_break(lines.data, len(lines.data) // 2, quoted) or _first_row(lines.data, quoted)
        if half == len(lines.data):
            source.faults.bad(f"line {lines.first}", problem)
            return
        yield from parse(Lines(lines.first, lines.data[:half]))
        yield from parse(Lines(lines.first + lines.data.count(b"\n", 0, half), lines.data[half:]))

    good = 0
    for lines in source.lines(quoted):
        if lines.first == 1:
            for _ in range(skip):
                lines = Lines(lines.first + 1, lines.data[lines.data.find(b"\n") + 1 or len(lines.data) :])
        for chunk in parse(lines):
            yield chunk
            good += numbers(chunk, "key").size
            source.faults.weigh(good)
        source.faults.weigh(good)


def _first_row(data: bytes, quoted: bool) -> int:
    """Return where the first row ends; a quote that is never closed ends with its line."""
    end = data.find(b"\n") + 1
    while quoted and end and data.count(b'"', 0, end) % 2:
        end = data.find(b"\n", end) + 1
    return end or (data.find(b"\n") + 1 if quoted and data.count(b'"') % 2 else 0) or len(data)


class _Table:
    def __init__(self, pa: Any, fields: dict[str, str], delimiter: str, quoted: bool, optional: frozenset[str]) -> None:
        self.arrow, self.fields, self.delimiter, self.quoted, self.optional = pa, fields, delimiter, quoted, optional
        self._kinds = {
            "int": pa.int64(),
            "uint": pa.uint64(),
            "float": pa.float64(),
            "time": pa.timestamp("ns"),
            "utc": pa.timestamp("ns", tz="UTC"),
            "text": pa.dictionary(pa.int32(), pa.binary()),
        }

    def parse(self, data: bytes) -> Chunk:
        try:
            return self._parse(data, self.fields)
        except self.arrow.ArrowException:
            if not any(self.fields[name] in ("int", "float") for name in self.optional):
                raise
        # What is optional may hold anything: read it as text, and take the numbers out.
        loose = {n: "text" if n in self.optional and k in ("int", "float") else k for n, k in self.fields.items()}
        chunk = self._parse(data, loose)
        for name, kind in loose.items():
            if kind != self.fields[name]:
                text = chunk[name]
                assert isinstance(text, Text)
                chunk[name] = np.array([_number(t) for t in text.texts], np.float64)[text.codes]
        return chunk

    def _parse(self, data: bytes, fields: dict[str, str]) -> Chunk:
        csv = self.arrow.csv
        wanted = [name for name, kind in fields.items() if kind]
        quoted = self.quoted and b'"' in data
        if quoted and data.count(b'"') % 2:
            # Arrow would read on to the end of the data, and call it one field.
            if b"\n" in data.rstrip() or re.search(rb'(^|%s)\s*"' % re.escape(self.delimiter.encode()), data):
                raise BadRecord("a quotation mark is never closed")
            quoted = False  # 3.5" is no quotation
        table = csv.read_csv(
            self.arrow.py_buffer(data),
            # Threads that Arrow has only just started may abort a process that ends at once, as after an error.
            csv.ReadOptions(column_names=list(fields), block_size=SMALL, use_threads=len(data) > SMALL),
            csv.ParseOptions(
                delimiter=self.delimiter,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
            ),
            csv.ConvertOptions(
                column_types={name: self._kinds[fields[name]] for name in wanted},
                include_columns=wanted,
                null_values=MISSING,
                check_utf8=False,
            ),
        )
        return {name: array_of(self.arrow, table.column(name), name, name in self.optional) for name in wanted}

    def explain(self, data: bytes, error: Exception) -> str:
        """Say in the format's own terms what ``error`` found."""
        message = str(error)
        if isinstance(error, BadRecord):
            return message
        if found := re.match(r"In CSV column #(\d+):.*invalid value '(.*)'", message, re.DOTALL):
            name, kind = list(self.fields.items())[int(found[1])]
            what = "an ISO date and time" if kind == "utc" else EXPECTED.get(kind, kind)
            return f"expected {what} as {name}, found {found[2][:80]!r}"
        if found := re.search(r"Expected (\d+) columns, got (\d+): (.*)", message, re.DOTALL):
            return f"expected {found[1]} fields ({', '.join(self.fields)}), found {found[2]}: {found[3][:80]!r}"
        return f"expected fields {', '.join(self.fields)}, found {data[:80]!r}"


def array_of(pa: Any, column: Any, name: str, optional: bool) -> np.ndarray | Text:
    """Return an Arrow column as an array or ``Text``; missing values are nan where ``optional``."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.unify_dictionaries().combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = column.chunk(0) if column.num_chunks else pa.array([], kind)
        codes = column.indices
        texts = column.dictionary.to_pylist()
        if not pa.types.is_binary(kind.value_type):
            texts = [_bytes(value) for value in texts]
        if codes.null_count:
            codes, texts = codes.fill_null(len(texts)), [*texts, b""]
        return Text(codes.to_numpy(zero_copy_only=False), texts)
    if column.null_count and not optional:
        raise BadRecord(f"the column {name} has no value")
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        ticks = column.cast(pa.timestamp("ns", tz=getattr(kind, "tz", None))).cast(pa.int64())
        return in_seconds(ticks.to_numpy(), 10**9)  # nulls of an optional column arrive as nan
    array: np.ndarray = column.to_numpy()
    return array.view(np.int64) if array.dtype == np.uint64 else array


def split_row(line: bytes, delimiter: str, quoted: bool) -> list[str]:
    """Return the fields of one line."""
    import csv

    text = line.decode("utf-8", "replace").rstrip("\r\n")
    if not quoted or '"' not in text:
        return text.split(delimiter)
    try:
        return next(csv.reader([text], delimiter=delimiter))
    except csv.Error:  # stray line ends, a field of megabytes
        return text.split(delimiter)


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else b"" if value is None else str(value).encode()


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
