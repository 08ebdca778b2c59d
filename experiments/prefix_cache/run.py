"""The prefix cache: what policies save on an LLM server, without hints and with hints of any accuracy.

    python -m experiments.prefix_cache.run --traces FOLDER

Writes results.csv, shrink.csv, plot.svg and the tables of README.md beside this file. Rows that are there are kept;
``--all`` computes everything anew.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import Rows
from experiments.prefix_cache import tables
from kvpredict.llm.continuation import fit_continuation
from kvpredict.llm.hints import degraded
from kvpredict.llm.prefix import prefix_policy, prefix_policy_names, simulate_prefix
from kvpredict.llm.request_files import read_requests
from kvpredict.llm.requests import RequestTrace
from kvpredict.llm.workloads import generate_requests

HERE = Path(__file__).parent
FRACTIONS = (0.01, 0.05, 0.1, 0.2)
ACCURACIES = (0.6, 0.7, 0.8, 0.9, 1.0)
MIXES = ("chat", "agent", "rag", "batch", "mixed")
SIMPLE = [name for name in prefix_policy_names() if name != "learned"]
KEY = ["trace", "part", "fraction", "policy", "hint", "seed"]
COLUMNS = [
    *KEY, "capacity", "requests", "blocks", "hits", "prefix_hit_ratio", "token_hit_ratio", "flops_saved", "ttft_p50",
    "ttft_p90", "ttft_p99",
]  # fmt: skip


def made(options: argparse.Namespace) -> Iterator[tuple[str, RequestTrace]]:
    """Return the traces, the recorded one first; its first half is the development part."""
    if options.traces is not None:
        whole = read_requests(options.traces / "mooncake" / "conversation_trace.head60.jsonl")
        yield "test", whole
        yield "development", whole.head(0.5)
    for mix in MIXES:
        yield "test", generate_requests(mix, requests=options.requests, seed=0)


def hinted(trace: RequestTrace, hint: str, seed: int) -> RequestTrace:
    """Return the trace with a hint ``continues``: none, right with a probability, or predicted from text."""
    if hint == "none":
        return trace
    if hint == "text":
        half = len(trace) // 2
        assert trace.texts is not None
        finish = trace.hints["finish"]
        known = trace.head(half).continued  # what was known at half time
        return fit_continuation(trace.texts[:half], known, finish[:half]).hinted(trace)
    return degraded(trace, float(hint), seed)


def cells(trace: RequestTrace, part: str, generated: bool) -> Iterator[tuple[str, str, int]]:
    """Return policy, hint and seed of what runs on a trace."""
    for name in SIMPLE:
        yield name, "none", 0
    seeds = range(1 if generated else 2)
    for seed in seeds:
        yield "learned", "none", seed
    if part == "test":
        for accuracy in (0.8,) if generated else ACCURACIES:
            for seed in seeds if accuracy == 0.8 else range(1):
                yield "learned", str(accuracy), seed
        if generated:
            yield "learned", "text", 0


def run(part: str, trace: RequestTrace, rows: Rows, options: argparse.Namespace) -> None:
    """Replay what is missing of a trace."""
    generated = trace.texts is not None
    for fraction in FRACTIONS:
        for name, hint, seed in cells(trace, part, generated):
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


def shrink(trace: RequestTrace, rows: Rows, options: argparse.Namespace) -> None:
    """Search the smallest cache in which the learned policy hits as much as LRU does in a given one."""
    for fraction in (0.05, 0.1):
        for hint in ("none",):
            cell = {"trace": trace.name.partition(".")[0], "fraction": fraction, "hint": hint}
            if not options.all and cell in rows:
                continue
            capacity = trace.capacity(fraction)
            wanted = simulate_prefix(trace, "lru", capacity, warmup=0.5).hits
            told = hinted(trace, hint, 0)
            low, high = 0.2, 1.0  # shares of the capacity
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
    options = parser.parse_args()
    rows = Rows(HERE / "results.csv", COLUMNS, KEY)
    smaller = Rows(
        HERE / "shrink.csv",
        ["trace", "fraction", "hint", "lru_capacity", "learned_capacity", "smaller"],
        ["trace", "fraction", "hint"],
    )
    traces = list(made(options))
    for part, trace in traces:
        run(part, trace, rows, options)
    for part, trace in traces:
        if part == "test" and trace.texts is None:
            shrink(trace, smaller, options)
    tables.write(HERE, list(rows.rows.values()), list(smaller.rows.values()))


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
