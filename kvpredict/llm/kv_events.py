"""vLLM's and SGLang's KV events as requests: one for each run of blocks that the engine stored.

The engines publish batches over ZMQ as msgpack. A batch is an array of time, events and rank, or an object; an event is
an object with its ``type``, or, in older versions, an array with it in front. A line of JSON may hold any of these.
Events leave out what was hit and, in older versions, who asked. Hashes are numbers, or bytes in hex or base64; of bytes
the last 64 bits count, as where vLLM publishes numbers.

Fields: vllm/distributed/kv_events.py, read at 0.32.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

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
    """Return a parser of the events of one file."""
    above: dict[int, int | None] = {}

    def parse(timed: tuple[Any, Any]) -> Row | None:
        when, given = timed
        event = _fields(STORED, given)
        row = _row(event, above) if _stores(event) else None
        return None if row is None else row | {"time": times.seconds(when)}

    return parse


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


def _row(event: Mapping[str, Any], above: dict[int, int | None]) -> Row | None:
    hashes = needed(event, "block_hashes")
    if not isinstance(hashes, list):
        raise ValueError(f"block_hashes: expected a list, found {hashes!r:.60}")
    before = event.get("parent_block_hash")
    parent = None if before is None else _number(before)
    for number in map(_number, hashes):
        above[number] = parent
        parent = number
    if not hashes:
        return None
    chain: list[int] = []
    known = set()
    while parent is not None and parent not in known:
        known.add(parent)
        chain.append(parent)
        parent = above.get(parent)
    if parent is not None:
        raise ValueError("a block is its own ancestor")
    size = whole(event, "block_size")
    session, hints = said(event)
    return {
        "blocks": np.array(chain[::-1], np.int64),
        "block_size": size,
        "prompt_blocks": len(chain),
        "input_tokens": len(chain) * size,
        "output_tokens": 0,
        "session": session,
        "hints": hints,
    }


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
