"""SQLite files that one process at a time has open: how they are opened, and left to a parent process after a fork.

SQLite's write-ahead log makes each write whole whatever happens to the process, and its exclusive lock keeps a second
process out. A forked child has the connection in its memory, lock and all, and would, on closing it, delete the log
that its parent goes on writing to. So a child never closes it.
"""

import ctypes
import sqlite3
from pathlib import Path
from typing import Any

__all__ = ["Elsewhere", "leave_to_parent", "open_alone", "taken"]


class Elsewhere:
    """Stands for a connection that there is no more; ``why`` says what to do."""

    in_transaction = False

    def __init__(self, why: str) -> None:
        self._why = why

    def execute(self, *_: Any) -> Any:
        """Refuse."""
        raise sqlite3.ProgrammingError(self._why)

    executemany = execute

    def close(self) -> None:
        """Do nothing."""


def open_alone(path: Path, timeout: float, table: str, *, durable: bool = False) -> sqlite3.Connection:
    """Open a file that no other connection has open, waiting at most ``timeout`` seconds for that, and its ``table``.

    Raises
    ------
    sqlite3.Error
        Where it is taken (see ``taken``), cannot be written, or is no database.
    """
    db = sqlite3.connect(path, timeout=timeout, check_same_thread=False, isolation_level=None)
    try:
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        db.execute(f"CREATE TABLE IF NOT EXISTS {table}")
    except sqlite3.Error:
        db.close()
        raise
    return db


def taken(error: sqlite3.Error) -> bool:
    """Tell whether a file could not be opened because it is open elsewhere."""
    return getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def leave_to_parent(db: Any) -> None:
    """Keep a forked child from ever closing its parent's connection, which letting go of it does, too."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(db))
