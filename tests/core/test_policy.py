"""What the base class and the registry of policies refuse, and with which words."""

import pytest

from kvpredict.core.errors import KvpredictError, UnknownName, unknown_name
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


def test_the_base_class_asks_for_its_members() -> None:
    with pytest.raises(NotImplementedError):
        Policy().state(1)
    with pytest.raises(NotImplementedError):
        Policy().validate(None, None)


def test_every_name_leads_to_a_class_of_that_name() -> None:
    assert {"fifo", "lru", "arc", "sieve"} <= set(policy_names())
    assert all(policy_class(name).name == name for name in policy_names())
