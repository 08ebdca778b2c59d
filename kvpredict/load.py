"""Load a saved policy from a folder or from an MLflow store."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from kvpredict.artifact import as_path, load_artifact
from kvpredict.core.errors import ArtifactError, KvpredictError, UnknownName, unknown_name
from kvpredict.core.policy import Policy
from kvpredict.policies import policy, policy_names
from kvpredict.policies.guarded import Guarded
from kvpredict.policies.learned import Learned

__all__ = ["as_policy", "load_policy", "policy_of_kind"]


P = TypeVar("P")


def as_policy(given: Any) -> Policy:
    """Return a policy of a plain cache, given as such, by its name, or by what ``load_policy`` takes."""
    return policy_of_kind(given, Policy, "policy", policy_names(), policy)


def policy_of_kind(given: Any, kind: type[P], what: str, names: list[str], make: Callable[[str], P]) -> P:
    """Return a policy of a kind, given as such, by one of ``names``, or by what ``load_policy`` takes.

    ``make`` makes it by its name; ``what`` is the kind in words. Raises ``UnknownName`` for what is neither a name nor
    there.
    """
    if isinstance(given, str) and given in names:
        return make(given)
    if isinstance(given, str) and ":/" not in given and not os.path.exists(given):
        raise UnknownName(f"{unknown_name(what, given, names)}; nor is there a folder of that name")
    policy = load_policy(given) if isinstance(given, str | Path) else given
    if not isinstance(policy, kind):
        raise KvpredictError(f"policy must be a {what}'s name, folder or object, got {type(policy).__name__}")
    return policy


def load_policy(source: str | Path) -> Any:
    """Return the policy saved in a folder, or registered in MLflow; a prefix or decode policy where one was saved.

    Parameters
    ----------
    source : str or Path
        A folder that ``policy.save`` wrote, or an MLflow URI such as ``models:/orders@champion`` or
        ``runs:/<run id>/policy`` (needs ``kvpredict[train]``).

    Raises
    ------
    ArtifactError
        When there is no policy, or a damaged, newer or mismatched one.
    """
    if isinstance(source, str) and source.split(":", 1)[0] in ("models", "runs", "mlflow-artifacts"):
        from kvpredict.tracking import download_policy

        source = download_policy(source)
    folder = as_path(source)
    if (folder / "prefix_policy.json").is_file():
        from kvpredict.llm.prefix.policies.learned import Learned as LearnedPrefix

        return LearnedPrefix.load(source)
    if (folder / "decode_policy.json").is_file():
        from kvpredict.llm.decode.policies.learned import Learned as LearnedDecode

        return LearnedDecode.load(source)
    if not (folder / "policy.json").is_file():
        files = "policy.json, prefix_policy.json or decode_policy.json"
        raise ArtifactError(f"{folder} is not a saved policy: it holds no {files}")
    artifact, settings = load_artifact(source)
    name = settings.pop("name", None)
    if name not in (Learned.name, Guarded.name):
        raise ArtifactError(f"{source} holds a policy of kind {name!r}, which this kvpredict does not know: upgrade it")
    try:
        return Learned(artifact, **settings) if name == Learned.name else Guarded(prior=artifact, **settings)
    except (TypeError, ValueError, KvpredictError) as error:
        raise ArtifactError(f"{source} has settings that this kvpredict does not take: {error}") from error
