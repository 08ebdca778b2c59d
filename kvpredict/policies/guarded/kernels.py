"""Guarded, compiled: what happens at a hit and a miss, and who goes."""

from functools import lru_cache

import numpy as np

from kvpredict.core.jit import lean_kernel, lean_subroutine
from kvpredict.core.lists import back, newer, push_front, unlink
from kvpredict.core.objective import weigher, worth
from kvpredict.core.policy import IDLE, WANTED, Kernels
from kvpredict.core.prefetch import prefetch
from kvpredict.features.facts import FACTS, LAST, PLACE, SIZE
from kvpredict.features.history import (
    KNOWN,
    await_entry,
    await_forgetting,
    await_key,
    likely_entry,
    note_eviction,
    note_hit,
    note_insertion,
    note_miss,
    oldest_ghost,
    residence_known,
    spare,
    write,
)
from kvpredict.features.regions import await_visit
from kvpredict.features.samples import collect, lose, record, resolve
from kvpredict.policies.guarded.contests import full_contest, sampled_contest
from kvpredict.policies.guarded.guard import PERIOD, look_back
from kvpredict.policies.guarded.learning import (
    FEWEST,
    RATE,
    begin_to_use,
    draw,
    draw_ahead,
    draw_anew,
    is_sampled,
    keep_rows,
    schedule_fit,
)
from kvpredict.policies.guarded.state import (
    AWAY,
    BYPASSED,
    BYPASSES,
    CAPACITY,
    CHECK,
    CURRENT,
    DUE,
    HAS_MODEL,
    HEAD,
    HORIZON,
    LAMBDA,
    LEADER,
    LEARNS,
    LOST,
    MOST,
    NEAR,
    NEXT_FIT,
    PENDING,
    PENDINGS,
    PER_DECISION,
    REFUSALS,
    REPRIEVES,
    SHOWN,
    SLOT,
    TAIL,
    UNEQUAL,
    USED,
    WHERE,
)
from kvpredict.scorers.boosting import fit_ranks, rank_columns

SECOND_CHANCES = 4  # ghosts passed over, because a shadow still holds them, before one is forgotten all the same
FARTHEST, STEPS = 4096.0, 2.0**28  # scores, in logarithms of time, are told apart up to here, in steps so small
CANDIDATE_BITS = 20  # of the number that tells whose score it is
TAKEN = -(1 << 62)
ROOMY = 1024  # objects held from which on candidates are reprieved: of fewer, too many would be
SHARE = 32  # a cache must hold so many objects for each of the victims taken from one refill


@lean_kernel
def enqueue(c, entry):
    push_front(c.queue, c.history.free.size, entry)
    c.queued[entry] = 1


@lean_kernel
def unqueue(c, entry):
    if c.queued[entry]:
        unlink(c.queue, entry)
        c.queued[entry] = 0


@lean_kernel
def settle(c, entry):
    """See to it that a resident is in the queue if the leader does not hold it, and is not if it does."""
    if c.entry[entry, WHERE + c.word[LEADER]] >= 0:
        unqueue(c, entry)
    elif c.entry[entry, SLOT] >= 0 and not c.queued[entry]:
        enqueue(c, entry)


@lean_kernel
def gather_queue(c):
    """Fill the queue anew, for another leader."""
    entry = c.entry
    leader = WHERE + c.word[LEADER]
    for i in range(c.history.clock[1]):
        at = c.resident[i]
        unqueue(c, at)
        if entry[at, leader] < 0:
            enqueue(c, at)


@lean_kernel
def leave(c, entry):
    fact = c.history.fact
    at = fact[FACTS * entry + PLACE]
    end = c.history.clock[1] - 1
    last = c.resident[end]
    c.resident[at] = last
    c.reprieved[at] = c.reprieved[end]
    fact[FACTS * last + PLACE] = at
    c.entry[entry, SLOT] = -1
    c.word[USED] -= fact[FACTS * entry + SIZE]
    unqueue(c, entry)
    note_eviction(c.history, entry, True)


@lean_kernel
def penalty(c):
    """Return what speaks for an object that the leader holds: lambda, as far as it can make a difference."""
    return min(c.level[LAMBDA], 0.5 * FARTHEST)


@lean_kernel
def number(score, rank, count):
    """Write the first ``count`` scores as whole numbers to ``rank``, with whose they are in the lowest bits.

    Whole numbers are compared several at once, where of floats each waits for the one before.
    """
    for i in range(count):
        steps = np.int64(min(max(score[i], -FARTHEST), FARTHEST) * STEPS)
        rank[i] = (steps << CANDIDATE_BITS) + (count - i)


