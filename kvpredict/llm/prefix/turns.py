"""Turns: what the blocks say of sessions, and the rows of features that training and serving share.

A request goes on from the one that last used the deepest block it knows (or from the last of its session, where the
session is named). When a request is over, its blocks are cut into segments of like history, and one row describes each:
place in the prompt, the request, the block's past, the chain of turns, and hints. The row is written once, here; the
same row is scored and, when its middle block is reused or time passes, becomes a training example.

Dead tails: a turn that forks off a chain before its end leaves the old tail behind, which is almost never used again
(0.8 % on Mooncake's conversations); so it is marked, where the chain had a single user.
"""

from typing import NamedTuple

import numpy as np

from kvpredict.core.jit import lean_kernel
from kvpredict.core.table import Table, make_table, table_get, table_put
from kvpredict.llm.hints import HINTS
from kvpredict.llm.prefix.pool import DIRTY

__all__ = ["CONTINUES", "FEATURES", "Turns", "make_turns", "note_arrival", "note_end", "write_segments"]

FEATURES = (
    "depth", "to_end", "place", "segment", "last_block", "generated", "touches", "gap", "gap_before", "age", "children",
    "input_tokens", "output_tokens", "known", "fresh", "turn", "turn_gap", "output_before", "length_before", "growth",
    "forked", "mean_gap", "seconds", "fill", "continues", "finish", "priority", "template", "kind",
)  # fmt: skip
CONTINUES = FEATURES.index("continues")
LONGEST = 64  # blocks of a segment

_HINTED = np.array([HINTS.index(name) for name in FEATURES[CONTINUES:]])
_WIDTH = len(FEATURES)


class Turns(NamedTuple):
    """History over ``n`` nodes, ``q`` requests and a ring of ``m`` rows."""

    user: np.ndarray  # int64 [n], request that used the node last, -1
    heir: np.ndarray  # int32 [n], latest known child, -1
    kids: np.ndarray  # int32 [n], known children
    dead: np.ndarray  # uint8 [n]
    gap: np.ndarray  # float32 [n], seconds between the last two uses
    row: np.ndarray  # int64 [n], the node's segment, a running number
    waits: np.ndarray  # uint8 [n], whether the node is its segment's middle and not used since
    known: np.ndarray  # int64 [q], blocks known at arrival
    before: np.ndarray  # int64 [q], the request it goes on from, a running number, -1
    turn: np.ndarray  # int32 [q]
    length: np.ndarray  # int32 [q], blocks
    output: np.ndarray  # float32 [q]
    ended: np.ndarray  # float64 [q], -1 while it runs
    gaps: np.ndarray  # float32 [q], sum of the gaps between turns so far
    number: np.ndarray  # int64 [q], running number of the request in this place
    sessions: Table  # session to place of its last request
    x: np.ndarray  # float32 [m, features]
    born: np.ndarray  # float64 [m]
    reused: np.ndarray  # float64 [m], inf: not yet
    blocks: np.ndarray  # float32 [m], blocks in the segment
    stamp: np.ndarray  # int64 [m], running number of the row in this place, -1
    tally: np.ndarray  # int64 [3]: rows so far; requests so far; sessions in the table

    def rows(self) -> "Turns":
        """Return the same with copies of what training reads."""
        used = min(int(self.tally[0]), len(self.stamp))
        names = ("x", "born", "reused", "blocks", "stamp")
        return self._replace(**{name: getattr(self, name)[:used].copy() for name in names})


def make_turns(nodes: int, requests: int, rows: int) -> Turns:
    """Return an empty history."""
    n, q, m = nodes, max(1, requests), max(16, rows)
    return Turns(
        user=np.full(n, -1, np.int64),
        heir=np.full(n, -1, np.int32),
        kids=np.zeros(n, np.int32),
        dead=np.zeros(n, np.uint8),
        gap=np.full(n, np.nan, np.float32),
        row=np.full(n, -1, np.int64),
        waits=np.zeros(n, np.uint8),
        known=np.zeros(q, np.int64),
        before=np.full(q, -1, np.int64),
        turn=np.zeros(q, np.int32),
        length=np.zeros(q, np.int32),
        output=np.zeros(q, np.float32),
        ended=np.full(q, -1.0),
        gaps=np.zeros(q, np.float32),
        number=np.full(q, -1, np.int64),
        sessions=make_table(q + 1),
        x=np.zeros((m, _WIDTH), np.float32),
        born=np.zeros(m),
        reused=np.full(m, np.inf),
        blocks=np.zeros(m, np.float32),
        stamp=np.full(m, -1, np.int64),
        tally=np.zeros(3, np.int64),
    )


