"""What guarded remembers, and the places of its numbers."""

from typing import Any, NamedTuple

import numpy as np

from kvpredict.core.shadow import Requests
from kvpredict.features.history import History
from kvpredict.features.samples import Samples
from kvpredict.scorers.boosting import Ranks, Training

SLOT, WHERE = 0, 1  # columns of Core.entry
(
    RNG, USED, CAPACITY, UNEQUAL, CURRENT, HEAD, TAIL, LEADER, CHECK, NEXT_FIT, FITS, SWITCHES, LOST, PENDING, AWAKE,
    DUE, AWAY, REFUSALS, BYPASSED, NOTED, NEXT_NOTE, HAS_MODEL, SHOWN, MISSES,
    BEGUN, INHERITED, AHEAD,
) = range(27)  # of word  # fmt: skip
WORDS = AHEAD + 1
(
    LAMBDA, SWING, MEMORY, PATIENCE, MARGIN, MOST, HORIZON, LEARNS, GUARDS, BYPASSES, SAMPLED, NEAR, REPRIEVES,
) = range(13)  # of level  # fmt: skip

PENDINGS = 256  # requests that hits may leave to be shown to the shadows later
PER_DECISION = 8  # candidates sampled for training at a decision, and the most taken from the leader's queue
NOTES = 512  # rows of the log, which is thinned when it is full
SIGNALS = 11  # what a controller sees, the last a constant


class Newcomer(NamedTuple):
    """Room to score an object that asks to be admitted."""

    entry: np.ndarray  # int32 [1]
    x: np.ndarray  # float32 [1, width]
    score: np.ndarray  # float64 [1]


class Core(NamedTuple):
    """All but the large parts, so that most kernels need only this."""

    history: History
    slot: np.ndarray  # int32 [slots], history entry of the object in each slot
    resident: np.ndarray  # int32 [slots], history entries of the objects held, in any order
    reprieved: np.ndarray  # uint8 [slots], how many more times each of these is passed over as a candidate
    entry: np.ndarray  # int32 [entries, 1 + shadows or more]: slot of the object, -1 when not resident; slot in each
    # shadow, -1 when it does not hold the object
    queued: np.ndarray  # uint8 [entries], 1 while in the queue
    queue: np.ndarray  # int32 [2 * (entries + 1)], residents that the leader does not hold, latest in front
    value: np.ndarray  # float64 [entries], log of what a miss counts for, for each unit of size
    requests: Requests  # not yet shown to the shadows
    gone: np.ndarray  # int64 [slots + pending + 1], how many objects the leader evicted, then which
    order: np.ndarray  # int32 [entries], room to sort them; [0] where no leader has to be filled
    missed: np.ndarray  # float64 [shadows + 3], misses since the last look of each, and of this cache, weighed; of
    # this cache, each as one; and of whoever led, weighed
    apart: np.ndarray  # float64 [shadows], room to count misses that are not simply each shadow's own
    slow: np.ndarray  # float64 [shadows + 3], older ones counting less: by which the leader is chosen
    fast: np.ndarray  # float64 [shadows + 3], and much less: by which lambda moves
    led: np.ndarray  # int64 [shadows], periods that each has led
    control: np.ndarray  # float64 [2, 11], weights of the controller; [0, 11] for the rule
    signal: np.ndarray  # float64 [11], what it sees
    word: np.ndarray  # int64 [27]
    level: np.ndarray  # float64 [13]: lambda, parameters
    ahead: np.ndarray  # int32 [c], places among residents of the next candidates, as far as they have been drawn
    drawn: np.ndarray  # int32 [c], history entries of the candidates
    x: np.ndarray  # float32 [c, width], their rows, stored column by column
    score: np.ndarray  # float64 [c]
    spare: np.ndarray  # float64 [c], room for parts of scores
    rank: np.ndarray  # int64 [c], scores as whole numbers
    victim: np.ndarray  # int64 [b, 2], entries chosen to go, worst first, and their last access when chosen
    doom: np.ndarray  # float64 [b], their scores
    newcomer: Newcomer
    log: np.ndarray  # float64 [512, 5]: request; leader; lambda; fits; misses of late over who led's, less one


class State(NamedTuple):
    core: Core
    samples: Samples
    training: Training
    model: Ranks
    shadows: Any  # a tree of Shadow; or two, of which the second runs on a sample of the keys
