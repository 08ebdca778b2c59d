"""The simulator: replay a trace through a policy, sweep capacities, draw miss-ratio curves."""

from kvpredict.simulate.result import Result, Series
from kvpredict.simulate.simulate import as_policy, simulate

__all__ = ["Result", "Series", "as_policy", "simulate"]
