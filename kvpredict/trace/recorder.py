"""Recorder: writes the accesses of a live cache as a trace that ``read_trace`` reads.

``record`` only appends to a queue; a thread of its own turns batches of rows into CSV (``time,key,size,op``) and
compresses them. Each batch is a complete gzip member or zstd frame, so what has been written can be read whatever
happens next. The file grows under a name with ``.partial`` in it and takes its own name when the recorder is closed.
A sample is taken by key, not by request: a key is recorded always or never, so that reuse within the sample is what it
was (and a cache of ``sample`` times the size behaves like the whole).

Waldspurger et al., "Efficient MRC Construction with SHARDS", FAST 2015, section 3 (sampling by key).
"""

import atexit
import contextlib
import gzip
import io
import itertools
import logging
import math
import os
import threading
import time as clock
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np

from kvpredict.core.errors import KvpredictError, MissingExtra
from kvpredict.core.place import file_place
from kvpredict.trace.trace import hash_keys as hash_all

__all__ = ["Recorder", "RecorderError"]

BATCH = 8_192  # rows written at once
LIMIT = 8 * BATCH  # rows that may wait
IDLE = 5.0  # seconds after which fewer rows are written, too
POLL = 0.05  # seconds between looks at the queue
PATIENCE = 1.0  # seconds that a full queue waits for the disk

_INTEGERS = (int, np.integer)  # a tuple: a union would be made anew at each call

log = logging.getLogger("kvpredict")
_alive: "weakref.WeakSet[Recorder]" = weakref.WeakSet()


Row = tuple[float, Hashable, int, str]  # time, key, size, op


class RecorderError(KvpredictError, OSError):
    """A trace that cannot be written: names the file, the cause, and where what was written is kept."""


