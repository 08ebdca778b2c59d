"""read_requests: a file of LLM requests, whoever wrote it, as a ``RequestTrace``; only hashes of content come out.

Five kinds of JSON lines are told apart by their first line: Mooncake's and Qwen-Bailian's traces; ``RequestLog``, which
the engine adapters write; vLLM's KV events; and logs of chat requests as the OpenAI API takes them, which need a
tokenizer. Any of them may be compressed with gzip, xz, zstd or bzip2.
"""

import json
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kvpredict.core.errors import KvpredictError, TraceError, unknown_name
from kvpredict.llm.blocks import block_hashes
from kvpredict.llm.hints import FINISH, HINTS, hints_of, session_of
from kvpredict.llm.request_times import RequestTimes
from kvpredict.llm.requests import RequestTrace
from kvpredict.trace.read import read_trace
from kvpredict.trace.readers._source import Source

__all__ = ["RequestLog", "read_requests"]

Tokenize = Callable[[str], Sequence[int]]


def read_requests(
    path: str | os.PathLike[str],
    *,
    block_size: int | None = None,
    tokenize: Tokenize | None = None,
    continues: Callable[[str], float] | None = None,
    time_unit: str | None = None,
    on_error: str = "raise",
) -> RequestTrace:
    """Read a file of requests.

    A line of a chat log has ``messages`` (objects with ``role`` and ``content``) and a time: ``timestamp``, ``time`` or
    ``created``, a number (see ``time_unit``) or an ISO 8601 text. It may have ``session_id`` or ``conversation_id``,
    ``kv_transfer_params`` with hints, and of the answer ``usage.completion_tokens`` and ``finish_reason``, where the
    API puts them or under ``response``. Mooncake's lines have ``timestamp``, ``input_length``, ``output_length`` and
    ``hash_ids``.

    Parameters
    ----------
    path : str or path
    block_size : int, optional
        Tokens a block. Default: the format's (512 Mooncake, 16 Bailian and chat logs, else what the file says; another
        size than that is refused).
    tokenize : callable of str to a sequence of int, optional
        For chat logs: a tokenizer's ``encode``. Neither text nor tokens are kept.
    continues : callable of str to float, optional
        For chat logs: probability that the session goes on, from the last message (``continuation.Continuation``).
    time_unit : {"s", "ms", "us", "ns"}, optional
        Of times that are numbers. Default: milliseconds in Mooncake's format, seconds in Bailian's; else told for the
        whole file by its first number taken as time since 1970: below 1e11 seconds, from there on milliseconds, from
        1e14 microseconds, from 1e17 nanoseconds. A later number of another magnitude does not fit.
    on_error : {"raise", "skip"}, default "raise"
        ``"skip"`` leaves out lines that do not fit, logs once how many, and counts them in ``info["skipped"]``. A file
        most of whose lines do not fit is refused all the same.

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
    times = RequestTimes(time_unit)
    if block_size is not None and (isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1):
        raise TraceError(f"block_size must be a whole number of tokens, got {block_size!r}")
    with Source(path, on_error, progress=False) as source:
        first = _first(source)
        name = Path(os.fspath(path)).name.partition(".")[0]
        if "hash_ids" in first:
            trace = read_trace(path, order="sort", time_unit=time_unit, on_error=on_error)
            return RequestTrace.from_trace(trace, block_size, on_error=on_error)
        if "events" in first:
            rows = _events(source, times)
        elif "blocks" in first:
            rows = _log(source, times)
        elif "messages" in first:
            if tokenize is None:
                raise TraceError(
                    f"{source.path} holds chat requests: give tokenize=, such as a tokenizer's encode "
                    "(pipeline.tokenizer= on the command line)"
                )
            _check_tokenize(tokenize)
            rows = _chats(source, times, tokenize, block_size or 16, continues)
        else:
            raise TraceError(
                f"{source.path}, line 1: expected a request with hash_ids, blocks, events or messages, "
                f"found the fields {', '.join(sorted(first))}"
            )
        if not rows:
            first_fault = f"; the first fault is at {source.faults.first}" if source.faults.first else ""
            raise TraceError(f"{source.path} holds no request{first_fault}")
        rows.sort(key=lambda row: row["time"])
        size = _block_size(source.path, rows, block_size)
        info = {"path": source.path, "compression": source.compression, "skipped": source.faults.skipped}
    return _trace(rows, size, name, info)


class RequestLog:
    """Appends one line a request to a file that ``read_requests`` reads; made for engine adapters.

    Parameters
    ----------
    path : str or path
    block_size : int
        Tokens a block.
    """

    def __init__(self, path: str | os.PathLike[str], block_size: int) -> None:
        self.block_size = block_size
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
        """Write a request that has ended: ``time`` is its arrival in seconds, ``blocks`` 64-bit ids."""
        row: dict[str, Any] = {
            "time": time,
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


def _first(source: Source) -> Mapping[str, Any]:
    if b"\n" not in source.head.data and not source.head.whole:
        raise TraceError(f"{source.path}, line 1: no end of line within {len(source.head.data)} bytes")
    for line in source.head.lines[:5]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and record:
            return record
    raise TraceError(f"{source.path}: expected requests, a JSON object a line, found {source.head.data[:60]!r}")


def _check_tokenize(tokenize: Tokenize) -> None:
    found = tokenize("What is a KV cache?") if callable(tokenize) else tokenize
    try:
        [operator.index(t) for t in found]
    except TypeError:
        raise TraceError(
            f"tokenize must return token ids, as a tokenizer's encode does, it gave {found!r:.60}"
        ) from None


def _records(source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for lines in source.lines():
        for i, line in enumerate(lines.data.split(b"\n")):
            if not line.strip():
                continue
            where = f"line {lines.first + i}"
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("not an object")
            except (ValueError, RecursionError) as error:
                source.faults.bad(where, f"expected a JSON object, found {line[:60]!r} ({error})")
                continue
            yield where, record


def _rows(source: Source, parse: Callable[[Mapping[str, Any]], dict[str, Any] | None]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for where, record in _records(source):
        try:
            row = parse(record)
            if row is not None:
                _check(row)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, KvpredictError) as error:
            what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            source.faults.bad(where, f"the request does not fit: {what}")
            source.faults.weigh(len(rows))
            continue
        if row is not None:
            rows.append(row)
    source.faults.report(len(rows))
    return rows


def _check(row: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for numbers that cannot be."""
    limits = {"input_tokens": 2**62, "output_tokens": 2**62, "prompt_blocks": len(row["blocks"])}
    for name, most in limits.items():
        if not 0 <= row[name] <= most:
            raise ValueError(f"{name} is {row[name]}, expected 0 to {most}")
    if not -(2**63) <= (row.get("session") or 0) < 2**63:
        raise ValueError(f"session is {row['session']}, expected a number of 64 bits")
    if row["block_size"] is not None and not 1 <= row["block_size"] < 2**62:
        raise ValueError(f"block_size is {row['block_size']}, expected at least 1 token")


