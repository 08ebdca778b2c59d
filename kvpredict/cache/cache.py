"""Cache: the in-process cache whose contents any policy, heuristic or learned, decides.

A dict maps each key to its value and its ticket, the name of its stay in a slot; the policy ranks slots. A hit looks
into the dict and notes the ticket, without a lock; the notes are handed to the policy in batches, at the latest by the
next write. Everything else happens under one lock, and no code of the user runs there except the keys' own
``__hash__`` and ``__eq__``.

Read-then-drain recording is Caffeine's idea; here a batch of 64 also pays for the call into compiled code.
"""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from os import PathLike
from threading import RLock
from typing import Any, Generic, Protocol, TypeVar, overload

import numpy as np

from kvpredict.cache.arguments import extra_columns, finite_cost, hashed_key, units_of, whole_number
from kvpredict.cache.choice import choose_policy
from kvpredict.cache.keys import HIGHEST, LOWEST, key_number
from kvpredict.cache.loads import Flight, Flights
from kvpredict.cache.ranking import DRAIN, HITS, MISS, MISSES, NOTHING, PLACE, SLOT_MASK, TAKE, Ranking
from kvpredict.cache.stats import Stats
from kvpredict.cache.training import BEGUN, train_soon
from kvpredict.core.engine import VICTIMS
from kvpredict.core.errors import KvpredictError
from kvpredict.core.policy import Policy, Trainer

