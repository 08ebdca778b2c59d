"""When will a block be used again? A discrete-time hazard, and what it says about keeping the block any longer.

A row's hazard in an age bin is the probability of a reuse within the bin, given none before it. From it follow the
probability of a reuse within the next seconds, and the Gittins index: the best ratio, over all times to give up, of the
probability of a reuse to the time that the block is held until then. Space is worth block-seconds, so the block with
the lowest index goes first. An index by age beat the hazard of the moment on every trace tried, because a reuse needs
some seconds at least: a prompt just answered has a low hazard and a high index.

Gittins, "Bandit Processes and Dynamic Allocation Indices", JRSS B 1979.
"""

import numpy as np

from kvpredict.core.jit import lean_kernel

__all__ = ["BINS", "EDGES", "STEPS", "age_step", "gittins", "reuse_within"]

# Seconds at which age bins begin, and where the last one ends.
EDGES = np.array([0, 10, 20, 30, 45, 65, 90, 120, 160, 220, 300, 420, 600, 900, 1500, 4500], np.float64)
BINS = len(EDGES) - 1
# Ages at which ranks are computed anew: bins and their middles.
STEPS = np.sort(np.concatenate([EDGES, (EDGES[1:] + EDGES[:-1]) / 2]))


@lean_kernel
def age_step(age):
    """Return the first of ``STEPS`` above ``age``, inf past the last."""
    for k in range(STEPS.size):
        if STEPS[k] > age:
            return STEPS[k]
    return np.inf


@lean_kernel
def _bin_of(age):
    k = BINS - 1
    while k > 0 and EDGES[k] > age:
        k -= 1
    return k


@lean_kernel
def gittins(hazard, age):
    """Return reuses a second held, for a block of this age; ``hazard`` is float32 ``[BINS]``."""
    at = _bin_of(age)
    alive = 1.0
    gain = 0.0
    held = 0.0
    best = 0.0
    for k in range(at, BINS):
        width = EDGES[k + 1] - EDGES[k]
        h = float(hazard[k])
        if k == at:
            left = max(0.05, min(1.0, (EDGES[k + 1] - age) / width))
            width *= left
            h *= left
        gain += alive * h
        held += alive * width * (1.0 - 0.5 * h)
        alive *= 1.0 - h
        best = max(best, gain / held)
    return best


@lean_kernel
def reuse_within(hazard, age, seconds):
    """Return the probability of a reuse within ``seconds`` for a block of this age."""
    alive = 1.0
    end = age + seconds
    for k in range(_bin_of(age), BINS):
        low = max(age, EDGES[k])
        high = min(end, EDGES[k + 1])
        if high <= low:
            break
        alive *= 1.0 - float(hazard[k]) * (high - low) / (EDGES[k + 1] - EDGES[k])
    return 1.0 - alive
