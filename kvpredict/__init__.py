"""kvpredict: learn from a record of accesses what a cache should keep, and serve it as a compiled policy.

>>> import kvpredict as kvp
>>> trace = kvp.Trace.from_keys([1, 2, 1, 3, 1, 2])
>>> kvp.simulate(trace, "lru", capacity=2).hits
2
"""

import importlib
from typing import TYPE_CHECKING, Any

# The package of that name is imported first, then the function takes the name; it needs no more than NumPy and Numba.
from kvpredict.simulate import simulate
from kvpredict.version import __version__ as __version__

if TYPE_CHECKING:
    from kvpredict.cache import Cache, cached
    from kvpredict.core.errors import ArtifactError, KvpredictError, MissingExtra, TraceError, UnknownName
    from kvpredict.learn import learner, learner_names
    from kvpredict.llm.decode.cache import DecodeCache
    from kvpredict.llm.prefix_cache import PrefixCache
    from kvpredict.llm.request_files import read_requests
    from kvpredict.llm.requests import RequestTrace
    from kvpredict.load import load_policy
    from kvpredict.policies import policy, policy_names
    from kvpredict.simulate import Result, miss_ratio_curve, sweep
    from kvpredict.trace import Trace, read_trace
    from kvpredict.trace.recorder import Recorder
    from kvpredict.training import fit

# Where each public name lives; modules are imported when a name is first used.
_PUBLIC = {
    "ArtifactError": "kvpredict.core.errors",
    "Cache": "kvpredict.cache",
    "DecodeCache": "kvpredict.llm.decode.cache",
    "KvpredictError": "kvpredict.core.errors",
    "MissingExtra": "kvpredict.core.errors",
    "PrefixCache": "kvpredict.llm.prefix_cache",
    "Recorder": "kvpredict.trace.recorder",
    "RequestTrace": "kvpredict.llm.requests",
    "Result": "kvpredict.simulate",
    "Trace": "kvpredict.trace",
    "TraceError": "kvpredict.core.errors",
    "UnknownName": "kvpredict.core.errors",
    "cached": "kvpredict.cache",
    "fit": "kvpredict.training",
    "learner": "kvpredict.learn",
    "learner_names": "kvpredict.learn",
    "load_policy": "kvpredict.load",
    "miss_ratio_curve": "kvpredict.simulate",
    "policy": "kvpredict.policies",
    "policy_names": "kvpredict.policies",
    "read_requests": "kvpredict.llm.request_files",
    "read_trace": "kvpredict.trace",
    "sweep": "kvpredict.simulate",
}

__all__ = [
    "ArtifactError",
    "Cache",
    "DecodeCache",
    "KvpredictError",
    "MissingExtra",
    "PrefixCache",
    "Recorder",
    "RequestTrace",
    "Result",
    "Trace",
    "TraceError",
    "UnknownName",
    "cached",
    "fit",
    "learner",
    "learner_names",
    "load_policy",
    "miss_ratio_curve",
    "policy",
    "policy_names",
    "read_requests",
    "read_trace",
    "simulate",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kvpredict' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
