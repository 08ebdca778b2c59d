"""Contests: how leaders compete, all in full or on a sample of the keys."""

from typing import Any, NamedTuple

import numpy as np

from kvpredict.core.arithmetic import exponential
from kvpredict.core.jit import lean_kernel, lean_subroutine
from kvpredict.core.lists import back, newer
from kvpredict.core.policy import Kernels
from kvpredict.core.shadow import shadow_kernels
from kvpredict.core.table import hash_key
from kvpredict.features.facts import FACTS, KEY, LAST, SIZE
from kvpredict.features.history import COUNT
from kvpredict.policies.guarded.state import AWAKE, LEADER, PENDING, PENDINGS, SAMPLED, WHERE

TOUCHES = 32  # a new leader is told at most that an object was asked for so many times


class Contest(NamedTuple):
    """How leaders compete.

    ``lead(c, shadows, start, end)``: show pending requests ``start`` to ``end`` to the leader.
    ``compete(c, shadows)``: count what each of them misses of all pending requests, those that the leader has seen.
    ``drop(c, shadows, entry)``: take an object out of all shadows.
    ``crown(c, shadows)``: another leads from now on.
    ``expect(shadows, key)``: a request for ``key`` comes soon, which leaders may miss.
    """

    lead: Any
    compete: Any
    drop: Any
    crown: Any
    expect: Any


def full_contest(leaders: tuple[Kernels, ...], weigh: Any, by_cost: bool) -> Contest:
    """All leaders run in full, so each may lead at any time."""
    run, follow, take, expect = shadow_kernels(leaders, WHERE, weigh)

    @lean_kernel
    def lead(c, shadows, start, end):
        run(shadows, c.entry, c.gone, c.missed, c.requests, start, end, c.word[LEADER])

    @lean_kernel
    def compete(c, shadows):
        word = c.word
        follow(shadows, c.entry, c.gone, c.missed, c.requests, word[PENDING], word[LEADER], word[AWAKE])
        c.missed[c.led.size + 2] = c.missed[word[LEADER]]

    @lean_kernel
    def drop(c, shadows, entry):
        take(shadows, c.entry, entry)

    @lean_kernel
    def crown(c, shadows):
        pass

    return Contest(lead, compete, drop, crown, expect)


def sampled_contest(leaders: tuple[Kernels, ...], weigh: Any, by_cost: bool) -> Contest:
    """All compete on a sample of the keys in small shadows; the leader runs in full, other full ones are empty.

    Misses of a spatially hashed sample in a cache as much smaller estimate those of the whole: Waldspurger et al.,
    "Cache Modeling and Optimization using Miniature Simulations", USENIX ATC 2017.
    """
    run, _, take, expect_in_full = shadow_kernels(leaders, WHERE, weigh)
    _, follow, take_sampled, _ = shadow_kernels(leaders, WHERE + len(leaders), weigh)

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
        for entry in range(c.history.free.size):
            take(shadows[0], c.entry, entry)
        order, known, requests = c.order, c.history.clock[1], c.requests
        for i in range(known):
            order[i] = c.resident[i]
        at = back(c.history.links, c.history.free.size)
        while at < c.history.free.size:
            order[known] = at
            known += 1
            at = newer(c.history.links, at)
        by_last_access(order, known, c.history.fact)
        count = 0
        for i in range(known):
            entry = order[i]
            size = c.history.fact[FACTS * entry + SIZE]
            for _ in range(min(np.int64(c.history.row[entry, COUNT]), np.int64(TOUCHES))):
                requests.entry[count] = entry
                requests.key[count, 0] = c.history.fact[FACTS * entry + KEY]
                requests.key[count, 1] = size
                requests.time[count, 0] = c.history.fact[FACTS * entry + LAST]
                requests.time[count, 1] = exponential(c.value[entry]) * size if by_cost else 1.0
                count += 1
            if count + TOUCHES > PENDINGS or i == known - 1:
                run(shadows[0], c.entry, c.gone, c.apart, requests, 0, count, c.word[LEADER])
                count = 0
        c.apart[c.word[LEADER]] = 0.0

    @lean_kernel
    def expect(shadows, key):
        expect_in_full(shadows[0], key)

    return Contest(lead, compete, drop, crown, expect)


@lean_kernel
def by_last_access(entries, count, fact):
    """Sort entries, last used last: Shell's sort, which needs no room."""
    gap = count // 2
    while gap > 0:
        for i in range(gap, count):
            entry = entries[i]
            last = fact[FACTS * entry + LAST]
            at = i
            while at >= gap and fact[FACTS * entries[at - gap] + LAST] > last:
                entries[at] = entries[at - gap]
                at -= gap
            entries[at] = entry
        gap //= 2
