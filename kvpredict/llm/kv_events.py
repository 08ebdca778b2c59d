"""vLLM's and SGLang's KV events as requests: those that stored blocks, put together from what was stored when.

The engines publish batches over ZMQ as msgpack. A batch is an array of time, events and rank, or an object; an event is
an object with its ``type``, or, in older versions, an array with it in front. A line of JSON may hold any of these.
Events leave out what was hit and, in older versions, who asked. Hashes are numbers, or bytes in hex or base64; of bytes
the last 64 bits count, as where vLLM publishes numbers.

A prompt is stored in pieces, by vLLM as it computes them and by SGLang in an event a page, and an answer block by
block. So what follows the last block of a request goes on with it: in the same batch always; in a later one, as more of
the prompt where it is several blocks within ``CHUNK`` seconds, as generated where it is one within ``DECODE`` seconds.
Several blocks after generated ones begin a new request, as an agent's next turn does. Hence the limits: a last piece of
a prompt that fills one block counts as generated; a turn within ``CHUNK`` seconds of an answer that filled no block
counts as more of the prompt; a piece of several blocks after one of a single block counts as a new request; and SGLang,
which stores an answer when it is complete, gives two requests, of the prompt and of both.

Fields: vllm/distributed/kv_events.py, read at 0.32; sglang/srt/mem_cache/events.py, read at 0.5.23.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kvpredict.llm.hints import said
from kvpredict.llm.request_lines import Parse, Row, needed, records, whole
from kvpredict.llm.request_times import RequestTimes
from kvpredict.trace.readers._requests import signed
from kvpredict.trace.readers._source import Source

__all__ = ["batched_events", "is_batch", "kv_events"]

BATCH = ("ts", "events", "data_parallel_rank")
STORED = (
    "type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name",
    "extra_keys", "group_idx", "kv_cache_spec_kind", "kv_cache_spec_sliding_window", "locality", "ownership",
    "session_id",
)  # fmt: skip
HEX = re.compile("(0x)?[0-9a-fA-F]+")
CHUNK, DECODE = 2.0, 10.0  # seconds
CIRCLE = "a block is its own ancestor"


def is_batch(record: Any) -> bool:
    """Tell whether a line holds a batch of events."""
    if isinstance(record, list):
        return len(record) > 1 and isinstance(record[1], list)
    return isinstance(record, dict) and "events" in record


def batched_events(source: Source) -> Iterator[tuple[str, Any]]:
    """Yield where each event stands, and its batch's time and it."""
    for where, record in records(source, (dict, list)):
        batch = _fields(BATCH, record)
        events = batch.get("events")
        if not isinstance(events, list):
            found = f"found {type(events).__name__}" if "events" in batch else "which is missing"
            source.faults.bad(where, f"expected events, a list of them, {found}")
            continue
        for event in events:
            yield where, (batch.get("ts"), event)


def kv_events(times: RequestTimes) -> Parse:
    """Return a parser of the events of one file: a row for each that begins a request, which grows as that goes on."""
    above: dict[int, int | None] = {}
    last: dict[int, _Request] = {}  # by last block, in the order of their times

    def parse(timed: tuple[Any, Any]) -> Row | None:
        when, given = timed
        event = _fields(STORED, given)
        if not _stores(event):
            return None
        numbers, parent = _numbers(event)
        if not numbers:
            return None
        about = {"block_size": whole(event, "block_size"), **dict(zip(("session", "hints"), said(event), strict=True))}
        time = times.seconds(when)
        above.update(zip(numbers, [parent, *numbers], strict=False))
        while last and last[oldest := next(iter(last))].time < time - DECODE:
            del last[oldest]
        request = None if parent is None else last.pop(parent, None)
        row = None
        if request is None or not request.goes_on(numbers, time, about):
            request = _Request(_chain(numbers[-1], above), len(numbers), time, about)
            row = request.row
        last[numbers[-1]] = request
        return row

    return parse