@lean_kernel
def take_highest(rank, count):
    """Return whose score is the highest, of equals the first one's, and count it no more."""
    highest = rank[0]
    for i in range(1, count):
        highest = max(highest, rank[i])
    whose = count - (highest & ((1 << CANDIDATE_BITS) - 1))
    rank[whose] = TAKEN
    return whose


@lean_kernel
def reprieve(c, count):
    """See to it that candidates better than the mean are not scored again when they are next drawn.

    What was just seen to be far from the worst seldom is by then. So fewer rows are written and scored for as many
    draws, from which the worst are taken.
    """
    drawn, score, fact, reprieved = c.drawn, c.score, c.history.fact, c.reprieved
    mean = 0.0
    for i in range(count):
        mean += score[i]
    mean /= count
    for i in range(count):
        kept = c.rank[i] != TAKEN and score[i] < mean
        reprieved[fact[FACTS * drawn[i] + PLACE]] = np.uint8(c.level[REPRIEVES]) if kept else np.uint8(0)


@lean_kernel
def held_by_shadows(c, entry):
    held = 0
    for k in range(WHERE, c.entry.shape[1]):
        held += c.entry[entry, k] >= 0
    return held


@lru_cache(maxsize=32)
def guarded_kernels(leaders: tuple[Kernels, ...], objective: str, sampled: bool) -> Kernels:
    weigh, varies, by_cost = weigher(objective), objective != "bytes", objective == "cost"
    contest = sampled_contest if sampled else full_contest
    lead, compete, drop, crown, expect_in_shadows = contest(leaders, weigh, by_cost)

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
            settle(c, gone[i])
        for i in range(word[SHOWN], word[PENDING]):
            settle(c, requests.entry[i])
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
            look_back(c, word[CHECK])
            word[CHECK] = 0
            if word[LEADER] != before:
                crown(c, shadows)
                gather_queue(c)

    @lean_subroutine
    def keep_learning(c, samples, training, model):
        if c.word[AWAY]:
            if c.word[DUE] == IDLE:
                c.word[DUE] = WANTED
            return
        count = collect(samples, c.history.clock[KNOWN], c.level[HORIZON], training, 0, samples.unit.size, 0)
        if count >= FEWEST:
            fit_ranks(training, count, model, RATE, c.level[NEAR])
            begin_to_use(c)
        schedule_fit(c)

    @lean_subroutine
    def refill(c, samples, model):
        """Choose the next few victims among objects that the leader has given up and others drawn at random."""
        h, drawn, score, victim = c.history, c.drawn, c.score, c.victim
        given_up = 0
        at = back(c.queue, c.history.free.size)
        while at < c.history.free.size and given_up < PER_DECISION:
            drawn[given_up] = at
            given_up += 1
            at = newer(c.queue, at)
        anyone = draw_anew(c, given_up, drawn.size - PER_DECISION - given_up)
        count = anyone + PER_DECISION
        draw(c, anyone, count)  # reprieved or not, as samples must be
        write(h, drawn, count, len(c.slot), c.x)
        rank_columns(model, c.x, count, score, c.spare)
        victims = min(np.int64(len(victim)), max(np.int64(1), h.clock[1] // SHARE), count)
        if is_sampled(c, samples, victims):
            keep_rows(c, samples, anyone)
        for i in range(count):
            # The model predicts the log of the time per use: the longer, the sooner to go.
            if varies and c.word[UNEQUAL]:
                score[i] -= c.value[drawn[i]]
            score[i] -= penalty(c) * (1 - c.queued[drawn[i]])
        number(score, c.rank, count)
        for v in range(victims):
            worst = take_highest(c.rank, count)
            victim[v, 0] = drawn[worst]
            victim[v, 1] = h.fact[FACTS * drawn[worst] + LAST]
            c.doom[v] = score[worst]
        if h.clock[1] >= ROOMY:
            reprieve(c, count)
        c.word[HEAD] = 0
        c.word[TAIL] = victims

    @lean_kernel
    def next_victim(c, samples, model):
        """Return the entry of the next object to go."""
        word, fact = c.word, c.history.fact
        if word[HAS_MODEL] == 0 or c.level[LAMBDA] >= c.level[MOST]:
            if is_sampled(c, samples, 1):
                draw(c, 0, PER_DECISION)
                write(c.history, c.drawn, PER_DECISION, len(c.slot), c.x)
                keep_rows(c, samples, 0)
            chosen = np.int64(back(c.queue, c.history.free.size))
            if chosen < c.history.free.size:
                return chosen
            # The leader holds all that is held here, as it may after it lost an object to a full history.
        draw_ahead(c)
        while True:
            while word[HEAD] < word[TAIL]:
                at = word[HEAD]
                word[HEAD] += 1
                chosen = c.victim[at, 0]
                if word[HEAD] < word[TAIL]:
                    after = c.victim[word[HEAD], 0]
                    prefetch(c.entry, after)
                    prefetch(fact, FACTS * after)
                if c.entry[chosen, SLOT] >= 0 and fact[FACTS * chosen + LAST] == c.victim[at, 1]:
                    return chosen
            refill(c, samples, model)

    @lean_subroutine
    def unwanted(c, samples, model, entry):
        """Tell whether an object that asks to be admitted is worse than the next to go."""
        h, new, word = c.history, c.newcomer, c.word
        learned = word[HAS_MODEL] > 0 and c.level[LAMBDA] < c.level[MOST]
        sampled = is_sampled(c, samples, 1)
        if not learned and not sampled:
            return False
        new.entry[0] = entry
        write(h, new.entry, 1, len(c.slot), new.x)
        if sampled:  # the model must know newcomers, which are rare among random residents
            record(samples, h.fact, new.x, 0, entry, h.clock[KNOWN], residence_known(h, len(c.slot)))
        if not learned:
            return False
        rank_columns(model, new.x, 1, new.score, c.spare)
        score = new.score[0]
        if varies and word[UNEQUAL]:
            score -= c.value[entry]
        if c.entry[entry, WHERE + word[LEADER]] >= 0:
            score -= penalty(c)
        while True:
            while word[HEAD] < word[TAIL]:
                at = word[HEAD]
                chosen = c.victim[at, 0]
                if c.entry[chosen, SLOT] >= 0 and h.fact[FACTS * chosen + LAST] == c.victim[at, 1]:
                    return score > c.doom[at]
                word[HEAD] += 1
            refill(c, samples, model)

    @lean_subroutine
    def expel(c, shadows, ghost):
        """Take a ghost out of all shadows."""
        if c.history.fact[FACTS * ghost + LAST] > c.history.clock[0] - c.word[PENDING]:
            catch_up(c, shadows)  # its entry is about to be another key's
        c.word[LOST] += held_by_shadows(c, ghost)
        drop(c, shadows, ghost)

    @lean_kernel
    def make_room(c, samples, shadows):
        """Forget a ghost, so that a new key finds an entry; if possible one that no shadow holds."""
        links = c.history.links
        ghost = oldest_ghost(c.history)
        held = held_by_shadows(c, ghost)
        for _ in range(SECOND_CHANCES):
            if not held:
                break
            unlink(links, ghost)
            push_front(links, c.history.free.size, ghost)
            ghost = oldest_ghost(c.history)
            held = held_by_shadows(c, ghost)
        if held or c.history.fact[FACTS * ghost + LAST] > c.history.clock[0] - c.word[PENDING]:
            expel(c, shadows, ghost)
        lose(samples, c.history.fact, ghost)
        prefetch(c.entry, await_forgetting(c.history, ghost))

    @lean_kernel
    def hit(s, slot, e):
        c = s.core
        entry = c.slot[slot]
        note_hit(c.history, entry, e, len(c.slot))
        resolve(s.samples, c.history.fact, entry, c.history.clock[KNOWN])
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
        resolve(s.samples, h.fact, entry, h.clock[KNOWN])
        c.history.fact[FACTS * entry + SIZE] = e.size
        c.word[CURRENT] = entry
        if c.word[UNEQUAL]:  # before, 0.0 is what all are worth
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
        entry = next_victim(s.core, s.samples, s.model)
        slot = s.core.entry[entry, SLOT]
        leave(s.core, entry)
        return slot

    @lean_kernel
    def insert(s, slot, e):
        c = s.core
        entry = c.word[CURRENT]
        note_insertion(c.history, entry, e)
        at = c.history.clock[1] - 1
        c.slot[slot] = entry
        c.resident[at] = entry
        c.reprieved[at] = 0
        c.history.fact[FACTS * entry + PLACE] = at
        c.entry[entry, SLOT] = slot
        c.word[USED] += e.size
        settle(c, entry)

    @lean_kernel
    def remove(s, slot):
        catch_up(s.core, s.shadows)  # of what is in the cache, while it is
        entry = s.core.slot[slot]
        drop(s.core, s.shadows, entry)
        leave(s.core, entry)

    @lean_kernel
    def expect(s, slot, key, soon):
        c = s.core
        if soon:
            entry = np.int64(c.slot[slot]) if slot >= 0 else likely_entry(c.history, key)
            if entry >= 0:
                await_entry(c.history, entry)
                prefetch(c.entry, entry)
            return
        await_visit(c.history.regions, key)
        if slot >= 0:
            prefetch(c.slot, slot)
        else:
            await_key(c.history, key)
            expect_in_shadows(s.shadows, key)

    return Kernels(hit, admit, evict, insert, remove, expect)
