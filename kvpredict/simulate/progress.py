"""A progress bar over the runs of a sweep: on a terminal only, and only once the work has taken a while."""

import sys
import time
from typing import Any

__all__ = ["Progress"]

PATIENCE = 1.5  # seconds before a bar is worth showing


class Progress:
    """Count ``total`` runs; ``wanted`` None: shown after a while, True: at once, False: never; a pipe shows none."""

    def __init__(self, total: int, wanted: bool | None) -> None:
        self._total = total
        self._due = time.monotonic() + (0.0 if wanted else PATIENCE)
        self._wanted = wanted is not False and sys.stderr is not None and sys.stderr.isatty()
        self._bar: Any = None

    def update(self, done: int) -> None:
        """Say that ``done`` runs are finished."""
        if not self._wanted or (self._bar is None and time.monotonic() < self._due):
            return
        if self._bar is None:
            try:
                from rich.console import Console
                from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
                from rich.progress import Progress as Bar
            except ImportError:  # a bar is a convenience
                self._wanted = False
                return
            self._bar = Bar(
                TextColumn("simulating"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("runs", total=self._total)
            self._bar.start()
        self._bar.update(self._task, completed=done)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._wanted = False
