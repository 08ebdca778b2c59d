"""Stand-ins: what serves while the policy asked for is compiled, the first time on a machine.

A policy that takes long to compile names another one to begin with (``Policy.stand_in``). Where its machine code is not
kept from before, a cache begins with that one, and exchanges it when the code is there, as ``swap_policy`` does: no
entry is lost, and no caller waits. Another process compiles, at low priority, because the compiler would hold up
every thread of this one; it goes on when this one ends, so that the next finds the code. Where there can be none, or
nowhere to keep the code, a thread compiles.
"""

import logging
import os
import pickle
import subprocess
import sys
import threading
import weakref
from typing import Any

from kvpredict.cache.background import Background
from kvpredict.cache.ranking import Ranking
from kvpredict.core.code_cache import NotKept, code_folder, kept_only
from kvpredict.core.jit import interpreted
from kvpredict.core.policy import Policy

__all__ = ["Awaited", "compile_soon", "first_ranking"]

log = logging.getLogger("kvpredict")
LONGEST = 600.0  # seconds that another process may take
NICE = 5  # how far its priority is below this one's
CHILD = "from kvpredict.cache.stand_in import compile_here; compile_here()"
_thread = Background(1, name="kvpredict-compiling")


class Awaited:
    """The policy that a cache was asked for and does not run yet."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.settled = threading.Event()  # it runs, or never will


def first_ranking(policy: Policy, grows: bool, aside: bool, *arguments: Any) -> tuple[Ranking, Awaited | None]:
    """Return a ranking by ``policy``, or by its stand-in where its machine code is not kept, and what is then awaited.

    ``arguments`` are those of ``Ranking`` after the policy, but for ``aside``, which says whether there may be a
    stand-in, too; ``grows`` whether the ranking is going to be carried over to more slots.
    """
    capacity, slots, seed, now = arguments
    stand_in = policy.stand_in() if aside and not interpreted() else None
    if stand_in is not None:
        try:
            with kept_only():
                return _compiled(Ranking(policy, capacity, slots, seed, aside, now), grows), None
        except NotKept:
            return _compiled(Ranking(stand_in, capacity, slots, seed, aside, now), grows), Awaited(policy)
    return _compiled(Ranking(policy, capacity, slots, seed, aside, now), grows), None


def _compiled(ranking: Ranking, grows: bool) -> Ranking:
    if grows:
        ranking.compile(ranking.policy)
    return ranking


def compile_soon(cache: Any) -> None:
    """Compile what the cache awaits on a thread, and let it decide from then on; the cache may be gone by then."""
    if not _thread.submit(_compile, weakref.ref(cache)):
        cache._awaited.settled.set()
        log.warning("too many caches wait to be compiled; this one goes on with %s", cache.policy.name)


def _compile(reference: "weakref.ref[Any]") -> None:
    cache = reference()
    if cache is None or (awaited := cache._awaited) is None:
        return
    stand_in, grows, aside = cache.policy, cache._grows, cache._ranking.aside
    del cache  # it may be let go of meanwhile
    try:
        _have_compiled((stand_in, awaited.policy, grows, aside))
        _make_all(stand_in, awaited.policy, grows, aside)  # found by now, or compiled here
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


def _make_all(stand_in: Policy, policy: Policy, grows: bool, aside: bool) -> None:
    """Load or make the machine code for a cache that moves from ``stand_in`` to ``policy``."""
    Ranking(stand_in, 1, 1, 0, aside).compile(policy)
    if grows:
        Ranking(policy, 1, 1, 0, aside).compile(policy)


def _have_compiled(task: tuple[Policy, Policy, bool, bool]) -> None:
    """Have another process compile and keep the code. It may fail: then there is no code, and nothing else is lost."""
    if code_folder() is None or not os.path.basename(sys.executable or "").startswith("python"):
        return  # an interpreter inside another program starts that program
    paths = [path or os.getcwd() for path in sys.path]
    try:
        subprocess.run(
            [sys.executable, "-c", CHILD],
            input=pickle.dumps(task),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what interrupts this process does not interrupt that one
            timeout=LONGEST,
            check=True,
        )
    except Exception as error:  # no process, no memory, a policy of a script: it is compiled here
        log.debug("compiling in another process failed: %r", error)


def compile_here() -> None:
    """Compile what stands in the input, one process of a machine at a time; the others find what it made."""
    task = sys.stdin.buffer.read()
    if hasattr(os, "nice"):
        os.nice(NICE)
    folder = code_folder()
    if folder is not None and sys.platform != "win32":
        import fcntl

        handle = os.open(folder, os.O_RDONLY)  # closed, and with it unlocked, when the process ends
        fcntl.flock(handle, fcntl.LOCK_EX)
    _make_all(*pickle.loads(task))
