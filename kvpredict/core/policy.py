"""The policy contract: a policy ranks slots, and never sees keys, values or who is asking.

A policy is a frozen dataclass of hyper-parameters. ``state`` makes its arrays; kernels, plain functions compiled
by Numba, act on them. A host (simulator, in-process cache, KV cache) maps keys to slots and calls:

- on a hit: ``hit(s, slot, e)``;
- on a miss of an object that can fit: ``admit(s, e)``; if true, ``evict(s, e)`` until it fits, then
  ``insert(s, slot, e)``. ``evict`` chooses a slot, unlinks it and returns it; it is only called with at least one
  slot in use. ``admit`` is also where a policy learns of the miss (adapts to a ghost hit, say);
- when the owner deletes or expires an entry: ``remove(s, slot)``;
- where it knows what comes, ``expect(s, slot, key, soon)`` before a request to ``key``, which so far is in ``slot``, or
  nowhere, -1: once some requests ahead, and again ``soon`` before, when what was asked for the first time has arrived.
  That changes nothing but what the processor has at hand (``core.prefetch``).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from inspect import getattr_static
from typing import Any, ClassVar, NamedTuple

import numpy as np

from kvpredict.core.errors import KvpredictError
from kvpredict.core.fields import check_fields
from kvpredict.core.jit import interpreted, kernel, lean_kernel

__all__ = ["Event", "Kernels", "Policy", "Trainer", "Traits", "always_admit", "expect_nothing", "require"]


class Event(NamedTuple):
    """One access, as kernels see it.

    ``time``: float64, the host's clock in seconds (the request's index where a trace has no times).
    ``key``: int64, the bits of a 64-bit hash (or the number itself) that identifies the object.
    ``size``: int64, units of capacity the object takes: 1, or bytes.
    ``hint``: float64, whatever the host knows: the index of the next use for an oracle, else the cost of a miss
    (1.0 where nothing is known).
    ``extra``: tuple of float64, the extra columns that the policy's feature schema names, usually empty.
    """

    time: float
    key: int
    size: int
    hint: float
    extra: tuple[float, ...]


class Traits(NamedTuple):
    """Declared departures from the common contract.

    ``oracle``: needs the future; hosts pass the next use as the hint, and only the simulator can.
    ``sized``: takes sizes into account when it ranks. ``stochastic``: draws random numbers from its seed.
    ``bypass``: ``admit`` may refuse.
    """

    oracle: bool = False
    sized: bool = False
    stochastic: bool = False
    bypass: bool = False


@lean_kernel
def expect_nothing(s, slot, key, soon):
    """Leave it to the processor what is looked up next."""


class Kernels(NamedTuple):
    """The compiled functions of a policy."""

    hit: Any
    admit: Any
    evict: Any
    insert: Any
    remove: Any
    expect: Any = expect_nothing


IDLE, WANTED, BEGUN = 0, 1, 2  # what Trainer.due says of training


class Trainer(NamedTuple):
    """How a policy that learns while it serves is trained outside its host's calls.

    ``due``: int64 ``[1]`` of the state; the policy sets it to ``WANTED``, the host to ``BEGUN``, ``adopt`` to ``IDLE``.
    ``gather(step) -> bool``: copy a part of what there is to learn from, step 0, 1, … until it returns false; each step
    is short, and no kernel of the policy may run meanwhile.
    ``fit()``: learn from the copy; kernels may run.
    ``adopt()``: let the policy decide by what was learned; short, and no kernel may run meanwhile.
    """

    due: np.ndarray
    gather: Callable[[int], bool]
    fit: Callable[[], None]
    adopt: Callable[[], None]


@kernel
def always_admit(s, e):
    """Admit everything."""
    return True


def _check_class(cls: type["Policy"]) -> None:
    """Raise ``KvpredictError`` naming what a class derived from ``Policy`` lacks, or has in another form."""
    missing = [] if hasattr(cls, "name") else ["name"]
    if cls.make_state is Policy.make_state:
        missing.append("make_state")
    if cls.kernels is Policy.kernels:
        missing += [kernel for kernel in Kernels._fields if not hasattr(cls, kernel)]
    if missing:
        raise KvpredictError(f"the policy class {cls.__name__} lacks {', '.join(missing)}: see core.policy.Policy")
    for member in Kernels._fields if cls.kernels is Policy.kernels else ():
        static = getattr_static(cls, member)
        function = static.__func__ if isinstance(static, staticmethod) else None
        if not (callable(function) if interpreted() else hasattr(function, "py_func")):
            raise KvpredictError(
                f"the policy class {cls.__name__} needs @staticmethod and @lean_kernel, in this order, above {member}"
            )


def require(condition: bool, policy: "Policy", message: str) -> None:
    """Raise ``KvpredictError`` naming the policy unless a hyper-parameter's ``condition`` holds."""
    if not condition:
        raise KvpredictError(f"policy {policy.name!r}: {message}")