@lean_kernel
def note_arrival(t, p, r, i, now):
    """Note reuses, find the request that ``i`` goes on from, and mark the tail that it leaves behind."""
    low = r.start[i]
    high = low + r.prompt[i]
    places = t.number.size
    number = t.tally[1] + (i - t.tally[1]) % places  # the next that has this place
    t.number[i] = number
    t.tally[1] = number + 1
    known = 0
    while low + known < high and t.user[r.node[low + known]] >= 0:
        known += 1
    for j in range(low, low + known):
        node = r.node[j]
        if t.waits[node]:
            t.reused[t.row[node] % t.stamp.size] = now
            t.waits[node] = 0
    before = np.int64(-1)
    session = r.session[i]
    if session >= 0:
        at = table_get(t.sessions, session)
        if at >= 0:
            before = t.number[at]
        elif t.tally[2] >= places:  # forget all: the next turn of each is found by its blocks
            for k in range(t.sessions.values.size):
                t.sessions.values[k] = -1
            t.tally[2] = 0
        if at < 0:
            t.tally[2] += 1
        table_put(t.sessions, session, np.int32(i))
    elif known > 1:
        before = t.user[r.node[low + known - 1]]
    t.known[i] = known
    at = before % places
    if before >= 0 and t.number[at] != before:  # its place has been given to another
        before = np.int64(-1)
    t.before[i] = before
    t.turn[i] = t.turn[at] + 1 if before >= 0 else 0
    t.gaps[i] = t.gaps[at] + max(0.0, now - t.ended[at]) if before >= 0 and t.ended[at] >= 0 else 0.0
    t.ended[i] = -1.0
    if 0 < known < high - low:
        fork = r.node[low + known - 1]
        tail = t.heir[fork]
        if tail >= 0 and t.kids[fork] == 1 and t.user[tail] == t.user[fork]:
            while tail >= 0 and p.running[tail] == 0 and p.tally[1] < DIRTY:
                t.dead[tail] = 1
                p.dirty[p.tally[1]] = tail
                p.tally[1] += 1
                tail = t.heir[tail] if t.kids[tail] == 1 else -1


@lean_kernel
def write_segments(t, p, r, i, now):
    """Write a row for each segment of a request that has ended; before the pool notes its use."""
    low = r.start[i]
    high = r.stop[i]
    middle = low + r.prompt[i]
    at = t.before[i] % t.number.size
    goes_on = t.before[i] >= 0 and t.number[at] == t.before[i]
    first = low
    while first < high:
        head = r.node[first]
        stop = first + 1
        while stop < high and stop - first < LONGEST and stop != middle and stop != middle - 1:
            node = r.node[stop]
            if p.touches[node] != p.touches[head] or t.user[node] != t.user[head]:
                break
            stop += 1
        j = first + (stop - first) // 2
        node = r.node[j]
        number = t.tally[0]
        t.tally[0] += 1
        row = number % t.stamp.size
        x = t.x[row]
        x[0] = j - low
        x[1] = high - j
        x[2] = (j - low) / (high - low)
        x[3] = stop - first
        x[4] = 1.0 if first == middle - 1 else 0.0
        x[5] = 1.0 if first >= middle else 0.0
        x[6] = p.touches[node]
        x[7] = now - p.last[node] if p.touches[node] > 0 else np.nan
        x[8] = t.gap[node]
        x[9] = now - p.first[node] if p.touches[node] > 0 else 0.0
        x[10] = t.kids[node]
        x[11] = r.tokens[i, 0]
        x[12] = r.tokens[i, 1]
        x[13] = t.known[i]
        x[14] = r.prompt[i] - t.known[i]
        x[15] = t.turn[i]
        x[16] = r.time[i] - t.ended[at] if goes_on and t.ended[at] >= 0 else np.nan
        x[17] = t.output[at] if goes_on else np.nan
        x[18] = t.length[at] if goes_on else np.nan
        x[19] = high - low - t.length[at] if goes_on else np.nan
        x[20] = t.length[at] - t.known[i] if goes_on else np.nan
        x[21] = t.gaps[i] / t.turn[i] if t.turn[i] > 0 else np.nan
        x[22] = now - r.time[i]
        size = r.tokens[i, 0] / max(1, r.prompt[i])
        x[23] = size
        for k in range(_HINTED.size):
            x[CONTINUES + k] = r.hint[i, _HINTED[k]]
        t.born[row] = now
        t.reused[row] = np.inf
        t.blocks[row] = stop - first
        t.stamp[row] = number
        for k in range(first, stop):
            other = r.node[k]
            t.row[other] = number
            t.waits[other] = 0
        t.waits[node] = 1
        first = stop


@lean_kernel
def note_end(t, p, r, i, now):
    """Note the use of a request's blocks; after its segments are written and before the pool notes it."""
    low = r.start[i]
    high = r.stop[i]
    for j in range(low, high):
        node = r.node[j]
        if p.touches[node] > 0:
            t.gap[node] = now - p.last[node]
        if t.user[node] < 0 and j > low:
            t.kids[r.node[j - 1]] += 1
        if j > low:
            t.heir[r.node[j - 1]] = node
        t.user[node] = t.number[i]
        t.dead[node] = 0
    t.length[i] = high - low
    t.output[i] = r.tokens[i, 1]
    t.ended[i] = now