class _Request:
    """A row, and what came last for it: a run of blocks, all of one batch."""

    def __init__(self, blocks: list[int], run: int, time: float, about: Row) -> None:
        self.row: Row = {"blocks": blocks, "time": time, **about}
        self.known = set(blocks)
        self.time, self.run = time, run
        self.before: float | None = None  # time of the run before
        self.generated = 0  # blocks generated before the run
        self._split(len(blocks))

    def goes_on(self, numbers: list[int], time: float, about: Row) -> bool:
        """Take in the blocks that follow, unless they begin another request; that gets those of the same run too."""
        blocks, prompt, same = self.row["blocks"], self.row["prompt_blocks"], time == self.time
        if any(self.row[name] != about[name] for name in ("block_size", "session")):
            return False
        if len(set(numbers)) < len(numbers) or not self.known.isdisjoint(numbers):
            raise ValueError(CIRCLE)
        run = len(numbers) + (self.run if same else 0)
        before = self.before if same else self.time
        generated = self.generated if same else len(blocks) - prompt
        if before is None:
            fits = True
        elif run > 1:
            fits = generated == 0 and 0 <= time - before <= CHUNK
        else:
            fits = 0 <= time - before <= DECODE
        if fits:
            blocks += numbers
            self.known.update(numbers)
            self.time, self.run, self.before, self.generated = time, run, before, generated
            self._split(len(blocks) if before is None or run > 1 else prompt)
        elif same:
            del blocks[-self.run :]
            self._split(prompt)
        return fits

    def _split(self, prompt: int) -> None:
        """Count the first so many blocks as the prompt, and the others as generated."""
        row = self.row
        generated, size = len(row["blocks"]) - prompt, row["block_size"]
        row.update(prompt_blocks=prompt, input_tokens=prompt * size, output_tokens=generated * size)


def _fields(names: tuple[str, ...], given: Any) -> Mapping[str, Any]:
    """Return an object as it is, and an array of fields in their order as one."""
    if isinstance(given, list):
        return dict(zip(names, given, strict=False))  # newer versions may add some
    if not isinstance(given, dict):
        raise ValueError(f"expected an event, an object or an array, found {given!r:.60}")
    return given


def _stores(event: Mapping[str, Any]) -> bool:
    """Tell whether the event is of blocks that a request filled on the device.

    Copies in other tiers have no chain; further groups of a hybrid model's layers hold the same tokens once more.
    """
    own = event.get("medium") in (None, "GPU") and event.get("group_idx") in (None, 0)
    return event.get("type") == "BlockStored" and own


def _numbers(event: Mapping[str, Any]) -> tuple[list[int], int | None]:
    """Return an event's blocks, and the one before them."""
    hashes, before = needed(event, "block_hashes"), event.get("parent_block_hash")
    if not isinstance(hashes, list):
        raise ValueError(f"block_hashes: expected a list, found {hashes!r:.60}")
    return [_number(value) for value in hashes], None if before is None else _number(before)


def _chain(block: int | None, above: Mapping[int, int | None]) -> list[int]:
    """Return a block and those before it, as far as is known, first to last."""
    chain: dict[int, None] = {}
    while block is not None and block not in chain:
        chain[block] = None
        block = above.get(block)
    if block is not None:
        raise ValueError(CIRCLE)
    return [*chain][::-1]


def _number(value: Any) -> int:
    """Return a block's hash as a number of 64 bits."""
    if isinstance(value, str):
        try:
            raw = int(value, 16) if HEX.fullmatch(value) else _base64(value)
        except (binascii.Error, ValueError):
            raise ValueError(f"expected a block's hash, a number, hex or base64, found {value!r:.60}") from None
    elif isinstance(value, int) and not isinstance(value, bool):
        raw = value
    else:
        raise ValueError(f"expected a block's hash, a number, hex or base64, found {value!r:.60}")
    return signed(raw)


def _base64(text: str) -> int:
    # Hashes of 8, 16 and 32 bytes end in "=", so base64 is not taken for hex. Where that is left out, one of 8 bytes
    # may be, once in 100,000: it gets another number, the same wherever it stands.
    data = base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)
    if not data:
        raise ValueError("no bytes")
    return int.from_bytes(data, "big")