@dataclass(frozen=True)
class Policy:
    """Base of all policies; a subclass adds its hyper-parameters as fields and the members below.

    Class members: ``name``; ``traits``; kernels ``hit``, ``admit`` (default: everything), ``evict``, ``insert``,
    ``remove``, ``expect`` (default: nothing) as static methods (or, for a policy composed at run time, an override of
    ``kernels``).
    """

    name: ClassVar[str]
    traits: ClassVar[Traits] = Traits()
    extra: ClassVar[tuple[str, ...]] = ()  # names of the trace's columns expected in Event.extra

    hit: ClassVar[Any]
    admit: ClassVar[Any] = staticmethod(always_admit)
    evict: ClassVar[Any]
    insert: ClassVar[Any]
    remove: ClassVar[Any]
    expect: ClassVar[Any] = staticmethod(expect_nothing)

    def __post_init__(self) -> None:
        """Check the class, and that parameters are of the types annotated; a subclass that checks more calls it."""
        _check_class(type(self))
        check_fields(self, f"policy {self.name!r}")

    def kernels(self) -> Kernels:
        """Return the compiled functions; the engine compiles one replay loop for each distinct tuple."""
        return Kernels(self.hit, self.admit, self.evict, self.insert, self.remove, self.expect)

    def state(self, capacity: int, seed: int = 0, slots: int | None = None) -> Any:
        """Make the state of an empty cache.

        Parameters
        ----------
        capacity : int
            Units the cache holds: objects, or bytes; at least 1.
        seed : int, default 0
            Seed of the policy's own random numbers.
        slots : int, optional
            The most objects that can be held at once; slots are numbered from 0. Default: ``capacity``.

        Returns
        -------
        NamedTuple of arrays, its memory in proportion to ``slots``, whatever the number of keys seen.
        """
        slots = capacity if slots is None else slots
        if capacity < 1 or slots < 1:
            raise KvpredictError(f"capacity and slots must be at least 1, got {capacity} and {slots}")
        if slots >= 2**30:
            raise KvpredictError(f"at most 2**30 - 1 slots are supported, got {slots}")
        return self.make_state(int(capacity), int(slots), int(seed))

    def make_state(self, capacity: int, slots: int, seed: int) -> Any:
        """Build the NamedTuple of arrays; the arguments have been checked."""
        raise NotImplementedError

    def validate(self, state: Any, resident: np.ndarray) -> None:
        """Assert the structure's own invariants, given the slots in use (int array, sorted). For tests."""
        raise NotImplementedError

    def stand_in(self) -> "Policy | None":
        """Return what a live cache may run while this policy is compiled for the first time on a machine, or None.

        For a policy that takes long to compile: one that does not, and that this one would follow at first.
        """
        return None

    def trainer(self, state: Any, aside: bool) -> Trainer | None:
        """Return how to train ``state`` from outside; None if it never learns, or trains itself (not ``aside``)."""
        return None

    def inherit(self, state: Any, old: Any) -> None:
        """Let a new ``state`` begin with what ``old``, a state of an equal policy, has learned."""

    def account(self, state: Any) -> dict[str, Any]:
        """Return what the policy says of its own work so far.

        ``counts``: numbers by name, or the name of the part in charge now. ``series``: lists of one length by name,
        ``request`` among them.
        """
        return {}

    def params(self) -> dict[str, Any]:
        """Return the hyper-parameters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
