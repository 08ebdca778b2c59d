"""Guarded: a learned policy that follows the best of several heuristics where learning does not pay.

*Shadows* (``core.shadow``) run the leaders, heuristics, on every request; the *leader* is the one with the fewest
misses of late. At an eviction a few candidates, some of them objects that the leader has already evicted, are scored by
a model of the time until the next use, plus *lambda* for what the leader still holds. With lambda at its maximum only
objects that the leader has given up go, so the cache holds what the leader holds and misses what it misses. A *guard*
moves lambda: up while this cache misses more than the leader, down while it does not.

The model, small boosted trees, is fitted inside the cache to its own decisions (``features.samples``) and refitted on a
schedule; before the first fit the cache follows the leader. Nothing has to be trained beforehand.

Following the expert that misses less: Gramacy et al., "Adaptive caching by refetching", NIPS 2002. Sampled candidates
and time to the next use as the label: Song et al., "Learning Relaxed Belady for CDN Caching", NSDI 2020. The penalty
that leads back to the best expert exactly is the project's own.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from kvpredict.artifact import Artifact, load_artifact
from kvpredict.core.arithmetic import compress, half_lives
from kvpredict.core.errors import KvpredictError
from kvpredict.core.jit import kernel, lean_kernel, lean_subroutine
from kvpredict.core.lists import back, make_links, newer, push_front, unlink
from kvpredict.core.objective import check_objective, weigher, worth
from kvpredict.core.policy import IDLE, WANTED, Kernels, Policy, Trainer, Traits, require
from kvpredict.core.random import below, seed_random, uniform
from kvpredict.core.shadow import Requests, leaves, make_requests, make_shadows, shadow_kernels
from kvpredict.core.table import hash_key
from kvpredict.core.validate import list_nodes
from kvpredict.features.history import (
    COUNT,
    History,
    make_history,
    note_eviction,
    note_hit,
    note_insertion,
    note_miss,
    oldest_ghost,
    residence_time,
    spare,
    write,
)
from kvpredict.features.samples import Samples, collect, lose, make_samples, record, resolve
from kvpredict.features.schema import BASE_FEATURES, Schema
from kvpredict.scorers.boosting import Training, empty_trees, fit_trees, make_training
from kvpredict.scorers.trees import Trees, score_columns

__all__ = ["LEADERS", "Guarded"]

LEADERS = ("lru", "s3fifo", "clock2qplus", "lhd", "popularity")
SIZED_LEADERS = ("gdsf",)

ENTRY, ORDER, PLACE = 0, 1, 2  # columns of Core.slot
SLOT, QUEUED, WHERE = 0, 1, 2  # columns of Core.entry
(
    RNG, USED, CAPACITY, UNEQUAL, CURRENT, HEAD, TAIL, LEADER, CHECK, NEXT_FIT, FITS, SWITCHES, LOST, PENDING, AWAKE,
    DUE, AWAY, REFUSALS, BYPASSED, NOTED, NEXT_NOTE, HAS_MODEL, SHOWN, MISSES,
) = range(24)  # of word  # fmt: skip
LAMBDA, SWING, MEMORY, PATIENCE, MARGIN, MOST, HORIZON, LEARNS, GUARDS, BYPASSES, SAMPLED = range(11)  # of level

PENDINGS = 256  # requests that hits may leave to be shown to the shadows later
PERIOD = 128  # requests between two looks at leader and guard
PER_DECISION = 8  # candidates sampled for training at a decision, and the most taken from the leader's queue
SECOND_CHANCES = 4  # ghosts passed over, because a shadow still holds them, before one is forgotten all the same
FAVOUR = 1e-4  # share of its misses that the leader is forgiven
COST = 0.05  # share of the objects held that must be fetched anew when another leads: misses it must be better by
SHARE = 32  # a cache must hold so many objects for each of the victims taken from one refill
GROWTH = 0.3  # requests from one fit to the next, for each one so far
FULL = 0.03  # share of the leader's misses, beyond the margin, at which lambda moves at full speed; else it swings on
USUAL = 0.2  # share of this cache's hit ratio so far: while it hits less often than that, lambda comes down more slowly
FEWEST_SLOTS = 256  # of a shadow that runs on a sample of the keys
TOUCHES = 32  # a new leader is told at most that an object was asked for so many times
SIGNALS = 11  # what a controller sees, the last a constant
FIRST_FIT = 2000  # requests
RING = 256.0  # residence times that the samples cover, at most: older ones are of another time
RECENT = 2e6  # requests that they may cover in any case
FIRST = 16.0  # residence times that they are spread over at least
TREES, DEPTH, RATE = 24, 2, 0.2
FEWEST = 500  # samples that a fit needs
NOTES = 512  # rows of the log, which is thinned when it is full
SHIPPED = Path(__file__).parent / "guarded_prior"
PARTS = 16  # in which samples are copied for training elsewhere


class Newcomer(NamedTuple):
    """Room to score an object that asks to be admitted."""

    entry: np.ndarray  # int32 [1]
    x: np.ndarray  # float32 [1, width]
    score: np.ndarray  # float64 [1]


class Core(NamedTuple):
    """All but the large parts, so that most kernels need only this."""

    history: History
    slot: np.ndarray  # int32 [slots, 3]: history entry of the object in each slot; the slots in use, in any order; each
    # slot's position in that order, -1 when free
    entry: np.ndarray  # int32 [entries, 2 + shadows]: slot of the object, -1 when not resident; 1 while in the queue;
    # slot in each shadow, -1 when it does not hold the object
    queue: np.ndarray  # int32 [2 * (entries + 1)], residents that the leader does not hold, latest in front
    size: np.ndarray  # int64 [entries]
    value: np.ndarray  # float64 [entries], log of what a miss counts for, for each unit of size
    requests: Requests  # not yet shown to the shadows
    gone: np.ndarray  # int64 [slots + pending + 1], how many objects the leader evicted, then which
    order: np.ndarray  # int32 [entries], room to sort them; [0] where no leader has to be filled
    missed: np.ndarray  # float64 [shadows + 4], misses since the last look of each, and of this cache, weighed; of
    # this cache, each as one; and of whoever led, weighed, where leaders compete on a sample; then the requests
    apart: np.ndarray  # float64 [shadows], room to count misses that are not simply each shadow's own
    slow: np.ndarray  # float64 [shadows + 4], older ones counting less: by which the leader is chosen
    fast: np.ndarray  # float64 [shadows + 4], and much less: by which lambda moves
    led: np.ndarray  # int64 [shadows], periods that each has led
    control: np.ndarray  # float64 [2, 11], weights of the controller; [0, 11] for the rule
    signal: np.ndarray  # float64 [11], what it sees
    word: np.ndarray  # int64 [24]
    level: np.ndarray  # float64 [11]: lambda, parameters
    drawn: np.ndarray  # int32 [c], history entries of the candidates
    x: np.ndarray  # float32 [c, width], their rows, stored column by column
    score: np.ndarray  # float64 [c]
    victim: np.ndarray  # int64 [b, 2], entries chosen to go, worst first, and their last access when chosen
    doom: np.ndarray  # float64 [b], their scores
    newcomer: Newcomer
    log: np.ndarray  # float64 [512, 5]: request; leader; lambda; fits; misses over the leader's of late, less one


class State(NamedTuple):
    core: Core
    samples: Samples
    training: Training
    model: Trees
    shadows: Any  # a tree of Shadow; or two, of which the second runs on a sample of the keys


@dataclass(frozen=True)
class Guarded(Policy):
    """Learned eviction under the guard of heuristics.

    Parameters
    ----------
    leaders : str, default "lru+s3fifo+clock2qplus+lhd+popularity"
        Heuristics to follow where the model does not pay, joined by ``+``.
    sized_leaders : str, default "gdsf"
        Further ones, which sleep until an object of another size than 1 is seen; 1 to 12 in all.
    learn : bool, default True
        False: follow the best leader only.
    guard : bool, default True
        False: lambda stays 0, so only the model decides once there is one.
    candidates : int, default 64
        Residents scored for one refill of the victims' queue.
    batch : int, default 8
        Victims taken from one refill.
    history : float, default 4.0
        Entries of access history kept for each slot, at least 2.
    regions : bool, default True
        Look at what happened to keys near an object's own. Costs time and memory, and is of use where keys are numbers
        whose order means something.
    samples : int, default 10000
        Decisions kept for training.
    horizon : float, default 4.0
        Time to the next use, in residence times, beyond which all is the same.
    margin : float, default 0.003
        Share of the leader's misses by which this cache may be worse before lambda rises.
    swing : float, default 2.0
        Requests, in capacities, in which lambda moves over its whole range.
    most : float, default 3.0
        Largest lambda, in logarithms of time.
    memory : float, default 8.0
        Half-life of misses in the comparison of leaders, in capacities; at least 1,000 requests.
    patience : float, default 2.0
        Half-life of misses in the comparison with the leader, in capacities; at least 250 requests. What this cache was
        better by long ago is no licence to be worse now.
    objective : {"objects", "bytes", "cost"}, default "objects"
        Which misses count: each as one, by size, or by cost (a trace's column "cost", or ``put(cost=…)``).
    bypass : bool, default False
        Refuse newcomers that score worse than the next object to go. Far fewer writes (``Result.writes``), which wear a
        flash device, for slightly more misses.
    sample : float, default 1.0
        Share of the keys, by hash, on which leaders compete, in shadows as much smaller, of 256 slots at least; only
        the leader itself is run in full. Up to half as fast again in large caches, mostly for the same misses. But
        whenever the leader changes there is a pause of some microseconds a slot, since the new one is shown all keys
        remembered, in the order of their last accesses, each as often as it was asked for; what else it would have
        learned meanwhile it does not know. Where leaders that live by long histories take turns this costs more time
        than it saves, and misses besides. 1: all run in full, all the time.
    prior : Artifact or path, optional
        A model to begin with, until the first fit: of ``kvpredict.learn.online.prior``, or the folder of a saved policy
        that has one; "shipped" is the one that comes with kvpredict. Default: follow the leader until then.
    report : FitReport, optional
        What ``fit`` measured; not part of the policy's identity.
    controller : sequence of 22 floats, optional
        Weights of a linear controller (``kvpredict.learn.controller``) that moves lambda and favours the leader in
        place of the rule.
    """

    name: ClassVar[str] = "guarded"
    traits: ClassVar[Traits] = Traits(sized=True, stochastic=True, bypass=True)

    leaders: str = "+".join(LEADERS)
    sized_leaders: str = "+".join(SIZED_LEADERS)
    learn: bool = True
    guard: bool = True
    candidates: int = 64
    batch: int = 8
    history: float = 4.0
    regions: bool = True
    samples: int = 10_000
    horizon: float = 4.0
    margin: float = 0.003
    swing: float = 2.0
    most: float = 3.0
    memory: float = 8.0
    patience: float = 2.0
    objective: str = "objects"
    bypass: bool = False
    sample: float = 1.0
    controller: tuple[float, ...] | None = None
    prior: Any = None
    report: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.controller is not None:
            object.__setattr__(self, "controller", tuple(float(weight) for weight in self.controller))
            found = np.array(self.controller)
            right = found.size == 2 * SIGNALS and bool(np.isfinite(found).all())
            require(right, self, f"controller must be {2 * SIGNALS} finite weights, got {found.size}")
        if self.prior is not None:
            object.__setattr__(self, "prior", _checked_prior(self.prior))
        names = self._names()
        require(len(set(names)) == len(names) <= 12, self, f"leaders must be 1 to 12 different policies, got {names}")
        for leader in self._policies():
            if leader.traits.oracle or leader.extra or leader.name == self.name:
                raise KvpredictError(f"policy 'guarded': {leader.name!r} cannot lead: choose heuristics")
        check_objective(self.objective)
        require(self.candidates >= 2 * PER_DECISION, self, f"candidates must be at least {2 * PER_DECISION}")
        require(1 <= self.batch <= self.candidates, self, f"batch must be 1 to candidates, got {self.batch}")
        require(self.history >= 2, self, f"history must be at least 2 entries a slot, got {self.history}")
        require(self.samples >= 2 * FEWEST, self, f"samples must be at least {2 * FEWEST}, got {self.samples}")
        for name in ("horizon", "swing", "most", "memory", "patience"):
            require(getattr(self, name) > 0, self, f"{name} must be positive, got {getattr(self, name)}")
        require(0 < self.sample <= 1, self, f"sample must be in (0, 1], got {self.sample}")
        require(self.margin >= 0, self, f"margin must not be negative, got {self.margin}")

    def _names(self) -> list[str]:
        return [*self.leaders.split("+"), *filter(None, self.sized_leaders.split("+"))]

    def _policies(self) -> list[Policy]:
        from kvpredict.policies import policy

        return [policy(name) for name in self._names()]

    def kernels(self) -> Kernels:
        return _kernels(tuple(leader.kernels() for leader in self._policies()), self.objective, self.sample < 1)

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        width = len(BASE_FEATURES)
        history = make_history(slots, self.history, regions=self.regions)
        entries = history.key.size
        leaders = self._policies()
        word = np.zeros(24, np.int64)
        word[RNG], word[CAPACITY], word[CURRENT], word[NEXT_FIT] = seed_random(seed)[0], capacity, -1, FIRST_FIT
        word[AWAKE] = len(self.leaders.split("+"))
        level = [self.most, self.swing, self.memory, self.patience, self.margin, self.most, self.horizon]
        share = min(max(self.sample, FEWEST_SLOTS / slots), 1.0)
        flags = [self.learn, self.guard, self.bypass, share]
        shadows = make_shadows(leaders, capacity, slots, seed + 1)
        if self.sample < 1:
            small = make_shadows(leaders, max(1, int(share * capacity)), max(1, int(share * slots)), seed + 1)
            shadows = (shadows, small)
        entry = np.full((entries, WHERE + len(leaders) * (1 + (self.sample < 1))), -1, np.int32)
        entry[:, QUEUED] = 0
        core = Core(
            history=history,
            slot=np.full((slots, 3), -1, np.int32),
            entry=entry,
            queue=make_links(entries),
            size=np.zeros(entries, np.int64),
            value=np.zeros(entries),
            requests=make_requests(PENDINGS),
            gone=np.zeros(slots + PENDINGS + 1, np.int64),
            order=np.zeros(entries if self.sample < 1 else 0, np.int32),
            missed=np.zeros(len(leaders) + 4),
            apart=np.zeros(len(leaders)),
            slow=np.zeros(len(leaders) + 4),
            fast=np.zeros(len(leaders) + 4),
            led=np.zeros(len(leaders), np.int64),
            control=np.array(() if self.controller is None else self.controller).reshape(-1, SIGNALS),
            signal=np.zeros(SIGNALS),
            word=word,
            level=np.array([*level, *flags], np.float64),
            drawn=np.zeros(self.candidates, np.int32),
            x=np.zeros((width, self.candidates), np.float32).T,
            score=np.zeros(self.candidates, np.float64),
            victim=np.zeros((self.batch, 2), np.int64),
            doom=np.zeros(self.batch),
            newcomer=Newcomer(np.zeros(1, np.int32), np.zeros((1, width), np.float32), np.zeros(1)),
            log=np.zeros((NOTES, 5)),
        )
        model = empty_trees(TREES, DEPTH)
        if self.prior is not None:
            word[HAS_MODEL] = 1
            _copy(self.prior.scorer, model)
            np.negative(model.leaf, out=model.leaf)  # an artifact's score says who is to stay, this model who is to go
            np.negative(model.base, out=model.base)
        return State(
            core=core,
            samples=make_samples(self.samples, width, entries),
            training=make_training(self.samples, width, DEPTH),
            model=model,
            shadows=shadows,
        )

    def trainer(self, state: State, aside: bool) -> Trainer | None:
        """Return how to train ``state`` on another thread, or let it train itself."""
        state.core.word[AWAY] = aside
        state.core.word[DUE] = IDLE
        if not aside or not self.learn:
            return None
        c, ring = state.core, len(state.samples.unit)
        spare = empty_trees(TREES, DEPTH)
        rows = np.zeros(1, np.int64)

        def gather(step: int) -> bool:
            start, end = ring * step // PARTS, ring * (step + 1) // PARTS
            _gather_rows(c, state.samples, state.training, rows, start, end)
            return step + 1 < PARTS

        def fit() -> None:
            _fit(state.training, rows, spare)

        def adopt() -> None:
            _adopt(c, state.model, spare, rows)

        # Compiled now, so that no request waits for it: no rows, no effect.
        _gather_rows(c, state.samples, state.training, rows, 0, 0)
        fit()
        _adopt(c, state.model, spare, np.full(1, -1, np.int64))
        return Trainer(c.word[DUE : DUE + 1], gather, fit, adopt)

    def inherit(self, state: State, old: State) -> None:
        """Begin with the model of ``old``."""
        _copy(old.model, state.model)
        state.core.word[[FITS, HAS_MODEL]] = old.core.word[[FITS, HAS_MODEL]]

    def samples_of(self, state: State) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and labels of the samples that are old enough, float32 ``[m, width]`` and ``[m]``."""
        rows = np.zeros(1, np.int64)
        _gather_rows(state.core, state.samples, state.training, rows, 0, len(state.samples.unit))
        return state.training.x[: rows[0]].copy(), state.training.y[: rows[0]].copy()

    def save(self, folder: str | Path) -> Path:
        """Write the policy and its prior to ``folder``, atomically; ``kvpredict.load_policy`` reads it.

        What a cache has learned since is not in it: see ``kvpredict.cache.snapshot``.
        """
        settings = {k: v for k, v in super().params().items() if k not in ("prior", "report")}
        cold = Artifact(empty_trees(TREES, DEPTH), Schema(), "identity", {"prior": "none"})
        return (self.prior or cold).save(folder, policy={"name": self.name, **settings})

    def params(self) -> dict[str, Any]:
        origin = {"prior": None if self.prior is None else self.prior.metadata.get("prior", "given")}
        return {k: v for k, v in super().params().items() if k != "report"} | origin

    def account(self, state: State) -> dict[str, Any]:
        """Return what happened: fits, changes of the leader, how long each led; lambda and leader over time."""
        c, names = state.core, self._names()
        log = c.log[: c.word[NOTED]]
        counts = {
            "fits": int(c.word[FITS]),
            "samples": int(state.samples.clock[0]),
            "leader_changes": int(c.word[SWITCHES]),
            "refused_by_leader": int(c.word[REFUSALS]),
            "refused_by_model": int(c.word[BYPASSED]),
            "shadow_objects_lost": int(c.word[LOST]),
            "lambda": float(c.level[LAMBDA]),
        }
        counts |= {f"led_{name}": int(periods) for name, periods in zip(names, c.led, strict=True)}
        series = {
            "request": log[:, 0].astype(int).tolist(),
            "leader": [names[int(k)] for k in log[:, 1]],
            "lambda": log[:, 2].tolist(),
            "fits": log[:, 3].astype(int).tolist(),
            "behind_leader": log[:, 4].tolist(),
        }
        return {"counts": counts, "series": series}

    def validate(self, state: State, resident: np.ndarray) -> None:
        c = state.core
        h = c.history
        held = int(h.clock[1])
        mine = c.slot[resident, ENTRY]
        assert sorted(c.slot[:held, ORDER].tolist()) == resident.tolist()
        assert (c.entry[mine, SLOT] == resident).all()
        assert int((c.entry[:, SLOT] >= 0).sum()) == held == int((c.slot[:, PLACE] >= 0).sum())
        assert int(c.size[mine].sum()) == c.word[USED] <= c.word[CAPACITY]
        ghosts = list_nodes(h.links, h.key.size)
        assert sorted([*ghosts, *mine.tolist(), *h.free[: h.clock[4]].tolist()]) == list(range(h.key.size))
        queue = list_nodes(c.queue, h.key.size)
        assert sorted(queue) == np.flatnonzero(c.entry[:, QUEUED]).tolist()
        assert sorted(queue) == sorted(mine[c.entry[mine, WHERE + c.word[LEADER]] < 0].tolist())
        policies = self._policies() * (1 + (self.sample < 1))
        for k, (shadow, leader) in enumerate(zip(leaves(state.shadows), policies, strict=True)):
            assert self.sample == 1 or k >= len(c.led) or k == c.word[LEADER] or shadow.counts[1] == 0
            owners = np.flatnonzero(c.entry[:, WHERE + k] >= 0)
            slots = c.entry[owners, WHERE + k]
            assert (shadow.slot[slots, 0] == owners).all()
            assert shadow.slot[slots, 1].sum() == shadow.counts[1] <= shadow.counts[0]
            assert slots.size + shadow.counts[2] == len(shadow.slot)
            leader.validate(shadow.state, np.sort(slots))


def _copy(source: Trees, target: Trees) -> None:
    for its, mine in zip(source, target, strict=True):
        mine[:] = its


def _checked_prior(given: Any) -> Artifact | None:
    """Return the model to begin with, of a name, a folder or an artifact; None for one saved without."""
    if isinstance(given, str | PathLike):
        given = load_artifact(SHIPPED if given == "shipped" else Path(given))[0]
    if not isinstance(given, Artifact):
        raise KvpredictError(f"policy 'guarded': prior must be an Artifact or a path, got {type(given).__name__}")
    if given.metadata.get("prior") == "none":
        return None
    usual = empty_trees(TREES, DEPTH)
    fits = isinstance(given.scorer, Trees) and given.scorer.leaf.shape == usual.leaf.shape
    if not fits or given.schema.extra or given.link != "identity":
        raise KvpredictError(
            f"policy 'guarded': this model cannot be its prior, which is {TREES} trees of depth {DEPTH} on the base "
            "features: make one with kvpredict.learn.online.prior"
        )
    return given


@lean_kernel
def _enqueue(c, entry):
    push_front(c.queue, c.size.size, entry)
    c.entry[entry, QUEUED] = 1


@lean_kernel
def _unqueue(c, entry):
    if c.entry[entry, QUEUED]:
        unlink(c.queue, entry)
        c.entry[entry, QUEUED] = 0


@lean_kernel
def _settle(c, entry):
    """See to it that a resident is in the queue if the leader does not hold it, and is not if it does."""
    if c.entry[entry, WHERE + c.word[LEADER]] >= 0:
        _unqueue(c, entry)
    elif c.entry[entry, SLOT] >= 0 and not c.entry[entry, QUEUED]:
        _enqueue(c, entry)


@lean_subroutine
def _answer(c, row, leader):
    """Return what the controller's ``row`` of weights makes of the state of affairs under ``leader``."""
    slow, fast, signal, own = c.slow, c.fast, c.signal, c.led.size
    for i in range(4):
        signal[i] = 1.0 if i < 2 else -1.0  # a tenth worse, or better, is as far as it sees
    for k in range(own + 1):
        if k != leader:
            at = 2 if k == own else 0
            for i, sums in enumerate((fast, slow)):
                ahead = 10.0 * (sums[k] - sums[leader]) / max(sums[leader], 1.0)
                signal[at + i] = min(max(ahead, -1.0), 1.0 if k == own else signal[at + i])
    signal[4] = c.level[LAMBDA] / c.level[MOST]
    signal[5] = c.history.level[1]
    signal[6] = c.history.level[2]
    signal[7] = compress(c.history.clock[0] / max(c.history.clock[1], np.int64(1))) * 0.2
    signal[8] = min(c.word[FITS], np.int64(16)) / 16.0
    signal[9] = compress(c.history.clock[1]) * 0.1
    signal[10] = 1.0
    total = 0.0
    for i in range(SIGNALS):
        total += c.control[row, i] * signal[i]
    return total


@lean_subroutine
def _look(c, requests):
    """Choose the leader, and move lambda by what so many requests are worth."""
    level, word, missed, slow, fast = c.level, c.word, c.missed, c.slow, c.fast
    own = c.led.size
    held = max(c.history.clock[1], np.int64(1))
    keep_slow = half_lives(requests / max(level[MEMORY] * held, 1000.0))
    keep_fast = half_lives(requests / max(level[PATIENCE] * held, 250.0))
    missed[own + 3] = requests
    word[MISSES] += np.int64(missed[own + 1])
    for k in range(own + 4):
        slow[k] = slow[k] * keep_slow + missed[k]
        fast[k] = fast[k] * keep_fast + missed[k]
        missed[k] = 0.0
    if word[UNEQUAL] and word[AWAKE] < own:
        for k in range(word[AWAKE], own):  # awake from now on, and no better than the leader so far
            slow[k] = slow[word[LEADER]]
            fast[k] = fast[word[LEADER]]
        word[AWAKE] = own
    best = word[LEADER]
    c.led[best] += 1
    favour = FAVOUR
    if len(c.control):
        favour = 0.1 * half_lives(max(10.0 - _answer(c, 1, best), 0.0))  # 1e-4 where the answer is 0
    weight = slow[own] / slow[own + 1] if slow[own + 1] > 0.0 else 1.0  # of a miss, on average
    fewest = slow[best] * (1.0 - favour) - COST * held * weight
    for k in range(word[AWAKE]):
        if slow[k] < fewest:
            fewest = slow[k]
            best = k
    if best != word[LEADER]:
        word[LEADER] = best
        word[SWITCHES] += 1
    if level[GUARDS] > 0.0:
        step = level[MOST] * requests / (level[SWING] * held)
        led = fast[own + 2] if level[SAMPLED] < 1.0 else fast[best]
        behind = (fast[own] - led) / max(led, weight) - level[MARGIN]
        speed = min(max(behind / FULL, -1.0), 1.0)
        usual = USUAL * fast[own + 3] * (1.0 - word[MISSES] / c.history.clock[0])
        if speed < 0.0 and usual > 0.0:  # while all miss, as in a scan, it is no merit to miss no more than the leader
            speed *= min((fast[own + 3] - fast[own + 1]) / usual, 1.0)
        step *= speed
        if len(c.control):
            step = abs(step) * min(max(_answer(c, 0, best), -1.0), 1.0)
        level[LAMBDA] = min(max(level[LAMBDA] + step, 0.0), level[MOST])
    else:
        level[LAMBDA] = 0.0
    if c.history.clock[0] >= word[NEXT_NOTE]:
        _note(c)


@lean_kernel
def _note(c):
    """Write a row of the log; when it is full every other row goes, so rows are evenly spread over all the past."""
    word, log, own = c.word, c.log, c.led.size
    if word[NOTED] == len(log):
        for i in range(len(log) // 2):
            for j in range(log.shape[1]):
                log[i, j] = log[2 * i, j]
        word[NOTED] = len(log) // 2
    now, rows = c.history.clock[0], word[NOTED]
    log[rows, 0] = now
    log[rows, 1] = word[LEADER]
    log[rows, 2] = c.level[LAMBDA]
    log[rows, 3] = word[FITS]
    log[rows, 4] = c.fast[own] / max(c.fast[word[LEADER]], 1.0) - 1.0
    word[NOTED] += 1
    step = PERIOD if rows == 0 else (now - np.int64(log[0, 0])) // rows
    word[NEXT_NOTE] = now + max(step, np.int64(1))


@lean_kernel
def _gather(c):
    """Fill the queue anew, for another leader."""
    entry = c.entry
    leader = WHERE + c.word[LEADER]
    for i in range(c.history.clock[1]):
        at = c.slot[c.slot[i, ORDER], ENTRY]
        _unqueue(c, at)
        if entry[at, leader] < 0:
            _enqueue(c, at)


@lean_kernel
def _sampled(c, samples, victims):
    """Tell whether a decision about so many victims is one to learn from: often enough to fill the ring."""
    now = c.history.clock[0]
    held = max(c.history.clock[1], np.int64(1))
    unit = residence_time(c.history, len(c.slot))
    # All the past while it is short, so that a large cache does not wait for its ring to fill.
    span = min(max(np.float64(now), FIRST * unit), max(RING * unit, RECENT))
    rows = samples.unit.size * victims * (unit / held) / span
    return c.level[LEARNS] > 0.0 and uniform(c.word) * PER_DECISION < rows


@lean_kernel
def _keep_rows(c, samples, start):
    """Keep the rows of ``PER_DECISION`` candidates from ``start`` on, random residents, as samples."""
    h = c.history
    unit = residence_time(h, len(c.slot))
    for i in range(start, start + PER_DECISION):
        record(samples, c.x, i, c.drawn[i], h.clock[0], unit)


@lean_kernel
def _draw(c, start, end):
    """Draw residents at random."""
    drawn, slot, word, held = c.drawn, c.slot, c.word, c.history.clock[1]
    for i in range(start, end):
        drawn[i] = slot[slot[below(word, held), ORDER], ENTRY]


@lean_kernel
def _leave(c, slot):
    slots = c.slot
    at = slots[slot, PLACE]
    last = slots[c.history.clock[1] - 1, ORDER]
    slots[at, ORDER] = last
    slots[last, PLACE] = at
    slots[slot, PLACE] = -1
    entry = slots[slot, ENTRY]
    c.entry[entry, SLOT] = -1
    c.word[USED] -= c.size[entry]
    _unqueue(c, entry)
    note_eviction(c.history, entry, True)


@lean_kernel
def _span(c):
    """Return how long a sample waits for its label, in requests."""
    now = c.history.clock[0]
    return min(c.level[HORIZON] * residence_time(c.history, len(c.slot)), 0.35 * now)


@lean_kernel
def _schedule(c):
    now = c.history.clock[0]
    c.word[NEXT_FIT] = now + max(np.int64(500), min(np.int64(GROWTH * now), np.int64(400_000)))


@kernel
def _gather_rows(c, samples, training, rows, start, end):
    if start == 0:
        rows[0] = 0
    rows[0] = collect(samples, c.history.clock[0], _span(c), training.x, training.y, start, end, rows[0])


@kernel
def _fit(training, rows, trees):
    if rows[0] >= FEWEST:
        fit_trees(training, rows[0], trees, RATE)


@kernel
def _adopt(c, model, trees, rows):
    if rows[0] < 0:
        return
    if rows[0] >= FEWEST:
        model.feature[:] = trees.feature
        model.threshold[:] = trees.threshold
        model.leaf[:] = trees.leaf
        model.base[:] = trees.base
        c.word[FITS] += 1
        c.word[HAS_MODEL] = 1
    _schedule(c)
    c.word[DUE] = IDLE


@lean_kernel
def _held_by_shadows(c, entry):
    held = 0
    for k in range(WHERE, c.entry.shape[1]):
        held += c.entry[entry, k] >= 0
    return held


class Contest(NamedTuple):
    """How leaders compete.

    ``lead(c, shadows, start, end)``: show pending requests ``start`` to ``end`` to the leader.
    ``compete(c, shadows)``: count what each of them misses of all pending requests, those that the leader has seen.
    ``drop(c, shadows, entry)``: take an object out of all shadows.
    ``crown(c, shadows)``: another leads from now on.
    """

    lead: Any
    compete: Any
    drop: Any
    crown: Any


def _full_contest(leaders: tuple[Kernels, ...], weigh: Any, by_cost: bool) -> Contest:
    """All leaders run in full, so each may lead at any time."""
    run, follow, take = shadow_kernels(leaders, WHERE, weigh)

    @lean_kernel
    def lead(c, shadows, start, end):
        run(shadows, c.entry, c.gone, c.missed, c.requests, start, end, c.word[LEADER])

    @lean_kernel
    def compete(c, shadows):
        word = c.word
        follow(shadows, c.entry, c.gone, c.missed, c.requests, word[PENDING], word[LEADER], word[AWAKE])

    @lean_kernel
    def drop(c, shadows, entry):
        take(shadows, c.entry, entry)

    @lean_kernel
    def crown(c, shadows):
        pass

    return Contest(lead, compete, drop, crown)


def _sampled_contest(leaders: tuple[Kernels, ...], weigh: Any, by_cost: bool) -> Contest:
    """All compete on a sample of the keys in small shadows; the leader runs in full, other full ones are empty.

    Misses of a spatially hashed sample in a cache as much smaller estimate those of the whole: Waldspurger et al.,
    "Cache Modeling and Optimization using Miniature Simulations", USENIX ATC 2017.
    """
    run, _, take = shadow_kernels(leaders, WHERE, weigh)
    _, follow, take_sampled = shadow_kernels(leaders, WHERE + len(leaders), weigh)

    @lean_kernel
    def lead(c, shadows, start, end):
        leader = c.word[LEADER]
        run(shadows[0], c.entry, c.gone, c.apart, c.requests, start, end, leader)
        c.missed[c.led.size + 2] += c.apart[leader]
        c.apart[leader] = 0.0

    @lean_kernel
    def compete(c, shadows):
        requests, of_sample, count = c.requests, c.apart, 0
        for i in range(c.word[PENDING]):
            if hash_key(requests.key[i, 0]) < c.level[SAMPLED] * 4294967296.0:
                requests.entry[count] = requests.entry[i]
                for j in range(2):
                    requests.key[count, j] = requests.key[i, j]
                    requests.time[count, j] = requests.time[i, j]
                count += 1
        follow(shadows[1], c.entry, c.gone, of_sample, requests, count, np.int64(-1), c.word[AWAKE])
        for k in range(c.led.size):
            c.missed[k] += of_sample[k] / c.level[SAMPLED]
            of_sample[k] = 0.0

    @lean_kernel
    def drop(c, shadows, entry):
        take(shadows[0], c.entry, entry)
        take_sampled(shadows[1], c.entry, entry)

    @lean_subroutine
    def crown(c, shadows):
        """Empty the full shadow of whoever led, and show the new leader all keys remembered, last used last.

        Evicted keys are among them, since a leader that goes by how often a key was asked for would else be another.
        """
        for entry in range(c.size.size):
            take(shadows[0], c.entry, entry)
        order, known, requests = c.order, c.history.clock[1], c.requests
        for i in range(known):
            order[i] = c.slot[c.slot[i, ORDER], ENTRY]
        at = back(c.history.links, c.size.size)
        while at < c.size.size:
            order[known] = at
            known += 1
            at = newer(c.history.links, at)
        _by_last_access(order, known, c.history.when)
        count = 0
        for i in range(known):
            entry = order[i]
            for _ in range(min(np.int64(c.history.row[entry, COUNT]), np.int64(TOUCHES))):
                requests.entry[count] = entry
                requests.key[count, 0] = c.history.key[entry]
                requests.key[count, 1] = c.size[entry]
                requests.time[count, 0] = c.history.when[entry, 0]
                requests.time[count, 1] = _cost(c.value[entry]) * c.size[entry] if by_cost else 1.0
                count += 1
            if count + TOUCHES > PENDINGS or i == known - 1:
                run(shadows[0], c.entry, c.gone, c.apart, requests, 0, count, c.word[LEADER])
                count = 0
        c.apart[c.word[LEADER]] = 0.0

    return Contest(lead, compete, drop, crown)


@lean_kernel
def _by_last_access(entries, count, when):
    """Sort entries, last used last: Shell's sort, which needs no room."""
    gap = count // 2
    while gap > 0:
        for i in range(gap, count):
            entry = entries[i]
            last = when[entry, 0]
            at = i
            while at >= gap and when[entries[at - gap], 0] > last:
                entries[at] = entries[at - gap]
                at -= gap
            entries[at] = entry
        gap //= 2


@lean_kernel
def _cost(value):
    """Return the exponential of a logarithm."""
    power = half_lives(abs(value) * 1.4426950408889634)
    return power if value < 0.0 else 1.0 / max(power, 1e-18)


@lru_cache(maxsize=32)
def _kernels(leaders: tuple[Kernels, ...], objective: str, sampled: bool) -> Kernels:
    weigh, varies, by_cost = weigher(objective), objective != "bytes", objective == "cost"
    lead, compete, drop, crown = (_sampled_contest if sampled else _full_contest)(leaders, weigh, by_cost)

    @lean_kernel
    def note_request(c, entry, e):
        """Remember a request for the shadows."""
        at = c.word[PENDING]
        c.word[PENDING] += 1
        c.requests.entry[at] = entry
        c.requests.key[at, 0] = e.key
        c.requests.key[at, 1] = e.size
        c.requests.time[at, 0] = e.time
        c.requests.time[at, 1] = e.hint

    @lean_kernel
    def show_leader(c, shadows):
        """Show the leader what was requested, as the next decision depends on what it holds."""
        word, gone, requests = c.word, c.gone, c.requests
        lead(c, shadows, word[SHOWN], word[PENDING])
        for i in range(1, gone[0] + 1):
            _settle(c, gone[i])
        for i in range(word[SHOWN], word[PENDING]):
            _settle(c, requests.entry[i])
        word[SHOWN] = word[PENDING]

    @lean_subroutine
    def catch_up(c, shadows):
        """Show all shadows what was requested; the others see it in batches, which saves time."""
        word = c.word
        if word[SHOWN] < word[PENDING]:
            show_leader(c, shadows)
        compete(c, shadows)
        word[CHECK] += word[PENDING]
        word[PENDING] = 0
        word[SHOWN] = 0
        if word[CHECK] >= PERIOD:
            before = word[LEADER]
            _look(c, word[CHECK])
            word[CHECK] = 0
            if word[LEADER] != before:
                crown(c, shadows)
                _gather(c)

    @lean_subroutine
    def keep_learning(c, samples, training, model):
        if c.word[AWAY]:
            if c.word[DUE] == IDLE:
                c.word[DUE] = WANTED
            return
        count = collect(samples, c.history.clock[0], _span(c), training.x, training.y, 0, samples.unit.size, 0)
        if count >= FEWEST:
            fit_trees(training, count, model, RATE)
            c.word[FITS] += 1
            c.word[HAS_MODEL] = 1
        _schedule(c)

    @lean_subroutine
    def refill(c, samples, model):
        """Choose the next few victims among objects that the leader has given up and others drawn at random."""
        h, drawn, score, victim = c.history, c.drawn, c.score, c.victim
        count = drawn.size
        given_up = 0
        at = back(c.queue, c.size.size)
        while at < c.size.size and given_up < PER_DECISION:
            drawn[given_up] = at
            given_up += 1
            at = newer(c.queue, at)
        _draw(c, given_up, count)
        write(h, drawn, count, len(c.slot), c.x)
        score_columns(model, c.x, count, score)
        victims = min(np.int64(len(victim)), max(np.int64(1), h.clock[1] // SHARE))
        if _sampled(c, samples, victims):
            _keep_rows(c, samples, count - PER_DECISION)
        for i in range(count):
            # The model predicts the log of the time to the next use: the longer, the sooner to go.
            if varies and c.word[UNEQUAL]:
                score[i] -= c.value[drawn[i]]
            if not c.entry[drawn[i], QUEUED]:
                score[i] -= c.level[LAMBDA]
        for v in range(victims):
            worst = v
            for i in range(v + 1, count):
                if score[i] > score[worst]:
                    worst = i
            chosen = drawn[worst]
            highest = score[worst]
            drawn[worst] = drawn[v]
            score[worst] = score[v]
            victim[v, 0] = chosen
            victim[v, 1] = h.when[chosen, 0]
            c.doom[v] = highest
        c.word[HEAD] = 0
        c.word[TAIL] = victims

    @lean_kernel
    def next_victim(c, samples, model):
        """Return the slot of the next object to go."""
        word, when = c.word, c.history.when
        if word[HAS_MODEL] == 0 or c.level[LAMBDA] >= c.level[MOST]:
            if _sampled(c, samples, 1):
                _draw(c, 0, PER_DECISION)
                write(c.history, c.drawn, PER_DECISION, len(c.slot), c.x)
                _keep_rows(c, samples, 0)
            chosen = np.int64(back(c.queue, c.size.size))
            if chosen < c.size.size:
                return c.entry[chosen, SLOT]
            # The leader holds all that is held here, as it may after it lost an object to a full history.
        while True:
            while word[HEAD] < word[TAIL]:
                at = word[HEAD]
                word[HEAD] += 1
                chosen = c.victim[at, 0]
                if c.entry[chosen, SLOT] >= 0 and when[chosen, 0] == c.victim[at, 1]:
                    return c.entry[chosen, SLOT]
            refill(c, samples, model)

    @lean_subroutine
    def unwanted(c, samples, model, entry):
        """Tell whether an object that asks to be admitted is worse than the next to go."""
        h, new, word = c.history, c.newcomer, c.word
        learned = word[HAS_MODEL] > 0 and c.level[LAMBDA] < c.level[MOST]
        sampled = _sampled(c, samples, 1)
        if not learned and not sampled:
            return False
        new.entry[0] = entry
        write(h, new.entry, 1, len(c.slot), new.x)
        if sampled:  # the model must know newcomers, which are rare among random residents
            record(samples, new.x, 0, entry, h.clock[0], residence_time(h, len(c.slot)))
        if not learned:
            return False
        score_columns(model, new.x, 1, new.score)
        score = new.score[0]
        if varies and word[UNEQUAL]:
            score -= c.value[entry]
        if c.entry[entry, WHERE + word[LEADER]] >= 0:
            score -= c.level[LAMBDA]
        while True:
            while word[HEAD] < word[TAIL]:
                at = word[HEAD]
                chosen = c.victim[at, 0]
                if c.entry[chosen, SLOT] >= 0 and h.when[chosen, 0] == c.victim[at, 1]:
                    return score > c.doom[at]
                word[HEAD] += 1
            refill(c, samples, model)

    @lean_subroutine
    def expel(c, shadows, ghost):
        """Take a ghost out of all shadows."""
        if c.history.when[ghost, 0] > c.history.clock[0] - c.word[PENDING]:
            catch_up(c, shadows)  # its entry is about to be another key's
        c.word[LOST] += _held_by_shadows(c, ghost)
        drop(c, shadows, ghost)

    @lean_kernel
    def make_room(c, samples, shadows):
        """Forget a ghost, so that a new key finds an entry; if possible one that no shadow holds."""
        links = c.history.links
        ghost = oldest_ghost(c.history)
        held = _held_by_shadows(c, ghost)
        for _ in range(SECOND_CHANCES):
            if not held:
                break
            unlink(links, ghost)
            push_front(links, c.size.size, ghost)
            ghost = oldest_ghost(c.history)
            held = _held_by_shadows(c, ghost)
        if held or c.history.when[ghost, 0] > c.history.clock[0] - c.word[PENDING]:
            expel(c, shadows, ghost)
        lose(samples, ghost)

    @lean_kernel
    def hit(s, slot, e):
        c = s.core
        entry = c.slot[slot, ENTRY]
        note_hit(c.history, entry, e, len(c.slot))
        resolve(s.samples, entry, c.history.clock[0])
        note_request(c, entry, e)
        if c.word[PENDING] == PENDINGS:
            catch_up(c, s.shadows)

    @lean_kernel
    def admit(s, e):
        c = s.core
        h = c.history
        weight = weigh(e.size, e.hint)
        if e.size > 1 or weight != 1.0:
            c.word[UNEQUAL] = 1
        if not spare(h, e):
            make_room(c, s.samples, s.shadows)
        entry = note_miss(h, e, len(c.slot))
        resolve(s.samples, entry, h.clock[0])
        c.size[entry] = e.size
        c.word[CURRENT] = entry
        c.value[entry] = worth(weight, e.size)
        c.missed[c.led.size] += weight
        c.missed[c.led.size + 1] += 1.0
        note_request(c, entry, e)
        if c.word[CHECK] + c.word[PENDING] < PERIOD:
            show_leader(c, s.shadows)
        else:
            catch_up(c, s.shadows)
        if c.level[LEARNS] > 0.0 and h.clock[0] >= c.word[NEXT_FIT]:
            keep_learning(c, s.samples, s.training, s.model)
        if c.word[USED] + e.size <= c.word[CAPACITY] and h.clock[1] < len(c.slot):
            return True
        # With lambda at its maximum, what the leader refuses is refused.
        refused = c.level[LAMBDA] >= c.level[MOST] and c.entry[entry, WHERE + c.word[LEADER]] < 0
        c.word[REFUSALS] += refused
        if not refused and c.level[BYPASSES] > 0.0:
            refused = unwanted(c, s.samples, s.model, entry)
            c.word[BYPASSED] += refused
        if refused:
            note_eviction(h, entry, False)
        return not refused

    @lean_kernel
    def evict(s, e):
        slot = next_victim(s.core, s.samples, s.model)
        _leave(s.core, slot)
        return slot

    @lean_kernel
    def insert(s, slot, e):
        c = s.core
        entry = c.word[CURRENT]
        note_insertion(c.history, entry, e)
        at = c.history.clock[1] - 1
        c.slot[slot, ENTRY] = entry
        c.slot[at, ORDER] = slot
        c.slot[slot, PLACE] = at
        c.entry[entry, SLOT] = slot
        c.word[USED] += e.size
        _settle(c, entry)

    @lean_kernel
    def remove(s, slot):
        catch_up(s.core, s.shadows)  # of what is in the cache, while it is
        drop(s.core, s.shadows, s.core.slot[slot, ENTRY])
        _leave(s.core, slot)

    return Kernels(hit, admit, evict, insert, remove)
