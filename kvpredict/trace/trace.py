"""Trace: a record of accesses, held as columns.

Each request has a key; times, sizes and any further column are optional. What policies and learners need beyond the
columns (dense ids, next uses, footprint) is derived on first use and kept.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from kvpredict.core.errors import TraceError, unknown_name
from kvpredict.trace.dense import dense_ids, next_uses

__all__ = ["LARGEST", "UNITS", "Trace", "check_unit", "hash_keys", "hash_texts", "is_share"]

UNITS = ("objects", "bytes")  # of a capacity
LARGEST = 2**62  # units of a capacity, or bytes of a trace: sums of sizes stay below 2**63


class Trace:
    """A record of accesses in time order.

    Parameters
    ----------
    keys : int64 array [n]
        The object of each request: its number, or the bits of a 64-bit hash (see ``Trace.from_keys``).
    times : float64 array [n], optional
        Seconds, never decreasing.
    sizes : int64 array [n], optional
        Bytes of the object, at least 0. Without sizes every object counts as 1 byte.
    columns : mapping of name to numeric array [n], optional
        Anything else: ``op``, ``tenant``, ``depth``, ``cost`` … Text columns are category codes, their texts in
        ``categories``.
    categories : mapping of column name to sequence of str, optional
        The text behind each code of a column.
    name : str
        How reports call the trace.
    info : mapping, optional
        What the reader noted: ``path``, ``format``, ``skipped`` (records left out with ``on_error="skip"``).

    Raises
    ------
    TraceError
        On lengths that differ, a negative size, 2**62 bytes or more in all, a time that is not finite or goes back.
    """

    def __init__(
        self,
        keys: np.ndarray,
        times: np.ndarray | None = None,
        sizes: np.ndarray | None = None,
        columns: Mapping[str, np.ndarray] | None = None,
        *,
        categories: Mapping[str, Sequence[str]] | None = None,
        name: str = "trace",
        info: Mapping[str, Any] | None = None,
    ) -> None:
        self.keys = _column("keys", keys, np.int64, None)
        n = self.keys.size
        self.times = None if times is None else _column("times", times, np.float64, n)
        self.sizes = None if sizes is None else _column("sizes", sizes, np.int64, n)
        self.columns = {k: _column(k, v, None, n) for k, v in (columns or {}).items()}
        self.categories = {k: tuple(v) for k, v in (categories or {}).items()}
        self.name = name
        self.info: dict[str, Any] = dict(info or {})
        if self.sizes is not None and n and self.sizes.min() < 0:
            at = int(np.argmax(self.sizes < 0))
            raise TraceError(f"{name}: request {at} has a negative size ({self.sizes[at]})")
        if self.sizes is not None and (total := self.sizes.sum(dtype=np.float64)) >= LARGEST:
            raise TraceError(f"{name}: sizes add up to {total:.3g} bytes; totals below 2**62 can be counted")
        if self.times is not None and n:
            if not np.isfinite(self.times).all():
                at = int(np.argmin(np.isfinite(self.times)))
                raise TraceError(f"{name}: request {at} has no finite time ({self.times[at]})")
            back = self.times[1:] < self.times[:-1]
            if back.any():
                at = int(np.argmax(back)) + 1
                raise TraceError(
                    f"{name}: request {at} is earlier ({self.times[at]}) than the one before it "
                    f"({self.times[at - 1]}); sort the trace by time first"
                )

    @classmethod
    def from_keys(
        cls, keys: Any, sizes: Any = None, times: Any = None, *, name: str = "trace", **columns: Any
    ) -> "Trace":
        """Make a trace from arrays or sequences; keys may be integers, strings, bytes or tuples.

        >>> Trace.from_keys(["a", "b", "a"]).unique
        2
        """
        return cls(hash_keys(keys), times, sizes, columns, name=name)

    def __len__(self) -> int:
        return int(self.keys.size)

    def __repr__(self) -> str:
        return f"Trace({self.name!r}, requests={len(self)}, unique={self.unique})"

    @cached_property
    def _dense(self) -> tuple[np.ndarray, int]:
        return dense_ids(self.keys)

    @property
    def ids(self) -> np.ndarray:
        """Dense id of each request's key, int32 ``[n]``, numbered by first appearance."""
        return self._dense[0]

    @property
    def unique(self) -> int:
        """Number of distinct keys."""
        return self._dense[1]

    @cached_property
    def next_use(self) -> np.ndarray:
        """Index of the next request for the same key, float64 ``[n]``, ``inf`` for none."""
        return next_uses(self.ids, self.unique)

    @cached_property
    def footprint(self) -> int:
        """Bytes of all distinct objects, each at the size of its first request (at least 1)."""
        if self.sizes is None:
            return self.unique
        first = np.full(self.unique, -1, np.int64)
        first[self.ids[::-1]] = np.arange(len(self) - 1, -1, -1)
        return int(np.maximum(self.sizes[first], 1).sum())

    @cached_property
    def fingerprint(self) -> str:
        """Digest (128 bits, hex) of all columns; the same accesses give the same one on any machine."""
        digest = hashlib.blake2b(digest_size=16)
        for name, column in self._all_columns().items():
            digest.update(f"{name}:{column.dtype.str}:{column.size};".encode())
            digest.update(np.ascontiguousarray(column).view(np.uint8).data)
        return digest.hexdigest()

    def capacity(self, fraction: float, unit: str = "objects") -> int:
        """Return ``fraction`` of the distinct keys, or with ``unit="bytes"`` of the footprint; at least 1."""
        check_unit(unit)
        if not _is_number(fraction) or not 0 < fraction <= 1:
            raise TraceError(f"a capacity fraction must be in (0, 1], got {fraction!r}")
        return max(1, int((self.unique if unit == "objects" else self.footprint) * fraction))

    def column(self, name: str) -> np.ndarray:
        """Return the column called ``name`` (``keys``, ``times``, ``sizes`` or an extra one)."""
        known = self._all_columns()
        if name not in known:
            raise unknown_name(f"column of {self.name}", name, known)
        return known[name]

    def head(self, at: float, *, by: str = "count") -> "Trace":
        """Return the first part.

        ``at`` is a fraction (a float below 1) or a count of requests; with ``by="time"`` it is a fraction of the
        time span or seconds from the start.
        """
        return self.split(at, by=by)[0]

    def tail(self, at: float, *, by: str = "count") -> "Trace":
        """Return what ``head(at)`` leaves out."""
        return self.split(at, by=by)[1]

    def split(self, at: float, *, by: str = "count") -> tuple["Trace", "Trace"]:
        """Return the parts before and after ``at`` (see ``head``); neither copies a column."""
        cut = self.position(at, by=by)
        return self._slice(slice(0, cut)), self._slice(slice(cut, None))

    def position(self, at: float, *, by: str = "count") -> int:
        """Return the index of the request at which ``split(at, by=by)`` cuts."""
        if by not in ("count", "time"):
            raise unknown_name("way to split", by, ["count", "time"])
        share = is_share(at, whole=by == "count")
        if by == "count":
            return min(len(self), int(len(self) * at) if share else int(at))
        if self.times is None:
            raise TraceError(f"{self.name} has no times: split by count")
        if not len(self):
            return 0
        seconds = (self.times[-1] - self.times[0]) * at if share else at
        return int(np.searchsorted(self.times, self.times[0] + seconds))

    def _slice(self, part: slice) -> "Trace":
        piece = object.__new__(Trace)
        piece.keys = self.keys[part]
        piece.times = None if self.times is None else self.times[part]
        piece.sizes = None if self.sizes is None else self.sizes[part]
        piece.columns = {k: v[part] for k, v in self.columns.items()}
        piece.categories = self.categories
        piece.name, piece.info = self.name, self.info
        return piece

    def _all_columns(self) -> dict[str, np.ndarray]:
        named = {"keys": self.keys, "times": self.times, "sizes": self.sizes}
        return {**{k: v for k, v in named.items() if v is not None}, **self.columns}


