"""The prefix cache: what policies save on an LLM server, without hints and with hints of any accuracy.

    python -m experiments.prefix_cache.run --traces FOLDER

Writes results.csv, shrink.csv, choices.csv, plot.svg and the tables of README.md beside this file. Rows that are there
are kept; ``--all`` computes everything anew. ``--choices`` replays the development part with other settings instead.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from experiments.common import Rows
from experiments.prefix_cache import tables
from kvpredict.llm.continuation import fit_continuation
from kvpredict.llm.hints import degraded
from kvpredict.llm.prefix import prefix_policy, prefix_policy_names, simulate_prefix
from kvpredict.llm.prefix.policies.learned import Learned
from kvpredict.llm.prefix.policy import Traits
from kvpredict.llm.request_files import read_requests
from kvpredict.llm.requests import RequestTrace
from kvpredict.llm.workloads import generate_requests

HERE = Path(__file__).parent
FRACTIONS = (0.01, 0.05, 0.1, 0.2)
SEEDS = range(3)  # of generated traces
ACCURACIES = (0.6, 0.7, 0.9, 1.0)  # of hints, besides 0.8
MIXES = ("chat", "agent", "rag", "batch", "mixed")
SIMPLE = [name for name in prefix_policy_names() if name != "learned"]
KEY = ["trace", "part", "fraction", "policy", "hint", "seed"]
COLUMNS = [
    *KEY, "capacity", "requests", "blocks", "hits", "prefix_hit_ratio", "token_hit_ratio", "flops_saved", "ttft_p50",
    "ttft_p90", "ttft_p99",
]  # fmt: skip


@dataclass(frozen=True)
class OnArrival(Learned):
    """Learned, all blocks stored when their request arrives. For comparison."""

    traits: ClassVar[Traits] = Learned.traits._replace(late=False, early=-1)


@dataclass(frozen=True)
class AtEnd(Learned):
    """Learned, without the ranking that stores on arrival. For comparison."""

    traits: ClassVar[Traits] = Learned.traits._replace(early=-1)


# Other settings, tried on the development part.
CHOICES: dict[str, Learned] = {
    "as chosen": Learned(),
    "all blocks stored on arrival": OnArrival(),
    "no ranking that stores on arrival": AtEnd(),
    "trained every 60 s instead of 120": Learned(every=60.0),
    "40 rounds instead of 80": Learned(rounds=40),
    "8 leaves instead of 15": Learned(leaves=8),
    "guard's half-life 100 s instead of 200": Learned(half_life=100.0),
    "guard's half-life 400 s": Learned(half_life=400.0),
    "incumbent favoured by 0 instead of 1 %": Learned(favour=0.0),
    "incumbent favoured by 5 %": Learned(favour=0.05),
}


def recorded(options: argparse.Namespace) -> RequestTrace:
    return read_requests(options.traces / "mooncake" / "conversation_trace.head60.jsonl")


def made(options: argparse.Namespace) -> Iterator[tuple[str, RequestTrace, int]]:
    """Return part, trace and seed, the recorded one first; its first half is the development part."""
    if options.traces is not None:
        whole = recorded(options)
        yield "test", whole, 0
        yield "development", whole.head(0.5), 0
    for mix in MIXES:
        for seed in SEEDS:
            yield "test", generate_requests(mix, requests=options.requests, seed=seed), seed


def hinted(trace: RequestTrace, hint: str, seed: int) -> RequestTrace:
    """Return the trace with a hint ``continues``: none, right with a probability, or predicted from text."""
    if hint == "none":
        return trace
    if hint == "text":
        half = len(trace) // 2
        assert trace.texts is not None
        finish = trace.hints["finish"]
        known = trace.head(half).continued  # what was known at half time
        if known.min() == known.max():  # no session ever went on, which needs no predictor
            return trace.with_hints(continues=np.full(len(trace), float(known[0])))
        return fit_continuation(trace.texts[:half], known, finish[:half]).hinted(trace)
    return degraded(trace, float(hint), seed)


def cells(part: str, generated: bool, seed: int) -> Iterator[tuple[str, str, int]]:
    """Return policy, hint and seed of what runs on a trace."""
    for name in SIMPLE:
        yield name, "none", seed
    seeds = (seed,) if generated else (0, 1)
    for own in seeds:
        yield "learned", "none", own
        if part == "test":
            yield "learned", "0.8", own
    if part == "test" and generated:
        yield "learned", "text", seed
    elif part == "test":
        for accuracy in ACCURACIES:
            yield "learned", str(accuracy), 0


def run(part: str, trace: RequestTrace, trace_seed: int, rows: Rows, options: argparse.Namespace) -> None:
    """Replay what is missing of a trace."""
    for name, hint, seed in cells(part, trace.texts is not None, trace_seed):
        for fraction in FRACTIONS:
            cell: dict[str, Any] = {
                "trace": trace.name.partition(".")[0], "part": part, "fraction": fraction, "policy": name,
                "hint": hint, "seed": seed,
            }  # fmt: skip
            if not options.all and cell in rows:
                continue
            told = hinted(trace, hint, seed)
            r = simulate_prefix(told, prefix_policy(name), trace.capacity(fraction), warmup=0.5, seed=seed)
            rows.add([cell | {k: v for k, v in r.as_row().items() if k in COLUMNS and k not in cell}])
            print(
                f"{cell['trace']:<20}{part:<12}{fraction:>5.0%} {name:<9}{hint:<6}{seed} {r.prefix_hit_ratio:.4f}",
                flush=True,
            )


def choose(options: argparse.Namespace, rows: Rows) -> None:
    """Replay the development part, and generated traces that are not counted above, with other settings."""
    half = recorded(options).head(0.5)
    traces = [(half, 0), (half, 1), *((generate_requests(mix, requests=options.requests, seed=10), 0) for mix in MIXES)]
    for trace, seed in traces:
        for fraction in FRACTIONS:
            lru: dict[str, int] = {}
            for name, policy in CHOICES.items():
                trace_name = trace.name.partition(".")[0]
                cell = {"choice": name, "trace": trace_name, "fraction": fraction, "seed": seed}
                if not options.all and cell in rows:
                    continue
                capacity = trace.capacity(fraction)
                if not lru:
                    lru = {n: simulate_prefix(trace, n, capacity, warmup=0.5).hits for n in ("lru", "belady")}
                got = simulate_prefix(trace, policy, capacity, warmup=0.5, seed=seed).hits
                rows.add([cell | lru | {"hits": got}])
                print(f"{name:<40}{trace_name:<20}{fraction:>5.0%} {seed} {got}", flush=True)


def shrink(trace: RequestTrace, rows: Rows, options: argparse.Namespace) -> None:
    """Search the smallest cache in which the learned policy hits as much as LRU does in a given one."""
    for hint in ("none", "0.8"):
        for fraction in (0.05, 0.1):
            cell = {"trace": trace.name.partition(".")[0], "fraction": fraction, "hint": hint}
            if not options.all and cell in rows:
                continue
            capacity = trace.capacity(fraction)
            wanted = simulate_prefix(trace, "lru", capacity, warmup=0.5).hits
            told = hinted(trace, hint, 0)
            low, high = 0.1, 1.0  # shares of the capacity
            while high - low > 0.03:
                middle = (low + high) / 2
                got = simulate_prefix(told, "learned", int(middle * capacity), warmup=0.5).hits
                low, high = (low, middle) if got >= wanted else (middle, high)
            rows.add([cell | {"lru_capacity": capacity, "learned_capacity": int(high * capacity), "smaller": 1 - high}])
            print(f"{cell} {1 - high:.0%} smaller", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, help="folder with mooncake/conversation_trace.head60.jsonl")
    parser.add_argument("--requests", type=int, default=1500, help="requests of each generated trace")
    parser.add_argument("--all", action="store_true", help="compute rows again that are there")
    parser.add_argument("--choices", action="store_true", help="try other settings on the development part, no more")
    options = parser.parse_args()
    chosen = Rows(
        HERE / "choices.csv",
        ["choice", "trace", "fraction", "seed", "hits", "lru", "belady"],
        ["choice", "trace", "fraction", "seed"],
    )
    if options.choices:
        choose(options, chosen)
        return
    rows = Rows(HERE / "results.csv", COLUMNS, KEY)
    smaller = Rows(
        HERE / "shrink.csv",
        ["trace", "fraction", "hint", "lru_capacity", "learned_capacity", "smaller"],
        ["trace", "fraction", "hint"],
    )
    traces = list(made(options))
    for part, trace, seed in traces:
        run(part, trace, seed, rows, options)
    for part, trace, _ in traces:
        if part == "test" and trace.texts is None:
            shrink(trace, smaller, options)
    tables.write(HERE, list(rows.rows.values()), list(smaller.rows.values()), list(chosen.rows.values()))


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