class Recorder:
    """Records accesses into a trace file; safe to call from many threads.

    Parameters
    ----------
    path : str or Path
        Where the trace goes, replacing what is there. ``.csv``, ``.csv.gz`` or ``.csv.zst`` (the last needs the
        ``train`` extra).
    sample : float, default 1.0
        Share of the keys to record, in (0, 1]. A key's hash decides, in every process alike.
    hash_keys : bool, default True
        Write keys that are no integers as 64-bit hashes; with False as text, for people to read.

    Attributes
    ----------
    written : int
        Rows in the file so far.
    dropped : int
        Rows given up: those that say nothing a trace can hold (a negative size, a time that is no number), and those
        that the disk was too slow for. At most 65,536 rows wait in memory; then ``record`` writes a batch itself, and
        where the disk stands still for a second it drops its row instead.
    error : RecorderError or None
        Why recording ended early. The cache is not disturbed: the error is logged, further rows are ignored, and
        ``close`` raises it.

    Rows reach the file up to five seconds late; ``flush`` writes them at once. Call ``close`` or use a ``with`` block:
    it gives the file its name. One process writes one file: a forked child records nothing.

    Raises
    ------
    RecorderError
        When the file cannot be made, or its name says no format that can be written.
    MissingExtra
        For ``.zst`` without zstandard.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, Recorder(f"{folder}/accesses.csv.gz") as recorder:
    ...     recorder.record("user:1", size=120)
    ...     recorder.flush()
    ...     recorder.written
    1
    """

    def __init__(self, path: str | Path, sample: float = 1.0, hash_keys: bool = True) -> None:
        if not 0 < sample <= 1:
            raise RecorderError(f"sample is the share of keys to record, in (0, 1], got {sample!r}")
        self.path = Path(path)
        self.sample = float(sample)
        self.hash_keys = hash_keys
        self.written = 0
        self.dropped = 0
        self.error: RecorderError | None = None
        self._threshold = None if sample == 1 else round(sample * 2**32)
        self._compress = _compressor(self.path)
        self._rows: deque[Row] = deque()
        self._append = self._rows.append
        self._now = clock.time
        self._latest = float("-inf")
        self._good = 0  # bytes of the file that are whole batches
        self._lock = threading.Lock()  # held while rows leave the queue
        self._open = True
        self._reported = False
        self._forked = False
        self._place, self.partial, self._file = _create(self.path)
        self._write(b"time,key,size,op\n", 0)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="kvpredict-recorder", daemon=True)
        self._thread.start()
        atexit.register(self._at_exit)
        _alive.add(self)
        if self.error:
            self.close()

    def record(self, key: Hashable, size: int = 1, op: str = "get", time: float | None = None) -> None:
        """Note one access.

        Parameters
        ----------
        key : hashable
        size : int, default 1
            Bytes.
        op : str, default "get"
        time : float, optional
            Seconds; default now. A time before the last one written is written as that one.
        """
        if not self._open or (self._threshold is not None and _place(key) >= self._threshold):
            return
        if len(self._rows) >= LIMIT and not self._relieve():
            return
        self._append((self._now() if time is None else time, key, size, op))

    def flush(self) -> None:
        """Write what waits now, and hand it to the operating system."""
        with self._lock:
            self._drain(1)

    def close(self) -> None:
        """Write what waits and give the file its name; later calls do nothing.

        Raises
        ------
        RecorderError
            Once, when recording ended early or the file cannot be finished.
        """
        if self._forked:
            return
        self._end.set()
        self._thread.join()
        with self._lock:
            self._drain(1)
            self._open = False
            if not self._file.closed:
                self._finish()
        atexit.unregister(self._at_exit)
        if self.error and not self._reported:
            self._reported = True
            raise self.error

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        try:
            self.close()
        except RecorderError:
            # The block's own exception matters more; this one has been logged.
            if kind is None:
                raise

    def _work(self) -> None:
        waited = 0.0
        while not self._end.wait(POLL):
            waited += POLL
            late = waited >= IDLE
            if late or len(self._rows) >= BATCH:
                waited = 0.0
                with self._lock:
                    self._drain(1 if late else BATCH)

    def _relieve(self) -> bool:
        """The queue is full: write a batch in the caller's time. Return whether there is room again."""
        if self._lock.acquire(timeout=PATIENCE):
            try:
                if len(self._rows) >= LIMIT:
                    self._drain(LIMIT)
                return True
            finally:
                self._lock.release()
        self.dropped += 1
        return False

    def _drain(self, least: int) -> None:
        """Write batches of what waits, if at least ``least`` rows do; the caller holds the lock."""
        waiting = len(self._rows)
        while self._open and waiting >= max(least, 1):
            rows = [self._rows.popleft() for _ in range(min(BATCH, waiting))]
            waiting -= len(rows)
            self._write(*self._batch(rows))
        if self.error:
            self._rows.clear()

    def _batch(self, rows: list[Row]) -> tuple[bytes, int]:
        """Return the text of ``rows`` and how many rows it has; those that cannot be written are left out."""
        try:
            return self._format(rows), len(rows)
        except Exception:  # a key whose repr raises, a size of None: anything at all
            good: list[bytes] = []
            for row in rows:
                try:
                    good.append(self._format([row]))
                except Exception as error:
                    if not self.dropped:
                        log.warning("an access cannot be recorded in %s and is left out: %r", self.path, error)
                    self.dropped += 1
            return b"".join(good), len(good)

    def _format(self, rows: list[Row]) -> bytes:
        times, keys, given, ops = zip(*rows, strict=True)
        sizes = [int(size) for size in given]
        if min(sizes) < 0 or not math.isfinite(math.fsum(times)):
            raise ValueError("a size is negative or a time is not finite")
        names = hash_all(keys).tolist() if self.hash_keys else [_quoted(_readable(key)) for key in keys]
        words = {op: _quoted(str(op)) for op in set(ops)}
        # Two threads may take the time in one order and queue up in the other; a trace never goes back.
        stamps = list(itertools.accumulate(times, max, initial=self._latest))[1:]
        columns = zip(stamps, names, sizes, map(words.__getitem__, ops), strict=True)
        text = "".join(map("%.6f,%s,%d,%s\n".__mod__, columns)).encode("utf-8", "backslashreplace")
        self._latest = stamps[-1]
        return text

    def _write(self, text: bytes, rows: int) -> None:
        try:
            data = memoryview(self._compress(text))
            size = len(data)
            while data:
                data = data[self._file.write(data) :]  # a disk that is nearly full takes a part
        except OSError as error:
            self._fail(error)
            return
        self._good += size
        self.written += rows

    def _fail(self, cause: OSError) -> None:
        """Give up: keep the whole batches, tell once, and go on without recording."""
        self._open = False
        if not self._file.closed:
            with contextlib.suppress(OSError):  # then the last batch stays cut short
                self._file.truncate(self._good)
        self.error = RecorderError(
            f"recording to {self.path} ended after {self.written} rows: {cause.strerror or cause}; make room or choose "
            f"another place. What was written is kept in {self.partial}"
        )
        log.error("%s", self.error)

    def _finish(self) -> None:
        try:
            if not self.error:
                os.fsync(self._file.fileno())
            self._file.close()
            if not self.error:
                os.replace(self.partial, self._place)
        except OSError as error:
            self._fail(error)

    def _at_exit(self) -> None:
        with contextlib.suppress(RecorderError):  # logged when it happened
            self.close()


