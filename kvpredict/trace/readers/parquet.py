"""Parquet: columns named by ``columns=`` or guessed by their names, as in CSV.

Row groups are read one after the other; nested columns are left out.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from kvpredict.core.errors import TraceError
from kvpredict.trace.readers._delimited import array_of, arrow
from kvpredict.trace.readers._format import BadRecord, Chunk, Format, Head, Options, Text
from kvpredict.trace.readers._mapping import map_columns
from kvpredict.trace.readers._source import Source

__all__ = ["Parquet"]

ROWS = 1 << 18  # of a batch


class Parquet(Format):
    """Apache Parquet."""

    name = "parquet"
    description = "Parquet; columns named by columns= or guessed"
    named = True

    def sniff(self, head: Head) -> float:
        return 1.0 if head.data.startswith(b"PAR1") else 0.0

    def read(self, source: Source, options: Options) -> Iterator[Chunk]:
        pa = arrow()
        if source.compression:
            raise TraceError(
                f"{source.path}: a Parquet file compresses itself; undo the {source.compression} around it"
            )
        try:
            yield from _read(pa, source, options)
        except (pa.ArrowException, OSError) as error:
            raise TraceError(f"{source.path}: damaged, or no Parquet file ({error})") from None


def _read(pa: Any, source: Source, options: Options) -> Iterator[Chunk]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(source.path) as file:
        kinds = {field.name: kind for field in file.schema_arrow if (kind := _kind(pa, field.type))}
        if not kinds:
            raise TraceError(f"{source.path}: no column holds numbers or text")
        names = list(kinds)
        first: dict[str, float] = {}
        for batch in file.iter_batches(batch_size=1000, columns=names):
            for name in names:
                values = batch.column(batch.schema.get_field_index(name)).drop_null()
                if kinds[name] in ("int", "uint", "float") and len(values):
                    first[name] = float(values[0].as_py())
            break
        mapped = map_columns(source.path, names, kinds, first, options)
        source.info["columns"] = mapped.roles
        required = [mapped.roles[role] for role in ("key", "time", "size") if role in mapped.roles]
        if options.text_keys:
            kinds[mapped.roles["key"]] = "text"
        row, total = 0, file.metadata.num_rows
        for batch in file.iter_batches(batch_size=ROWS, columns=names):
            table = pa.Table.from_batches([batch])
            where = _present(source, table, required, row)
            table = table.take(where - row) if len(where) < len(batch) else table
            columns = {n: _values(pa, table.column(n), n, kinds[n], n not in required) for n in names}
            yield from _whole(source, mapped.convert, columns, where)
            row += len(batch)
            source.progress(row / max(total, 1))


def _present(source: Source, table: Any, required: list[str], row: int) -> np.ndarray:
    """Return the numbers of the rows that lack no required value; the first is ``row``."""
    there = np.ones(len(table), np.bool_)
    for name in required:
        valid = table.column(name).is_valid().to_numpy()
        if not valid.all():
            source.faults.bad(f"row {row + np.argmin(valid)}", f"{name} is absent", int((there & ~valid).sum()))
            there &= valid
    return row + np.flatnonzero(there)


def _whole(source: Source, convert: Any, columns: Chunk, where: np.ndarray) -> Iterator[Chunk]:
    """Yield the rows that fit; find the others by halving, as text rows are."""
    size = where.size
    if not size:
        return
    try:
        yield convert(columns)
    except BadRecord as error:
        if size == 1:
            source.faults.bad(f"row {where[0]}", str(error))
            return
        half = size // 2
        yield from _whole(source, convert, _rows(columns, slice(0, half)), where[:half])
        yield from _whole(source, convert, _rows(columns, slice(half, None)), where[half:])


def _rows(columns: Chunk, part: slice) -> Chunk:
    return {n: Text(c.codes[part], c.texts) if isinstance(c, Text) else c[part] for n, c in columns.items()}


def _kind(pa: Any, kind: Any) -> str:
    t = pa.types
    if t.is_dictionary(kind):
        kind = kind.value_type
    if t.is_uint64(kind):
        return "uint"
    if t.is_integer(kind) or t.is_boolean(kind):
        return "int"
    if t.is_floating(kind) or t.is_decimal(kind):
        return "float"
    if t.is_timestamp(kind) or t.is_date(kind):
        return "utc" if getattr(kind, "tz", None) else "time"
    if t.is_string(kind) or t.is_large_string(kind) or t.is_binary(kind) or t.is_large_binary(kind):
        return "text"
    return "text" if t.is_fixed_size_binary(kind) else ""


def _values(pa: Any, column: Any, name: str, kind: str, optional: bool) -> np.ndarray | Text:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if kind == "text":
        if pa.types.is_integer(column.type):
            column = column.cast(pa.string())
        return array_of(pa, column.dictionary_encode(), name, optional)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return array_of(pa, column, name, True)
    if kind == "float":
        return np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)
    if column.null_count:
        return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    column = column.cast(pa.uint64() if kind == "uint" else pa.int64())
    return array_of(pa, column, name, optional)
