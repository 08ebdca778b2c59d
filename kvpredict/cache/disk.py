"""DiskTier: a tier in one SQLite file, whose contents a policy of the library decides.

Which keys are there, how large they are and when they are over is held in memory by a ``Cache`` of sizes; what that
evicts is deleted from the file. So the disk has any policy that memory can have, asking for a key that is not there
costs no access, and the file stays near the capacity: SQLite uses the room of deleted rows again.
"""

import sqlite3
import threading
import time
from os import PathLike
from pathlib import Path
from typing import Any

from kvpredict.cache.alone import Elsewhere, leave_to_parent, open_alone, taken
from kvpredict.cache.cache import Cache
from kvpredict.cache.errors import TierError
from kvpredict.cache.expiry import duration
from kvpredict.cache.forks import starts_over_in_child
from kvpredict.cache.removal import Cause
from kvpredict.core.policy import Policy

__all__ = ["DiskTier"]

OVERHEAD = 64  # bytes of a row beside key and data, about


class DiskTier:
    """A tier in a file.

    Parameters
    ----------
    path : path
        The file; what an earlier process left there is used. One process, and one tier of it, at a time may have it
        open.
    capacity : int
        Bytes of values.
    policy : str or Policy, default "s3fifo"
        Decides what stays. A policy that may refuse decides, too, what is taken in at all.
    fill : "evict" or "load", default "evict"
        See ``Tier``.
    timeout : float, default 1.0
        Seconds to wait for the file, should another process have it open.

    What is written survives the end of the process, not always a power failure; the file is whole in either case. A
    process that is killed while the disk refuses its deletions leaves values that its successor may hand out until
    their ttl ends them; one that closes the tier does not.
    """

    def __init__(
        self,
        path: "str | PathLike[str]",
        capacity: int,
        policy: str | Policy = "s3fifo",
        *,
        fill: str = "evict",
        timeout: float = 1.0,
    ) -> None:
        self.path, self.shared = Path(path), False
        self.name, self.fill = f"disk {self.path}", fill
        self._lock = threading.Lock()
        self._doomed = False  # whether the file holds what must not be found again
        self._gone: set[bytes] = set()  # evicted from the index and still in the file
        self.index: Cache[bytes, int] = Cache(
            capacity, policy, weigher=lambda size: size + OVERHEAD, on_removal=self._note
        )
        try:
            table = "entries (key BLOB PRIMARY KEY, data BLOB, ends REAL)"
            self._db: Any = open_alone(self.path, duration("timeout", timeout), table)
            self._db.execute("PRAGMA journal_size_limit=4194304")
            rows = self._db.execute("SELECT key, LENGTH(data), ends FROM entries").fetchall()
            for key, size, ends in rows:
                rest = None if ends is None else ends - time.time()
                if (rest is not None and rest <= 0) or not self.index.put(key, size, ttl=rest):
                    self._gone.add(key)
            self._drop(self._take_gone())
        except sqlite3.Error as error:
            remedy = (
                "one process, and one tier of it, at a time may have it open: give each its own file"
                if taken(error)
                else "its folder must exist and be writable, and the file be one that DiskTier made: delete it to "
                "start afresh"
            )
            raise TierError(f"{self.path} cannot be opened as a tier: {error}; {remedy}") from None

        starts_over_in_child(self)

    def _forked(self) -> None:
        """Be down in a forked child: a connection of SQLite is of one process."""
        self._lock = threading.Lock()
        leave_to_parent(self._db)
        self._db = Elsewhere("the file was opened before this process was forked; make the tier afterwards")

    def get(self, key: bytes) -> bytes | None:
        """Return what is stored under ``key``, or None."""
        if self.index.get(key) is None:
            return None
        try:
            with self._lock:
                row = self._db.execute("SELECT data, ends FROM entries WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise TierError(f"{self.name}: {error}") from None
        if row is None or (row[1] is not None and row[1] <= time.time()):
            return None
        data: bytes = row[0]
        return data

    def put(self, key: bytes, data: bytes, ttl: float | None) -> bool:
        """Store ``data``; False where the policy does not take it, and what was under ``key`` is gone."""
        ends = None if ttl is None else time.time() + ttl
        with self._lock:
            taken = self.index.put(key, len(data), ttl=ttl)
            gone = self._take_gone()
            try:
                self._db.execute("BEGIN")
                if taken:
                    self._db.execute("REPLACE INTO entries VALUES (?, ?, ?)", (key, data, ends))
                else:
                    gone.add(key)
                self._drop(gone)
                self._db.execute("COMMIT")
            except sqlite3.Error as error:  # a full disk, say: the row is as it was before, and must not be found
                self.index.delete(key)
                self._gone |= {*gone, key}
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise TierError(f"{self.name}: {error}") from None
        return taken

    def holds(self, key: bytes) -> bool:
        """Tell whether ``key`` is there."""
        return key in self.index

    def delete(self, key: bytes) -> None:
        """Remove ``key``."""
        with self._lock:
            if self.index.delete(key) or key in self._gone:
                self._gone.add(key)
                self._execute("DELETE FROM entries WHERE key = ?", (key,))
                self._gone.discard(key)

    def clear(self) -> None:
        """Remove everything."""
        with self._lock:
            self.index.clear()
            self._doomed = True
            self._execute("DELETE FROM entries", ())
            self._doomed = False
            self._gone.clear()

    def close(self) -> None:
        """Close the file; remove it if it holds what should have been deleted and a full disk did not let go of."""
        with self._lock:
            if isinstance(self._db, Elsewhere):
                return  # the file may be a successor's by now, or is the parent's
            try:
                self._drop(self._take_gone())
            except sqlite3.Error:
                self._doomed = True
            self._db.close()
            self._db = Elsewhere("the tier is closed; make another one")
            if self._doomed:
                for name in (self.path, f"{self.path}-wal", f"{self.path}-shm"):
                    Path(name).unlink(missing_ok=True)

    def _execute(self, statement: str, arguments: tuple[Any, ...]) -> None:
        try:
            self._db.execute(statement, arguments)
        except sqlite3.Error as error:
            raise TierError(f"{self.name}: {error}") from None

    def _note(self, key: bytes, size: int, cause: Cause) -> None:
        if cause in (Cause.EVICTED, Cause.EXPIRED):
            self._gone.add(key)

    def _take_gone(self) -> set[bytes]:
        gone, self._gone = self._gone, set()
        return gone

    def _drop(self, gone: set[bytes]) -> None:
        """Delete the rows of what the policy has evicted."""
        if gone:
            self._db.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in gone if key not in self.index])
