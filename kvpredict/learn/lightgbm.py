"""Gradient-boosted trees by LightGBM, the default learner (Ke et al., NeurIPS 2017).

Small trees of bounded depth: they cost little to walk and, on traces that shift, hold better than large ones.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kvpredict.learn.learner import Fitted, Learner, missing_extra, require, shares
from kvpredict.scorers.trees import MAX_DEPTH, Node, make_trees

__all__ = ["LightGBM"]


@dataclass(frozen=True)
class LightGBM(Learner):
    """Boosted trees.

    Parameters
    ----------
    rounds : int, default 24
        Trees.
    leaves : int, default 8
        Leaves a tree, at most.
    max_depth : int, default 3
        Splits from root to leaf, at most.
    learning_rate : float, default 0.15
    min_leaf : int, default 50
        Rows in a leaf, at least.
    """

    name = "lightgbm"

    rounds: int = 24
    leaves: int = 8
    max_depth: int = 3
    learning_rate: float = 0.15
    min_leaf: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rounds >= 1, self, f"rounds must be at least 1, got {self.rounds}")
        require(self.leaves >= 2, self, f"leaves must be at least 2, got {self.leaves}")
        require(1 <= self.max_depth <= MAX_DEPTH, self, f"max_depth must be 1 to {MAX_DEPTH}, got {self.max_depth}")
        require(self.learning_rate > 0, self, f"learning_rate must be above 0, got {self.learning_rate}")
        require(self.min_leaf >= 1, self, f"min_leaf must be at least 1, got {self.min_leaf}")

    def fit(self, x: np.ndarray, y: np.ndarray, seed: int = 0) -> Fitted:
        try:
            import lightgbm
        except ImportError as error:
            raise missing_extra("LightGBM", error) from error
        booster = lightgbm.train(
            {
                "objective": "binary",
                "num_leaves": self.leaves,
                "max_depth": self.max_depth,
                "learning_rate": self.learning_rate,
                "min_data_in_leaf": self.min_leaf,
                "max_bin": 127,
                "seed": seed,
                "deterministic": True,
                "force_row_wise": True,
                "num_threads": 2,
                "verbosity": -1,
            },
            lightgbm.Dataset(x, y),
            num_boost_round=self.rounds,
        )
        roots = [_node(tree["tree_structure"]) for tree in booster.dump_model()["tree_info"]]
        importance = shares(booster.feature_importance("gain"))
        return Fitted(make_trees(roots), "logit", importance, lambda rows: np.asarray(booster.predict(rows)))


def _node(tree: dict[str, Any]) -> Node:
    if "split_feature" not in tree:
        return Node(value=tree["leaf_value"])
    return Node(
        feature=tree["split_feature"],
        threshold=tree["threshold"],
        left=_node(tree["left_child"]),
        right=_node(tree["right_child"]),
    )
