"""Journal: the writes that a ``WriteBehind`` has acknowledged and not handed on, in a SQLite file.

One row a key, the last write; how the file is kept to one process is ``alone``'s.
"""

import sqlite3
from collections.abc import Hashable, Iterable
from pathlib import Path
from threading import Lock
from typing import Any

from kvpredict.cache.alone import Elsewhere, leave_to_parent, open_alone
from kvpredict.cache.behind import ERASED
from kvpredict.cache.codec import Codec
from kvpredict.cache.errors import WriteBehindError

__all__ = ["Journal"]


class Journal:
    """Opened for one process; ``durable`` forces each write to the disk."""

    def __init__(self, path: str | Path, durable: bool, codec: Codec | None) -> None:
        self.path = Path(path)
        self._codec = Codec() if codec is None else codec
        self._lock = Lock()
        self._last = 0
        try:
            table = "writes (key BLOB PRIMARY KEY, number INTEGER, value BLOB)"
            self._db: Any = open_alone(self.path, 1.0, table, durable=durable)
            self._last = self._db.execute("SELECT COALESCE(MAX(number), 0) FROM writes").fetchone()[0]
        except sqlite3.Error as error:
            raise WriteBehindError(
                f"the journal {self.path} cannot be opened: {error}; one process at a time may have it open, and its "
                "folder must exist and be writable"
            ) from None

    def left(self) -> list[tuple[Any, Any]]:
        """Return the writes that an earlier process left, in order."""
        rows = self._db.execute("SELECT key, value FROM writes ORDER BY number").fetchall()
        codec = self._codec
        return [(codec.decode_key(key), ERASED if value is None else codec.decode(value)) for key, value in rows]

    def note(self, key: Hashable, value: Any) -> None:
        """Keep a write; when this returns it is in the file."""
        data = None if value is ERASED else self._codec.encode(value)
        name = self._codec.encode_key(key)
        with self._lock:
            self._last += 1
            try:
                self._db.execute("REPLACE INTO writes VALUES (?, ?, ?)", (name, self._last, data))
            except sqlite3.Error as error:
                raise WriteBehindError(f"key {key!r} was not taken: the journal {self.path} says {error}") from None

    def mark(self) -> int:
        """Return the number of the latest write."""
        return self._last

    def strike(self, keys: Iterable[Hashable], mark: int) -> None:
        """Forget the writes of ``keys`` up to number ``mark``."""
        rows = [(self._codec.encode_key(key), mark) for key in keys]
        with self._lock:
            try:
                self._db.execute("BEGIN")
                self._db.executemany("DELETE FROM writes WHERE key = ? AND number <= ?", rows)
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise WriteBehindError(
                    f"the journal {self.path} cannot be cleared of what was written ({error}); it will be written again"
                ) from None

    def leave(self) -> None:
        """Leave the file to the parent of this forked process."""
        leave_to_parent(self._db)
        self._db = Elsewhere("the journal is the parent's")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()
