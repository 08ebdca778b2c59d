"""Cache: the in-process cache whose contents any policy, heuristic or learned, decides.

A dict maps each key to its entry: the value, and the ticket that names its stay in a slot; the policy ranks slots. A
hit looks into the dict and notes the entry, without a lock; the notes are handed to the policy in batches, at the
latest by the next write. Everything else happens under one lock, and no code of the user runs there except the keys'
own ``__hash__`` and ``__eq__``. Where these raise, the cache is left as it was, or, if it was half changed, empty.

Read-then-drain recording is Caffeine's idea; here a batch of 64 also pays for the call into compiled code.
"""

import logging
import random
import time
from array import array
from collections.abc import Callable, Hashable, Iterable, Mapping
from os import PathLike
from typing import Any, NoReturn, Protocol, TypeVar, overload

import numpy as np

from kvpredict.cache.arguments import extra_columns, finite_cost, hashed_key, units_of
from kvpredict.cache.background import run_every
from kvpredict.cache.choice import choose_policy
from kvpredict.cache.entry import Entry, Seen, make_entry, slot_of
from kvpredict.cache.expiry import NEVER, Expiry, Held
from kvpredict.cache.forks import starts_over_in_child
from kvpredict.cache.keys import HIGHEST, LOWEST, key_number
from kvpredict.cache.loading import PLAIN, VACANT, Failure, Loading, bare_value
from kvpredict.cache.loads import Flights, Loads
from kvpredict.cache.mapping import MappingMethods
from kvpredict.cache.polite import PoliteLock
from kvpredict.cache.ranking import DRAIN, HITS, MISS, MISSES, NOTES, PLACE, SLOT_BITS, SLOT_MASK, TAKE
from kvpredict.cache.removal import Cause, Removals
from kvpredict.cache.stand_in import Awaited, compile_now, compile_soon, first_ranking
from kvpredict.cache.stats import Marks, Stats
from kvpredict.cache.tap import make_tap, written
from kvpredict.cache.training import train_soon
from kvpredict.core.arguments import whole_number
from kvpredict.core.engine import VICTIMS
from kvpredict.core.errors import KvpredictError
from kvpredict.core.objective import MOST_COST
from kvpredict.core.policy import WANTED, Policy, Trainer

