"""Background: a few daemon threads that do what no caller waits for.

They start with the first job and end when idle for a while, so a cache that needs none has none, and they never keep a
process from ending. The line of jobs is bounded: a job that finds it full is refused, and the caller goes on without.
What has to be done again and again for an object, ``run_every`` does for as long as the object lives.
"""

import logging
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

from kvpredict.cache.forks import starts_over_in_child

__all__ = ["Background", "run_every"]

log = logging.getLogger("kvpredict")
IDLE = 5.0  # seconds without a job after which a thread ends


class Background:
    """``workers`` threads and a line of at most ``limit`` jobs."""

    def __init__(self, workers: int, limit: int = 1024, name: str = "kvpredict-background") -> None:
        self._workers, self._limit, self._name = workers, limit, name
        self._forked()
        starts_over_in_child(self)

    def _forked(self) -> None:
        """Begin with no jobs and no threads; those of a parent process are its own."""
        self._jobs: queue.Queue[tuple[Callable[..., Any], tuple[Any, ...]]] = queue.Queue(self._limit)
        self._lock = threading.Lock()
        self._running = 0
        self._unfinished = 0

    def submit(self, job: Callable[..., Any], *arguments: Any) -> bool:
        """Have ``job(*arguments)`` done; tell whether there was room for it."""
        with self._lock:
            try:
                self._jobs.put_nowait((job, arguments))
            except queue.Full:
                return False
            self._unfinished += 1
            if self._running < min(self._workers, self._unfinished):
                self._running += 1
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
        return True

    def join(self) -> None:
        """Wait until all jobs are done."""
        self._jobs.join()

    def _work(self) -> None:
        while True:
            try:
                job, arguments = self._jobs.get(timeout=IDLE)
            except queue.Empty:
                with self._lock:
                    if self._unfinished == 0 or self._running > 1:
                        self._running -= 1
                        return
                continue
            try:
                job(*arguments)
            except Exception:
                log.exception("a background job failed")
            finally:
                del job, arguments
                with self._lock:
                    self._unfinished -= 1
                self._jobs.task_done()


_repeated: "set[_Repeated]" = set()  # held here, because the thread that would hold it is gone in a forked child


class _Repeated:
    """One method that is called again and again."""

    def __init__(self, owner: Any, seconds: float, method: str, name: str) -> None:
        self._owner = weakref.ref(owner)
        self._seconds, self._method, self._name = seconds, method, name
        self._done = threading.Event()
        weakref.finalize(owner, self._end)
        _repeated.add(self)
        starts_over_in_child(self)
        self._start()

    def _start(self) -> None:
        threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _end(self) -> None:
        _repeated.discard(self)
        self._done.set()

    def _forked(self) -> None:
        self._done = threading.Event()
        self._start()

    def _work(self) -> None:
        while not self._done.wait(self._seconds):
            alive = self._owner()
            if alive is None:
                return
            try:
                getattr(alive, self._method)()
            except Exception:
                log.exception("%s failed, and will be tried again", self._name)
            del alive


def run_every(owner: Any, seconds: float, method: str, name: str) -> None:
    """Call ``owner.method()`` every ``seconds`` in a daemon thread, for as long as the owner lives."""
    _Repeated(owner, seconds, method, name)
