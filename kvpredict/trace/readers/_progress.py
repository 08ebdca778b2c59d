"""A progress bar for reading large files: on a terminal only, and only once the work has taken a while."""

import sys
import time
from typing import Any

__all__ = ["Progress"]

PATIENCE = 1.5  # seconds before a bar is worth showing


class Progress:
    """Shows how much of ``total`` bytes is done; ``wanted`` None: after a while, True: at once, False: never."""

    def __init__(self, label: str, total: int, wanted: bool | None) -> None:
        self._label, self._total = label, total
        self._due = time.monotonic() + (0.0 if wanted else PATIENCE)
        self._wanted = wanted is not False and total > 0 and sys.stderr is not None and sys.stderr.isatty()
        self._bar: Any = None

    def update(self, done: int) -> None:
        """Say that ``done`` bytes are read."""
        if not self._wanted or (self._bar is None and time.monotonic() < self._due):
            return
        if self._bar is None and not self._show():
            self._wanted = False
            return
        self._bar.update(self._task, completed=done)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._wanted = False

    def _show(self) -> bool:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar
        except ImportError:  # a bar is a convenience
            return False
        self._bar = Bar(
            TextColumn("reading {task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(self._label, total=self._total)
        self._bar.start()
        return True
