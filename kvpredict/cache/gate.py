"""Gate: how many loads may run at once, threads and coroutines counted together.

A source that just came back must not be met by every caller at the same moment. Who comes too many waits in line or is
turned away. A load asked for by a loader passes with the permit of its parent, which would otherwise wait for a permit
that it holds itself. The permit of a coroutine whose event loop was closed comes back when one is needed.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from threading import Lock
from typing import Any

from kvpredict.cache.errors import LoadTimeout, TooManyLoads
from kvpredict.cache.forks import starts_over_in_child
from kvpredict.cache.loads import is_lost

__all__ = ["Gate"]

_inside: ContextVar[tuple["Gate", ...]] = ContextVar("kvpredict_gates", default=())


class Gate:
    """``limit`` permits; ``with gate.passed(timeout)`` or ``async with gate.apassed(timeout)`` takes one."""

    def __init__(self, limit: int, wait: bool) -> None:
        self.limit, self._wait = limit, wait
        self._forked()
        starts_over_in_child(self)

    def _forked(self) -> None:
        """Begin with every permit; loads of a parent process count there."""
        self._free = self.limit
        self._line: deque[Future[None]] = deque()
        self._lock = Lock()
        self._tasks: set[Any] = set()  # coroutines that hold a permit

    @property
    def running(self) -> int:
        """Permits in use."""
        return self.limit - self._free

    @contextmanager
    def passed(self, timeout: float | None) -> Iterator[None]:
        """Hold a permit, waiting for one at most ``timeout`` seconds."""
        gates = _inside.get()
        if self in gates:
            yield
            return
        turn = self._queue()
        if turn is not None:
            try:
                turn.result(timeout)
            except BaseException as error:
                self._leave_line(turn)
                if isinstance(error, TimeoutError):
                    raise self._too_late(timeout) from None
                raise
        with self._held(gates):
            yield

    @asynccontextmanager
    async def apassed(self, timeout: float | None) -> AsyncIterator[None]:
        """As ``passed``, for a coroutine."""
        gates = _inside.get()
        if self in gates:
            yield
            return
        turn = self._queue()
        if turn is not None:
            try:
                await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(turn)), timeout)
            except BaseException as error:
                self._leave_line(turn)
                if isinstance(error, TimeoutError):
                    raise self._too_late(timeout) from None
                raise
        with self._held(gates, asyncio.current_task()):
            yield

    @contextmanager
    def _held(self, gates: tuple["Gate", ...], task: Any = None) -> Iterator[None]:
        """Give the permit back at the end; loads inside pass with it."""
        token = _inside.set((*gates, self))
        if task is not None:
            self._tasks.add(task)
        try:
            yield
        finally:
            with self._lock:
                if task is None or task in self._tasks:  # else it was taken back
                    self._tasks.discard(task)
                    self._pass_on()
            with suppress(ValueError):  # a coroutine that is let go of half-way ends in another context
                _inside.reset(token)

    def _queue(self) -> "Future[None] | None":
        """Take a permit and return None, or return the place in the line."""
        with self._lock:
            if not self._free:
                for task in filter(is_lost, list(self._tasks)):
                    self._tasks.discard(task)
                    self._pass_on()
            if self._free:
                self._free -= 1
                return None
            if not self._wait:
                raise TooManyLoads(
                    f"{self.limit} loads are under way, as many as allowed; try later or raise the limit"
                )
            turn: Future[None] = Future()
            self._line.append(turn)
            return turn

    def _leave_line(self, turn: "Future[None]") -> None:
        if not turn.cancel():  # its turn came in the same moment
            with self._lock:
                self._pass_on()

    def _pass_on(self) -> None:
        """Give a permit to the first in the line, under the lock."""
        while self._line:
            turn = self._line.popleft()
            if turn.set_running_or_notify_cancel():
                turn.set_result(None)
                return
        self._free += 1

    def _too_late(self, timeout: float | None) -> LoadTimeout:
        return LoadTimeout(
            f"no turn to load within {timeout:g} s: {self.limit} loads are under way, as many as allowed"
        )
