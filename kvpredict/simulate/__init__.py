"""The simulator: replay a trace through a policy, sweep capacities, draw miss-ratio curves."""

from kvpredict.simulate.result import Result, Series
from kvpredict.simulate.reuse import reuse_distances
from kvpredict.simulate.simulate import simulate
from kvpredict.simulate.sweep import Curve, gap_closed, miss_ratio_curve, sweep

__all__ = [
    "Curve",
    "Result",
    "Series",
    "gap_closed",
    "miss_ratio_curve",
    "reuse_distances",
    "simulate",
    "sweep",
]
