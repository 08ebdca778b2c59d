"""The guard: who leads, and how far lambda is from following the leader exactly."""

import numpy as np

from kvpredict.core.arithmetic import compress, half_lives
from kvpredict.core.jit import lean_kernel, lean_subroutine
from kvpredict.features.history import MISSED
from kvpredict.policies.guarded.learning import fit_often
from kvpredict.policies.guarded.state import (
    AWAKE,
    FITS,
    GUARDS,
    LAMBDA,
    LEADER,
    MARGIN,
    MEMORY,
    MISSES,
    MOST,
    NEXT_NOTE,
    NOTED,
    PATIENCE,
    SIGNALS,
    SWING,
    SWITCHES,
    UNEQUAL,
)

PERIOD = 128  # requests between two looks at leader and guard
LEAST = 2000.0  # requests for which misses count half or more, however small the cache: fewer tell chance, not merit
FAVOUR = 1e-4  # share of its misses that the leader is forgiven
COST = 0.05  # share of the objects held that must be fetched anew when another leads: misses it must be better by
FULL = 0.03  # share of the leader's misses, beyond the margin, at which lambda moves at full speed; else it swings on
USUAL = 0.4  # share of this cache's hit ratio so far: while it hits less often than that, lambda goes up
RUSH = 4.0  # how many times faster than else, while it hits nothing


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
                by = sums[own + 2] if k == own else sums[leader]
                ahead = 10.0 * (sums[k] - by) / max(by, 1.0)
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
def look_back(c, requests):
    """Choose the leader, and move lambda by what so many requests are worth."""
    level, word, missed, slow, fast = c.level, c.word, c.missed, c.slow, c.fast
    own = c.led.size
    held = max(c.history.clock[1], np.int64(1))
    keep_slow = half_lives(requests / max(level[MEMORY] * held, LEAST))
    keep_fast = half_lives(requests / max(level[PATIENCE] * held, LEAST))
    word[MISSES] += np.int64(missed[own + 1])
    for k in range(own + 3):
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
        fit_often(c)
    if level[GUARDS] > 0.0:
        step = level[MOST] * requests / (level[SWING] * held)
        led = fast[own + 2]  # not what a new leader missed before: nobody could follow it then
        behind = (fast[own] - led) / max(led, weight) - level[MARGIN]
        speed = min(max(behind / FULL, -1.0), 1.0)
        # Where all miss, as in a scan, the model is asked what it has never seen, and to follow costs nothing.
        usual = USUAL * (1.0 - word[MISSES] / c.history.clock[0])
        hits = 1.0 - c.history.level[MISSED]
        if hits < usual:
            speed = max(speed, RUSH * (1.0 - hits / usual))
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
    log[rows, 4] = c.fast[own] / max(c.fast[own + 2], 1.0) - 1.0
    word[NOTED] += 1
    step = PERIOD if rows == 0 else (now - np.int64(log[0, 0])) // rows
    word[NEXT_NOTE] = now + max(step, np.int64(1))
