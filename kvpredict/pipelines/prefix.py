"""What the prefix pipelines share: requests from a file or a generator, replays, and the rows of their results.

A prefix result has the columns of any other: its objects are blocks and its bytes are tokens, so that one minus the
prefix-hit ratio is the object miss ratio, and report, sweeps and tracking work as they do elsewhere.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.continuation import with_continuation
from kvpredict.llm.hints import degraded
from kvpredict.llm.prefix import PrefixResult, prefix_policy, prefix_policy_names, simulate_prefix
from kvpredict.llm.prefix.policies import prefix_policy_class
from kvpredict.llm.request_files import read_requests
from kvpredict.llm.requests import RequestTrace
from kvpredict.llm.workloads import generate_requests
from kvpredict.pipelines.config import Config
from kvpredict.pipelines.progress import track

__all__ = ["chosen", "compare", "load_requests", "predicted", "read_file", "replayed", "request_facts", "tiers"]

EXTRA = ("prefix_hit_ratio", "token_hit_ratio", "tokens_saved", "flops_saved", "host_hits", "ttft_p50", "ttft_p90",
         "ttft_p99")  # fmt: skip
LEARNED = "learned"


def load_requests(config: Config, start: Path) -> RequestTrace:
    """Return the run's requests: the file's, or generated ones where none is given."""
    settings = config.pipeline
    if getattr(config.trace, "path", None) is None:
        trace = generate_requests(settings.mix, requests=settings.requests, seed=config.seed)
    else:
        trace = read_file(config, start, texts=settings.hint_from_text)
    if not len(trace):
        raise KvpredictError(f"{trace.name} has no requests: nothing to do")
    return trace if settings.hint_accuracy is None else degraded(trace, settings.hint_accuracy, config.seed)


def read_file(config: Config, start: Path, *, texts: bool = False) -> RequestTrace:
    """Return the requests in the run's file."""
    settings = config.pipeline
    tokenize = None
    if settings.tokenizer is not None:
        from kvpredict.llm.models import load_tokenizer

        local = start / Path(settings.tokenizer).expanduser()
        tokenize = load_tokenizer(str(local) if local.is_dir() else settings.tokenizer).encode
    return read_requests(
        (start / Path(config.trace.path).expanduser()).resolve(),
        block_size=settings.block_size,
        tokenize=tokenize,
        texts=texts,
        time_unit=config.trace.time_unit,
        on_error=config.trace.on_error,
    )


def predicted(config: Config, trace: RequestTrace, cut: int) -> tuple[RequestTrace, dict[str, Any]]:
    """Return the trace, where ``pipeline.hint_from_text`` says so with hints learned before ``cut``, and figures.

    These are how many requests taught the predictor, and its AUC after ``cut``: the probability that a request whose
    session goes on in this trace is given a higher hint than one whose session does not. 0.5 tells nothing; None where
    there are not both.
    """
    if not config.pipeline.hint_from_text:
        return trace, {}
    hinted, taught = with_continuation(trace, cut)
    goes_on, hint = trace.continued[cut:], hinted.hints["continues"][cut:]
    low, high = np.sort(hint[~goes_on]), hint[goes_on]
    below = (np.searchsorted(low, high) + np.searchsorted(low, high, "right")).sum() / 2  # a tie counts half
    auc = float(below / (len(low) * len(high))) if len(low) and len(high) else None
    return replace(hinted, texts=None), {"continuation": {"taught": taught, "auc": auc}}


def tiers(config: Config, trace: RequestTrace) -> tuple[int, int]:
    """Return the blocks of the device and of the host tier."""
    if config.capacity.unit != "objects":
        raise KvpredictError(f"capacity.unit={config.capacity.unit}: prefix caches count blocks; leave it out")
    count = config.capacity.count
    device = trace.capacity(config.capacity.fraction) if count is None else count
    return device, round(config.pipeline.host * device)


def chosen(config: Config, *, learned: bool) -> list[str]:
    """Return the policies to run; LRU and Belady always do."""
    names = list(config.pipeline.policies)
    if "all" in names:
        names = [name for name in prefix_policy_names() if learned or name != LEARNED]
    for name in names:
        prefix_policy_class(name)  # raises for an unknown one, with the nearest right name
    return list(dict.fromkeys([*names, "lru", "belady"]))