def _quoted(text: str) -> str:
    """Return ``text`` as a field of CSV."""
    plain = text and not any(mark in text for mark in ',"\n\r')
    return text if plain else '"' + text.replace('"', '""') + '"'


def _readable(key: Hashable) -> str:
    if isinstance(key, bytes):
        return key.decode("utf-8", "backslashreplace")
    return key if isinstance(key, str) else str(int(key)) if isinstance(key, _INTEGERS) else repr(key)


def _place(key: Any) -> int:
    """Return where a key lies in ``[0, 2**32)``: mixed well, the same in every process, and cheap."""
    if isinstance(key, str):
        key = zlib.crc32(key.encode(errors="replace"))
    elif isinstance(key, _INTEGERS):
        key = int(key)
    else:
        key = zlib.crc32(key if isinstance(key, bytes) else repr(key).encode(errors="replace"))
    # Fibonacci hashing of the key folded once: neighbouring numbers fall far apart.
    key = ((key ^ (key >> 32)) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    return int(((key ^ (key >> 29)) * 0xBF58476D1CE4E5B9 >> 32) & 0xFFFFFFFF)


def _compressor(path: Path) -> Callable[[bytes], bytes]:
    name = path.name.lower()
    if name.endswith(".csv"):
        return bytes
    if name.endswith(".csv.gz"):
        return lambda data: gzip.compress(data, compresslevel=3)
    if name.endswith(".csv.zst"):
        try:
            import zstandard
        except ImportError:
            raise MissingExtra('recording to .zst needs zstandard: pip install "kvpredict[train]"') from None
        frame: Callable[[bytes], bytes] = zstandard.ZstdCompressor(level=3).compress
        return frame
    raise RecorderError(f"cannot record to {path}: the name must end in .csv, .csv.gz or .csv.zst")


def _create(path: Path) -> tuple[Path, Path, io.FileIO]:
    """Make the file to write to, beside the place it will take; what another recorder left there, or writes, stays."""
    stem, suffix = path.name[: path.name.lower().rindex(".csv")], path.name[path.name.lower().rindex(".csv") :]
    number = 1
    try:
        place = file_place(path)
    except OSError as error:
        raise RecorderError(f"cannot record to {path}: {error.strerror or error}") from None
    while True:
        partial = place.with_name(f"{stem}.partial{'' if number == 1 else f'-{number}'}{suffix}")
        try:
            # Unbuffered: a batch is one write, and a failure belongs to the batch that caused it.
            return place, partial, io.FileIO(partial, "x")
        except FileExistsError:
            number += 1
        except OSError as error:
            raise RecorderError(f"cannot record to {path}: {error.strerror or error}") from None


def _in_child() -> None:
    """A forked child has no writer thread, and shares the parent's place in the file."""
    for recorder in _alive:
        recorder._forked = True
        recorder._open = False
        recorder._rows.clear()
        recorder._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
