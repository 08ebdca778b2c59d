"""Guarded, the policy: its settings, its state, and what it tells of itself."""

from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kvpredict.artifact import Artifact, load_artifact
from kvpredict.core.errors import KvpredictError
from kvpredict.core.lists import make_links
from kvpredict.core.objective import check_objective
from kvpredict.core.policy import IDLE, Kernels, Policy, Trainer, Traits, require
from kvpredict.core.random import seed_random
from kvpredict.core.rows import make_rows
from kvpredict.core.shadow import leaves, make_requests, make_shadows
from kvpredict.core.validate import list_nodes
from kvpredict.features.facts import FACTS, PLACE, SAMPLE, SIZE
from kvpredict.features.history import make_history
from kvpredict.features.samples import make_samples
from kvpredict.features.schema import BASE_FEATURES, Schema
from kvpredict.policies.guarded.kernels import CANDIDATE_BITS, guarded_kernels
from kvpredict.policies.guarded.learning import (
    DEPTH,
    FAR_TREES,
    FEWEST,
    FIRST_FIT,
    NEAR_TREES,
    adopt,
    fit_rows,
    gather_rows,
)
from kvpredict.policies.guarded.state import (
    AWAKE,
    AWAY,
    BYPASSED,
    CAPACITY,
    CURRENT,
    DUE,
    FITS,
    HAS_MODEL,
    INHERITED,
    LAMBDA,
    LEADER,
    LOST,
    NEXT_FIT,
    NOTED,
    NOTES,
    PENDINGS,
    PER_DECISION,
    REFUSALS,
    RNG,
    SIGNALS,
    SLOT,
    SWITCHES,
    USED,
    WHERE,
    WORDS,
    Core,
    Newcomer,
    State,
)
from kvpredict.scorers.boosting import empty_ranks, empty_trees, make_training
from kvpredict.scorers.trees import Trees

LEADERS = ("lru", "s3fifo", "lhd", "popularity")
SIZED_LEADERS = ("gdsf",)

SHIPPED = Path(__file__).parent / "prior"
HUGE = 1e15  # the most that a hyper-parameter may be
FEWEST_SLOTS = 256  # of a shadow that runs on a sample of the keys
PARTS = 32  # in which samples are copied for training elsewhere: short, as requests wait meanwhile


