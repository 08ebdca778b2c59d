"""Evaluation of predicted probabilities of reuse, on rows later than all that were trained on."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["FitReport", "calibration", "metrics"]


@dataclass(frozen=True)
class FitReport:
    """What ``fit`` measured and chose.

    Attributes
    ----------
    metrics : dict
        On the validation part, later in time than the training part: ``roc_auc``, ``average_precision``, ``log_loss``,
        ``base_rate`` (share of rows reused), ``base_log_loss`` (of always predicting the training part's share),
        ``rows``.
    calibration : dict of lists
        ``predicted`` and ``observed`` share of reuse and ``count``, by bins of equal numbers of rows.
    importance : dict
        Share of each feature in the model, summing to 1.
    folds : list of dict
        Metrics of each fold of the time-series cross-validation, when asked for.
    settings : dict
        Learner, horizon, rows, capacity and the like.
    curves : dict of dicts
        ``step`` and ``value`` of what a learner logged on its way, by name; empty for most learners.
    """

    metrics: dict[str, float]
    calibration: dict[str, list[float]]
    importance: dict[str, float]
    folds: list[dict[str, float]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, dict[str, list[Any]]] = field(default_factory=dict)


def metrics(y: np.ndarray, probability: np.ndarray, base_rate: float) -> dict[str, float]:
    """Return ROC-AUC, average precision and log loss; nan for what needs both labels when there is only one.

    Parameters
    ----------
    y : uint8 array [m]
    probability : float64 array [m]
    base_rate : float
        Share of reuse in the training part, the forecast of the baseline ``base_log_loss``.
    """
    from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

    both = 0 < y.mean() < 1 if len(y) else False
    probability = np.clip(probability, 1e-7, 1 - 1e-7)
    base = np.full(len(y), np.clip(base_rate, 1e-7, 1 - 1e-7))
    nan = float("nan")
    return {
        "roc_auc": float(roc_auc_score(y, probability)) if both else nan,
        "average_precision": float(average_precision_score(y, probability)) if both else nan,
        "log_loss": float(log_loss(y, probability, labels=[0, 1])) if len(y) else nan,
        "base_log_loss": float(log_loss(y, base, labels=[0, 1])) if len(y) else nan,
        "base_rate": float(y.mean()) if len(y) else nan,
        "rows": float(len(y)),
    }


def calibration(y: np.ndarray, probability: np.ndarray, bins: int = 15) -> dict[str, list[float]]:
    """Return mean predicted and observed share of reuse in at most ``bins`` bins of equal numbers of rows."""
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return {
        "predicted": [float(probability[part].mean()) for part in parts],
        "observed": [float(y[part].mean()) for part in parts],
        "count": [float(len(part)) for part in parts],
    }
