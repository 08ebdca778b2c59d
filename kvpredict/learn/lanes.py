"""Lanes: many caches, each with its own requests, that stop at every eviction and ask which candidate to give up.

A lane is a host of the policy ``learned``, as the simulator is one: it calls the same compiled kernels, so the rows
that an agent sees are those that serving writes, and ``remove`` takes the place of ``evict``. All lanes advance in one
compiled call. Their states are stacked along a first axis; compiled code takes one lane's slice of every array.

A large cache is played in miniature: a lane keeps a random share of the keys and the same share of the slots, which
leaves the course of things nearly as it was (Waldspurger et al., "Cache Modeling and Optimization using Miniature
Simulations", ATC 2017), and features are in units of the cache's own residence time. Lanes start at different places
of the trace and go round it.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kvpredict.artifact import Artifact
from kvpredict.core.arithmetic import compress
from kvpredict.core.engine import extra_reader
from kvpredict.core.errors import KvpredictError
from kvpredict.core.jit import kernel, lean_kernel
from kvpredict.core.policy import Event
from kvpredict.core.random import below
from kvpredict.features.history import write
from kvpredict.features.schema import Schema
from kvpredict.policies.learned import Learned
from kvpredict.scorers.linear import Linear
from kvpredict.simulate.simulate import check_trace, whole_capacity
from kvpredict.trace.trace import Trace

__all__ = ["CEILING", "Lanes", "miniatures"]

POSITION, LENGTH, HELD, ASKED = 0, 1, 2, 3  # columns of Play.word
CEILING = 32.0  # no logarithm of a feature is above it


class Play(NamedTuple):
    """What the lanes' host keeps, besides the policy's state; ``b`` lanes of up to ``n`` requests."""

    ids: np.ndarray  # int32 [b, n]
    keys: np.ndarray  # int64 [b, n]
    next_use: np.ndarray  # float64 [b, n]
    extra: np.ndarray  # float64 [b, n, k]
    slot_of: np.ndarray  # int32 [b, ids], -1 when not resident
    ref: np.ndarray  # int32 [b, slots], id of the object in each slot
    seen: np.ndarray  # int64 [b, slots], request that last asked for it
    word: np.ndarray  # int64 [b, 4]: next request, requests, slots in use, whether a decision is awaited


class Lanes:
    """Caches of ``capacity`` objects that replay one trace each, up to the next eviction at a time.

    Parameters
    ----------
    traces : sequence of Trace
        One a lane; sizes are left out of account.
    capacity : int
    candidates : int
        Residents drawn at random at an eviction; all of them where the cache holds no more.
    schema : Schema, optional
    history : float, default 4.0
        Entries of access history kept for each slot.

    Raises
    ------
    KvpredictError
        When a lane's cache holds all of its keys, so that nothing is ever evicted.
    """

    def __init__(
        self,
        traces: Sequence[Trace],
        capacity: int,
        candidates: int = 16,
        schema: Schema | None = None,
        history: float = 4.0,
    ) -> None:
        capacity = whole_capacity(capacity, "objects")
        if isinstance(traces, Trace) or not traces:
            raise KvpredictError(f"traces must be a list of them, one a lane, got {traces!r}")
        for trace in traces:
            check_trace(trace)
            if trace.unique <= capacity:
                raise KvpredictError(
                    f"{trace.name}: a cache of {capacity} objects holds all of its {trace.unique} keys"
                )
        schema = schema or Schema()
        nothing = Linear(np.zeros(schema.width), np.zeros(1))
        self.policy = Learned(Artifact(nothing, schema), candidates=candidates, batch=1, history=history)
        self.capacity, self.count = capacity, len(traces)
        self.candidates = min(candidates, capacity)
        self.width = schema.width
        self._state = _stack([self.policy.state(capacity, 0) for _ in traces])
        longest = max(len(trace) for trace in traces)
        b, k = self.count, len(schema.extra)
        self._play = Play(
            ids=np.zeros((b, longest), np.int32),
            keys=np.zeros((b, longest), np.int64),
            next_use=np.full((b, longest), np.inf),
            extra=np.zeros((b, longest if k else 1, k), np.float64),
            slot_of=np.full((b, max(trace.unique for trace in traces)), -1, np.int32),
            ref=np.zeros((b, capacity), np.int32),
            seen=np.zeros((b, capacity), np.int64),
            word=np.zeros((b, 4), np.int64),
        )
        for lane, trace in enumerate(traces):
            n = len(trace)
            self._play.ids[lane, :n] = trace.ids
            self._play.keys[lane, :n] = trace.keys
            self._play.next_use[lane, :n] = trace.next_use
            for j, name in enumerate(schema.extra):
                self._play.extra[lane, :n, j] = trace.column(name)
            self._play.word[lane, LENGTH] = n
        self._advance = _kernels(self.policy)

    def reset(self, lane: int, seed: int) -> None:
        """Empty a lane's cache and go back to its first request; ``advance`` leads to the first decision."""
        _fill(self._state, lane, self.policy.state(self.capacity, seed))
        self._play.slot_of[lane] = -1
        self._play.word[lane] = [0, self._play.word[lane, LENGTH], 0, 0]

    def ended(self) -> np.ndarray:
        """Return which lanes have served their last request, bool ``[b]``."""
        ended: np.ndarray = self._play.word[:, POSITION] >= self._play.word[:, LENGTH]
        return ended

    def advance(self, actions: np.ndarray, rows: np.ndarray, distance: np.ndarray, hits: np.ndarray) -> None:
        """Evict what ``actions``, int64 ``[b]``, choose, and serve requests up to each lane's next decision or end.

        A lane whose action is negative waits; one before its first decision, or at its end, does not look at it.

        Written are ``rows``, float32 ``[b, candidates, width]``: the logarithms of the candidates' features;
        ``distance``, float64 ``[b, candidates]``: requests until their next use, ``inf`` for none; and ``hits``, int64
        ``[b]``: hits on the way, 0 for a lane that waits or has ended.

        Raises
        ------
        KvpredictError
            When there is not one action a lane, or one is no candidate.
        """
        if actions.shape != (self.count,) or actions.max(initial=-1) >= self.candidates:
            raise KvpredictError(
                f"actions must be {self.count} numbers below {self.candidates}, one a cache, got {actions.tolist()}"
            )
        self._advance(self._state, self._play, actions, rows, distance, hits)


