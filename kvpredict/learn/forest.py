"""A random forest by scikit-learn (Breiman 2001): trees on resampled rows, averaged."""

from dataclasses import dataclass

import numpy as np

from kvpredict.learn._sklearn_trees import probability_tree
from kvpredict.learn.learner import Fitted, Learner, missing_extra, require, shares
from kvpredict.scorers.trees import MAX_DEPTH, make_trees

__all__ = ["RandomForest"]


@dataclass(frozen=True)
class RandomForest(Learner):
    """An average of trees.

    Parameters
    ----------
    trees : int, default 32
    max_depth : int, default 8
        Splits from root to leaf, at most.
    min_leaf : int, default 50
        Rows in a leaf, at least.
    """

    name = "forest"

    trees: int = 32
    max_depth: int = 8
    min_leaf: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.trees >= 1, self, f"trees must be at least 1, got {self.trees}")
        require(1 <= self.max_depth <= MAX_DEPTH, self, f"max_depth must be 1 to {MAX_DEPTH}, got {self.max_depth}")
        require(self.min_leaf >= 1, self, f"min_leaf must be at least 1, got {self.min_leaf}")

    def fit(self, x: np.ndarray, y: np.ndarray, seed: int = 0) -> Fitted:
        try:
            from sklearn.ensemble import RandomForestClassifier
        except ImportError as error:
            raise missing_extra("scikit-learn", error) from error
        model = RandomForestClassifier(
            n_estimators=self.trees,
            max_depth=self.max_depth,
            min_samples_leaf=self.min_leaf,
            random_state=seed,
            n_jobs=1,
        )
        model.fit(x, y)
        scorer = make_trees([probability_tree(tree.tree_, 1.0 / self.trees) for tree in model.estimators_])
        return Fitted(
            scorer, "identity", shares(model.feature_importances_), lambda rows: model.predict_proba(rows)[:, 1]
        )
