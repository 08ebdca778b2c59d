"""A host in plain Python: a dict from key to slot around ``engine.place``, ``drain`` and ``take``.

It is what an in-process cache is without values and locks, and it checks at each step what no policy may break: a
victim was resident, no slot is handed out twice, and the units in use never exceed the capacity.
"""

from collections.abc import Sequence

import numpy as np

from kvpredict.core.engine import bind, make_host
from kvpredict.core.policy import Policy
from kvpredict.trace import Trace

__all__ = ["DictHost", "host_hits"]


class DictHost:
    """Drive ``policy`` one access at a time; ``batch`` hits are recorded before they are drained."""

    def __init__(
        self, policy: Policy, capacity: int, slots: int | None = None, *, seed: int = 0, batch: int = 1
    ) -> None:
        self.policy = policy
        self.capacity = capacity
        slots = capacity if slots is None else slots
        self.engine = bind(policy)
        self.state = policy.state(capacity, seed, slots)
        self.host = make_host(capacity, slots, len(policy.extra))
        self.slot_of: dict[int, int] = {}
        self.key_of: dict[int, int] = {}
        self.size_of: dict[int, int] = {}
        self.batch = batch
        self.pending: list[tuple[int, float]] = []

    def access(
        self, key: int, size: int = 1, time: float = 0.0, hint: float = 1.0, extra: Sequence[float] = ()
    ) -> bool:
        """Look ``key`` up and admit it when missing; tell whether it was a hit."""
        slot = self.slot_of.get(key)
        if slot is not None:
            self.host.hint[slot] = hint
            self.pending.append((slot, time))
            if len(self.pending) >= self.batch:
                self.drain()
            return True
        self.drain()
        row = np.array([extra], np.float64).reshape(1, len(self.policy.extra))
        slot = int(self.engine.place(self.state, self.host, float(time), np.int64(key), np.int64(size), hint, row))
        victims = self.host.victims[: self.host.counts[3]].tolist()
        assert len(set(victims)) == len(victims), f"{self.policy} evicted a slot twice: {victims}"
        for victim in victims:
            assert victim in self.key_of, f"{self.policy} evicted slot {victim}, which holds nothing"
            self._forget(victim)
        if slot < 0:
            assert not victims, f"{self.policy} evicted {victims} for an object that it did not admit"
            if max(size, 1) <= self.capacity:
                assert self.policy.traits.bypass, f"{self.policy} refused an object without the trait bypass"
            return False
        assert slot not in self.key_of, f"slot {slot} was handed out twice"
        assert max(size, 1) <= self.capacity
        self.slot_of[key], self.key_of[slot], self.size_of[slot] = slot, key, max(size, 1)
        self.check()
        return False

    def delete(self, key: int) -> bool:
        """Take ``key`` out, as its owner would; tell whether it was there."""
        self.drain()
        slot = self.slot_of.get(key)
        if slot is None:
            return False
        self.engine.take(self.state, self.host, slot)
        self._forget(slot)
        self.check()
        return True

    def drain(self) -> None:
        """Apply the recorded hits."""
        if self.pending:
            slots, times = zip(*self.pending, strict=True)
            self.engine.drain(self.state, self.host, np.array(slots, np.int32), np.array(times, np.float64))
            self.pending.clear()

    def resident(self) -> np.ndarray:
        """Return the slots in use, sorted."""
        return np.array(sorted(self.key_of), np.int64)

    def validate(self) -> None:
        """Assert the policy's own invariants."""
        self.policy.validate(self.state, self.resident())

    def check(self) -> None:
        used = sum(self.size_of.values())
        assert used <= self.capacity, f"{used} units in a cache of {self.capacity}"
        assert used == self.host.counts[1]
        assert len(self.key_of) + self.host.counts[2] == self.host.key.size

    def _forget(self, slot: int) -> None:
        del self.slot_of[self.key_of.pop(slot)]
        del self.size_of[slot]


def host_hits(
    policy: Policy, trace: Trace, capacity: int, *, sized: bool, slots: int | None = None, batch: int = 1, seed: int = 0
) -> np.ndarray:
    """Return which requests of ``trace`` hit when a ``DictHost`` serves them, uint8 ``[n]``."""
    host = DictHost(policy, capacity, slots, seed=seed, batch=batch)
    n = len(trace)
    sizes = trace.sizes.tolist() if sized and trace.sizes is not None else [1] * n
    times = [float(i) for i in range(n)] if trace.times is None else trace.times.tolist()
    if policy.traits.oracle:
        hints = trace.next_use.tolist()
    else:
        hints = trace.columns["cost"].astype(np.float64).tolist() if "cost" in trace.columns else [1.0] * n
    extra = [trace.column(name) for name in policy.extra]
    keys = trace.keys.tolist()
    made = [host.access(keys[i], sizes[i], times[i], hints[i], [c[i] for c in extra]) for i in range(n)]
    return np.array(made, np.uint8)
