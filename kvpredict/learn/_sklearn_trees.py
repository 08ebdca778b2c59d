"""Export of scikit-learn trees to the trees of ``kvpredict.scorers``."""

from typing import Any

from kvpredict.scorers.trees import Node

__all__ = ["probability_tree"]


def probability_tree(tree: Any, weight: float = 1.0, at: int = 0) -> Node:
    """Return the nodes of a fitted binary ``sklearn.tree`` structure; leaves hold P(label 1) times ``weight``."""
    if tree.children_left[at] < 0:
        counts = tree.value[at][0]
        return Node(value=weight * float(counts[1] / counts.sum()))
    return Node(
        feature=int(tree.feature[at]),
        threshold=float(tree.threshold[at]),
        left=probability_tree(tree, weight, int(tree.children_left[at])),
        right=probability_tree(tree, weight, int(tree.children_right[at])),
    )
