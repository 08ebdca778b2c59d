"""read_requests: a file of LLM requests, whoever wrote it, as a ``RequestTrace``; only hashes of content come out.

Five kinds of JSON lines are told apart by their first line: Mooncake's and Qwen-Bailian's traces; ``RequestLog``, which
the engine adapters write; the KV events of vLLM and SGLang; and logs of chat requests, which need a tokenizer. Any of
them may be compressed with gzip, xz, zstd or bzip2.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kvpredict.cache.arguments import plain_function
from kvpredict.core.errors import TraceError, unknown_name
from kvpredict.llm.chat_logs import Tokenize, chats, check_tokenize, holds_messages
from kvpredict.llm.hints import said
from kvpredict.llm.kv_events import batched_events, is_batch, kv_events
from kvpredict.llm.request_lines import Parse, Row, as_trace, needed, read_rows, records, whole
from kvpredict.llm.request_times import RequestTimes
from kvpredict.llm.requests import RequestTrace
from kvpredict.trace.readers import bailian, mooncake
from kvpredict.trace.readers._format import Head
from kvpredict.trace.readers._requests import block_ids, first_records, request_of
from kvpredict.trace.readers._source import LONGEST, Source

__all__ = ["RequestLog", "read_requests", "request_format"]

FIELDS = {"mooncake": mooncake.KINDS, "bailian": bailian.KINDS}
BLOCK_SIZES = {"mooncake": 512, "bailian": 16}  # tokens
UNITS = {"mooncake": "ms", "bailian": "s"}
LATE = 3600.0  # seconds by which a request may outlast one that arrived after it
log = logging.getLogger("kvpredict.trace")


def read_requests(
    path: str | os.PathLike[str],
    *,
    block_size: int | None = None,
    tokenize: Tokenize | None = None,
    continues: Callable[[str], float] | None = None,
    texts: bool = False,
    time_unit: str | None = None,
    on_error: str = "raise",
) -> RequestTrace:
    """Read a file of requests.

    A line of a chat log has ``messages`` (objects with ``role`` and ``content``), itself or under ``request``, ``body``
    or ``params``, and a time: ``timestamp``, ``time``, ``created`` or ``created_at``, a number (see ``time_unit``) or
    an ISO 8601 text. If the first line has none, no line may, and requests are taken a second apart. Of the answer it
    may have ``usage.completion_tokens`` and ``finish_reason``, where the APIs put them or under ``response``.
    Mooncake's lines have ``timestamp``, ``input_length``, ``output_length`` and ``hash_ids``; one whose ``hash_ids`` is
    empty is a request without blocks. In every format a line may name its session and hints (``hints.said``).

    Parameters
    ----------
    path : str or path
    block_size : int, optional
        Tokens a block. Default: the format's (512 Mooncake, 16 Bailian and chat logs, else what the file says; another
        size than that is refused).
    tokenize : callable of str to a sequence of int, optional
        For chat logs: a tokenizer's ``encode``. Neither text nor tokens are kept.
    continues : callable of str to float, optional
        For chat logs: probability that the session goes on, from the last message (``continuation.Continuation``);
        where the line says one, that holds.
    texts : bool, default False
        For chat logs: keep each request's last message, in memory, as ``RequestTrace.texts``, to train ``continues``.
    time_unit : {"s", "ms", "us", "ns"}, optional
        Of times that are numbers. Default: milliseconds in Mooncake's format, seconds in Bailian's; else told for the
        whole file by its first number taken as time since 1970: below 1e11 seconds, from there on milliseconds, from
        1e14 microseconds, from 1e17 nanoseconds. A later number of another magnitude does not fit.
    on_error : {"raise", "skip"}, default "raise"
        ``"skip"`` leaves out lines that do not fit, logs once how many, and counts them in ``info["skipped"]``. A file
        most of whose lines, and more than 1000, do not fit is refused all the same.

    Returns
    -------
    RequestTrace
        ``info`` has ``path``, ``format`` (mooncake, bailian, request_log, kv_events or chat), ``compression``,
        ``skipped``, ``requests``, ``reordered`` (requests that stood later in the file than one of a later time), and
        for Mooncake and Bailian ``empty``: how many of the requests have no blocks.

    Raises
    ------
    TraceError
        On a file that is missing, damaged or of none of these kinds: names the file, the line, and what was expected.
        On a tokenizer that does not return token ids, a block size that is no whole number, or one that is not the
        file's, and on a file with blocks of several sizes.
    UnknownName
        On an ``on_error`` or ``time_unit`` that does not exist.
    """
    if on_error not in ("raise", "skip"):
        raise unknown_name("on_error", on_error, ("raise", "skip"))
    if block_size is not None and (isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1):
        raise TraceError(f"block_size must be a whole number of tokens, got {block_size!r}")
    with Source(path, on_error, progress=False) as source:
        kind = request_format(source.head)
        if kind is None:
            raise TraceError(_expected(source))
        times = RequestTimes(time_unit or UNITS.get(kind))
        if kind in BLOCK_SIZES:
            block_size = block_size or BLOCK_SIZES[kind]
            parse = _hashed(FIELDS[kind], times, block_size)
        elif kind == "kv_events":
            parse = kv_events(times)
        elif kind == "request_log":
            parse = _logged(times)
        elif tokenize is None:
            raise TraceError(
                f"{source.path} holds chat requests: give tokenize=, such as a tokenizer's encode "
                "(pipeline.tokenizer= on the command line)"
            )
        else:
            check_tokenize(tokenize)
            if continues is not None:
                plain_function("continues", continues)
            parse = chats(source.path, times, tokenize, block_size or 16, continues, texts)
        items = batched_events(source) if kind == "kv_events" else records(source)
        rows = read_rows(source, items, parse, block_size or 16)
        if not rows:
            first_fault = f"; the first fault is at {source.faults.first}" if source.faults.first else ""
            raise TraceError(f"{source.path} holds no request{first_fault}")
        if kind == "bailian":
            _name_by_chat(rows)
        info = {
            "path": source.path,
            "format": kind,
            "compression": source.compression,
            "skipped": source.faults.skipped,
            "requests": len(rows),
        }
        if kind in BLOCK_SIZES:
            info["empty"] = sum(len(row["blocks"]) == 0 for row in rows)
        if kind == "request_log":
            _weigh_order(source.path, rows)
        return as_trace(source.path, rows, block_size, source.stem, info)


class RequestLog:
    """Appends one line a request to a file that ``read_requests`` reads; made for engine adapters.

    Times in the file are seconds since 1970: the wall clock's when the log is opened, and from then on what ``clock``
    counts, which nobody sets back. So runs that go on in one file follow each other there, whatever their clocks
    counted from.

    Parameters
    ----------
    path : str or path
    block_size : int
        Tokens a block.
    clock : callable, optional
        That of the times given to ``write``, in seconds from any start. Default: they are since 1970 already.
    """

    def __init__(self, path: str | os.PathLike[str], block_size: int, clock: Callable[[], float] | None = None) -> None:
        self.block_size = block_size
        self._began = 0.0 if clock is None else time.time() - clock()
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 - as long as the engine runs; whole lines

    def write(
        self,
        time: float,
        blocks: Sequence[int],
        *,
        prompt_blocks: int,
        input_tokens: int,
        output_tokens: int,
        session: int | None = None,
        hints: Mapping[str, float] | None = None,
    ) -> None:
        """Write a request that has ended: ``time`` is its arrival by the clock, ``blocks`` 64-bit ids."""
        row: dict[str, Any] = {
            "time": self._began + time,
            "block_size": self.block_size,
            "blocks": [int(b) for b in blocks],
            "prompt_blocks": prompt_blocks,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
        }
        if session is not None:
            row["session"] = session
        if hints:
            row["hints"] = dict(hints)
        self._file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        self._file.close()


KINDS: dict[str, Callable[[Any], bool]] = {
    "bailian": lambda record: isinstance(record, dict) and {"hash_ids", "chat_id", "parent_chat_id"} <= set(record),
    "mooncake": lambda record: isinstance(record, dict) and "hash_ids" in record,
    "kv_events": is_batch,
    "request_log": lambda record: isinstance(record, dict) and "blocks" in record,
    "chat": holds_messages,
}


def request_format(head: Head) -> str | None:
    """Return which kind of request file it is, told by its first line of JSON; None for none of ``KINDS``."""
    first = next((record for record in first_records(head) if record), None)
    return next((kind for kind, fits in KINDS.items() if fits(first)), None)


def _expected(source: Source) -> str:
    """Return what is to be said of a file that holds no requests."""
    if len(source.head.line) >= LONGEST:
        return f"{source.path}, line 1: no end of line within {len(source.head.line)} bytes"
    first = next((record for record in first_records(source.head) if isinstance(record, dict) and record), None)
    if first is None:
        return f"{source.path}: expected requests, a JSON object a line, found {source.head.data[:60]!r}"
    return (
        f"{source.path}, line 1: expected a request with hash_ids, blocks, events or messages, "
        f"found the fields {', '.join(sorted(first))}"
    )


def _hashed(kinds: Mapping[str, type], times: RequestTimes, block_size: int) -> Parse:
    """Return a parser of Mooncake's and Bailian's lines; ``kinds`` are the fields that their readers know."""
    types: dict[str, int] = {}

    def parse(record: Mapping[str, Any]) -> Row:
        values, ids = request_of(record, kinds)
        known = dict(zip(kinds, values, strict=True))
        session, hints = said(record)
        row = {
            "time": times.seconds(known["timestamp"]),
            "blocks": ids,
            "block_size": block_size,
            "prompt_blocks": len(ids),
            "input_tokens": int(known["input_length"]),
            "output_tokens": int(known["output_length"]),
            "session": session,
            "hints": hints,
        }
        if "chat_id" in known:
            row["chat"] = int(known["chat_id"]), int(known["parent_chat_id"])
            hints.setdefault("kind", float(types.setdefault(known["type"], len(types))))
        return row

    return parse


def _name_by_chat(rows: Sequence[Row]) -> None:
    """Give the turns that name no session that of the turn before, and a chat's first its own number."""
    roots: dict[int, int] = {}
    for row in sorted(rows, key=lambda row: row["time"]):
        own, before = row["chat"]
        if row["session"] is None:
            row["session"] = roots.get(before, own)
        roots[own] = row["session"]


def _weigh_order(path: str, rows: Sequence[Row]) -> None:
    """Warn of a log whose lines, which stand in the order of their requests' ends, cannot be of one clock."""
    times = np.array([row["time"] for row in rows])
    behind = int(np.count_nonzero(np.maximum.accumulate(times) - times > LATE))
    if behind:
        log.warning(
            "%s: %d of %d requests are more than an hour earlier than one above them, as where runs by different "
            "clocks go on in one file: they are sorted by time and lie among each other; give each run its own file",
            path, behind, len(rows),
        )  # fmt: skip


def _logged(times: RequestTimes) -> Parse:
    """Return a parser of the lines that ``RequestLog`` writes."""

    def parse(record: Mapping[str, Any]) -> Row:
        session, hints = said(record)
        counted = {name: whole(record, name) for name in ("prompt_blocks", "input_tokens", "output_tokens")}
        return {
            "time": times.seconds(needed(record, "time")),
            "blocks": block_ids("blocks", record),
            "block_size": None if record.get("block_size") is None else whole(record, "block_size"),
            "session": session,
            "hints": hints,
            **counted,
        }

    return parse
