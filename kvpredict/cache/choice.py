"""Which policy a cache runs: a name, a policy, or where a saved one lies."""

from typing import Any

from kvpredict.core.errors import KvpredictError
from kvpredict.core.policy import Policy
from kvpredict.load import as_policy

__all__ = ["choose_policy"]


def choose_policy(given: Any) -> Policy:
    """Return the policy that ``as_policy`` finds, if a live cache can run it."""
    policy = as_policy(given)
    if policy.traits.oracle:
        raise KvpredictError(
            f"policy {policy.name!r} needs to know the future, which only the simulator does; "
            "a cache takes any policy that is no oracle, such as 's3fifo'"
        )
    return policy
