"""Stand-ins: what serves while the policy asked for is compiled, the first time on a machine.

A policy that takes long to compile names another one to begin with (``Policy.stand_in``). Where its machine code is not
kept from before, a cache begins with that one, and exchanges it when the code is there, as ``swap_policy`` does: no
entry is lost, and nobody waits but who writes during the exchange itself. Another process compiles, at low priority,
because the compiler would hold up every thread of this one; it goes on when this one ends, so that the next finds the
code. Where there can be none, or nowhere to keep the code, a thread compiles.
"""

import logging
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import weakref
from typing import Any

from numba.core.compiler_lock import global_compiler_lock

from kvpredict.cache.background import Background
from kvpredict.cache.ranking import Ranking
from kvpredict.core.code_cache import NotKept, code_folder, kept_only
from kvpredict.core.jit import interpreted
from kvpredict.core.policy import Policy

__all__ = ["Awaited", "compile_now", "compile_soon", "first_ranking"]

log = logging.getLogger("kvpredict")
LONGEST = 600.0  # seconds that another process may take
NICE = 5  # how far its priority is below this one's
MARK = "KVPREDICT_COMPILING"  # set for that process, which must not start another one
HELPER = """
import sys
try:
    import fcntl  # one such process of a machine at a time; the others find what it made
    fcntl.flock(lock := open(sys.argv[1], "a"), fcntl.LOCK_EX)
except (ImportError, OSError):
    pass
from kvpredict.cache.stand_in import compile_here
compile_here()
"""
_thread = Background(1, name="kvpredict-compiling")


class Awaited:
    """The policy that a cache was asked for and does not run yet."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.settled = threading.Event()  # it runs, or never will


def first_ranking(
    policy: Policy, capacity: int, slots: int, seed: int, aside: bool, now: float, grows: bool
) -> tuple[Ranking, Awaited | None]:
    """Return a ranking by ``policy``, or by its stand-in where its machine code is not kept, and what is then awaited.

    ``aside`` also says whether there may be a stand-in, ``grows`` whether there will be more slots; the rest is as for
    ``Ranking``.
    """

    def ranking_by(chosen: Policy) -> Ranking:
        ranking = Ranking(chosen, capacity, slots, seed, aside, now)
        if grows:
            ranking.compile(chosen)
        return ranking

    stand_in = policy.stand_in() if aside and not interpreted() else None
    if stand_in is None:
        return ranking_by(policy), None
    try:
        with kept_only():
            return ranking_by(policy), None
    except NotKept:
        return ranking_by(stand_in), Awaited(policy)


def compile_soon(cache: Any) -> None:
    """Compile what the cache awaits on a thread, and let it decide from then on; the cache may be gone by then."""
    try:
        if MARK not in os.environ and _thread.submit(_compile, weakref.ref(cache)):
            return
        reason = "too many caches wait to be compiled"
    except RuntimeError as error:
        reason = str(error)
    log.warning("%s; this cache goes on with %s", reason, cache.policy.name)
    cache._awaited.settled.set()


def _compile(reference: "weakref.ref[Any]") -> None:
    cache = reference()
    if cache is None or (awaited := cache._awaited) is None:
        return
    stand_in, task = cache.policy, (cache.policy, awaited.policy, cache._ranking.aside)
    del cache  # it may be let go of meanwhile
    try:
        _make_apart(task)
        cache = reference()
        if cache is not None:
            now = float(cache._clock())
            with cache._lock:
                if cache._awaited is awaited:
                    cache._exclusively(cache._exchange, awaited.policy, now)
    except Exception:
        log.exception("%s could not be compiled; the cache goes on with %s", awaited.policy.name, stand_in.name)
    finally:
        awaited.settled.set()


def compile_now(present: Policy, policy: Policy, aside: bool) -> None:
    """Load or make the machine code to move from one policy to another; what takes long is made by another process."""
    if interpreted() or MARK in os.environ or policy.stand_in() is None:
        Ranking(present, 1, 1, 0, aside).compile(policy)
    else:
        _make_apart((present, policy, aside))


def _make_apart(task: tuple[Policy, Policy, bool]) -> None:
    """Load what ``_make_all`` makes, after another process made it where it is not kept yet."""
    try:
        with kept_only():
            _make_all(*task)
    except NotKept:
        _have_compiled(task)
        _make_all(*task)  # loaded, or compiled here


def _make_all(stand_in: Policy, policy: Policy, aside: bool) -> None:
    """Load or make the machine code to move from ``stand_in`` to ``policy``, and to resize or leave that then."""
    Ranking(stand_in, 1, 1, 0, aside).compile(policy)
    Ranking(policy, 1, 1, 0, aside).compile(policy)


def _have_compiled(task: tuple[Policy, Policy, bool]) -> None:
    """Have another process compile and keep the code. It may fail: then there is no code, and nothing else is lost."""
    folder = code_folder()
    if folder is None or not os.path.basename(sys.executable or "").startswith("python"):
        return  # an interpreter inside another program starts that program
    try:
        # A fork waits for this lock (``forks``): amid all this, the child would be left with locks that nobody lets go
        # of, and the process with a pipe that the child holds open.
        with global_compiler_lock, tempfile.TemporaryFile() as file:
            file.write(pickle.dumps(task))
            file.seek(0)
            paths = [path or os.getcwd() for path in sys.path]
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", HELPER, folder / "compiling"],  # -P: not what lies in this folder
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), MARK: "1"},
                stdin=file,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # what interrupts this process does not interrupt that one
            )
        try:
            process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    except Exception as error:  # no process, no memory, a policy of a script: it is compiled here
        log.debug("compiling in another process failed: %r", error)


def compile_here() -> None:
    """Compile what stands in the input."""
    if hasattr(os, "nice"):
        os.nice(NICE)
    _make_all(*pickle.load(sys.stdin.buffer))
