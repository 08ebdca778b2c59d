"""One decision tree by scikit-learn (CART, Breiman et al. 1984): the model that can be read."""

from dataclasses import dataclass

import numpy as np

from kvpredict.learn._sklearn_trees import probability_tree
from kvpredict.learn.learner import Fitted, Learner, missing_extra, require, shares
from kvpredict.scorers.trees import MAX_DEPTH, make_trees

__all__ = ["DecisionTree"]


@dataclass(frozen=True)
class DecisionTree(Learner):
    """A single tree.

    Parameters
    ----------
    max_depth : int, default 8
        Splits from root to leaf, at most.
    min_leaf : int, default 100
        Rows in a leaf, at least.
    """

    name = "tree"

    max_depth: int = 8
    min_leaf: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.max_depth <= MAX_DEPTH, self, f"max_depth must be 1 to {MAX_DEPTH}, got {self.max_depth}")
        require(self.min_leaf >= 1, self, f"min_leaf must be at least 1, got {self.min_leaf}")

    def fit(self, x: np.ndarray, y: np.ndarray, seed: int = 0) -> Fitted:
        try:
            from sklearn.tree import DecisionTreeClassifier
        except ImportError as error:
            raise missing_extra("scikit-learn", error) from error
        model = DecisionTreeClassifier(max_depth=self.max_depth, min_samples_leaf=self.min_leaf, random_state=seed)
        model.fit(x, y)
        scorer = make_trees([probability_tree(model.tree_)])
        return Fitted(
            scorer, "identity", shares(model.feature_importances_), lambda rows: model.predict_proba(rows)[:, 1]
        )
