"""Learned: evict what a model expects to be reused last.

At an eviction ``candidates`` residents drawn at random are scored in one batch and the ``batch`` worst wait in a queue
for the next evictions; one that is touched meanwhile is passed over. In mode ``both`` an object is admitted only if
it scores better than the next victim; in mode ``admit`` a heuristic ranks the residents and the model only keeps out
what it expects not to be reused.

Sampled candidates with a learned reuse model: Song et al., "Learning Relaxed Belady for CDN Caching", NSDI 2020,
section 4; batched worst-of-sample eviction: Zhou et al., "3L-Cache", FAST 2025, section 3. Departures: several victims
a sample, features in units of the cache's own residence time, a bounded history (``features.history``).

The policy also writes the training data: rows of candidates (and of incoming objects, where it decides on admission)
go to a log by reservoir sampling, so a model is trained on the decisions it will have to make.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from kvpredict.artifact import Artifact
from kvpredict.core.arithmetic import compress, half_lives
from kvpredict.core.errors import KvpredictError, unknown_name
from kvpredict.core.jit import lean_kernel
from kvpredict.core.objective import check_objective, weigher, worth
from kvpredict.core.policy import Kernels, Policy, Traits, require
from kvpredict.core.random import below, seed_random
from kvpredict.core.validate import list_nodes
from kvpredict.features.facts import FACTS, LAST, SIZE
from kvpredict.features.history import (
    History,
    make_history,
    note_eviction,
    note_hit,
    note_insertion,
    note_miss,
    residence_time,
    write,
)
from kvpredict.scorers import KINDS, kind_of

__all__ = ["MODES", "Learned", "Log"]

MODES = ("evict", "admit", "both")
USED, CAPACITY, UNEQUAL, CURRENT, HEAD, TAIL = 1, 2, 3, 4, 5, 6  # of State.word
SEEN = 1  # of Log.word
LOGGED = 8  # candidates of a refill that go to the log


class Log(NamedTuple):
    """A uniform sample of the decisions, ``m`` rows of ``width`` features; ``m`` = 0 switches it off."""

    row: np.ndarray  # float32 [m, width]
    now: np.ndarray  # int64 [m], requests seen at the decision
    last: np.ndarray  # int64 [m], requests seen at the object's last access
    unit: np.ndarray  # float64 [m], residence time at the decision, in requests
    incoming: np.ndarray  # uint8 [m], 1 for an object about to be admitted
    word: np.ndarray  # int64 [2]: its own random numbers (logging changes no decision), decisions seen so far; the
    # first min(seen, m) rows are filled


class State(NamedTuple):
    history: History
    entry: np.ndarray  # int32 [slots], history entry of the object in each slot
    order: np.ndarray  # int32 [slots], the slots in use, in any order
    place: np.ndarray  # int32 [slots], position in order, -1 when free
    slot: np.ndarray  # int32 [entries], slot of each history entry, -1 when not resident
    word: np.ndarray  # int64 [7]: random numbers, units used, capacity, whether objects differ in worth, history
    # entry of the miss in hand, next of the queue to go, end of the queue
    value: np.ndarray  # float64 [entries], log of what a miss counts for, for each unit of size
    drawn: np.ndarray  # int32 [c], history entries of the candidates
    x: np.ndarray  # float32 [c, width], their rows
    score: np.ndarray  # float64 [c]
    queue: np.ndarray  # int32 [b], entries chosen to go, worst first
    queue_last: np.ndarray  # int64 [b], their last access when chosen
    queue_score: np.ndarray  # float64 [b]
    threshold: np.ndarray  # float64 [1], raw score below which mode "admit" refuses
    log: Log
    model: Any  # the scorer's arrays
    base: Any  # state of the base policy (mode "admit"), else ()


@dataclass(frozen=True)
class Learned(Policy):
    """Learned eviction, admission, or both.

    Parameters
    ----------
    artifact : Artifact
        The trained model; ``kvpredict.fit`` and ``kvpredict.load_policy`` return policies that have one.
    mode : {"evict", "admit", "both"}, default "evict"
    candidates : int, default 64
        Residents scored for one refill of the victims' queue.
    batch : int, default 16
        Victims taken from one refill; fewer in a cache of under 64 * batch objects.
    base : str, default "lru"
        The heuristic that evicts in mode "admit".
    threshold : float, default 0.0
        Mode "admit" refuses an object whose raw score (log-odds of reuse) is below it, once the cache is full.
    objective : {"objects", "bytes", "cost"}, default "objects"
        Which misses count. With "objects" an object's worth is divided by its size: misses count alike, whatever they
        weigh. With "cost" it is the cost of its miss (a trace's column "cost", or ``put(cost=…)``) over its size.
    history : float, default 4.0
        Entries of access history kept for each slot, at least 1.
    log_rows : int, default 0
        Decisions sampled into ``state.log``.
    report : FitReport, optional
        What ``fit`` measured; not part of the policy's identity.
    """

    name: ClassVar[str] = "learned"
    traits: ClassVar[Traits] = Traits(sized=True, stochastic=True, bypass=True)

    artifact: Artifact = None  # type: ignore[assignment]
    mode: str = "evict"
    candidates: int = 64
    batch: int = 16
    base: str = "lru"
    threshold: float = 0.0
    objective: str = "objects"
    history: float = 4.0
    log_rows: int = 0
    report: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.artifact is None:
            raise KvpredictError(
                "policy 'learned' needs a trained model: use kvpredict.fit(trace, capacity), or "
                "kvpredict.load_policy(folder) for a saved one"
            )
        super().__post_init__()
        if self.mode not in MODES:
            raise unknown_name("mode", self.mode, MODES)
        check_objective(self.objective)
        require(1 <= self.history <= 1024, self, f"history must be 1 to 1024, got {self.history!r}")
        _base_policy(self.base)
        require(1 <= self.candidates <= 4096, self, f"candidates must be 1 to 4096, got {self.candidates}")
        require(1 <= self.batch <= self.candidates, self, f"batch must be 1 to candidates, got {self.batch}")
        require(self.log_rows >= 0, self, f"log_rows must not be negative, got {self.log_rows}")

    @property
    def extra(self) -> tuple[str, ...]:  # type: ignore[override]
        """Columns of the trace that the model uses."""
        return self.artifact.schema.extra

    def kernels(self) -> Kernels:
        base = _base_policy(self.base).kernels() if self.mode == "admit" else None
        kind = kind_of(self.artifact.scorer).name
        return _kernels(kind, self.mode, self.objective, self.artifact.link, len(self.extra), base)

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        width = self.artifact.schema.width
        m = self.log_rows
        history = make_history(slots, self.history, len(self.extra))
        return State(
            history=history,
            entry=np.full(slots, -1, np.int32),
            order=np.zeros(slots, np.int32),
            place=np.full(slots, -1, np.int32),
            slot=np.full(history.free.size, -1, np.int32),
            word=np.array([seed_random(seed)[0], 0, capacity, 0, -1, 0, 0], np.int64),
            value=np.zeros(history.free.size),
            drawn=np.zeros(self.candidates, np.int32),
            x=np.zeros((self.candidates, width), np.float32),
            score=np.zeros(self.candidates, np.float64),
            queue=np.zeros(self.batch, np.int32),
            queue_last=np.zeros(self.batch, np.int64),
            queue_score=np.zeros(self.batch, np.float64),
            threshold=np.array([self.threshold]),
            log=Log(
                row=np.zeros((m, width), np.float32),
                now=np.zeros(m, np.int64),
                last=np.zeros(m, np.int64),
                unit=np.zeros(m, np.float64),
                incoming=np.zeros(m, np.uint8),
                word=np.array([seed_random(seed + 1)[0], 0], np.int64),
            ),
            model=self.artifact.scorer,
            base=_base_policy(self.base).make_state(capacity, slots, seed) if self.mode == "admit" else (),
        )

    def validate(self, state: State, resident: np.ndarray) -> None:
        h = state.history
        held = int(h.clock[1])
        assert sorted(state.order[:held].tolist()) == resident.tolist()
        assert all(state.slot[state.entry[slot]] == slot for slot in resident)
        assert int((state.slot >= 0).sum()) == held
        assert all(state.order[state.place[slot]] == slot for slot in resident)
        assert int((state.place >= 0).sum()) == held
        assert int(h.fact[FACTS * state.entry[resident] + SIZE].sum()) == state.word[USED] <= state.word[CAPACITY]
        ghosts = list_nodes(h.links, h.free.size)
        entries = [*ghosts, *state.entry[resident].tolist(), *h.free[: h.clock[4]].tolist()]
        assert sorted(entries) == list(range(h.free.size))
        assert int((h.cells != 0).sum()) == h.free.size - h.clock[4]
        if self.mode == "admit":
            _base_policy(self.base).validate(state.base, resident)

    def save(self, folder: str | Path) -> Path:
        """Write the policy to ``folder``, atomically; ``kvpredict.load_policy`` reads it. See ``Artifact.save``."""
        settings = {
            "mode": self.mode,
            "candidates": self.candidates,
            "batch": self.batch,
            "base": self.base,
            "threshold": self.threshold,
            "objective": self.objective,
            "history": self.history,
        }
        return self.artifact.save(folder, policy={"name": self.name, **settings})

    def params(self) -> dict[str, Any]:
        return {k: v for k, v in super().params().items() if k not in ("artifact", "report")}


def _base_policy(name: str) -> Policy:
    from kvpredict.policies import policy

    base = policy(name)
    if base.traits.oracle:
        raise KvpredictError(f"base policy {name!r} needs the future: choose a heuristic")
    return base


@lru_cache(maxsize=64)
def _kernels(kind: str, mode: str, objective: str, link: str, extras: int, base: Kernels | None) -> Kernels:
    score_batch = KINDS[kind].score_batch
    weigh, varies = weigher(objective), objective != "bytes"
    logit = link == "logit"
    evicts = mode != "admit"

    @lean_kernel
    def rank(score, entries, value, sized, count):
        """Turn raw scores into the log of the expected benefit of a unit of capacity."""
        if varies and sized:  # among objects of one unit the order stays as it is
            for i in range(count):
                raw = score[i]
                if logit:  # log of the probability, by arithmetic alone
                    if raw >= 0.0:
                        raw = -compress(half_lives(raw * 1.4426950408889634))
                    else:
                        raw -= compress(half_lives(-raw * 1.4426950408889634))
                score[i] = raw + value[entries[i]]

    @lean_kernel
    def keep_extra(s, entry, e):
        if extras > 0:
            for j, value in enumerate(e.extra):
                s.history.extra[entry, j] = value

    @lean_kernel
    def record(log, x, i, now, last, unit, incoming):
        """Put row ``i`` of ``x`` into the log, each decision with the same chance (Vitter's algorithm R)."""
        m = log.last.size
        at = log.word[SEEN]
        log.word[SEEN] += 1
        if at >= m:
            at = below(log.word, min(log.word[SEEN], np.int64(2147483647)))
            if at >= m:
                return
        rows = log.row
        for j in range(x.shape[1]):  # a slice assignment would take longer to compile than everything else here
            rows[at, j] = x[i, j]
        log.now[at] = now
        log.last[at] = last
        log.unit[at] = unit
        log.incoming[at] = incoming

    @lean_kernel
    def next_victim(s):
        """Return the position in the queue of the next slot to go; when the queue is used up, fill it anew."""
        # Arrays are taken out of the state once: each time counts a reference, which costs more than what follows.
        h = s.history
        drawn, entry, order, score, fact, slot, word = s.drawn, s.entry, s.order, s.score, h.fact, s.slot, s.word
        queue, queue_last, queue_score, x, log = s.queue, s.queue_last, s.queue_score, s.x, s.log
        while True:
            while word[HEAD] < word[TAIL]:
                at = word[HEAD]
                if slot[queue[at]] >= 0 and fact[FACTS * queue[at] + LAST] == queue_last[at]:
                    return at
                word[HEAD] += 1
            held = h.clock[1]
            count = min(held, np.int64(drawn.size))
            everything = count == held
            for i in range(count):
                drawn[i] = entry[order[i] if everything else order[below(word, held)]]
            write(h, drawn, count, entry.size, x)
            score_batch(s.model, x, count, score)
            if log.last.size > 0:
                unit = residence_time(h, entry.size)
                for _ in range(LOGGED):
                    i = below(log.word, count)
                    record(log, x, i, h.clock[0], fact[FACTS * drawn[i] + LAST], unit, 0)
            rank(score, drawn, s.value, word[UNEQUAL], count)
            # In a small cache a batch would be a large share of it, chosen at one moment.
            victims = min(np.int64(queue.size), max(np.int64(1), min(count // 4, held // 64)))
            for v in range(victims):
                worst = v
                lowest = score[v]
                for i in range(v + 1, count):
                    if score[i] < lowest:
                        lowest = score[i]
                        worst = i
                chosen = drawn[worst]
                drawn[worst] = drawn[v]
                score[worst] = score[v]
                queue[v] = chosen
                queue_last[v] = fact[FACTS * chosen + LAST]
                queue_score[v] = lowest
            word[HEAD] = 0
            word[TAIL] = victims

    @lean_kernel
    def leave(s, slot):
        at = s.place[slot]
        last = s.order[s.history.clock[1] - 1]
        s.order[at] = last
        s.place[last] = at
        s.place[slot] = -1
        entry = s.entry[slot]
        s.slot[entry] = -1
        s.word[USED] -= s.history.fact[FACTS * entry + SIZE]
        note_eviction(s.history, entry, True)

    @lean_kernel
    def hit(s, slot, e):
        note_hit(s.history, s.entry[slot], e, s.entry.size)
        keep_extra(s, s.entry[slot], e)
        if base is not None:
            base.hit(s.base, slot, e)

    @lean_kernel
    def admit(s, e):
        h = s.history
        weight = weigh(e.size, e.hint)
        if e.size > 1 or weight != 1.0:
            s.word[UNEQUAL] = 1
        entry = note_miss(h, e, s.entry.size)
        s.value[entry] = worth(weight, e.size)
        keep_extra(s, entry, e)
        s.word[CURRENT] = entry
        full = s.word[USED] + e.size > s.word[CAPACITY] or h.clock[1] == s.entry.size
        wanted = True
        if mode != "evict" and full:
            s.drawn[0] = entry
            s.history.fact[FACTS * entry + SIZE] = e.size
            write(h, s.drawn, 1, s.entry.size, s.x)
            if s.log.last.size > 0:
                now = h.clock[0]
                record(s.log, s.x, 0, now, now, residence_time(h, s.entry.size), 1)
            score_batch(s.model, s.x, 1, s.score)
            if evicts:
                rank(s.score, s.drawn, s.value, s.word[UNEQUAL], 1)
                mine = s.score[0]  # before the candidates overwrite the buffers
                wanted = mine >= s.queue_score[next_victim(s)]
            else:
                wanted = s.score[0] >= s.threshold[0]
        if base is not None and not base.admit(s.base, e):
            wanted = False
        if not wanted:
            note_eviction(h, entry, False)
        return wanted

    @lean_kernel
    def evict(s, e):
        if base is not None:
            slot = base.evict(s.base, e)
        else:
            at = next_victim(s)
            s.word[HEAD] = at + 1
            slot = s.slot[s.queue[at]]
        leave(s, slot)
        return slot

    @lean_kernel
    def insert(s, slot, e):
        entry = s.word[CURRENT]
        note_insertion(s.history, entry, e)
        s.entry[slot] = entry
        s.slot[entry] = slot
        at = s.history.clock[1] - 1
        s.order[at] = slot
        s.place[slot] = at
        s.history.fact[FACTS * entry + SIZE] = e.size
        s.word[USED] += e.size
        if base is not None:
            base.insert(s.base, slot, e)

    @lean_kernel
    def remove(s, slot):
        if base is not None:
            base.remove(s.base, slot)
        leave(s, slot)

    return Kernels(hit, admit, evict, insert, remove)
