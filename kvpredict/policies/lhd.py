"""LHD: evict what earns the fewest hits for the space-time it will still take.

An object's hit density is its probability of a hit divided by the time it is expected to stay, per unit of size. Both
are conditioned on its age, in accesses since its last use, and estimated from what happened to objects of the same
class, those whose last two ages at a hit add up to a similar figure. A victim is the lowest of a random sample.

Beckmann, Chen and Cidon, "LHD: Improving Cache Hit Rate by Maximizing Hit Density", NSDI 2018, sections 3 to 5.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel
from kvpredict.core.policy import Policy, Traits, require
from kvpredict.core.prefetch import prefetch
from kvpredict.core.random import below, next_u32, seed_random
from kvpredict.core.rows import make_rows

__all__ = ["LHD"]

CLASSES = 16
RECENT = 8  # newcomers that look like victims and are candidates at every eviction
EXPLORE = 32  # one update in so many makes an explorer
LEARNING = 50  # reconfigurations during which there are explorers
DECAY = 0.9
PACE = 4  # accesses between reconfigurations for each object held, at least
RUN = 4  # candidates that are neighbours among the objects, which stand in no order, and on a cache line
LOW = 2**31 - 1  # of a time: an age is told from one as many accesses longer, or more, by nothing
LARGEST = 2**31 - 1  # units: larger objects are ranked as if they took so many
OLDEST = 100  # the last bin of ages begins where as many accesses have passed as the cache holds objects, times this

TIME, SIZE, KIND, SLOT = 0, 1, 2, 3  # places in a row of State.tags
EXPLORER, AGES = 16, 32  # a kind is the class, 16 more for an explorer, and 32 times the age at the last hit
# Places in State.n: objects held, accesses seen, accesses to the next reconfiguration and the fewest between two, how
# many there were, log2 of the accesses in a bin of ages, next place in State.recent, units that may still become
# explorers, candidates, bins, whether their width adapts, whether anything has been evicted.
COUNT, NOW, NEXT, EVERY, CONFIGURED, SHIFT, HEAD, BUDGET, CANDIDATES, BINS, ADAPTIVE, EVICTED = range(12)


class State(NamedTuple):
    tags: np.ndarray  # int32 [4 * slots], a row an object, without gaps: last use, its LOW bits; size, at most
    # LARGEST; kind; slot
    row_of: np.ndarray  # int32 [slots], the row of each slot
    recent: np.ndarray  # int32 [8], slots of newcomers, -1 for none
    density: np.ndarray  # float64 [16 * bins], hit density by class and age
    hits: np.ndarray  # float64 [16 * bins], decayed counts
    evictions: np.ndarray  # float64 [16 * bins]
    class_of: np.ndarray  # uint8 [2 * bins], class for each sum of the last two ages at a hit
    victim: np.ndarray  # float64 [1], the moving average of victims' densities
    rng: np.ndarray  # int64 [1]
    drawn: np.ndarray  # int64 [candidates / 4, rounded up], rows where runs of the next candidates begin
    n: np.ndarray  # int64 [12], see above


@lean_kernel
def _age(n, time):
    return min(((n[NOW] - time) & LOW) >> n[SHIFT], n[BINS] - 1)


@lean_kernel
def _rank(s, row):
    """Return the hit density of the object in ``row``; an explorer's is out of reach."""
    n = s.n
    age = _age(n, s.tags[4 * row + TIME])
    if age == n[BINS] - 1:
        return -1.0
    kind = s.tags[4 * row + KIND]
    density = s.density[(kind & (CLASSES - 1)) * n[BINS] + age] / s.tags[4 * row + SIZE]
    return density + 1.0 if kind & EXPLORER else density


@lean_kernel
def _used(s, row, age, age_sum):
    """Note a use at an ``age``: time, class, and now and then the status of an explorer."""
    n = s.n
    tags = s.tags
    tags[4 * row + TIME] = n[NOW] & LOW
    kind = age * AGES + s.class_of[age_sum]
    explore = next_u32(s.rng) % EXPLORE == 0
    if explore and n[BUDGET] > 0 and n[CONFIGURED] < LEARNING:
        kind += EXPLORER
        n[BUDGET] -= tags[4 * row + SIZE]
    tags[4 * row + KIND] = kind
    return explore


@lean_kernel
def _tick(s):
    """Let one access pass."""
    n = s.n
    n[NOW] += 1
    n[NEXT] -= 1
    if n[NEXT] == 0:
        n[NEXT] = max(n[EVERY], PACE * n[COUNT])
        for i in range(s.hits.size):
            s.hits[i] *= DECAY
            s.evictions[i] *= DECAY
        if n[ADAPTIVE] and (n[CONFIGURED] == 5 or n[CONFIGURED] == 25):
            _rescale(s)
        _model(s)
        n[CONFIGURED] += 1


