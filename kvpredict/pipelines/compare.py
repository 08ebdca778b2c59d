"""Compare: policies side by side on one trace at one capacity, and how they fare at others.

Compiling a policy takes longer than replaying a trace of a million requests, and threads cannot compile side by side.
So many policies are measured in worker processes, one for each CPU but the one of this process, which trains meanwhile
and takes its share; the workers live on and draw the curves with the machine code that they have.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from kvpredict.core.policy import Policy
from kvpredict.pipelines.progress import track
from kvpredict.simulate import Result, Series, gap_closed, simulate
from kvpredict.simulate.result import LOSSES
from kvpredict.trace import Trace

__all__ = ["FIT", "LEARNING", "MANY", "Measured", "Replay", "best_heuristics", "best_oracle", "collect", "compare"]

MANY = 6  # policies from which on workers pay
FIT = 10  # policies that could be measured in the time of training one and drawing its curve
LONG = 3_000_000  # requests from which on replaying outweighs compiling, and copies for workers weigh
LEARNING = ("learned", "guarded")  # policies that are no heuristics
IDLE = 600  # seconds that a worker waits for more


@dataclass(frozen=True)
class Measured:
    """Counts of one policy, and its windows; the array of hits is not kept."""

    result: Result
    series: Series
    oracle: bool


@dataclass
class Replay:
    """How policies are measured: the same for all of them."""

    trace: Trace
    unit: str
    warmup: int
    seed: int
    windows: int
    workers: bool = False  # whether there are enough policies for workers to pay
    compiled: set[str] = field(default_factory=set)  # what the workers have compiled

    def measure(self, policy: Policy, capacity: int) -> Measured:
        """Replay the trace through one policy."""
        result = simulate(self.trace, policy, capacity, unit=self.unit, warmup=self.warmup, seed=self.seed)
        return Measured(result.summary(), result.series(self.windows), policy.traits.oracle)

    def curve(self, policy: Policy, fractions: Sequence[float]) -> dict[str, list[float]]:
        """Return the miss ratios of one policy at capacities given as fractions of the trace's keys or bytes."""
        at = {self.trace.capacity(fraction, self.unit): fraction for fraction in sorted(fractions)}
        results = [self.measure(policy, capacity).result for capacity in at]
        return {
            "fraction": list(at.values()),
            "capacity": [result.capacity for result in results],
            "object_miss_ratio": [result.object_miss_ratio for result in results],
            "byte_miss_ratio": [result.byte_miss_ratio for result in results],
        }

    def begin(
        self, method: Callable[..., Any], policies: Mapping[str, Policy], argument: Any, meanwhile: int = 0
    ) -> Iterator[tuple[str, Any]]:
        """Begin to call ``method(policy, argument)`` for each policy, and return an iterator of names and answers.

        Workers begin at once; this process takes its share when the iterator is asked, so it can do other work first:
        ``meanwhile`` is that work, in policies that could be measured in its time.
        """
        shared: list[str] = []
        answers: list[Any] = []
        if self.workers and len(self.trace) <= LONG:
            from joblib import cpu_count  # type: ignore[import-untyped]
            from joblib.externals.loky import get_reusable_executor  # type: ignore[import-untyped]

            # The executor and not joblib.Parallel, which takes one worker to mean none.
            count = max(1, cpu_count() - 1)
            shared = self._share(list(policies), count, meanwhile)
            pool = get_reusable_executor(max_workers=count, timeout=IDLE)
            answers = [pool.submit(method, policies[name], argument) for name in shared]
        own = ((name, method(policies[name], argument)) for name in policies if name not in shared)
        return chain(own, ((name, answer.result()) for name, answer in zip(shared, answers, strict=True)))

    def _share(self, names: list[str], workers: int, meanwhile: int) -> list[str]:
        """Return the policies that the workers take: those that they have compiled, and at first a fair share."""
        if not self.compiled:
            mine = max(0, (len(names) - workers * meanwhile) // (workers + 1))
            self.compiled.update(names[mine:])
        return [name for name in names if name in self.compiled]


def collect(pending: Iterable[tuple[str, Any]], count: int, description: str) -> dict[str, Any]:
    """Return what ``Replay.begin`` began."""
    return dict(track(pending, description, count))


def compare(measured: Mapping[str, Measured], objective: str) -> list[dict[str, Any]]:
    """Return the table's rows, the least loss first; ``gap_closed`` is 0 for LRU's loss and 1 for the oracle's."""
    lru, bound = measured["lru"].result, measured[best_oracle(measured, objective)].result
    rows = []
    for name, m in measured.items():
        row = m.result.as_row() | {"policy": name, "oracle": m.oracle}
        rows.append(row | {"gap_closed": gap_closed(lru, m.result, bound, objective)})
    return sorted(rows, key=lambda row: (row[LOSSES[objective]], row["policy"]))


def best_heuristics(rows: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    """Return the heuristics, other than LRU, with the least loss."""
    names = [row["policy"] for row in rows if not row["oracle"] and row["policy"] not in ("lru", *LEARNING)]
    return names[:count]


def best_oracle(measured: Mapping[str, Measured], objective: str) -> str:
    """Return the oracle with the least loss."""
    return min((n for n in measured if measured[n].oracle), key=lambda n: measured[n].result.loss(objective))
