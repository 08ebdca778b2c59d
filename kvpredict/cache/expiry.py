"""Expiry: until when a value may be served, and when to fetch it anew before that.

An entry that has a date, a version or tags holds a ``Held`` in place of its bare value, so entries without cost nothing
and a hit on them checks nothing. Dates are the entry's own and no policy knows of them: whatever decides what to evict,
an expired entry is a miss, and is taken out when it is next asked for or when the hand that walks over the slots, a few
for each write, comes by.

Refreshing early at a random time before the deadline, proportional to what the load takes, keeps many processes from
loading at once: Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015
(XFetch). It draws at every request; here the draw is made once, when the value is put in, because a process refreshes
a key once at a time anyway.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from kvpredict.core.errors import KvpredictError

__all__ = ["NEVER", "Expiry", "Held", "duration"]

NEVER = float("inf")


class Held:
    """What an entry holds in place of its value when it has a date, a version or tags; times are the cache's clock."""

    __slots__ = ("deadline", "gone_at", "idle", "refresh_at", "rests_at", "retry_at", "tags", "value", "version")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.deadline = NEVER  # fresh before it
        self.gone_at = NEVER  # of use before it, should the source fail
        self.refresh_at = NEVER  # the first hit after it fetches the value anew, in the background
        self.retry_at = -NEVER  # until then a source that failed is left alone
        self.idle = 0.0  # seconds without a hit after which it is over; 0: any number
        self.rests_at = NEVER
        self.tags: tuple[str, ...] = ()
        self.version: int | None = None

    def fresh(self, now: float) -> bool:
        """Tell whether the value may be served."""
        return now < self.deadline and now < self.rests_at

    def gone(self, now: float) -> bool:
        """Tell whether the value is of no more use."""
        return now >= self.gone_at or now >= self.rests_at


@dataclass(frozen=True)
class Expiry:
    """How long values of a cache live.

    Parameters
    ----------
    ttl : float, optional
        Seconds from ``put`` until a value is over. Default: it never is.
    idle : float, optional
        Seconds without a hit after which it is over.
    jitter : float, default 0.0
        Share of the ttl, in [0, 1), up to which it is shortened at random, so that what was put in together does not
        expire together.
    refresh : float or "xfetch", optional
        A fraction of the ttl, in (0, 1), after which the next hit has the value loaded anew in the background;
        "xfetch" chooses the moment at random, the earlier the longer the load took. Needs a loader: that of
        ``get_or_load``, or the cache's own. A coroutine function is called by a hit in a running event loop alone.
    stale : float, default 0.0
        Seconds after its end during which a value is still handed out by ``get_or_load`` when its loader fails, or
        when waiting for it takes too long.
    retry : float, default 1.0
        Seconds for which a loader that failed is not called again while there is a stale value to hand out, or a
        refresh is not tried again.
    compute : callable, optional
        ``compute(key, value) -> seconds or None``: the ttl of one value; None stands for ``ttl``. A ``ttl`` given to
        ``put`` goes first.
    sweep : float, optional
        Seconds between sweeps of a thread that takes out what is over. Default: no thread; writes sweep as they go.

    >>> from kvpredict.cache import Cache
    >>> now = [0.0]
    >>> cache = Cache(10, expiry=Expiry(ttl=60), clock=lambda: now[0])
    >>> cache.put("a", 1), cache.get("a")
    (True, 1)
    >>> now[0] = 60.0
    >>> print(cache.get("a"))
    None
    """

    ttl: float | None = None
    idle: float | None = None
    jitter: float = 0.0
    refresh: float | Literal["xfetch"] | None = None
    stale: float = 0.0
    retry: float = 1.0
    compute: Callable[[Any, Any], float | None] | None = None
    sweep: float | None = None

    def __post_init__(self) -> None:
        for name in ("ttl", "idle", "sweep"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, duration(name, getattr(self, name)))
        for name in ("stale", "retry"):
            object.__setattr__(self, name, duration(name, getattr(self, name), least=0.0))
        if not _within(self.jitter, 0.0, 1.0):
            raise KvpredictError(f"jitter is a share of the ttl, at least 0 and below 1, got {self.jitter!r}")
        if self.refresh not in (None, "xfetch") and not (_within(self.refresh, 0.0, 1.0) and self.refresh):
            raise KvpredictError(
                f"refresh is a fraction of the ttl, above 0 and below 1, or 'xfetch', got {self.refresh!r}"
            )
        if self.compute is not None and not callable(self.compute):
            raise KvpredictError(f"compute must be callable, got {type(self.compute).__name__}")

    @property
    def dates(self) -> bool:
        """Whether entries get a date without their put saying so."""
        return self.ttl is not None or self.idle is not None or self.compute is not None

    def ttl_of(self, key: Any, value: Any, ttl: float | None) -> float | None:
        """Return the ttl of one value, before jitter; calls the user's ``compute``."""
        if ttl is not None:
            return duration("ttl", ttl, key=key)
        if self.compute is not None:
            computed = self.compute(key, value)
            if computed is not None:
                # 0 or less says that the value is over already: it is put in, and is a miss.
                return duration("the ttl that compute returned", computed, least=-NEVER, key=key)
        return self.ttl

    def date(self, held: Held, ttl: float | None, now: float, took: float, draw: Callable[[], float]) -> None:
        """Write the dates of a value put in at ``now`` whose load took ``took`` seconds; ``draw()`` is in [0, 1)."""
        if ttl is not None:
            if self.jitter:
                ttl *= 1.0 - self.jitter * draw()
            held.deadline = now + ttl
            held.gone_at = held.deadline + self.stale
            if self.refresh == "xfetch":
                held.refresh_at = held.deadline + took * math.log(1.0 - draw())
            elif self.refresh is not None:
                held.refresh_at = now + self.refresh * ttl
        if self.idle is not None:
            held.idle = self.idle
            held.rests_at = now + self.idle


def duration(name: str, given: Any, least: float | None = None, key: Any = None) -> float:
    """Return a number of seconds, above 0, or at least ``least`` where that is given; neither nan nor infinite."""
    try:
        seconds = float(given)
    except (TypeError, ValueError, OverflowError):
        seconds = float("nan")
    # A float is made of text, too, but who gives it has not read it as a number yet.
    if (
        isinstance(given, bool | str | bytes | bytearray)
        or not abs(seconds) < NEVER
        or (seconds <= 0 if least is None else seconds < least)
    ):
        whose = "" if key is None else f" for key {key!r}"
        bound = "above 0" if least is None else "finite" if least == -NEVER else f"at least {least:g}"
        raise KvpredictError(f"{name}{whose} must be a number of seconds, {bound}, got {given!r}")
    return seconds


def _within(number: Any, least: float, below: float) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and least <= number < below
