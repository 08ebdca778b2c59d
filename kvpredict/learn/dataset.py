"""Dataset: the rows that a learned policy logged while it served a trace, labelled with what came after.

The rows are the policy's own (``Learned(log_rows=...)``), so training sees the decisions that serving will meet, and
there is no second feature code. A row is labelled 1 when its object is used again within ``horizon`` residence times.
Rows whose window reaches past the end of the part are dropped: kept, they would teach that the newest objects are
never reused.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kvpredict.core.engine import bind, make_host
from kvpredict.core.errors import KvpredictError
from kvpredict.core.policy import Policy
from kvpredict.policies.learned import Learned
from kvpredict.simulate.simulate import replay_arguments
from kvpredict.trace.dense import next_uses
from kvpredict.trace.trace import Trace

__all__ = ["Dataset", "record_decisions", "serve"]


@dataclass(frozen=True)
class Dataset:
    """Decisions in time order.

    Attributes
    ----------
    x : float32 array [m, width]
    now : int64 array [m]
        Requests seen at the decision.
    distance : float64 array [m]
        Requests until the object's next use, ``inf`` for none.
    unit : float64 array [m]
        Residence time at the decision, in requests.
    incoming : uint8 array [m]
        1 for an object about to be admitted, 0 for a candidate for eviction.
    """

    x: np.ndarray
    now: np.ndarray
    distance: np.ndarray
    unit: np.ndarray
    incoming: np.ndarray

    def __len__(self) -> int:
        return len(self.now)

    def labelled(self, horizon: float, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and labels of the decisions in ``[start, stop)`` whose window ends before ``stop``."""
        window = horizon * self.unit
        part = (self.now >= start) & (self.now + window < stop)
        return self.x[part], (self.distance[part] <= window[part]).astype(np.uint8)


def serve(trace: Trace, policy: Policy, capacity: int, *, unit: str = "objects", seed: int = 0) -> Any:
    """Serve ``trace`` with ``policy`` and return its state at the end."""
    _, slots, columns = replay_arguments(trace, policy, capacity, unit)
    state = policy.state(capacity, seed, slots)
    host, slot_of = make_host(capacity, slots, len(policy.extra)), np.full(trace.unique, -1, np.int32)
    bind(policy).replay(state, host, trace.ids, trace.keys, *columns, slot_of, np.empty(len(trace), np.uint8))
    return state


def record_decisions(trace: Trace, policy: Learned, capacity: int, *, unit: str = "objects", seed: int = 0) -> Dataset:
    """Serve ``trace`` with ``policy``, whose ``log_rows`` says how many decisions to keep, and return them."""
    if policy.log_rows < 1:
        raise KvpredictError("the policy logs nothing: give it log_rows")
    state = serve(trace, policy, capacity, unit=unit, seed=seed)
    log = state.log
    kept = min(int(log.word[1]), policy.log_rows)
    order = np.argsort(log.now[:kept], kind="stable")
    now, last = log.now[order], log.last[order]
    ids = trace.ids
    if unit == "bytes" and trace.sizes is not None:
        ids = ids[np.maximum(trace.sizes, 1) <= capacity]  # the policy never hears of larger objects
    # The policy counts requests from 1. Nothing used the object between its last access and the decision.
    distance = next_uses(ids, trace.unique)[last - 1] - (now - 1)
    return Dataset(log.row[order], now, distance, log.unit[order], log.incoming[order])
