"""Snapshots: the contents of a cache and what its policy knows, in a file, so that a restart does not start cold.

Into a cache with the same policy and capacity everything goes back to where it was, the policy's state included, and
the cache decides on as if it had never stopped; its clock goes on from then plus the time that has passed since. That
needs keys whose numbers are the same in every process: integers, or a ``key_hash``. Otherwise entries are put in in the
order in which the old policy would have evicted them.

The file is written beside its place and moved there when it is whole, so a process that is killed while it writes
leaves the old snapshot, and a damaged one is refused.
"""

import contextlib
import hashlib
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvpredict.cache.cache import Cache
from kvpredict.cache.codec import Codec
from kvpredict.cache.entry import make_entry
from kvpredict.cache.errors import CodecError, SnapshotError
from kvpredict.cache.expiry import NEVER, Held
from kvpredict.cache.loading import Failure
from kvpredict.cache.ranking import DRAIN, SLOT_BITS, TAKE
from kvpredict.cache.stats import Marks
from kvpredict.core.errors import KvpredictError
from kvpredict.core.place import file_place

__all__ = ["Restored", "load_snapshot", "save_snapshot"]

VERSION = 1
HOST = ("key", "size", "hint", "extra", "live", "free", "counts")


class Restored(NamedTuple):
    """What came of a restore: entries put in, those whose time was over, and whether the policy's state came back."""

    entries: int
    expired: int
    exact: bool
    reason: str  # why the state did not


def save_snapshot(cache: Cache[Any, Any], path: str | Path, *, codec: Codec | None = None) -> int:
    """Write the cache's entries and its policy's state to ``path``; return the entries written.

    The cache's lock is held while references are copied, about 1 µs an entry, and not while values are encoded. Entries
    that the codec cannot encode are left out, and so are kept failures.

    A symbolic link is followed.

    Raises
    ------
    SnapshotError
        When the file cannot be written, or ``path`` is no regular file; an older one stays.
    """
    if not isinstance(cache, Cache):
        raise KvpredictError(f"cache must be a Cache, got {type(cache).__name__}")
    codec = Codec() if codec is None else codec
    path = Path(path)
    copied = _copy(cache)
    rows = []
    for key, value, slot, dates in copied.pop("entries"):
        with contextlib.suppress(CodecError):
            rows.append((codec.encode_key(key), codec.encode(value), slot, *dates))
    data = codec.encode({**copied, "version": VERSION, "rows": rows})
    partial = None
    try:
        place = file_place(path)
        partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
        for left in place.parent.glob(f".{place.name}.*.partial"):  # by a process that was killed
            left.unlink(missing_ok=True)
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, place)
    except OSError as error:
        if partial is not None:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        raise SnapshotError(
            f"the snapshot {path} cannot be written: {error.strerror or error}; an older one stays as it was"
        ) from None
    return len(rows)


def load_snapshot(cache: Cache[Any, Any], path: str | Path, *, codec: Codec | None = None) -> Restored:
    """Put a snapshot's entries into an empty cache, with the policy's state where it fits.

    Raises
    ------
    SnapshotError
        When the file cannot be read or is damaged; the cache is as it was.
    KvpredictError
        When the cache is not empty.
    """
    if not isinstance(cache, Cache):
        raise KvpredictError(f"cache must be a Cache, got {type(cache).__name__}")
    codec = Codec() if codec is None else codec
    try:
        kept = codec.decode(Path(path).read_bytes())
        rows = [(codec.decode_key(key), codec.decode(value), *rest) for key, value, *rest in kept["rows"]]
    except OSError as error:
        raise SnapshotError(f"the snapshot {path} cannot be read: {error.strerror or error}") from None
    except (CodecError, KeyError, TypeError, ValueError) as error:
        raise SnapshotError(f"{path} is no snapshot that this codec reads: {error}; start without it") from None
    if kept.get("version") != VERSION:
        raise SnapshotError(f"the snapshot {path} is of version {kept.get('version')}, and {VERSION} is read here")
    cache.ready()  # the state is that of the policy asked for
    away = max(0.0, time.time() - kept["wall"])
    alive = [row for row in rows if all(rest - away > 0 for rest in row[3:5])]
    with cache._lock:
        if len(cache) or cache._busy:
            raise KvpredictError("a snapshot goes into an empty cache: clear it first")
        reason = _misfit(cache, kept, rows)
        if not reason:
            try:
                cache._exclusively(_put_back, cache, kept, alive, away)
            except BaseException:  # the policy's state may be half written
                cache._start_over()
                raise
    if reason:
        _put_in(cache, kept, alive, away)
    return Restored(len(cache), len(rows) - len(alive), not reason, reason)


def _copy(cache: Cache[Any, Any]) -> dict[str, Any]:
    """Return what is to be written, as references to values and copies of arrays."""
    now = float(cache._clock())
    with cache._lock:
        if cache._busy:
            raise KvpredictError("a snapshot was asked for from within another call of the cache")
        cache._exclusively(cache._serve, DRAIN, now)
        ranking = cache._ranking
        now = ranking.told
        order = ranking.eviction_order(now)
        entries = []
        for slot in order.tolist():
            key = cache._key_in[slot]
            entry = cache._entries[key]
            value = entry.value
            dates: tuple[Any, ...] = (NEVER, NEVER, NEVER, 0.0, None, ())
            if type(value) is Held:
                if type(value.value) is Failure or value.gone(now):
                    continue
                dates = (
                    *(value.deadline - now, value.rests_at - now, value.refresh_at - now),
                    *(value.idle, value.version, value.tags),
                )
                value = value.value
            entries.append((key, value, slot, dates))
        return {
            "entries": entries,
            "policy": ranking.policy.name,
            "capacity": ranking.capacity,
            "slots": ranking.slots,
            "made": _digest(cache),
            "state": [leaf.copy() for leaf in _leaves(ranking.state)],
            "host": [getattr(ranking.host, name).copy() for name in HOST],
            "generation": ranking.generation.copy(),
            "clock": now,
            "wall": time.time(),
        }


