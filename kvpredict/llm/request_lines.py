"""What the readers of requests share: lines to rows, rows checked one by one, and rows to a ``RequestTrace``.

A row is a dictionary: ``time`` in seconds, ``blocks`` (int64 ids), ``block_size`` (None where the line does not say),
``prompt_blocks``, ``input_tokens``, ``output_tokens``, and what ``hints.said`` found: ``session`` and ``hints``. A line
that does not fit is told to the file's faults, which raise or count it.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kvpredict.core.errors import KvpredictError, TraceError
from kvpredict.llm.hints import HINTS
from kvpredict.llm.requests import RequestTrace
from kvpredict.trace.readers._source import Source

__all__ = ["Parse", "Row", "as_trace", "needed", "object_in", "read_rows", "records", "whole"]

Row = dict[str, Any]
Parse = Callable[[Any], Row | None]


def records(source: Source, kinds: type | tuple[type, ...] = dict) -> Iterator[tuple[str, Any]]:
    """Yield where each line stands and what it holds, an object or another of ``kinds``."""
    for lines in source.lines():
        for i, line in enumerate(lines.data.split(b"\n")):
            if not line.strip():
                continue
            where = f"line {lines.first + i}"
            try:
                record = json.loads(line)
                if not isinstance(record, kinds):
                    raise ValueError("not an object")
            except (ValueError, RecursionError) as error:
                source.faults.bad(where, f"expected a JSON object, found {line[:60]!r} ({error})")
                continue
            yield where, record


def read_rows(source: Source, items: Iterable[tuple[str, Any]], parse: Parse, block_size: int) -> list[Row]:
    """Return the rows that ``parse`` makes of ``items``; it raises ``ValueError`` for what does not fit.

    ``block_size`` is that of rows which do not say.
    """
    rows: list[Row] = []
    for where, item in items:
        try:
            row = parse(item)
            if row is not None:
                _check(row, block_size if row["block_size"] is None else row["block_size"])
                rows.append(row)
        except (ValueError, KvpredictError) as error:
            source.faults.bad(where, f"the request does not fit: {error}")
            source.faults.weigh(len(rows))
    source.faults.report(len(rows))
    return rows


def needed(record: Mapping[str, Any], name: str) -> Any:
    """Return a field that a line must have."""
    if name not in record:
        raise ValueError(f"{name} is missing")
    return record[name]


def whole(record: Mapping[str, Any], name: str) -> int:
    """Return a field that must be a whole number, which 1.5, "7", true and NaN are not."""
    value = needed(record, name)
    fits = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not fits or isinstance(value, bool):
        raise ValueError(f"{name}: expected a whole number, found {value!r:.60}")
    return int(value)


def object_in(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a field that is an object; an empty one for null or nothing."""
    value = record.get(name)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name}: expected an object, found {value!r:.60}")
    return value or {}


def as_trace(path: str, rows: list[Row], block_size: int | None, name: str, info: dict[str, Any]) -> RequestTrace:
    """Return the rows in the order of their times; ``info["reordered"]`` counts those that stood later in the file."""
    times = np.array([row["time"] for row in rows], np.float64)
    info["reordered"] = int(np.count_nonzero(times < np.maximum.accumulate(times)))
    rows = [rows[i] for i in np.argsort(times, kind="stable")]
    hints = {}
    for hint in HINTS:
        if any(hint in row["hints"] for row in rows):
            hints[hint] = np.array([row["hints"].get(hint, np.nan) for row in rows], np.float64)
    sessions = np.array([-1 if row["session"] is None else row["session"] for row in rows], np.int64)
    texts = [row["text"] for row in rows] if "text" in rows[0] else None
    return RequestTrace.from_lists(
        np.sort(times),
        [row["blocks"] for row in rows],
        _block_size(path, rows, block_size),
        [row["input_tokens"] for row in rows],
        [row["output_tokens"] for row in rows],
        prompt_blocks=np.array([row["prompt_blocks"] for row in rows], np.int64),
        sessions=sessions if (sessions >= 0).any() else None,
        hints=hints,
        texts=texts,
        name=name,
        info=info,
    )


def _check(row: Row, block_size: int) -> None:
    """Raise ``ValueError`` for numbers that cannot be."""
    if not 1 <= block_size < 2**62:
        raise ValueError(f"block_size is {block_size!s:.40}, expected at least 1 token")
    limits = {"input_tokens": 2**62, "output_tokens": 2**62, "prompt_blocks": len(row["blocks"])}
    for name, most in limits.items():
        if not 0 <= row[name] <= most:
            raise ValueError(f"{name} is {row[name]!s:.40}, expected 0 to {most}")
    long, held = row["input_tokens"], row["prompt_blocks"]
    # The last block may be part of one, or be left out; a prompt shorter than that may have none.
    if not (held - 1) * block_size < long < (held + 1) * block_size:
        raise ValueError(
            f"{long} tokens in {held} blocks of {block_size}: give the block_size of this file, or mend it"
        )


def _block_size(path: str, rows: Sequence[Row], given: int | None) -> int:
    """Return the one block size of a file's requests."""
    sizes = sorted({row["block_size"] for row in rows if row["block_size"] is not None})
    if len(sizes) > 1:
        raise TraceError(
            f"{path} holds blocks of {', '.join(map(str, sizes))} tokens, and a trace has blocks of one size: split "
            "the file by block_size"
        )
    if given is not None and sizes and sizes != [given]:
        raise TraceError(f"{path} holds blocks of {sizes[0]} tokens, block_size={given} was given: leave it out")
    return sizes[0] if sizes else given or 16
