"""Which policy a cache runs: a name, a policy, or where a saved one lies."""

import os
from typing import Any

from kvpredict.core.errors import KvpredictError
from kvpredict.core.policy import Policy
from kvpredict.policies import policy as make_policy
from kvpredict.policies import policy_names

__all__ = ["choose_policy"]


def choose_policy(policy: Any) -> Policy:
    """Return the policy that a name, a policy or a path stands for, if a live cache can run it.

    Text that is no policy's name is a path if it exists, holds a path separator or names an MLflow model.
    """
    if isinstance(policy, os.PathLike):
        policy = _load(policy)
    elif isinstance(policy, str):
        path = policy not in policy_names() and (
            os.path.exists(policy) or "/" in policy or os.sep in policy or policy.startswith("models:")
        )
        policy = _load(policy) if path else make_policy(policy)
    if not isinstance(policy, Policy):
        raise KvpredictError(
            f"policy must be a name, a policy or the path of a saved one, got {type(policy).__name__}; "
            "kvpredict.policy makes one"
        )
    if policy.traits.oracle:
        raise KvpredictError(
            f"policy {policy.name!r} needs to know the future, which only the simulator does; "
            "a cache takes any policy that is no oracle, such as 's3fifo'"
        )
    return policy


def _load(path: Any) -> Policy:
    import kvpredict  # the top of the package imports this layer, not the other way round

    loaded: Policy = kvpredict.load_policy(path)
    return loaded