def _misfit(cache: Cache[Any, Any], kept: dict[str, Any], rows: list[Any]) -> str:
    """Return why the state of the snapshot cannot be the cache's, or nothing."""
    ranking = cache._ranking
    if kept["policy"] != ranking.policy.name:
        return f"its policy is {kept['policy']}, not {ranking.policy.name}"
    if kept["capacity"] != ranking.capacity:
        return f"its capacity is {kept['capacity']}, not {ranking.capacity}"
    if cache._grows and kept["slots"] > ranking.slots:
        cache._exclusively(cache._carry, ranking.policy, kept["slots"], cache._ranking.told)
        ranking = cache._ranking
    if kept["slots"] != ranking.slots:
        return f"it has {kept['slots']} slots, not {ranking.slots}"
    if kept["made"] != _digest(cache):
        return "its policy has other parameters, another seed or another model"
    numbers = kept["host"][0]
    if any(cache._prepare(row[0], None, 1, 1.0, _no_extra(ranking))[0] != numbers[row[2]] for row in rows):
        return "its keys have other numbers in this process: use integers, or key_hash=kvpredict.cache.stable_hash"
    return ""


def _put_back(cache: Cache[Any, Any], kept: dict[str, Any], rows: list[Any], away: float) -> None:
    """Make the cache what it was; called under its lock."""
    ranking = cache._ranking
    for leaf, saved in zip(_leaves(ranking.state), kept["state"], strict=True):
        leaf[...] = saved
    for name, saved in zip(HOST, kept["host"], strict=True):
        getattr(ranking.host, name)[...] = saved
    ranking.generation[...] = kept["generation"]
    ranking.retrain()
    base, shift = cache._clock, kept["clock"] + away - float(cache._clock())
    cache._clock = lambda: base() + shift
    ranking.clock[0] = now = kept["clock"] + away
    cache._marks = Marks(now)
    empty = set(np.flatnonzero(ranking.host.live).tolist())
    for row in rows:
        key, value, slot = row[:3]
        empty.discard(slot)
        ticket = float((int(ranking.generation[slot]) << SLOT_BITS) | slot)
        held = _held(cache, value, row[3:], now, away)
        cache._entries[key] = make_entry(ticket, held)
        cache._key_in[slot] = key
        if type(held) is Held:
            for tag in held.tags:
                cache._tagged.setdefault(tag, set()).add(key)
    for slot in empty:  # of entries that are over, or could not be written
        cache._serve(TAKE, now, slot)


def _put_in(cache: Cache[Any, Any], kept: dict[str, Any], rows: list[Any], away: float) -> None:
    """Put the entries in one by one, what the old policy held dearest last."""
    now = float(cache._clock())
    sizes, costs = kept["host"][1], kept["host"][2]
    for row in rows:
        key, value, slot = row[:3]
        extra = _no_extra(cache._ranking)
        arguments = cache._prepare(key, value, int(sizes[slot]), float(costs[slot]), extra)
        held = _held(cache, value, row[3:], now, away)
        with cache._lock:
            cache._exclusively(cache._put, key, held, *arguments)
    cache._aftermath(None, None)


def _held(cache: Cache[Any, Any], value: Any, dates: Any, now: float, away: float) -> Any:
    deadline, rests_at, refresh_at, idle, version, tags = dates
    if deadline == rests_at == NEVER and version is None and not tags:
        return value
    held = Held(value)
    held.deadline, held.rests_at, held.refresh_at = (now - away + rest for rest in (deadline, rests_at, refresh_at))
    held.gone_at = held.deadline + cache._expiry.stale
    held.idle, held.version, held.tags = idle, version, tuple(tags)
    cache._watchful = True
    cache._noting = cache._noting or bool(tags)
    cache._dated = cache._dated or held.gone_at < NEVER or held.rests_at < NEVER
    return held


def _no_extra(ranking: Any) -> dict[str, float]:
    return dict.fromkeys(ranking.policy.extra, 0.0)


def _leaves(state: Any) -> list[np.ndarray]:
    """Return the arrays of a (nested) tuple, in order."""
    if isinstance(state, np.ndarray):
        return [state]
    return [leaf for part in state for leaf in _leaves(part)] if isinstance(state, tuple) else []


def _digest(cache: Cache[Any, Any]) -> str:
    """Return what tells policies apart: their parameters, and the state in which this one begins, its model in it."""
    ranking = cache._ranking
    digest = hashlib.sha256()
    for name, value in sorted(vars(ranking.policy).items()):
        if isinstance(value, str | int | float | tuple):  # a model shows in the state
            digest.update(f"{name}={value!r}".encode())
    for leaf in _leaves(ranking.policy.state(ranking.capacity, cache._seed, ranking.slots)):
        digest.update(f"{leaf.dtype.str}{leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
