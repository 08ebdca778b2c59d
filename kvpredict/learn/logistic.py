"""Logistic regression by scikit-learn, over the logarithms of the features: the smallest model, and a baseline."""

from dataclasses import dataclass

import numpy as np

from kvpredict.learn.learner import Fitted, Learner, missing_extra, require, shares
from kvpredict.scorers.linear import Linear, compress_rows

__all__ = ["LogisticRegression"]


@dataclass(frozen=True)
class LogisticRegression(Learner):
    """A linear model of the log-odds of reuse.

    Parameters
    ----------
    c : float, default 1.0
        Inverse strength of the L2 penalty on the weights of standardised features.
    iterations : int, default 1000
        Steps of the solver, at most.
    """

    name = "logistic"

    c: float = 1.0
    iterations: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.c > 0, self, f"c must be above 0, got {self.c}")
        require(self.iterations >= 1, self, f"iterations must be at least 1, got {self.iterations}")

    def fit(self, x: np.ndarray, y: np.ndarray, seed: int = 0) -> Fitted:
        try:
            from sklearn.linear_model import LogisticRegression as Model
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import StandardScaler
        except ImportError as error:
            raise missing_extra("scikit-learn", error) from error
        model = make_pipeline(StandardScaler(), Model(C=self.c, max_iter=self.iterations))
        model.fit(compress_rows(x), y)
        scaler, linear = model[0], model[1]
        weight = linear.coef_[0] / scaler.scale_
        bias = linear.intercept_ - (weight * scaler.mean_).sum()
        return Fitted(
            Linear(np.ascontiguousarray(weight, np.float64), np.asarray(bias, np.float64)),
            "logit",
            shares(np.abs(linear.coef_[0])),
            lambda rows: model.predict_proba(compress_rows(np.asarray(rows, np.float32)))[:, 1],
        )