__all__ = ["AccessRecorder", "Cache"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")

log = logging.getLogger("kvpredict")

# Number, units, cost, extra columns and time of a put.
_Prepared = tuple[int, int, float, Mapping[str, float] | None, float]

FIRST_SLOTS = 1024  # of a weighed cache, which gets more as it needs them
MOST_SLOTS = 2**30 - 1
MOST_POSTPONED = 10_000  # calls from within one call
OVERDUE = 16  # buffers of hits waiting before a reader waits for the lock
FEW = 12  # notes that are handed over faster one by one
ONE: float = 1.0  # known again by identity: the cost that nobody gave
SWEPT = 4  # slots that a write looks at for what is over


class AccessRecorder(Protocol):
    """What ``Cache(recorder=...)`` calls after each access that its policy sees; ``kvpredict.Recorder`` is one."""

    def record(self, key: Any, size: int = 1, op: str = "get") -> Any:
        """Note one access: ``op`` is "get" for a hit and "set" for a value put in."""


class Cache(MappingMethods[K, V], Loading[K, V]):
    """A thread-safe cache with a policy of your choice.

    Parameters
    ----------
    capacity : int
        Entries, or units where a ``weigher`` or ``size=`` gives objects another size than 1.
    policy : str, Policy or path, default "s3fifo"
        A name (see ``kvpredict.policy_names``), a policy, or a saved one: its folder, or an MLflow URI such as
        ``models:/orders@champion``. "auto" begins with s3fifo and moves to what would do best on the live keys: see
        ``Tuner``, which ``cache.tuner`` is.
    weigher : callable, optional
        ``weigher(value) -> int``: the units a value takes (0 counts as 1). Called before the lock is taken.
    max_entries : int, optional
        The most entries at once. Default: ``capacity``; with a weigher the cache makes room for more entries as it
        needs it, doubling, and the policy keeps its order but not its finer memory each time it does: give
        ``max_entries`` to avoid that.
    read_buffer : int, default 64
        Hits noted before the policy is told. With 1 the cache decides exactly as ``simulate`` does. A batch's hits
        count as spread evenly over the time since the one before.
    train_aside : bool, default True
        Let a policy that learns while it serves (``guarded``) train on a thread of its own, which all caches share, and
        let its first leader decide until its machine code is there (see Notes). When it has learned depends then on
        those. With False it is compiled here and trains within a ``put``, as in ``simulate``; that ``put`` takes 10 ms
        and more.
    seed : int, default 0
        Seed of a stochastic policy.
    clock : callable, default time.monotonic
        ``clock() -> float``, seconds; a policy may use it to tell ages.
    recorder : AccessRecorder, optional
        Its ``record(key, size, op)`` is called after every hit ("get") and every ``put`` ("set"), outside the lock.
        Replaying these in order gives the accesses that the policy saw.
    key_hash : callable, optional
        ``key_hash(key) -> int`` (64 bits, signed) by which policies know keys. Default: integers as themselves,
        anything else by ``hash(key)``, which for text differs from process to process;
        ``kvpredict.cache.stable_hash`` does not.
    ttl : float, optional
        Seconds that a value lives; short for ``expiry=Expiry(ttl=…)``.
    expiry : Expiry, optional
        How long values live: idle time, jitter, early refresh, what is done when their source fails.
    on_removal : callable, optional
        ``on_removal(key, value, cause)`` is called for every value that leaves, with a ``Cause``: soon after, by a
        thread that uses the cache, while no lock is held. What it raises is logged.
    loader : callable, optional
        ``loader(key)`` returns a value from the source of truth: the default of ``get_or_load``, and what refreshes.
        A plain ``get`` does not load what is missing.
    loads : Loads, optional
        Limits on loading, and what becomes of failures.

    Raises
    ------
    KvpredictError
        On a bad argument, and for a policy that needs the future (``belady``).
    UnknownName
        For a policy that does not exist.

    Notes
    -----
    The policy is compiled here, so that no request waits for it. That takes 1 to 3 s for the first cache of a kind on a
    machine, under 1 s for the first in a later process, which loads the machine code from disk
    (``kvpredict.core.code_cache``), and under 1 ms for every other one. ``guarded`` takes half a minute the first time:
    meanwhile another process compiles it, its first leader decides, and the exchange is that of ``swap_policy``.
    ``ready`` waits for it.

    The policy knows an entry by the size, cost and extra columns that it was put in with, also on later hits.

    A call made while this thread is inside another call of the same cache, from a finalizer or a signal handler, is
    carried out when that one ends.

    ``len(cache)`` counts what is over and has not been swept yet; nothing else shows it.

    >>> cache = Cache(2, policy="lru")
    >>> cache.put("a", 1), cache.put("b", 2), cache.get("a"), cache.put("c", 3)
    (True, True, 1, True)
    >>> "b" in cache, cache.get_or_load("d", lambda key: key * 2)
    (False, 'dd')
    """

    __slots__ = (  # more attributes than a dict of shared keys holds, and these are as fast
        "__weakref__",
        "_awaited",
        "_busy",
        "_clock",
        "_dated",
        "_deletions",
        "_draw",
        "_entries",
        "_evictions",
        "_expirations",
        "_expiry",
        "_grows",
        "_hand",
        "_inserts",
        "_key_hash",
        "_key_in",
        "_limit",
        "_lock",
        "_marks",
        "_negative_hits",
        "_noted",
        "_noting",
        "_outdated",
        "_plain",
        "_postponed",
        "_ranking",
        "_recorder",
        "_rejections",
        "_removals",
        "_seed",
        "_tagged",
        "_touches",
        "_tuner",
        "_unweighed",
        "_updates",
        "_watchful",
        "_weigher",
    )

    def __init__(
        self,
        capacity: int,
        policy: "str | Policy | PathLike[str]" = "s3fifo",
        *,
        weigher: Callable[[V], int] | None = None,
        max_entries: int | None = None,
        read_buffer: int = 64,
        train_aside: bool = True,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        recorder: AccessRecorder | None = None,
        key_hash: Callable[[K], int] | None = None,
        ttl: float | None = None,
        expiry: Expiry | None = None,
        on_removal: Callable[[K, V, Cause], Any] | None = None,
        loader: Callable[[K], Any] | None = None,
        loads: Loads | None = None,
    ) -> None:
        capacity = whole_number("capacity", capacity, most=HIGHEST // 2)
        for name, given in (
            *(("weigher", weigher), ("clock", clock), ("key_hash", key_hash)),
            *(("on_removal", on_removal), ("loader", loader)),
        ):
            if given is not None and not callable(given):
                raise KvpredictError(f"{name} must be callable, got {type(given).__name__}")
        if recorder is not None and not callable(getattr(recorder, "record", None)):
            raise KvpredictError(
                f"recorder must have a method record(key, size, op), {type(recorder).__name__} has none"
            )
        self._weigher, self._key_hash, self._clock, self._recorder = weigher, key_hash, clock, recorder
        if ttl is not None and expiry is not None:
            raise KvpredictError("give ttl or expiry, not both: Expiry has a ttl of its own")
        if not isinstance(expiry, Expiry | None) or not isinstance(loads, Loads | None):
            raise KvpredictError("expiry must be an Expiry and loads a Loads, of kvpredict.cache")
        self._expiry = Expiry(ttl=ttl) if expiry is None else expiry
        self._limit = whole_number("read_buffer", read_buffer)
        self._seed = whole_number("seed", seed, least=None)
        self._unweighed = weigher is None and max_entries is None
        # Only a weighed cache grows: elsewhere all slots are there from the start, as the simulator has them.
        self._grows = weigher is not None and max_entries is None
        if max_entries is not None:
            slots = min(capacity, whole_number("max_entries", max_entries))
        else:
            slots = min(capacity, FIRST_SLOTS) if self._grows else capacity
        automatic = isinstance(policy, str) and policy == "auto"
        chosen = choose_policy("s3fifo" if automatic else policy)
        try:
            if slots > MOST_SLOTS:
                raise MemoryError
            self._ranking, self._awaited = first_ranking(
                chosen, capacity, slots, self._seed, train_aside, float(clock()), self._grows
            )
        except MemoryError:
            raise KvpredictError(
                f"a cache of {slots} entries does not fit; if capacity is in other units than entries, such as bytes, "
                "give a weigher, or max_entries"
            ) from None
        self._entries: dict[K, Entry] = {}
        self._key_in: list[Any] = [VACANT] * slots
        self._noted: list[float] = []  # entries hit, and MISS for misses, that the policy does not know of yet
        self._open_loading(Loads() if loads is None else loads, loader)
        # Re-entrant, because a finalizer or a signal handler may call the cache in the middle of a call; _busy then
        # says that the structure is in transition, and the call waits in _postponed.
        self._lock = PoliteLock()
        self._busy = False
        self._postponed: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self._touches = 0  # updates that were noted like hits
        self._inserts = self._updates = self._evictions = self._rejections = self._deletions = 0
        self._expirations = self._negative_hits = self._outdated = 0
        self._marks = Marks(self._ranking.told)
        # What a plain get need not care for: entries with dates, versions or tags, and a recorder.
        self._watchful = recorder is not None
        self._plain = self._all_plain()
        self._dated = False  # whether there may be an entry that comes to be over
        self._hand = 0  # the next slot to be swept
        self._draw = random.Random(self._seed).random
        self._removals = None if on_removal is None else Removals(on_removal)
        self._tagged: dict[str, set[K]] = {}
        self._noting = on_removal is not None  # whether _left must be called
        if self._expiry.sweep is not None:
            run_every(self, self._expiry.sweep, "sweep", "kvpredict-sweep")
        starts_over_in_child(self)
        if self._awaited is not None:
            compile_soon(self)
        self._tuner: Any = None
        if automatic:
            from kvpredict.cache.tuner import Tuner  # it simulates, which other caches need not import

            self._tuner = Tuner(self)

    # --- Reading: no lock on a hit ---

    @overload
    def get(self, key: K) -> V | None: ...
    @overload
    def get(self, key: K, default: D) -> V | D: ...
    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default``; a hit counts as a use."""
        try:
            note: float = self._entries[key]
            value = note.value  # type: ignore[attr-defined]
        except KeyError:
            note, value = MISS, default
        # After the look, not before: an entry that needs care is only put in once this is set.
        if self._watchful:
            return self._get_watchfully(key, default)
        noted = self._noted
        noted.append(note)
        if len(noted) >= self._limit:
            self._tell()
        return value

    @overload
    def peek(self, key: K) -> V | None: ...
    @overload
    def peek(self, key: K, default: D) -> V | D: ...
    def peek(self, key: Any, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default``, without its counting as a use or in the statistics."""
        value = self._now(key)
        return default if value is VACANT else value

    def read(self, key: K) -> "tuple[V | None, Any]":
        """Return the value of ``key`` and a token for ``put_if``, without its counting as a use; (None, None) if none.

        The token stands for this very put of this value: no later one has it, not even of an equal value.
        """
        now = float(self._clock())
        with self._lock:
            if self._busy:
                value = self._now(key)
                return (None, None) if value is VACANT else (value, object())  # a token that no put_if takes
            entry = self._exclusively(self._read, key, now)
            return (None, None) if entry is None else (bare_value(entry.value, now), entry)

    def __contains__(self, key: object) -> bool:
        return self._now(key) is not VACANT  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._entries)

    def items(self) -> list[tuple[K, V]]:
        """Return the keys and values as of now, in no particular order."""
        entries = list(self._entries.items())
        if not self._watchful:
            return [(key, entry.value) for key, entry in entries]
        values = [(key, self._bare(entry.value)) for key, entry in entries]
        return [(key, value) for key, value in values if value is not VACANT]

    # --- Writing: under the lock ---

    def put(
        self,
        key: K,
        value: V,
        ttl: float | None = None,
        size: int | None = None,
        cost: float = ONE,
        extra: Mapping[str, float] | None = None,
        tags: tuple[str, ...] = (),
        version: int | None = None,
    ) -> bool:
        """Set the value of ``key``; tell whether the cache took it in.

        Parameters
        ----------
        key, value
        ttl : float, optional
            Seconds that this value lives. Default: what the cache's ``Expiry`` says.
        size : int, optional
            Units it takes, at least 0 (0 counts as 1). Default: what the weigher says, or 1.
        cost : float, default 1.0
            Cost of a miss of this key; policies such as GDSF use it.
        extra : mapping of str to float, optional
            The extra columns that a learned policy may read; others are passed over.
        tags : tuple of str, optional
            What ``invalidate_tags`` knows the entry by.
        version : int, optional
            The version of the value in its source. While the cache holds a later version of the key it keeps that.

        Returns
        -------
        bool
            False where the object is larger than the cache or the policy did not admit it; an older value of the key
            is then gone all the same. False, too, where the cache holds a later version, which stays.
        """
        # What the other branch comes to, in place: it counts here, as does that arguments may be given by position.
        if (
            self._plain
            and ttl is None
            and size is None
            and cost is ONE
            and extra is None
            and not tags
            and version is None
        ):
            name: Any = key
            number = name if type(key) is int and LOWEST <= name <= HIGHEST else key_number(key)
            units, now = 1, self._clock()
        else:
            number, units, cost, extra, now = self._prepare(key, value, size, cost, extra)
            value = self._hold(key, value, now, ttl, tags, version, 0.0)
            if self._known is not None:
                self._make_known(key)
        lock = self._lock
        try:
            # What a with statement and _exclusively do, in place: it counts here.
            if not lock.take(False):
                lock.wait()
            if self._busy:
                self._postponed.append((self._put, (key, value, number, units, cost, extra, now)))
                return True
            self._busy = True
            try:
                outcome = self._put(key, value, number, units, cost, extra, now)
                if self._postponed:
                    self._catch_up()
            except KvpredictError:
                raise
            except BaseException:
                self._recover()
                raise
            finally:
                self._busy = False
        finally:
            try:  # noqa: SIM105
                lock.release()
            except RuntimeError:  # interrupted before it was acquired
                pass
        if self._recorder is not None or self._removals is not None:
            self._aftermath(key, units)
        return outcome[0]  # what was evicted is let go of only here, outside the lock: its finalizers are user code

    def put_if(
        self,
        key: K,
        value: V,
        token: Any,
        *,
        size: int | None = None,
        cost: float = ONE,
        extra: Mapping[str, float] | None = None,
        ttl: float | None = None,
        tags: tuple[str, ...] = (),
        version: int | None = None,
    ) -> bool:
        """Put ``value`` in only if nothing has changed ``key`` since ``read`` gave ``token``: compare and set.

        With the token None, only if the key is missing. False where it has changed, or ``put`` would return False.

        >>> cache = Cache(2)
        >>> cache["a"] = 1
        >>> value, token = cache.read("a")
        >>> cache.put_if("a", value + 1, token), cache.put_if("a", value + 1, token), cache["a"]
        (True, False, 2)
        """
        arguments = self._prepare(key, value, size, cost, extra)
        value = self._hold(key, value, arguments[4], ttl, tags, version, 0.0)
        with self._lock:
            if self._busy:
                return False
            taken, *_garbage = self._exclusively(self._put_if, key, value, arguments, token)
        if self._known is not None and taken:
            self._make_known(key)
        self._aftermath(key, arguments[1] if taken else None)
        return taken

    def delete(self, key: K) -> bool:
        """Remove ``key``; tell whether it was there. A load of it under way is not cached."""
        entry = self._take_out(key, None)
        return entry is not None and self._bare(entry.value) is not VACANT

    def invalidate(self, key: K, *, before: int | None = None) -> bool:
        """Remove ``key``, or with ``before`` only a version of it that is older or unknown; tell whether it was there.

        A load of it under way is not cached.
        """
        entry = self._take_out(key, None if before is None else whole_number("before", before, least=None))
        return entry is not None and self._bare(entry.value) is not VACANT

    def invalidate_tags(self, *tags: str) -> int:
        """Remove all entries that have one of ``tags``; return how many. No load under way is cached.

        Which tags a load will come back with is not known before, so all of them are let go of.
        """
        if not all(isinstance(tag, str) for tag in tags):
            raise KvpredictError(f"tags are texts, got {tags!r}")
        now = float(self._clock())
        with self._lock:
            if self._busy:
                self._postponed.append((self._delete_tagged, (tags, now)))
                return 0
            garbage = self._exclusively(self._delete_tagged, tags, now)
        self._aftermath(None, None)
        return len(garbage)

    @overload
    def pop(self, key: K) -> V: ...
    @overload
    def pop(self, key: K, default: D) -> V | D: ...
    def pop(self, key: Any, default: Any = VACANT) -> Any:
        """Remove ``key`` and return its value, or ``default``; KeyError where neither is there. No look-up."""
        entry = self._take_out(key, None)
        value = VACANT if entry is None else self._bare(entry.value)
        if value is not VACANT:
            return value
        if default is VACANT:
            raise KeyError(key)
        return default

    def __delitem__(self, key: K) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def clear(self) -> None:
        """Remove every entry, and what the policy remembers of past accesses; counters stay."""
        with self._lock:
            if self._busy:
                self._postponed.append((self._clear, ()))
                return
            _garbage = self._exclusively(self._clear)
        self._aftermath(None, None)

    def sweep(self) -> int:
        """Take out all that is over; return how many. Reads and writes do this by the way."""
        now = float(self._clock())
        with self._lock:
            if self._busy:
                return 0
            garbage = self._exclusively(self._sweep, now, len(self._key_in))
        self._aftermath(None, None)
        return len(garbage)

    def resize(self, capacity: int, *, max_entries: int | None = None) -> None:
        """Change the capacity while running; what no longer fits is evicted in the policy's order.

        The policy keeps its order of the rest, but not its finer memory. Memory of slots that a smaller cache does not
        need is not given back.

        Parameters
        ----------
        capacity : int
            Entries, or units.
        max_entries : int, optional
            The most entries at once, where the cache was made with ``max_entries``. Default: as before, or ``capacity``
            where there are no sizes.
        """
        capacity = whole_number("capacity", capacity, most=HIGHEST // 2)
        if max_entries is not None:
            whole_number("max_entries", max_entries)
            if self._grows:
                raise KvpredictError("this cache makes room for any number of entries: leave max_entries out")
        slots = capacity if self._unweighed and max_entries is None else max_entries or 0
        if min(slots, capacity) > MOST_SLOTS:
            raise KvpredictError(f"a cache of {slots} entries does not fit: at most {MOST_SLOTS} do")
        now = float(self._clock())
        self._ranking.compile(self._ranking.policy)
        with self._lock:
            if self._busy:
                raise KvpredictError("resize was called from within another call of the cache; call it afterwards")
            _garbage = self._exclusively(self._resize, capacity, min(slots, capacity), now)
        self._aftermath(None, None)

    def swap_policy(self, policy: "str | Policy | PathLike[str]") -> None:
        """Let another policy decide from now on; no entry is lost.

        The new policy is given the entries in the order in which the old one would have evicted them. It is compiled
        before the lock is taken, which for ``guarded`` takes half a minute the first time on a machine, in another
        process. The exchange itself takes about 0.1 ms for 1,000 entries, from or to ``guarded`` about 3 ms, during
        which hits go on and writes wait.

        Parameters
        ----------
        policy : str, Policy or path
            As for the constructor.
        """
        chosen = choose_policy(policy)
        compile_now(self._ranking.policy, chosen, self._ranking.aside)
        now = float(self._clock())
        with self._lock:
            if self._busy:
                self._postponed.append((self._exchange, (chosen, now)))
                return
            self._exclusively(self._exchange, chosen, now)

    def ready(self, timeout: float | None = None) -> bool:
        """Wait until the policy asked for decides, at most ``timeout`` seconds; tell whether it does.

        The first cache of a machine with ``guarded`` begins with a heuristic, while another process compiles.
        """
        awaited = self._awaited
        if awaited is not None:
            awaited.settled.wait(timeout)
        return self._awaited is None

    # --- Looking at it ---

    @property
    def policy(self) -> Policy:
        """The policy that decides now."""
        return self._ranking.policy

    @property
    def capacity(self) -> int:
        """Units that fit."""
        return self._ranking.capacity

    @property
    def tuner(self) -> Any:
        """The ``Tuner`` of a cache made with ``policy="auto"``, else None."""
        return self._tuner

    def tap(self, sample: float, window: int) -> None:
        """Keep the latest ``window`` accesses of a share ``sample`` of the keys, for ``Shadow``; 0 keeps none.

        That costs a few nanoseconds an access.
        """
        if not 0.0 <= sample <= 1.0:
            raise KvpredictError(f"sample is a share of the keys, in [0, 1], got {sample!r}")
        tap = make_tap(sample, whole_number("window", window))
        with self._lock:
            if self._busy:
                raise KvpredictError("tap was called from within another call of the cache; call it afterwards")
            self._exclusively(self._ranking.tapped, tap)

    def tapped(self) -> tuple[np.ndarray, int]:
        """Return what ``tap`` keeps, int64 ``[n, 2]`` (numbers of keys, sizes), and how many it has seen in all."""
        now = float(self._clock())
        with self._lock:
            if not self._busy:
                self._exclusively(self._serve, DRAIN, now)
            return written(self._ranking.tap), int(self._ranking.tap[0, 0])

    def stats(self) -> Stats:
        """Return the counts so far; ``stats().last(seconds)`` has those of a recent window."""
        now = float(self._clock())
        with self._lock:
            if not self._busy and (self._noted or now >= self._marks.due):
                self._exclusively(self._serve, DRAIN, now)
            return self._count()._replace(marks=self._marks.seen(now))

    def _count(self) -> Stats:
        return Stats(
            hits=int(self._ranking.tally[HITS]) - self._touches,
            misses=int(self._ranking.tally[MISSES]),
            inserts=self._inserts,
            updates=self._updates,
            evictions=self._evictions,
            rejections=self._rejections,
            deletions=self._deletions,
            loads=self._loads,
            load_failures=self._load_failures,
            entries=len(self._entries),
            size=self._ranking.used,
            capacity=self._ranking.capacity,
            expirations=self._expirations,
            negative_hits=self._negative_hits,
            stale_served=self._stale_served,
            refreshes=self._refreshes,
            load_refusals=self._load_refusals,
            load_seconds=self._load_seconds,
            policy=self._ranking.policy.account(self._ranking.state).get("counts", {}),
        )

    @property
    def _trainer(self) -> Trainer | None:
        return self._ranking.trainer

    def validate(self) -> None:
        """Assert that entries, slots and the policy's own structure agree. For tests."""
        with self._lock:
            ranking = self._ranking
            ranking.validate()
            assert self._sound()

    def __repr__(self) -> str:
        ranking = self._ranking
        return (
            f"Cache(capacity={ranking.capacity}, policy={ranking.policy.name!r}, entries={len(self)}, "
            f"size={ranking.used})"
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse ``pickle`` and ``copy``: locks, threads and loads under way belong to one cache of one process."""
        raise KvpredictError(
            "a Cache is neither copied nor pickled; save_snapshot and load_snapshot of kvpredict.cache carry its "
            "contents and policy over to another one"
        )

    def _forked(self) -> None:
        """Go on in a forked child, with the parent's entries."""
        self._lock = PoliteLock()
        self._flights = Flights()  # the parent's loads do not land here
        self._postponed = []
        if self._busy:  # another thread was in the middle of a change
            self._forget()
            self._busy = False
        self._ranking.retrain()  # a thread of the parent may have begun to train it
        if self._awaited is not None:
            self._awaited = Awaited(self._awaited.policy)
            compile_soon(self)

    # --- Inside: called under the lock, by way of _exclusively ---

    def _exclusively(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """Run ``action``, then what was postponed meanwhile."""
        self._busy = True
        try:
            result = action(*arguments)
            if self._postponed:
                self._catch_up()
        except KvpredictError:
            raise  # raised on purpose, before anything was changed
        except BaseException:
            self._recover()
            raise
        finally:
            self._busy = False
        return result

    def _recover(self) -> None:
        """Go on after an interrupt, or a key whose ``__eq__`` raised: usually at a look-up, before any change."""
        self._flights.detach_all()  # one may have been left without its leader
        self._plain = self._all_plain()
        if not self._sound():
            # Between two steps that belong together. A cache may forget everything; it may not go on half changed.
            self._start_over()

    def _sound(self) -> bool:
        """Tell whether entries and slots agree; no key is compared."""
        ranking, key_in, entries = self._ranking, self._key_in, self._entries
        live, generation = ranking.host.live, ranking.generation
        if len(key_in) != ranking.slots or int(live.sum()) != len(entries):
            return False
        for key, entry in entries.items():
            slot = slot_of(entry)
            if key_in[slot] is not key or not live[slot] or generation[slot] != int(entry) >> SLOT_BITS:
                return False
        return sum(held is not VACANT for held in key_in) == len(entries)

    def _start_over(self) -> None:
        log.warning(
            "the cache forgets its %d entries, because an exception left it half changed; if it came from the __eq__ "
            "of a key, that must not raise",
            len(self._entries),
        )
        self._clear()

    def _catch_up(self) -> None:
        """Run what was postponed, and what that postpones."""
        turns = 0
        while self._postponed:
            late, its_arguments = self._postponed.pop(0)
            late(*its_arguments)
            turns += 1
            if turns == MOST_POSTPONED:
                self._start_over()
                raise RecursionError("a key's __eq__ or a finalizer calls the cache again whenever it is called")

    def _serve(self, op: int, now: float, number: int = 0) -> float:
        """Tell the policy what was noted, then do ``op`` (see ``ranking``)."""
        ranking = self._ranking
        return ranking.serve(ranking.handle, op, self._hand_over(now), now, number, 0, 0.0)

    def _hand_over(self, now: float) -> int:
        """Write down for the policy what was noted; return how much that is. Put counts aside when it is time."""
        noted, ranking = self._noted, self._ranking
        if now >= self._marks.due:
            self._marks.add(now, self._count())
        count = len(noted)  # readers append meanwhile: what follows these goes into the next batch
        while count > NOTES:
            ranking.slip[:] = array("d", noted[:NOTES])
            del noted[:NOTES]
            count -= NOTES
            ranking.serve(ranking.handle, DRAIN, NOTES, now, 0, 0, 0.0)
        if count:
            if count < FEW:
                for i in range(count):
                    ranking.slip[i] = noted[i]
            else:
                ranking.slip[:count] = array("d", noted[:count])
            del noted[:count]
        return count

    def _put(
        self, key: K, value: Any, number: int, units: int, cost: float, extra: Mapping[str, float] | None, now: float
    ) -> tuple[Any, ...]:
        """Do what ``put`` says; after that return what leaves the cache, for the caller to drop outside the lock."""
        ranking, entries = self._ranking, self._entries
        if self._dated:
            self._sweep(now, SWEPT)
        entry = entries.get(key)
        if type(value) is Held and entry is not None and _later(entry.value, value.version, now):
            self._outdated += 1
            return False, None
        if self._flights.by_key:
            self._flights.detach(key)
        if entry is not None:
            self._updates += 1
            slot = int(entry) & SLOT_MASK
            if ranking.sizes[slot] == units:
                ranking.hints[slot] = cost
                if ranking.columns:
                    ranking.set_extra(ranking.host.extra[slot], extra)
                left: Any = entry.value
                seen = type(entry) is Seen
                if seen:
                    entry = entries[key] = make_entry(entry, value)
                else:
                    entry.value = value
                if self._noting:
                    self._left(key, left, Cause.REPLACED, value)
                self._touches += 1
                self._noted.append(entry)
                if seen or len(self._noted) >= self._limit:  # a token among the notes would keep its value alive
                    self._serve(DRAIN, now)
                return True, left
            # Readers, who take no lock, see the old value until the new one stands. What they note of it meanwhile the
            # engine passes over, as its slot is free.
            key, self._key_in[slot] = self._key_in[slot], VACANT
            self._serve(TAKE, now, slot)
            if self._noting:
                self._left(key, entry.value, Cause.REPLACED)
        elif self._grows and ranking.room_without_slot(units):
            self._carry(ranking.policy, min(2 * ranking.slots, ranking.capacity), now)
            ranking = self._ranking
        if ranking.columns:
            ranking.set_extra(ranking.row[0], extra)
        count = self._hand_over(now) if self._noted or now >= self._marks.due else 0
        ticket = ranking.serve(ranking.handle, PLACE, count, now, number, units, cost)
        if ranking.trainer is not None and ranking.due[0] == WANTED:
            train_soon(self, ranking.due)
        if ticket < 0:
            self._rejections += 1
            if entry is not None:
                del entries[key]
            return False, entry
        key_in, slot = self._key_in, int(ticket) & SLOT_MASK
        garbage: Any = entry
        if units > 1:  # else one object made room at most, and the newcomer has its slot
            for victim in ranking.victims[: ranking.counts[VICTIMS]]:
                if victim != slot:
                    garbage = self._evicted(victim, garbage)
        gone, left = key_in[slot], None
        if gone is not VACANT:
            # What _evicted does, in place.
            left = entries.pop(gone)
            self._evictions += 1
            if self._noting:
                self._left(gone, left.value, Cause.EVICTED)
        key_in[slot] = key
        entries[key] = fresh = Entry(ticket)
        fresh.value = value
        if self._noting and type(value) is Held:
            self._tag(key, value.tags)
        if entry is None:
            self._inserts += 1
        return True, gone, left, garbage

    def _evicted(self, slot: int, garbage: Any) -> Any:
        """Take out what was evicted from ``slot``; return it, linked to other ``garbage``."""
        key, self._key_in[slot] = self._key_in[slot], VACANT
        left = self._entries.pop(key)
        self._evictions += 1
        if self._noting:
            self._left(key, left.value, Cause.EVICTED)
        return key, left, garbage

    def _read(self, key: K, now: float) -> Seen | None:
        """Return the entry of ``key`` as one that serves as a token; None where there is nothing to be read."""
        entry = self._entries.get(key)
        if entry is None or bare_value(entry.value, now) is VACANT:
            return None
        if type(entry) is Seen:
            return entry
        self._entries[key] = seen = Seen(entry)
        seen.value = entry.value
        return seen

    def _put_if(self, key: K, value: Any, arguments: _Prepared, token: Any) -> tuple[Any, ...]:
        entry = self._entries.get(key)
        # What is over, or a failure, nobody can have read.
        over = entry is not None and self._bare(entry.value) is VACANT
        if (None if over else entry) is not token:
            return False, None
        return self._put(key, value, *arguments)

    def _delete(self, key: K, now: float, before: int | None = None) -> Any:
        """Remove ``key``; return its entry, or None where there was none."""
        entry = self._entries.get(key)
        if before is not None and entry is not None and _later(entry.value, before - 1, now):
            return None
        self._flights.detach(key)
        if entry is not None:
            self._remove(key, slot_of(entry), now, Cause.DELETED)
            self._deletions += 1
        return entry

    def _delete_tagged(self, tags: tuple[str, ...], now: float) -> list[Any]:
        self._flights.detach_all()
        keys = {key for tag in tags for key in self._tagged.get(tag, ())}
        return [entry for key in keys if (entry := self._delete(key, now)) is not None]

    def _remove(self, key: K, slot: int, now: float, cause: Cause) -> None:
        entry = self._entries.pop(key)
        self._key_in[slot] = VACANT
        self._serve(TAKE, now, slot)
        if self._noting:
            self._left(key, entry.value, cause)

    def _tag(self, key: K, tags: tuple[str, ...]) -> None:
        for tag in tags:
            self._tagged.setdefault(tag, set()).add(key)

    def _left(self, key: K, value: Any, cause: Cause, successor: Any = None) -> None:
        """See to the tags and the listener of a value that has left, and to the tags of what replaced it."""
        if type(value) is Held:
            for tag in value.tags:
                tagged = self._tagged[tag]
                tagged.discard(key)
                if not tagged:
                    del self._tagged[tag]
            value = value.value
        if type(successor) is Held:
            self._tag(key, successor.tags)
        if self._removals is not None and type(value) is not Failure:
            self._removals.waiting.append((key, value, cause))

    def _sweep(self, now: float, count: int) -> list[Any]:
        """Look at the next ``count`` slots, and take out what is over; return that."""
        garbage: list[Any] = []
        key_in, entries = self._key_in, self._entries
        for _ in range(count):
            self._hand = (self._hand + 1) % len(key_in)
            key = key_in[self._hand]
            if key is not VACANT:
                entry = entries[key]
                if type(entry.value) is Held and entry.value.gone(now):
                    garbage.append(entry)
                    self._expire(key, entry, now)
        return garbage

    def _expire(self, key: K, entry: Entry, now: float) -> None:
        """Take out an entry that is over, unless it has changed."""
        if self._entries.get(key) is entry and type(entry.value) is Held and entry.value.gone(now):
            self._expirations += 1
            self._remove(key, slot_of(entry), now, Cause.EXPIRED)

    def _clear(self) -> Any:
        self._deletions += len(self._entries)
        self._serve(DRAIN, self._ranking.told)  # what is noted would keep values alive
        return self._forget()

    def _forget(self) -> Any:
        """Start over with no entries; return the old ones."""
        self._flights.detach_all()
        entries, self._entries = self._entries, {}
        self._key_in = [VACANT] * self._ranking.slots
        self._ranking = self._ranking.empty(self._seed)
        self._postponed.clear()
        self._hand = 0
        self._tagged.clear()
        if self._removals is not None:
            held = [(key, entry.value) for key, entry in entries.items()]
            bare = [(key, value.value if type(value) is Held else value) for key, value in held]
            self._removals.waiting.extend((k, v, Cause.DELETED) for k, v in bare if type(v) is not Failure)
        return entries

    def _resize(self, capacity: int, slots: int, now: float) -> Any:
        self._serve(DRAIN, now)
        ranking = self._ranking
        garbage = []
        most = slots or len(self._key_in)
        if ranking.used > capacity or len(self._entries) > most:
            for slot in ranking.eviction_order(self._ranking.told):
                if ranking.used <= capacity and len(self._entries) <= most:
                    break
                key = self._key_in[slot]
                garbage.append((key, self._entries[key]))
                self._evictions += 1
                self._remove(key, int(slot), now, Cause.EVICTED)
        self._carry(ranking.policy, max(slots, ranking.slots), now, capacity)
        return garbage

    def _exchange(self, policy: Policy, now: float) -> None:
        self._carry(policy, self._ranking.slots, now)
        awaited, self._awaited = self._awaited, None
        if awaited is not None:
            awaited.settled.set()

    def _carry(self, policy: Policy, slots: int, now: float, capacity: int | None = None) -> None:
        """Exchange the policy, or widen the cache to ``slots``, with every entry in its slot."""
        self._serve(DRAIN, now)
        self._ranking = self._ranking.carried_to(policy, slots, self._seed, self._ranking.told, capacity)
        self._key_in.extend([VACANT] * (slots - len(self._key_in)))
        self._plain = self._all_plain()

    # --- Inside: without the lock ---

    def _get_watchfully(self, key: K, default: Any) -> Any:
        """Do what ``get`` says, where entries may have dates or a recorder listens."""
        entry = self._entries.get(key)
        note, bare = MISS, default
        if entry is not None:
            note, bare = entry, entry.value
            if type(bare) is Held:
                held, bare, note = bare, default, MISS
                now = self._clock()
                if held.fresh(now):
                    note = entry
                    if held.idle:
                        held.rests_at = now + held.idle
                    if type(held.value) is Failure:
                        self._negative_hits += 1
                    else:
                        bare = held.value
                        if now >= held.refresh_at and self._loader is not None:
                            self._renew(key, self._loader, PLAIN)
                elif held.gone(now):
                    self._lapse(key, entry, now)
        self._noted.append(note)
        if len(self._noted) >= self._limit:
            self._tell()
        if self._recorder is not None and note >= 0:
            self._recorder.record(key, self._ranking.sizes[slot_of(note)], "get")
        return bare

    def _lapse(self, key: K, entry: Any, now: float) -> None:
        with self._lock:
            if self._busy:
                return
            self._exclusively(self._expire, key, entry, now)
        self._aftermath(None, None)

    def _take_out(self, key: K, before: int | None) -> Any:
        """Delete ``key``; return its entry, None if there was none."""
        hash(key)
        now = float(self._clock())
        with self._lock:
            if self._busy:
                self._postponed.append((self._delete, (key, now, before)))
                return self._entries.get(key)
            garbage = self._exclusively(self._delete, key, now, before)
        if self._removals is not None:
            self._aftermath(None, None)
        return garbage

    def _aftermath(self, key: Any, units: int | None) -> None:
        """Tell recorder and listener what happened, now that no lock is held."""
        if self._recorder is not None and units is not None:
            self._recorder.record(key, units, "set")
        if self._removals is not None and self._removals.waiting:
            self._removals.tell()

    def _all_plain(self) -> bool:
        """Tell whether a put has nothing to look for but what its arguments say."""
        usual = self._weigher is None and self._key_hash is None and not self._ranking.columns
        return usual and not self._expiry.dates and self._known is None

    def _make_known(self, key: K) -> None:
        add = getattr(self._known, "add", None)
        if add is not None:
            add(key)

    def _hold(
        self, key: K, value: Any, now: float, ttl: float | None, tags: tuple[str, ...], version: int | None, took: float
    ) -> Any:
        """Return what the entry is to hold for ``value``: itself, or a ``Held``."""
        expiry = self._expiry
        if not (expiry.dates or ttl is not None or tags or version is not None):
            return value
        held = Held(value)
        if type(value) is Failure:
            held.deadline = held.gone_at = now + (ttl or 0.0)
        else:
            expiry.date(held, expiry.ttl_of(key, value, ttl), now, took, self._draw)
        if tags:
            if isinstance(tags, str) or not isinstance(tags, Iterable) or not all(isinstance(tag, str) for tag in tags):
                raise KvpredictError(f"tags for key {key!r} must be a tuple of texts, got {tags!r}")
            held.tags = tuple(tags)
        if version is not None:
            held.version = whole_number("version", version, least=None)
        with self._lock:
            self._watchful = True
            self._noting = self._noting or bool(tags)
            self._dated = self._dated or held.gone_at < NEVER or held.rests_at < NEVER
        return held

    def _tell(self) -> None:
        """Tell the policy what was noted, unless whoever holds the lock is about to."""
        now = float(self._clock())
        lock = self._lock
        taken = lock.take(False)
        if not taken and len(self._noted) >= OVERDUE * self._limit:
            lock.wait()
            taken = True
        if taken:
            try:
                if not self._busy:
                    self._exclusively(self._serve, DRAIN, now)
            finally:
                lock.release()
            if self._removals is not None:  # those of calls that were postponed meanwhile
                self._aftermath(None, None)

    def _prepare(self, key: K, value: V, size: int | None, cost: float, extra: Mapping[str, float] | None) -> _Prepared:
        """Check and complete the arguments of a put: all of it that may run the user's code."""
        if self._key_hash is not None:
            number = hashed_key(key, self._key_hash)
        elif type(key) is int and LOWEST <= key <= HIGHEST:  # type: ignore[operator]
            number = key  # type: ignore[assignment]
        else:
            number = key_number(key)
        if size is not None:
            units = units_of(size, "size", key)
        elif self._weigher is not None:
            units = units_of(self._weigher(value), "the weigher's result", key)
        else:
            units = 1
        if type(cost) is not float or not 0.0 <= cost <= MOST_COST:
            cost = finite_cost(cost, key)
        if extra is not None or self._ranking.columns:
            extra = extra_columns(extra, self._ranking.policy, key)
        return number, units, cost, extra, self._clock()


def _later(value: Any, version: int | None, now: float) -> bool:
    """Tell whether what an entry holds is known to be of a later version, and not over."""
    if version is None or type(value) is not Held or value.version is None:
        return False
    return value.version > version and value.fresh(now)
