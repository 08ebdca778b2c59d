"""A learned policy with a small model written by hand, so that no training library is needed."""

from kvpredict.artifact import Artifact
from kvpredict.features.schema import BASE_FEATURES, Schema
from kvpredict.policies.learned import Learned
from kvpredict.scorers.trees import Node, Trees, make_trees

__all__ = ["hand_made_trees", "make"]


def hand_made_trees() -> Trees:
    """Two trees: what was used lately, and what is used often, is worth keeping."""
    recency, rate = BASE_FEATURES.index("recency"), BASE_FEATURES.index("rate_1")
    lately = Node(
        feature=recency,
        threshold=0.5,
        left=Node(feature=rate, threshold=1.5, left=Node(0.3), right=Node(1.1)),
        right=Node(feature=recency, threshold=1.5, left=Node(-0.2), right=Node(-0.9)),
    )
    often = Node(feature=rate, threshold=2.5, left=Node(-0.1), right=Node(0.7))
    return make_trees([lately, often])


def make(**params: object) -> Learned:
    """Return the policy; ``params`` as ``Learned`` takes them."""
    return Learned(Artifact(hand_made_trees(), Schema()), **params)  # type: ignore[arg-type]