@lean_kernel
def _model(s):
    """Compute hit densities: hits from an age on, over the time that is spent from that age on."""
    bins = s.n[BINS]
    for which in range(CLASSES):
        base = which * bins
        hits = s.hits[base + bins - 1]
        events = hits + s.evictions[base + bins - 1]
        lifetime = events
        for age in range(bins - 2, -1, -1):
            hits += s.hits[base + age]
            events += s.hits[base + age] + s.evictions[base + age]
            lifetime += events
            s.density[base + age] = hits / lifetime if events > 1e-5 else 0.0


@lean_kernel
def _rescale(s):
    """Fit the width of a bin of ages to the number of objects held, and shift what was counted accordingly."""
    n = s.n
    bins = n[BINS]
    shift = 0
    while bins << shift < OLDEST * n[COUNT]:
        shift += 1
    while n[SHIFT] != shift:
        finer = n[SHIFT] > shift
        n[SHIFT] += -1 if finer else 1
        for base in range(0, CLASSES * bins, bins):
            _resize_bins(s.hits, base, bins, finer)
            _resize_bins(s.evictions, base, bins, finer)


@lean_kernel
def _resize_bins(counts, base, bins, finer):
    """Split each bin in two, or join two; the last one holds all older ages and stays."""
    if finer:
        for age in range(bins // 2, bins - 1):
            counts[base + bins - 1] += counts[base + age]
        for age in range(bins - 2, -1, -1):
            counts[base + age] = counts[base + age // 2] / 2
    else:
        for age in range(bins - 1):
            count = counts[base + age]
            counts[base + age] = 0.0
            counts[base + age // 2] += count


@lean_kernel
def _draw(s):
    """Return the row where a run of candidates begins, 0 where nothing is held."""
    return below(s.rng, s.n[COUNT]) & -RUN


@lean_kernel
def _release(s, row):
    """Take the object in ``row`` out; the last row fills the gap."""
    n = s.n
    slot = s.tags[4 * row + SLOT]
    if s.tags[4 * row + KIND] & EXPLORER:
        n[BUDGET] += s.tags[4 * row + SIZE]
    for i in range(s.recent.size):
        if s.recent[i] == slot:
            s.recent[i] = -1
    n[COUNT] -= 1
    last = n[COUNT]
    if row != last:
        for place in range(4):
            s.tags[4 * row + place] = s.tags[4 * last + place]
        s.row_of[s.tags[4 * row + SLOT]] = row
    return slot


@dataclass(frozen=True)
class LHD(Policy):
    """Least hit density.

    Parameters
    ----------
    candidates : int, default 8
        Objects sampled for an eviction, besides up to 8 newcomers that looked like victims on arrival; in runs of
        four that lie side by side in memory, where they are in no order.
    reconfigure_every : int, default 2**16
        Accesses after which hit densities are computed anew, or four for each object held if that is more; what was
        counted before weighs 0.9 of what it did.
    bins : int, default 4096
        Bins of ages, 384 bytes each whatever the capacity; the last one holds all older ages, first to be evicted.
    age_shift : int, default -1
        A bin is 2**age_shift accesses wide. -1 fits it to the number of objects held, so that the last bin begins
        where 100 times as many accesses have passed.
    simulator_prior : bool, default False
        Start from the authors' simulator's densities, (class + 17) / (age + 1) with the age in bins, instead of
        (class + 1) / (age + 1) with the age in accesses for each object held.

    Notes
    -----
    The paper does not fix these figures. libCacheSim, which carries the authors' simulator, learns nothing for the
    first million accesses and has bins of 1024 accesses until the fifth million, so on most public traces it ranks by
    its start values alone. ``LHD(reconfigure_every=2**20, bins=20_000, age_shift=10, simulator_prior=True)`` has its
    misses within 2 % (random draws show in caches of a few dozen objects). The defaults, which learn earlier and fit
    bins and start values to the cache, miss 1 % less on average over 19 public traces at 1 and 10 % of the keys: from a
    quarter less to an eighth more. There is one class of application, not sixteen.
    """

    name = "lhd"
    traits = Traits(sized=True, stochastic=True)

    candidates: int = 8
    reconfigure_every: int = 1 << 16
    bins: int = 4096
    age_shift: int = -1
    simulator_prior: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.candidates <= 1024, self, f"candidates must be 1 to 1024, got {self.candidates}")
        require(self.reconfigure_every >= 1, self, f"reconfigure_every must be positive, got {self.reconfigure_every}")
        require(16 <= self.bins <= 2**20, self, f"bins must be 16 to 2**20, got {self.bins}")
        require(-1 <= self.age_shift <= 40, self, f"age_shift must be -1 to 40, got {self.age_shift}")

    def make_state(self, capacity: int, slots: int, seed: int) -> State:
        shift = self.age_shift
        if shift < 0:
            shift = max(0, (OLDEST * slots - 1) // self.bins).bit_length()
        # Until something has been learned: what was hit at short intervals is worth more, and half as much when as many
        # accesses have passed since as the cache holds objects.
        age, which = np.arange(self.bins), np.arange(CLASSES)
        if self.simulator_prior:
            density = (which[:, None] + CLASSES + 1) / (age[None, :] + 1)
        else:
            density = (which[:, None] + 1) / (age[None, :] / max(1, slots >> shift) + 1)
        # The class is the logarithm of bins over the sum of ages, rounded up.
        sums = np.arange(2 * self.bins)
        class_of = np.zeros(2 * self.bins, np.uint8)
        for log in range(CLASSES - 1):
            class_of += (sums << log) < self.bins
        every = self.reconfigure_every
        return State(
            tags=make_rows((4 * slots,), np.int32),
            row_of=np.zeros(slots, np.int32),
            recent=np.full(RECENT, -1, np.int32),
            density=density.reshape(-1),
            hits=np.zeros(CLASSES * self.bins, np.float64),
            evictions=np.zeros(CLASSES * self.bins, np.float64),
            class_of=class_of,
            victim=np.zeros(1, np.float64),
            rng=seed_random(seed),
            drawn=np.full(-(-self.candidates // RUN), slots, np.int64),
            n=np.array(
                [0, 0, every, every, 0, shift, 0, capacity // 100, self.candidates, self.bins, self.age_shift < 0, 0],
                np.int64,
            ),
        )

    @staticmethod
    @lean_kernel
    def hit(s, slot, e):
        row = s.row_of[slot]
        tags = s.tags
        kind = tags[4 * row + KIND]
        age = _age(s.n, tags[4 * row + TIME])
        s.hits[(kind & (CLASSES - 1)) * s.n[BINS] + age] += 1.0
        if kind & EXPLORER:
            s.n[BUDGET] += tags[4 * row + SIZE]
        _used(s, row, age, age + kind // AGES)
        _tick(s)

    @staticmethod
    @lean_kernel
    def evict(s, e):
        n = s.n
        if not n[EVICTED]:
            n[EVICTED] = 1
            if n[ADAPTIVE]:
                _rescale(s)
        victim = np.int64(0)
        least = np.inf
        row = np.int64(0)
        for i in range(n[CANDIDATES]):
            if i % RUN == 0:
                row = s.drawn[i // RUN]
                if row >= n[COUNT]:
                    row = _draw(s)
            elif row + 1 < n[COUNT]:
                row += 1
            else:
                row = np.int64(0)
            rank = _rank(s, row)
            if rank < least:
                least = rank
                victim = row
        for i in range(s.recent.size):
            if s.recent[i] >= 0:
                row = np.int64(s.row_of[s.recent[i]])
                rank = _rank(s, row)
                if rank < least:
                    least = rank
                    victim = row
        s.victim[0] = DECAY * s.victim[0] + (1 - DECAY) * max(least, 0.0)
        kind = s.tags[4 * victim + KIND]
        s.evictions[(kind & (CLASSES - 1)) * n[BINS] + _age(n, s.tags[4 * victim + TIME])] += 1.0
        slot = _release(s, victim)
        # The next candidates are drawn now, so that they are at hand when they are ranked.
        for i in range(s.drawn.size):
            s.drawn[i] = _draw(s)
            prefetch(s.tags, 4 * s.drawn[i])
        return slot

    @staticmethod
    @lean_kernel
    def insert(s, slot, e):
        n = s.n
        row = n[COUNT]
        n[COUNT] += 1
        s.row_of[slot] = row
        s.tags[4 * row + SLOT] = slot
        s.tags[4 * row + SIZE] = min(e.size, LARGEST)
        explore = _used(s, row, np.int64(0), n[BINS])
        # Nothing is refused, so what looks like a victim on arrival is a candidate whatever the sample.
        if not explore and _rank(s, row) < s.victim[0]:
            s.recent[n[HEAD]] = slot
            n[HEAD] = (n[HEAD] + 1) % RECENT
        _tick(s)

    @staticmethod
    @lean_kernel
    def remove(s, slot):
        _release(s, s.row_of[slot])

    def validate(self, state: State, resident: np.ndarray) -> None:
        n = state.n
        held = int(n[COUNT])
        tags = state.tags.reshape(-1, 4)[:held]
        assert sorted(tags[:, SLOT].tolist()) == resident.tolist()
        assert (state.row_of[tags[:, SLOT]] == np.arange(held)).all()
        assert (((n[NOW] - tags[:, TIME]) & LOW) <= n[NOW]).all()
        assert ((tags[:, KIND] >= 0) & (tags[:, KIND] < AGES * int(n[BINS]))).all()
        assert set(state.recent.tolist()) <= {-1, *resident.tolist()}
        assert (state.hits >= 0).all()
        assert (state.evictions >= 0).all()
        assert np.isfinite(state.density).all()