def _block_size(path: str, rows: Sequence[Mapping[str, Any]], given: int | None) -> int:
    """Return the one block size of a file's requests."""
    sizes = sorted({int(row["block_size"]) for row in rows if row["block_size"] is not None})
    if len(sizes) > 1:
        raise TraceError(
            f"{path} holds blocks of {', '.join(map(str, sizes))} tokens, and a trace has blocks of one size: split "
            "the file by block_size"
        )
    if given is not None and sizes and sizes != [given]:
        raise TraceError(f"{path} holds blocks of {sizes[0]} tokens, block_size={given} was given: leave it out")
    return sizes[0] if sizes else given or 16


def _whole(value: Any) -> int:
    """Return a whole number; ``ValueError`` for 1.5, "7" and True."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError(f"expected a whole number, found {value!r:.60}")
    return int(value)


def _log(source: Source, times: RequestTimes) -> list[dict[str, Any]]:
    def parse(record: Mapping[str, Any]) -> dict[str, Any]:
        row = dict(record)
        row["time"] = times.seconds(row["time"])
        row["blocks"] = np.array(row["blocks"], np.int64)
        for name in ("prompt_blocks", "input_tokens", "output_tokens"):
            row[name] = _whole(row[name])
        for name in ("session", "block_size"):
            row[name] = None if row.get(name) is None else _whole(row[name])
        row["hints"] = hints_of({"kvpredict": row["hints"]}) if row.get("hints") else {}
        return row

    return _rows(source, parse)


def _events(source: Source, times: RequestTimes) -> list[dict[str, Any]]:
    """Return a request for each run of blocks that vLLM stored; events leave out what was hit and who asked."""
    above: dict[int, int | None] = {}

    def number(value: Any) -> int:
        text = value if isinstance(value, int) else int(str(value), 16)
        return (text + 2**63) % 2**64 - 2**63

    rows: list[dict[str, Any]] = []
    for where, record in _records(source):
        events = record.get("events", [])
        if not isinstance(events, list):
            source.faults.bad(where, f"expected a list of events, found {type(events).__name__}")
            continue
        for event in events:
            try:
                if event.get("type") != "BlockStored":
                    continue
                before = event.get("parent_block_hash")
                parent = None if before is None else number(before)
                for value in event["block_hashes"]:
                    above[number(value)] = parent
                    parent = number(value)
                chain: list[int] = []
                known = set()
                while parent is not None and parent not in known:
                    known.add(parent)
                    chain.append(parent)
                    parent = above.get(parent)
                if parent is not None:
                    raise ValueError("a block is its own ancestor")
                size = _whole(event["block_size"])
                row = {
                    "time": times.seconds(record["ts"]),
                    "blocks": np.array(chain[::-1], np.int64),
                    "block_size": size,
                    "prompt_blocks": len(chain),
                    "input_tokens": len(chain) * size,
                    "output_tokens": 0,
                }
                _check(row)
                rows.append(row)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                source.faults.bad(where, f"the KV event does not fit: {error!r}")
                source.faults.weigh(len(rows))
    source.faults.report(len(rows))
    return rows


def _chats(
    source: Source,
    times: RequestTimes,
    tokenize: Tokenize,
    block_size: int,
    continues: Callable[[str], float] | None,
) -> list[dict[str, Any]]:
    sessions: dict[str, int] = {}

    def parse(record: Mapping[str, Any]) -> dict[str, Any]:
        messages = record["messages"]
        if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
            raise ValueError(f"messages must be a list of objects with role and content, found {messages!r:.60}")
        # The roles' marks stand for a chat template: they keep messages apart, and prefixes of turns alike.
        text = [f"<|{m['role']}|>{_content(m.get('content'))}{_rest(m)}" for m in messages]
        if record.get("tools"):  # templates put them first
            text.insert(0, f"<|tools|>{_json(record['tools'])}")
        tokens = [int(t) for part in text for t in tokenize(part)]
        reply = record.get("response") or record
        reply = {"choices": None, **(reply.get("body") or reply)}
        usage = record.get("usage") or reply.get("usage") or {}
        ended = record.get("finish_reason") or (reply["choices"] or [{}])[0].get("finish_reason")
        params = record.get("kv_transfer_params")
        names = record.get("session_id"), record.get("conversation_id"), session_of(params)
        named = next((name for name in names if name is not None), None)
        hints = hints_of(params)
        if ended in FINISH:
            hints.setdefault("finish", float(FINISH.index(ended)))
        if continues is not None and messages:
            hints.setdefault("continues", continues(_content(messages[-1].get("content"))))
        when = next((record[k] for k in ("timestamp", "time", "created") if k in record), None)
        return {
            "time": times.seconds(when),
            "blocks": block_hashes(tokens, block_size),
            "prompt_blocks": len(tokens) // block_size,
            "block_size": block_size,
            "input_tokens": len(tokens),
            "output_tokens": int(usage.get("completion_tokens") or 0),
            "session": None if named is None else sessions.setdefault(str(named), len(sessions)),
            "hints": hints,
        }

    return _rows(source, parse)


def _content(content: Any) -> str:
    """Return the text of a message, whose content may be a list of parts; one that is no text is given as JSON."""
    if isinstance(content, list):
        return "".join(str(part["text"]) if "text" in part else _json(part) for part in content)
    return "" if content is None else str(content)


def _rest(message: Mapping[str, Any]) -> str:
    """Return what a template shows of a message beside its content, such as the calls of tools."""
    rest = {name: value for name, value in message.items() if name not in ("role", "content") and value}
    return _json(rest) if rest else ""


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _trace(rows: list[dict[str, Any]], block_size: int, name: str, info: Mapping[str, Any]) -> RequestTrace:
    hints = {}
    for hint in HINTS:
        if any(hint in (row.get("hints") or {}) for row in rows):
            hints[hint] = np.array([(row.get("hints") or {}).get(hint, np.nan) for row in rows], np.float64)
    given = [row.get("session") for row in rows]
    sessions = np.array([-1 if s is None else int(s) for s in given], np.int64)
    return RequestTrace.from_lists(
        [row["time"] for row in rows],
        [row["blocks"] for row in rows],
        block_size,
        [int(row["input_tokens"]) for row in rows],
        [int(row["output_tokens"]) for row in rows],
        prompt_blocks=np.array([int(row["prompt_blocks"]) for row in rows], np.int64),
        sessions=sessions if (sessions >= 0).any() else None,
        hints=hints,
        name=name,
        info=info,
    )