def replayed(config: Config, trace: RequestTrace, policies: Mapping[str, Any], cut: int) -> dict[str, PrefixResult]:
    """Replay the trace through every policy; ``policies`` maps names to policies, or to None for a new one."""
    device, host = tiers(config, trace)
    out = {}
    for name in track(policies, "replaying requests", len(policies)):
        policy = policies[name] or prefix_policy(name)
        out[name] = simulate_prefix(trace, policy, device, host_capacity=host, warmup=cut, seed=config.seed)
    return out


def compare(config: Config, trace: RequestTrace, results: Mapping[str, PrefixResult]) -> dict[str, Any]:
    """Return the rows of the table, most hits first, and the series of the report."""
    lru, bound = results["lru"], results["belady"]
    two_tiers = tiers(config, trace)[1] > 0  # Belady decides for the device alone, and bounds nothing
    rows = []
    for name, r in results.items():
        gap = r.gap_closed(lru, bound)
        row = {
            "policy": name,
            "oracle": name == "belady",
            "capacity": r.capacity,
            "unit": "objects",
            "requests": r.requests,
            "hits": r.hits,
            "object_miss_ratio": 1 - r.prefix_hit_ratio,
            "byte_miss_ratio": 1 - r.token_hit_ratio,
            "requests_per_second": len(trace) / r.seconds,
            "gap_closed": None if two_tiers or np.isnan(gap) else gap,
        }
        rows.append(row | {figure: getattr(r, figure) for figure in EXTRA})
    rows.sort(key=lambda row: (row["object_miss_ratio"], row["policy"]))
    shown = [row["policy"] for row in rows if row["policy"] in ("lru", "learned", "belady")]
    series = [_series(name, trace, results[name], config.report.windows) for name in shown]
    return {"policies": rows, "series": series, "curves": []}


def request_facts(trace: RequestTrace) -> dict[str, Any]:
    """Return what a trace of requests is, and what its reader noted."""
    seen = np.ones(len(trace.blocks), bool)
    seen[np.unique(trace.ids, return_index=True)[1]] = False
    place = np.arange(len(trace.blocks)) - np.repeat(trace.starts[:-1], np.diff(trace.starts))
    again = seen & (place < np.repeat(trace.prompts, np.diff(trace.starts)))
    noted = {k: v for k, v in trace.info.items() if isinstance(v, str | int | float | None)}
    return noted | {
        "name": trace.name,
        "fingerprint": f"{len(trace)}-{int(np.bitwise_xor.reduce(trace.blocks)) & 0xFFFFFFFF:08x}",
        "requests": len(trace),
        "unique": trace.unique,
        "block_uses": len(trace.blocks),
        "block_size": trace.block_size,
        "input_tokens": int(trace.input_tokens.sum()),
        "output_tokens": int(trace.output_tokens.sum()),
        "span_seconds": float(trace.times[-1] - trace.times[0]),
        # Of the prompts' blocks, those that came before: what a cache without bounds would find.
        "prefix_hit_ratio_unbounded": float(again.sum() / max(1, trace.prompts.sum())),
        "sessions": None if trace.sessions is None else len(np.unique(trace.sessions[trace.sessions >= 0])),
        "sessions_go_on": float(trace.continued.mean()),
        "hints": sorted(trace.hints),
        "footprint_bytes": None,
    }


def _series(name: str, trace: RequestTrace, r: PrefixResult, windows: int) -> dict[str, Any]:
    edges = np.unique(np.linspace(r.warmup, len(trace), min(windows, r.requests) + 1).astype(int))[:-1]
    found = r.hit_blocks.sum(axis=1)
    tokens = np.minimum(found * trace.block_size, trace.input_tokens)
    blocks = np.add.reduceat(trace.prompts, edges).astype(float)
    asked = np.add.reduceat(trace.input_tokens, edges).astype(float)
    return {
        "policy": name,
        "start": edges.tolist(),
        "object_miss_ratio": (1 - np.add.reduceat(found, edges) / np.maximum(blocks, 1)).tolist(),
        "byte_miss_ratio": (1 - np.add.reduceat(tokens, edges) / np.maximum(asked, 1)).tolist(),
    }
