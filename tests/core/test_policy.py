"""What the base class and the registry of policies refuse, and with which words."""

from typing import NamedTuple

import pytest

from kvpredict.core.errors import KvpredictError, UnknownName, unknown_name
from kvpredict.core.jit import interpreted, lean_kernel
from kvpredict.core.policy import Policy
from kvpredict.policies import policy, policy_class, policy_names


def test_a_misspelt_policy_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"unknown policy 'lruu'\. Did you mean 'lru'\? Known: arc, "):
        policy("lruu")


def test_a_misspelt_parameter_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"unknown parameter of policy 'clock' 'bit'\. Did you mean 'bits'\?"):
        policy("clock", bit=2)


def test_nothing_near_means_no_suggestion() -> None:
    assert "Did you mean" not in str(unknown_name("policy", "zzzzzz", ["lru", "arc"]))
    assert "Known: arc, lru" in str(unknown_name("policy", "zzzzzz", ["lru", "arc"]))


@pytest.mark.parametrize(("capacity", "slots"), [(0, None), (-1, None), (5, 0)])
def test_a_cache_holds_something(capacity: int, slots: int | None) -> None:
    with pytest.raises(KvpredictError, match="at least 1"):
        policy("lru").state(capacity, slots=slots)


def test_too_many_slots_are_refused_before_memory_is_asked_for() -> None:
    with pytest.raises(KvpredictError, match="at most"):
        policy("lru").state(2**40)


def test_params_make_the_same_policy_again() -> None:
    for name in ("clock", "slru", "twoq", "lruk", "lru"):
        made = policy(name)
        assert policy(name, **made.params()) == made
    assert policy("clock", bits=3).params() == {"bits": 3}


def _hit(s, slot, e):
    pass


def _evict(s, e):
    return 0


def _remove(s, slot):
    pass


def _make_state(self: Policy, capacity: int, slots: int, seed: int) -> NamedTuple:
    raise AssertionError("not asked for")


MEMBERS = {
    "name": "mine",
    "make_state": _make_state,
    "hit": staticmethod(lean_kernel(_hit)),
    "evict": staticmethod(lean_kernel(_evict)),
    "insert": staticmethod(lean_kernel(_hit)),
    "remove": staticmethod(lean_kernel(_remove)),
}


def test_a_class_that_has_all_members_makes_policies() -> None:
    made = type("Mine", (Policy,), MEMBERS)()
    assert made == type(made)()
    with pytest.raises(NotImplementedError):
        made.validate(None, None)


@pytest.mark.parametrize("member", MEMBERS)
def test_a_class_without_a_member_is_told_which(member: str) -> None:
    cls = type("Mine", (Policy,), {key: value for key, value in MEMBERS.items() if key != member})
    with pytest.raises(KvpredictError, match=f"the policy class Mine lacks {member}: see"):
        cls()


def test_a_kernel_that_is_no_static_method_is_named() -> None:
    with pytest.raises(KvpredictError, match=r"Mine needs @staticmethod and @lean_kernel, in this order, above evict"):
        type("Mine", (Policy,), MEMBERS | {"evict": lean_kernel(_evict)})()


@pytest.mark.skipif(interpreted(), reason="nothing is compiled with Numba off")
def test_a_kernel_that_is_not_compiled_is_named() -> None:
    with pytest.raises(KvpredictError, match=r"Mine needs @staticmethod and @lean_kernel, in this order, above hit"):
        type("Mine", (Policy,), MEMBERS | {"hit": staticmethod(_hit)})()


def test_every_name_leads_to_a_class_of_that_name() -> None:
    assert {"fifo", "lru", "arc", "sieve"} <= set(policy_names())
    assert all(policy_class(name).name == name for name in policy_names())