__all__ = ["AccessRecorder", "Cache"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
D = TypeVar("D")

# Number, units, cost, extra columns and time of a put.
_Prepared = tuple[int, int, float, Mapping[str, float] | None, float]

_VACANT: Any = object()  # in a slot without an object
FIRST_SLOTS = 1024  # of a weighed cache, which gets more as it needs them
MOST_SLOTS = 2**30 - 1
MOST_POSTPONED = 10_000  # calls from within one call
OVERDUE = 16  # buffers of hits waiting before a reader waits for the lock


class AccessRecorder(Protocol):
    """What ``Cache(recorder=...)`` calls after each access that its policy sees; ``kvpredict.Recorder`` is one."""

    def record(self, key: Any, size: int = 1, op: str = "get") -> Any:
        """Note one access: ``op`` is "get" for a hit and "set" for a value put in."""


class Cache(Generic[K, V]):
    """A thread-safe cache with a policy of your choice.

    Parameters
    ----------
    capacity : int
        Entries, or units where a ``weigher`` or ``size=`` gives objects another size than 1.
    policy : str, Policy or path, default "s3fifo"
        A name (see ``kvpredict.policy_names``), a policy, or a saved one: its folder, or an MLflow URI such as
        ``models:/orders@champion``.
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
        Let a policy that learns while it serves (``guarded``) train on a thread of its own, which all caches share.
        When it has learned depends then on that thread. With False it trains within a ``put``, as in ``simulate``;
        that ``put`` takes 15 ms and more.
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

    Raises
    ------
    KvpredictError
        On a bad argument, and for a policy that needs the future (``belady``).
    UnknownName
        For a policy that does not exist.

    Notes
    -----
    The policy is compiled here, so that no request waits for it. That takes 1 to 3 s (``guarded``: over 10 s) for the
    first cache of a kind on a machine, under 1 s for the first in a later process, which loads the machine code from
    disk (``kvpredict.core.code_cache``), and under 1 ms for every other one.

    The policy knows an entry by the size, cost and extra columns that it was put in with, also on later hits.

    A call made while this thread is inside another call of the same cache, from a finalizer or a signal handler, is
    carried out when that one ends.

    >>> cache = Cache(2, policy="lru")
    >>> cache.put("a", 1), cache.put("b", 2), cache.get("a"), cache.put("c", 3)
    (True, True, 1, True)
    >>> "b" in cache, cache.get_or_load("d", lambda key: key * 2)
    (False, 'dd')
    """

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
    ) -> None:
        capacity = whole_number("capacity", capacity, most=HIGHEST // 2)
        for name, given in (("weigher", weigher), ("clock", clock), ("key_hash", key_hash)):
            if given is not None and not callable(given):
                raise KvpredictError(f"{name} must be callable, got {type(given).__name__}")
        if recorder is not None and not callable(getattr(recorder, "record", None)):
            raise KvpredictError(
                f"recorder must have a method record(key, size, op), {type(recorder).__name__} has none"
            )
        self._weigher, self._key_hash, self._clock, self._recorder = weigher, key_hash, clock, recorder
        self._limit = whole_number("read_buffer", read_buffer)
        self._seed = whole_number("seed", seed, least=None)
        # Only a weighed cache grows: elsewhere all slots are there from the start, as the simulator has them.
        self._grows = weigher is not None and max_entries is None
        if max_entries is not None:
            slots = min(capacity, whole_number("max_entries", max_entries))
        else:
            slots = min(capacity, FIRST_SLOTS) if self._grows else capacity
        chosen = choose_policy(policy)
        try:
            if slots > MOST_SLOTS:
                raise MemoryError
            self._ranking = Ranking(chosen, capacity, slots, self._seed, train_aside)
        except MemoryError:
            raise KvpredictError(
                f"a cache of {slots} entries does not fit; if capacity is in other units than entries, such as bytes, "
                "give a weigher, or max_entries"
            ) from None
        self._entries: dict[K, tuple[V, float]] = {}  # key -> value, ticket
        self._key_in: list[Any] = [_VACANT] * slots
        self._noted: list[float] = []  # tickets of hits, and MISS for misses, that the policy does not know of yet
        self._told = float(clock())  # the time up to which the policy knows of hits
        self._flights = Flights()
        # Re-entrant, because a finalizer or a signal handler may call the cache in the middle of a call; _busy then
        # says that the structure is in transition, and the call waits in _postponed.
        self._lock = RLock()
        self._busy = False
        self._postponed: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self._touches = 0  # updates that were noted like hits
        self._inserts = self._updates = self._evictions = self._rejections = self._deletions = 0
        self._loads = self._load_failures = 0
        if self._grows:
            self._ranking.compile(self._ranking.policy)

    # --- Reading: no lock on a hit ---

    @overload
    def get(self, key: K) -> V | None: ...
    @overload
    def get(self, key: K, default: D) -> V | D: ...
    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default``; a hit counts as a use."""
        noted = self._noted
        try:
            value, ticket = self._entries[key]
        except KeyError:
            value, ticket = default, MISS
        noted.append(ticket)
        if len(noted) >= self._limit:
            self._tell()
        if self._recorder is not None and ticket >= 0:
            self._recorder.record(key, self._ranking.sizes[int(ticket) & SLOT_MASK], "get")
        return value

    def __getitem__(self, key: K) -> V:
        value = self.get(key, _VACANT)
        if value is _VACANT:
            raise KeyError(key)
        return value

    @overload
    def peek(self, key: K) -> V | None: ...
    @overload
    def peek(self, key: K, default: D) -> V | D: ...
    def peek(self, key: Any, default: Any = None) -> Any:
        """Return the value of ``key``, or ``default``, without its counting as a use or in the statistics."""
        entry = self._entries.get(key)
        return default if entry is None else entry[0]

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[K]:
        """Iterate over the keys as of now, in no particular order."""
        return iter(list(self._entries))

    def get_or_load(
        self,
        key: K,
        loader: Callable[[K], V],
        *,
        size: int | None = None,
        cost: float = 1.0,
        extra: Mapping[str, float] | None = None,
    ) -> V:
        """Return the value of ``key``; where it is missing, from ``loader(key)``, which is then cached.

        Of concurrent callers who miss the same key one calls its loader and the others wait for the outcome. When
        the loader raises, all of them get its exception and nothing is cached. When the key is written or deleted
        during the load, what the loader returns is handed out and not cached. ``size``, ``cost`` and ``extra`` are
        as for ``put``.

        Raises
        ------
        KvpredictError
            When a loader asks for the very key that it is loading.
        """
        value: Any = self.get(key, _VACANT)
        while value is _VACANT:
            with self._lock:
                # Nobody may wait while holding the lock, so a call from within another one loads for itself.
                flight, leads = (None, False) if self._busy else self._exclusively(self._flights.join, key)
            if flight is None:
                return loader(key)
            if leads:
                return self._lead(flight, key, loader, size, cost, extra)
            self._flights.wait(flight)
            if flight.error is None:
                value = flight.value
            elif isinstance(flight.error, Exception):
                raise flight.error
            # Else the leading thread was interrupted, which is no outcome: try again.
        return value

    # --- Writing: under the lock ---

    def put(
        self,
        key: K,
        value: V,
        *,
        size: int | None = None,
        cost: float = 1.0,
        extra: Mapping[str, float] | None = None,
    ) -> bool:
        """Set the value of ``key``; tell whether the cache took it in.

        Parameters
        ----------
        key, value
        size : int, optional
            Units it takes, at least 0 (0 counts as 1). Default: what the weigher says, or 1.
        cost : float, default 1.0
            Cost of a miss of this key; policies such as GDSF use it.
        extra : mapping of str to float, optional
            The extra columns that a learned policy may read; others are passed over.

        Returns
        -------
        bool
            False where the object is larger than the cache or the policy did not admit it; an older value of the key
            is then gone all the same.
        """
        arguments = self._prepare(key, value, size, cost, extra)
        with self._lock:
            if self._busy:
                self._postponed.append((self._put, (key, value, arguments)))
                return True
            taken, _garbage = self._exclusively(self._put, key, value, arguments)
        if self._recorder is not None:
            self._recorder.record(key, arguments[1], "set")
        return taken  # what was evicted is let go of only here, outside the lock: its finalizers are user code

    def __setitem__(self, key: K, value: V) -> None:
        self.put(key, value)

    def delete(self, key: K) -> bool:
        """Remove ``key``; tell whether it was there."""
        hash(key)
        now = float(self._clock())
        with self._lock:
            if self._busy:
                self._postponed.append((self._delete, (key, now)))
                return key in self._entries
            garbage = self._exclusively(self._delete, key, now)
        return garbage is not None

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

    def swap_policy(self, policy: "str | Policy | PathLike[str]") -> None:
        """Let another policy decide from now on; no entry is lost.

        The new policy is given the entries in the order in which the old one would have evicted them. It is compiled
        before the lock is taken; the exchange itself takes about 0.1 ms for 1,000 entries, during which hits go on
        and writes wait.

        Parameters
        ----------
        policy : str, Policy or path
            As for the constructor.
        """
        chosen = choose_policy(policy)
        self._ranking.compile(chosen)
        now = float(self._clock())
        with self._lock:
            if self._busy:
                self._postponed.append((self._exchange, (chosen, now)))
                return
            self._exclusively(self._exchange, chosen, now)

    # --- Looking at it ---

    @property
    def policy(self) -> Policy:
        """The policy that decides."""
        return self._ranking.policy

    @property
    def capacity(self) -> int:
        """Units that fit."""
        return self._ranking.capacity

    def stats(self) -> Stats:
        """Return the counts so far."""
        now = float(self._clock())
        with self._lock:
            if not self._busy and self._noted:
                self._exclusively(self._serve, DRAIN, now)
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
            assert len(self._entries) == int(ranking.host.live.sum())
            for key, (_, ticket) in self._entries.items():
                slot = int(ticket) & SLOT_MASK
                assert ranking.host.live[slot]
                assert self._key_in[slot] is key or self._key_in[slot] == key
                assert ranking.generation[slot] == int(ticket) >> 30
            assert sum(held is not _VACANT for held in self._key_in) == len(self._entries)

    def __repr__(self) -> str:
        ranking = self._ranking
        return (
            f"Cache(capacity={ranking.capacity}, policy={ranking.policy.name!r}, entries={len(self)}, "
            f"size={ranking.used})"
        )

    # --- Inside: called under the lock, by way of _exclusively ---

    def _exclusively(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """Run ``action``, then what was postponed meanwhile."""
        self._busy = True
        try:
            result = action(*arguments)
            turns = 0
            while self._postponed:
                late, its_arguments = self._postponed.pop(0)
                late(*its_arguments)
                turns += 1
                if turns == MOST_POSTPONED:
                    raise RecursionError("a key's __eq__ or a finalizer calls the cache again whenever it is called")
        except KvpredictError:
            raise  # raised on purpose, before anything was changed
        except BaseException:
            # An interrupt, or a key whose __eq__ raises, between two steps that belong together. A cache may forget
            # everything; it may not go on half changed.
            self._forget()
            raise
        finally:
            self._busy = False
        return result

    def _serve(self, op: int, now: float, number: int = 0, units: int = 0, cost: float = 0.0) -> float:
        """Tell the policy what was noted, then do ``op`` (see ``ranking``)."""
        told, noted, ranking = self._told, self._noted, self._ranking
        if now < told:  # another thread read the clock later and came first
            now = told
        self._told = now
        if count := len(noted):  # readers append meanwhile: what follows these goes into the next batch
            notes = np.array(noted[:count])
            del noted[:count]
        else:
            notes = NOTHING
        return ranking.serve(ranking.handle, op, notes, told, now, number, units, cost)

    def _put(self, key: K, value: V, arguments: _Prepared) -> tuple[bool, Any]:
        """Do what ``put`` says; also return what leaves the cache, for the caller to drop outside the lock."""
        number, units, cost, extra, now = arguments
        ranking, entries = self._ranking, self._entries
        if self._flights.by_key:
            self._flights.detach(key)
        entry = entries.get(key)
        if entry is not None:
            self._updates += 1
            ticket = entry[1]
            slot = int(ticket) & SLOT_MASK
            if ranking.sizes[slot] == units:
                ranking.hints[slot] = cost
                if ranking.columns:
                    ranking.set_extra(ranking.host.extra[slot], extra)
                entries[key] = (value, ticket)
                self._touches += 1
                self._noted.append(ticket)
                if len(self._noted) >= self._limit:
                    self._serve(DRAIN, now)
                return True, entry
            self._remove(key, slot, now)
        if self._grows and ranking.room_without_slot(units):
            self._carry(ranking.policy, min(2 * ranking.slots, ranking.capacity), now)
            ranking = self._ranking
        if ranking.columns:
            ranking.set_extra(ranking.row[0], extra)
        ticket = self._serve(PLACE, now, number, units, cost)
        if ranking.due[0] == 1:
            ranking.due[0] = BEGUN
            train_soon(self)
        if ticket < 0:
            self._rejections += 1
            return False, entry
        key_in = self._key_in
        garbage: Any = None
        for i in range(ranking.counts[VICTIMS]):
            victim = ranking.victims[i]
            evicted, key_in[victim] = key_in[victim], _VACANT
            garbage = (evicted, entries.pop(evicted), garbage)
            self._evictions += 1
        key_in[int(ticket) & SLOT_MASK] = key
        entries[key] = (value, ticket)
        if entry is None:
            self._inserts += 1
        return True, (entry, garbage)

    def _delete(self, key: K, now: float) -> Any:
        """Remove ``key``; return its entry, or None where there was none."""
        self._flights.detach(key)
        entry = self._entries.get(key)
        if entry is not None:
            self._remove(key, int(entry[1]) & SLOT_MASK, now)
            self._deletions += 1
        return entry

    def _remove(self, key: K, slot: int, now: float) -> None:
        del self._entries[key]
        self._key_in[slot] = _VACANT
        self._serve(TAKE, now, slot)

    def _clear(self) -> Any:
        self._deletions += len(self._entries)
        return self._forget()

    def _forget(self) -> Any:
        """Start over with no entries; return the old ones."""
        self._flights.detach_all()
        entries, self._entries = self._entries, {}
        self._key_in = [_VACANT] * self._ranking.slots
        self._ranking = self._ranking.empty(self._seed)
        self._postponed.clear()
        return entries

    def _exchange(self, policy: Policy, now: float) -> None:
        self._carry(policy, self._ranking.slots, now)

    def _carry(self, policy: Policy, slots: int, now: float) -> None:
        """Exchange the policy, or widen the cache to ``slots``, with every entry in its slot."""
        self._serve(DRAIN, now)
        self._ranking = self._ranking.carried_to(policy, slots, self._seed, self._told)
        self._key_in.extend([_VACANT] * (slots - len(self._key_in)))

    # --- Inside: without the lock ---

    def _tell(self) -> None:
        """Tell the policy what was noted, unless whoever holds the lock is about to."""
        now = float(self._clock())
        if self._lock.acquire(blocking=len(self._noted) >= OVERDUE * self._limit):
            try:
                if not self._busy:
                    self._exclusively(self._serve, DRAIN, now)
            finally:
                self._lock.release()

    def _lead(
        self,
        flight: Flight,
        key: K,
        loader: Callable[[K], V],
        size: int | None,
        cost: float,
        extra: Mapping[str, float] | None,
    ) -> V:
        """Load ``key`` for all who wait for it, and put the value in unless it is out of date by then."""
        failed = True
        try:
            value = loader(key)
            arguments = self._prepare(key, value, size, cost, extra)
            flight.value = value
            failed = False
        except BaseException as error:
            flight.error = error
            raise
        finally:
            with self._lock:
                self._loads += 1
                self._load_failures += failed
                garbage = self._exclusively(self._landed, flight, key, () if failed else (value, arguments))
        if self._recorder is not None and garbage is not None:
            self._recorder.record(key, arguments[1], "set")
        return value

    def _landed(self, flight: Flight, key: K, arguments: tuple[Any, ...]) -> Any:
        garbage = None
        try:
            if arguments and self._flights.attached(key, flight):
                _, garbage = self._put(key, *arguments)
        finally:
            self._flights.land(key, flight)
        return garbage

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
        if type(cost) is not float or not 0.0 <= cost < float("inf"):
            cost = finite_cost(cost, key)
        if extra is not None or self._ranking.columns:
            extra = extra_columns(extra, self._ranking.policy, key)
        return number, units, cost, extra, float(self._clock())