def is_share(at: Any, *, whole: bool = True) -> bool:
    """Tell whether a place to cut at is a share of the whole, a float below 1, or else a count of requests.

    Raises ``TraceError`` for anything that is neither; where counts are not ``whole`` they are seconds.
    """
    fits = _is_number(at) and 0 <= at < float("inf")
    share = fits and isinstance(at, float | np.floating) and at < 1
    # 1.0 could mean all or one; 2.5 requests mean nothing.
    if not fits or (whole and not share and isinstance(at, float | np.floating) and (at == 1.0 or at % 1 > 0)):
        raise TraceError(
            f"cannot split at {at!r}: give a share in [0, 1), or a whole count of requests (1.0 could mean all or one)"
        )
    return bool(share)


def check_unit(unit: Any) -> None:
    """Raise ``UnknownName`` unless a capacity can be counted in ``unit``."""
    if unit not in UNITS:
        raise unknown_name("unit", unit, UNITS)


def _is_number(given: Any) -> bool:
    return isinstance(given, int | float | np.number) and not isinstance(given, bool)


def hash_keys(keys: Any) -> np.ndarray:
    """Return int64 keys: integers as they are (unsigned ones by their bits), anything else by a 64-bit BLAKE2 hash."""
    array = keys if isinstance(keys, np.ndarray) else None
    if array is None:
        keys = list(keys)
        if all(type(k) is int and -(2**63) <= k < 2**63 for k in keys):
            return np.array(keys, np.int64)
        array = np.empty(len(keys), object)
        array[:] = keys
    if array.dtype.kind == "u":
        return array.astype(np.uint64).view(np.int64)
    if array.dtype.kind in "ib":
        return array.astype(np.int64)
    if array.dtype.kind == "f":
        raise TraceError("keys are floating-point numbers; give integers or strings")
    return np.fromiter((_hash_key(k) for k in array), np.int64, array.size)


def hash_texts(texts: Iterable[bytes]) -> np.ndarray:
    """Return the keys, int64, that ``hash_keys`` gives to ``texts``, which are encoded as UTF-8 already.

    >>> (hash_texts([b"a"]) == hash_keys(["a"])).all()
    np.True_
    """
    digest = hashlib.blake2b
    return np.frombuffer(b"".join([digest(text, digest_size=8).digest() for text in texts]), "<i8").astype(np.int64)


def _hash_key(key: Any) -> int:
    if isinstance(key, int | np.integer):
        return int(key) if -(2**63) <= key < 2**63 else _hash_key(str(key))
    data = key if isinstance(key, bytes) else (key if isinstance(key, str) else repr(key)).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def _column(name: str, values: Any, dtype: Any, n: int | None) -> np.ndarray:
    array = np.asarray(values, dtype)
    if array.ndim != 1:
        raise TraceError(f"column {name!r} must have one dimension, not {array.ndim}")
    if array.dtype.kind not in "iufb":
        raise TraceError(f"column {name!r} holds {array.dtype}, expected numbers")
    if n is not None and array.size != n:
        raise TraceError(f"column {name!r} has {array.size} values for {n} requests")
    return array
