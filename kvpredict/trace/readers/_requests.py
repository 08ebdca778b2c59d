"""LLM traces as JSON lines: a request a line, with the ids of its prompt's KV blocks; flattened to a request a block.

The blocks of one request stand in the order of the prompt. ``request`` numbers the requests, ``depth`` is a block's
place in its prompt from 0, and what the line says of the request is repeated for each of its blocks.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kvpredict.trace.readers._format import BadRecord, Chunk, Head, Text, ticks_in
from kvpredict.trace.readers._source import Source

__all__ = ["block_ids", "first_records", "looks_like_requests", "read_requests", "request_of", "signed"]


def first_records(head: Head) -> Iterator[Any]:
    """Yield what those of the first five lines that are JSON hold."""
    for line in [head.line] if head.line else head.lines[:5]:
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            continue


def looks_like_requests(head: Head) -> set[str]:
    """Return the field names of the first request, when the lines are such requests."""
    records = (record for record in first_records(head) if isinstance(record, dict) and "hash_ids" in record)
    return set(next(records, ()))


def read_requests(source: Source, kinds: Mapping[str, type], unit: str) -> Iterator[Chunk]:
    """Yield the blocks of all requests.

    Parameters
    ----------
    kinds : mapping of field name to int, float or str
        What lines say of a request; ``timestamp``, ``input_length`` and ``output_length`` are among them and must be
        there. Another field that a line lacks is 0 or "".
    unit : {"s", "ms", "us", "ns"}
        Of ``timestamp``.
    """
    ticks = ticks_in(unit)
    number = empty = 0
    for lines in source.lines():
        rows: list[tuple[Any, ...]] = []
        ids: list[np.ndarray] = []
        for i, line in enumerate(lines.data.split(b"\n")):
            if not line.strip():
                continue
            try:
                row, keys = _request(line, kinds)
            except BadRecord as error:
                source.faults.bad(f"line {lines.first + i}", str(error))
                source.faults.weigh(number)
                continue
            rows.append((number, *row))
            ids.append(keys)
            number += 1
            empty += keys.size == 0
            source.info["requests"], source.info["empty"] = number, empty  # those without blocks cannot be told later
        if not rows:
            continue
        counts = np.array([keys.size for keys in ids])
        which = np.repeat(np.arange(counts.size), counts)
        columns = list(zip(*rows, strict=True))
        starts = np.cumsum(counts) - counts
        chunk: Chunk = {
            "key": np.concatenate(ids),
            "request": np.array(columns[0], np.int64)[which],
            "depth": np.arange(which.size) - starts[which],
        }
        for (name, kind), values in zip(kinds.items(), columns[1:], strict=True):
            if name == "timestamp":
                chunk["time"] = (np.array(values, np.float64) / ticks)[which]
            elif kind is str:
                known = sorted(set(values))
                codes = {text: code for code, text in enumerate(known)}
                chunk[name] = Text(
                    np.array([codes[v] for v in values], np.int32)[which], [t.encode("utf-8", "replace") for t in known]
                )
            else:
                chunk[name] = np.array(values, np.int64)[which]
        yield chunk


def _request(line: bytes, kinds: Mapping[str, type]) -> tuple[list[Any], np.ndarray]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"expected one JSON object, found {line[:80]!r} ({error})") from None
    if not isinstance(record, dict):
        raise BadRecord(f"expected a JSON object, found {line[:80]!r}")
    return request_of(record, kinds)


def request_of(record: Mapping[str, Any], kinds: Mapping[str, type]) -> tuple[list[Any], np.ndarray]:
    """Return the values of ``kinds``, in their order, and the blocks of one request; raises ``BadRecord``."""
    ids = block_ids("hash_ids", record)
    row = []
    for name, kind in kinds.items():
        value = record.get(name, 0 if kind is not str else "")
        if kind is str:
            fits = isinstance(value, str)
        else:
            fits = type(value) in (int, float) and abs(value) < 2**62 and (kind is float or value == int(value))
        count = name in ("input_length", "output_length")
        required = count or name == "timestamp"
        if not fits or (required and name not in record) or (count and value < 0):
            kind_of = "a text" if kind is str else "a whole number, at least 0" if count else "a number"
            found = f"found {record[name]!r:.80}" if name in record else "which is missing"
            raise BadRecord(f"expected {name}, {kind_of}, {found}")
        row.append(value)
    return row, ids


def block_ids(name: str, record: Mapping[str, Any]) -> np.ndarray:
    """Return the field ``name`` of a record, a list of block ids, signed or not, as int64; raises ``BadRecord``."""
    ids = record.get(name)
    if not isinstance(ids, list) or not all(type(k) is int and -(2**63) <= k < 2**64 for k in ids):
        raise BadRecord(f"expected {name}, a list of 64-bit integers")
    return np.array([signed(k) for k in ids], np.int64)


def signed(number: int) -> int:
    """Return the last 64 bits of a whole number as a signed one."""
    return (number + 2**63) % 2**64 - 2**63