def miniatures(trace: Trace, capacity: int, lanes: int, slots: int, seed: int = 0) -> tuple[list[Trace], int]:
    """Return a trace for each lane, and the capacity of all, about ``slots`` where ``capacity`` is larger.

    A lane's trace holds a share ``slots / capacity`` of the keys, others in each lane, and begins at another place.
    """
    rate = min(1.0, slots / capacity)
    made = []
    for lane in range(lanes):
        kept = np.ones(len(trace), bool)
        if rate < 1.0:
            kept = (np.random.default_rng([seed, lane]).random(trace.unique) < rate)[trace.ids]
        order = np.roll(np.arange(len(trace)), -(lane * len(trace) // lanes))
        order = order[kept[order]]
        columns = {name: column[order] for name, column in trace.columns.items()}
        made.append(Trace(trace.keys[order], columns=columns, name=f"{trace.name}, lane {lane}"))
    return made, max(1, round(capacity * rate))


def _stack(states: Sequence[Any]) -> Any:
    """Return one state whose arrays have the lanes as their first axis."""
    if isinstance(states[0], np.ndarray):
        return np.stack(states)
    parts = [_stack(column) for column in zip(*states, strict=True)]
    return type(states[0])(*parts) if parts else ()


def _fill(stacked: Any, lane: int, state: Any) -> None:
    """Copy a state into a lane."""
    for whole, part in zip(stacked, state, strict=True):
        if isinstance(part, np.ndarray):
            whole[lane] = part
        else:
            _fill(whole, lane, part)


def _slicer(example: Any) -> Callable[..., Any]:
    """Return a kernel ``(stacked, lane)`` that returns one lane's state, whose arrays are views."""
    scope: dict[str, Any] = {}

    def text(node: Any, place: str) -> str:
        if isinstance(node, np.ndarray):
            return f"{place}[lane]"
        parts = ", ".join(text(part, f"{place}[{i}]") for i, part in enumerate(node))
        scope[type(node).__name__] = type(node)
        return f"{type(node).__name__}({parts})"

    # Numba does not walk nested tuples of unlike types, so the expression is spelled out.
    exec(f"def one_lane(stacked, lane):\n    return {text(example, 'stacked')}", scope)
    return kernel(scope["one_lane"])


@lru_cache(maxsize=16)
def _compile(kernels: Any, extras: int, slice_state: Any, slice_play: Any) -> Callable[..., None]:
    on_hit, admit, _, insert, remove, _ = kernels
    read_extra = extra_reader(extras)

    @lean_kernel
    def event(p, at):
        return Event(np.float64(at), p.keys[at], np.int64(1), 1.0, read_extra(p.extra, at))  # type: ignore[arg-type]

    @lean_kernel
    def settle(s, p, slot, at):
        """Put the object of request ``at``, which missed, into ``slot``."""
        p.slot_of[p.ids[at]] = slot
        p.ref[slot] = p.ids[at]
        p.seen[slot] = at
        insert(s, slot, event(p, at))

    @lean_kernel
    def serve(s, p):
        """Serve requests up to the next decision, or the end; return the hits."""
        word = p.word
        hits = 0
        at = word[POSITION]
        while at < word[LENGTH]:
            slot = p.slot_of[p.ids[at]]
            if slot >= 0:
                on_hit(s, slot, event(p, at))
                p.seen[slot] = at
                hits += 1
            else:
                admit(s, event(p, at))
                if word[HELD] == p.ref.size:
                    word[ASKED] = 1
                    break
                settle(s, p, np.int32(word[HELD]), at)
                word[HELD] += 1
            at += 1
        word[POSITION] = at
        return hits

    @lean_kernel
    def ask(s, p, rows, distance):
        """Draw candidates and write what is known of them."""
        held = p.ref.size
        count = distance.size
        x = s.x
        for i in range(count):
            s.drawn[i] = s.entry[s.order[i if count == held else below(s.word, np.int64(held))]]
        write(s.history, s.drawn, count, held, x)
        now = p.word[POSITION]
        for i in range(count):
            distance[i] = p.next_use[p.seen[s.slot[s.drawn[i]]]] - now
            for j in range(x.shape[1]):
                rows[i, j] = min(max(compress(x[i, j]), -CEILING), CEILING)

    @kernel
    def advance(state, play, actions, rows, distance, hits):
        for lane in range(actions.size):
            s = slice_state(state, lane)
            p = slice_play(play, lane)
            if p.word[ASKED]:
                if actions[lane] < 0:
                    hits[lane] = 0
                    continue
                slot = s.slot[s.drawn[actions[lane]]]
                p.slot_of[p.ref[slot]] = -1
                remove(s, slot)
                settle(s, p, slot, p.word[POSITION])
                p.word[POSITION] += 1
                p.word[ASKED] = 0
            hits[lane] = serve(s, p)
            if p.word[ASKED]:
                ask(s, p, rows[lane], distance[lane])

    return advance


def _kernels(policy: Learned) -> Callable[..., None]:
    return _compile(policy.kernels(), len(policy.extra), *_slicers(len(policy.extra)))


@lru_cache(maxsize=16)
def _slicers(extras: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    schema = Schema(tuple(f"column {i}" for i in range(extras)))
    state = Learned(Artifact(Linear(np.zeros(schema.width), np.zeros(1)), schema)).state(2)
    return _slicer(state), _slicer(Play(*[np.zeros(1)] * len(Play._fields)))