@dataclass(frozen=True)
class Guarded(Policy):
    """Learned eviction under the guard of heuristics.

    Parameters
    ----------
    leaders : str, default "lru+s3fifo+lhd+popularity"
        Heuristics to follow where the model does not pay, joined by ``+``.
    sized_leaders : str, default "gdsf"
        Further ones, which sleep until an object of another size than 1 is seen; 1 to 12 in all.
    learn : bool, default True
        False: follow the best leader only.
    guard : bool, default True
        False: lambda stays 0, so only the model decides once there is one.
    candidates : int, default 128
        Residents scored for one refill of the victims' queue; at least 16.
    batch : int, default 16
        Victims taken from one refill, fewer where less than 32 objects are held for each of them.
    reprieves : int, default 1
        How many times a candidate that was kept, and scored better than the mean, is passed over when it is drawn
        again; in caches of 1,024 objects and more. 0: all that are drawn are scored.
    history : float, default 4.0
        Entries of access history kept for each slot, at least 2.
    regions : bool, default True
        Look at what happened to keys near an object's own. Costs time and memory, and is of use where keys are numbers
        whose order means something.
    samples : int, default 20000
        Decisions kept for training, some 400 bytes each, whatever the capacity; 1,000 to 1,000,000.
    horizon : float, default 4.0
        Residence times for which the model looks ahead: what is used later counts as not used.
    near : float, default 0.25
        Residence times of a second look, not so far ahead: what is used soon or never is kept for so long. 0: none.
    margin : float, default 0.003
        Share of the leader's misses by which this cache may be worse before lambda rises.
    swing : float, default 2.0
        Requests, in capacities, in which lambda moves over its whole range.
    most : float, default 4.0
        Largest lambda, in logarithms of time.
    memory : float, default 8.0
        Half-life of misses in the comparison of leaders, in capacities; at least 2,000 requests.
    patience : float, default 2.0
        Half-life of misses in the comparison with the leader, in capacities; at least 2,000 requests. What this
        cache was better by long ago is no licence to be worse now.
    objective : {"objects", "bytes", "cost"}, default "objects"
        Which misses count: each as one, by size, or by cost (a trace's column "cost", or ``put(cost=…)``).
    bypass : bool, default False
        Refuse newcomers that score worse than the next object to go. Fewer writes (``Result.writes``), which wear a
        flash device, for slightly more misses: a quarter fewer in ``experiments/ablations``.
    sample : float, default 1.0
        Share of the keys, by hash, on which leaders compete, in shadows as much smaller, of 256 slots at least; only
        the leader itself is run in full. Up to half as fast again in large caches, mostly for the same misses. But
        whenever the leader changes there is a pause of some microseconds a slot, since the new one is shown all keys
        remembered, in the order of their last accesses, each as often as it was asked for; what else it would have
        learned meanwhile it does not know. Where leaders that live by long histories take turns this costs more time
        than it saves, and misses besides. It saves no memory: there is room for every leader in full, since any may
        lead, and the small shadows come on top (``benchmarks/start.py``). 1: all run in full, all the time.
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
    candidates: int = 128
    batch: int = 16
    reprieves: int = 1
    history: float = 4.0
    regions: bool = True
    samples: int = 20_000
    horizon: float = 4.0
    near: float = 0.25
    margin: float = 0.003
    swing: float = 2.0
    most: float = 4.0
    memory: float = 8.0
    patience: float = 2.0
    objective: str = "objects"
    bypass: bool = False
    sample: float = 1.0
    controller: tuple[float, ...] | None = None
    prior: Any = None
    report: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
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
        few, many = 2 * PER_DECISION, 1 << CANDIDATE_BITS
        require(few <= self.candidates < many, self, f"candidates must be {few} to {many - 1}, got {self.candidates}")
        require(1 <= self.batch <= self.candidates, self, f"batch must be 1 to candidates, got {self.batch}")
        require(0 <= self.reprieves <= 64, self, f"reprieves must be 0 to 64, got {self.reprieves}")
        require(2 <= self.history <= 1024, self, f"history must be 2 to 1024 entries a slot, got {self.history}")
        enough = 2 * FEWEST <= self.samples <= 1_000_000
        require(enough, self, f"samples must be {2 * FEWEST} to 1,000,000, got {self.samples}")
        for name in ("horizon", "swing", "most", "memory", "patience"):
            right = 0 < getattr(self, name) <= HUGE
            require(right, self, f"{name} must be above 0 and at most {HUGE:g}, got {getattr(self, name)}")
        for name in ("near", "margin"):
            right = 0 <= getattr(self, name) <= HUGE
            require(right, self, f"{name} must be at least 0 and at most {HUGE:g}, got {getattr(self, name)}")
        require(0 < self.sample <= 1, self, f"sample must be in (0, 1], got {self.sample}")

    def _names(self) -> list[str]:
        return [*self.leaders.split("+"), *filter(None, self.sized_leaders.split("+"))]

    def _policies(self) -> list[Policy]:
        from kvpredict.policies import policy

        return [policy(name) for name in self._names()]

    def kernels(self) -> Kernels:
        return guarded_kernels(tuple(leader.kernels() for leader in self._policies()), self.objective, self.sample < 1)

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        width = len(BASE_FEATURES)
        history = make_history(slots, self.history, regions=self.regions)
        history.fact[SAMPLE::FACTS] = -1
        entries = history.free.size
        leaders = self._policies()
        word = np.zeros(WORDS, np.int64)
        word[RNG], word[CAPACITY], word[CURRENT], word[NEXT_FIT] = seed_random(seed)[0], capacity, -1, FIRST_FIT
        word[AWAKE] = len(self.leaders.split("+"))
        level = [self.most, self.swing, self.memory, self.patience, self.margin, self.most, self.horizon]
        share = min(max(self.sample, FEWEST_SLOTS / slots), 1.0)
        flags = [self.learn, self.guard, self.bypass, share, self.near, self.reprieves]
        shadows = make_shadows(leaders, capacity, slots, seed + 1)
        if self.sample < 1:
            small = make_shadows(leaders, max(1, int(share * capacity)), max(1, int(share * slots)), seed + 1)
            shadows = (shadows, small)
        columns = WHERE + len(leaders) * (1 + (self.sample < 1))
        wide = 1 << (columns - 1).bit_length()  # so that no row lies on two cache lines
        entry = make_rows((entries, wide), np.int32)
        entry[:] = -1
        core = Core(
            history=history,
            slot=np.zeros(slots, np.int32),
            resident=np.zeros(slots, np.int32),
            reprieved=np.zeros(slots, np.uint8),
            entry=entry,
            queued=np.zeros(entries, np.uint8),
            queue=make_links(entries),
            value=np.zeros(entries),
            requests=make_requests(PENDINGS),
            gone=np.zeros(slots + PENDINGS + 1, np.int64),
            order=np.zeros(entries if self.sample < 1 else 0, np.int32),
            missed=np.zeros(len(leaders) + 3),
            apart=np.zeros(len(leaders)),
            slow=np.zeros(len(leaders) + 3),
            fast=np.zeros(len(leaders) + 3),
            led=np.zeros(len(leaders), np.int64),
            control=np.array(() if self.controller is None else self.controller).reshape(-1, SIGNALS),
            signal=np.zeros(SIGNALS),
            word=word,
            level=np.array([*level, *flags], np.float64),
            ahead=np.zeros(self.candidates, np.int32),
            drawn=np.zeros(self.candidates, np.int32),
            x=np.zeros((width, self.candidates), np.float32).T,
            score=np.zeros(self.candidates, np.float64),
            spare=np.zeros(self.candidates, np.float64),
            rank=np.zeros(self.candidates, np.int64),
            victim=np.zeros((self.batch, 2), np.int64),
            doom=np.zeros(self.batch),
            newcomer=Newcomer(np.zeros(1, np.int32), np.zeros((1, width), np.float32), np.zeros(1)),
            log=np.zeros((NOTES, 5)),
        )
        model = empty_ranks(FAR_TREES, NEAR_TREES, DEPTH)
        if self.prior is not None:
            word[HAS_MODEL] = 1
            _copy(self.prior.scorer, model.far)
            np.negative(model.far.leaf, out=model.far.leaf)  # an artifact's score says who is to stay
            np.negative(model.far.base, out=model.far.base)
        return State(
            core=core,
            samples=make_samples(self.samples, width),
            training=make_training(self.samples, width, DEPTH),
            model=model,
            shadows=shadows,
        )

    def stand_in(self) -> Policy:
        """Return the first leader, which leads until another misses less."""
        return self._policies()[0]

    def trainer(self, state: State, aside: bool) -> Trainer | None:
        """Return how to train ``state`` on another thread, or let it train itself."""
        state.core.word[AWAY] = aside
        state.core.word[DUE] = IDLE
        if not aside or not self.learn:
            return None
        c, ring = state.core, len(state.samples.unit)
        spare = empty_ranks(FAR_TREES, NEAR_TREES, DEPTH)
        rows = np.zeros(1, np.int64)

        def gather(step: int) -> bool:
            start, end = ring * step // PARTS, ring * (step + 1) // PARTS
            gather_rows(c, state.samples, state.training, rows, start, end)
            return step + 1 < PARTS

        def fit() -> None:
            fit_rows(state.training, rows, spare, self.near)

        def take_over() -> None:
            adopt(c, state.model, spare, rows)

        # Compiled now, so that no request waits for it: no rows, no effect.
        gather_rows(c, state.samples, state.training, rows, 0, 0)
        fit()
        adopt(c, state.model, spare, np.full(1, -1, np.int64))
        return Trainer(c.word[DUE : DUE + 1], gather, fit, take_over)

    def inherit(self, state: State, old: State) -> None:
        """Begin with the model of ``old``, trusted as far as there."""
        for its, mine in zip(old.model, state.model, strict=True):
            _copy(its, mine)
        state.core.word[[FITS, HAS_MODEL]] = old.core.word[[FITS, HAS_MODEL]]
        state.core.word[INHERITED] = old.core.word[FITS]
        state.core.level[LAMBDA] = old.core.level[LAMBDA]

    def samples_of(self, state: State) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the samples' rows, float32 ``[m, width]``, how long each was watched, and 1 where a use ended that."""
        rows = np.zeros(1, np.int64)
        gather_rows(state.core, state.samples, state.training, rows, 0, len(state.samples.unit))
        room = state.training
        return room.x[: rows[0]].copy(), room.time[: rows[0]].copy(), room.used[: rows[0]].copy()

    def save(self, folder: str | Path) -> Path:
        """Write the policy and its prior to ``folder``, atomically; ``kvpredict.load_policy`` reads it.

        What a cache has learned since is not in it: see ``kvpredict.cache.snapshot``.
        """
        settings = {k: v for k, v in super().params().items() if k not in ("prior", "report")}
        origin = {"prior": "none"} | ({} if self.report is None else {"settings": self.report.settings})
        cold = Artifact(empty_trees(FAR_TREES, DEPTH), Schema(), "identity", origin)
        return (self.prior or cold).save(folder, policy={"name": self.name, **settings})

    def params(self) -> dict[str, Any]:
        origin = {"prior": None if self.prior is None else self.prior.metadata.get("prior", "given")}
        return {k: v for k, v in super().params().items() if k != "report"} | origin

    def account(self, state: State) -> dict[str, Any]:
        """Return what happened: fits, the leader and its changes, how long each led; lambda and leader over time."""
        c, names = state.core, self._names()
        log = c.log[: c.word[NOTED]]
        counts: dict[str, float | str] = {
            "fits": int(c.word[FITS]),
            "samples": int(state.samples.clock[0]),
            "leader_changes": int(c.word[SWITCHES]),
            "refused_by_leader": int(c.word[REFUSALS]),
            "refused_by_model": int(c.word[BYPASSED]),
            "shadow_objects_lost": int(c.word[LOST]),
            "lambda": float(c.level[LAMBDA]),
            "leader": names[c.word[LEADER]],
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
        mine = c.slot[resident]
        assert sorted(c.resident[:held].tolist()) == sorted(mine.tolist())
        assert (h.fact[FACTS * c.resident[:held] + PLACE] == np.arange(held)).all()
        assert (c.entry[mine, SLOT] == resident).all()
        assert int((c.entry[:, SLOT] >= 0).sum()) == held
        assert int(h.fact[FACTS * mine + SIZE].sum()) == c.word[USED] <= c.word[CAPACITY]
        ghosts = list_nodes(h.links, h.free.size)
        assert sorted([*ghosts, *mine.tolist(), *h.free[: h.clock[4]].tolist()]) == list(range(h.free.size))
        queue = list_nodes(c.queue, h.free.size)
        assert sorted(queue) == np.flatnonzero(c.queued).tolist()
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
    usual = empty_trees(FAR_TREES, DEPTH)
    fits = isinstance(given.scorer, Trees) and given.scorer.leaf.shape == usual.leaf.shape
    if not fits or given.schema.extra or given.link != "identity":
        raise KvpredictError(
            f"policy 'guarded': this model cannot be its prior, which is {FAR_TREES} trees of depth {DEPTH} on the "
            "base features: make one with kvpredict.learn.online.prior"
        )
    return given
