"""A progress bar for work over a second or two, on a terminal and never in a pipe."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["track"]

T = TypeVar("T")
PATIENCE = 1.5  # seconds before a bar appears


def track(items: Iterable[T], description: str, count: int) -> Iterator[T]:
    """Yield the ``count`` items, showing how far they are once that takes a while."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        yield from items
        return
    started = time.monotonic()
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(description, total=count, visible=False)
        for done, item in enumerate(items, 1):
            bar.update(task, completed=done, visible=time.monotonic() - started > PATIENCE)
            yield item
