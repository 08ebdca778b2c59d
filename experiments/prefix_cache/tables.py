"""The tables and the plot of the experiment's README."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.common import into_readme, table

__all__ = ["write"]

FRACTIONS = ("0.01", "0.05", "0.1", "0.2")
Row = dict[str, str]


def write(folder: Path, rows: Sequence[Row], smaller: Sequence[Row], choices: Sequence[Row]) -> None:
    """Write every table into the README, and the plot."""
    book = _Book(rows)
    into_readme(folder, "conversation", _conversation(book))
    into_readme(folder, "accuracy", _accuracy(book))
    into_readme(folder, "shrink", _shrink(smaller) if smaller else "Not computed yet.")
    generated = _generated(book)
    into_readme(folder, "generated", generated if generated.count("\n") > 2 else "Not computed yet.")
    into_readme(folder, "never", _never_below(book))
    into_readme(folder, "choices", _choices(choices) if choices else "Not computed yet.")
    into_readme(folder, "server", _server(book))
    _plot(folder / "plot.svg", book)


class _Book:
    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def hits(self, trace: str, part: str, fraction: str, policy: str, hint: str = "none") -> np.ndarray:
        """Return the hits of each seed."""
        key = (trace, part, fraction, policy, hint)
        found = [
            int(r["hits"]) for r in self.rows
            if (r["trace"], r["part"], r["fraction"], r["policy"], r["hint"]) == key
        ]  # fmt: skip
        return np.array(found, float)

    def closed(self, trace: str, part: str, policy: str, hint: str = "none") -> list[np.ndarray]:
        """Return the share of the gap closed at each capacity, by seed."""
        out = []
        for fraction in FRACTIONS:
            # Of a recorded trace there is one replay by simple policies, of generated ones one for each seed.
            lru, bound = (self.hits(trace, part, fraction, name) for name in ("lru", "belady"))
            out.append((self.hits(trace, part, fraction, policy, hint) - lru) / np.maximum(bound - lru, 1.0))
        return out

    def best(self, trace: str, part: str, fraction: str) -> np.ndarray:
        """Return the hits of the best simple policy, by seed."""
        simple = [p for p, h in self.policies(trace, part) if h == "none" and p not in ("learned", "belady")]
        return np.max([self.hits(trace, part, fraction, p) for p in simple], axis=0)

    def policies(self, trace: str, part: str) -> list[tuple[str, str]]:
        return list(dict.fromkeys((r["policy"], r["hint"]) for r in self.rows
                                  if r["trace"] == trace and r["part"] == part))  # fmt: skip

    def value(self, trace: str, fraction: str, policy: str, hint: str, column: str) -> float:
        found = [
            float(r[column]) for r in self.rows
            if (r["trace"], r["part"], r["fraction"], r["policy"], r["hint"]) == (trace, "test", fraction, policy, hint)
        ]  # fmt: skip
        return float(np.mean(found)) if found else float("nan")


CONVERSATION = "conversation_trace"


def _named(policy: str, hint: str) -> str:
    words = {"none": "", "text": ", continuation predicted from text"}
    return policy + words.get(hint, f", hints right {float(hint):.0%} of the time" if hint not in words else "")


def _conversation(book: _Book) -> str:
    out = []
    for part in ("test", "development"):
        lines = []
        if not all(len(book.hits(CONVERSATION, part, f, "learned")) for f in FRACTIONS):
            continue
        for policy, hint in book.policies(CONVERSATION, part):
            if policy in ("lru", "belady"):
                continue
            shares = book.closed(CONVERSATION, part, policy, hint)
            if not all(len(s) for s in shares):
                continue
            mean = np.mean([s.mean() for s in shares])
            both = all(len(s) == len(shares[0]) > 1 for s in shares)
            seeds = f" ± {np.mean(shares, axis=0).std():.1%}" if both else ""
            worst = min(s.mean() for s in shares)
            cells = [*(f"{s.mean():.1%}" for s in shares), f"{mean:.1%}{seeds}", f"{worst:.1%}"]
            lines.append([_named(policy, hint), *cells])
        simple = [p for p, h in book.policies(CONVERSATION, part) if h == "none" and p not in ("learned", "belady")]
        best = [max(book.closed(CONVERSATION, part, p)[k][0] for p in simple) for k in range(4)]
        cells = [*(f"{b:.1%}" for b in best), f"{np.mean(best):.1%}", f"{min(best):.1%}"]
        lines.append(["best simple one in hindsight", *cells])
        ratios = [
            [name, *(f"{book.value(CONVERSATION, f, name, 'none', 'prefix_hit_ratio'):.4f}" for f in FRACTIONS)]
            for name in ("lru", "belady")
        ]
        out.append(f"{part.capitalize()} part:\n\n" + table("policy | 1 % | 5 % | 10 % | 20 % | mean | worst", lines))
        if part == "test":
            out.append("Prefix-hit ratios at the ends:\n\n" + table("policy | 1 % | 5 % | 10 % | 20 %", ratios))
    return "\n".join(out)


def _accuracy(book: _Book) -> str:
    lines = []
    for hint in ("none", "0.6", "0.7", "0.8", "0.9", "1.0"):
        shares = book.closed(CONVERSATION, "test", "learned", hint)
        if all(len(s) for s in shares):
            named = "no hints" if hint == "none" else f"{float(hint):.0%}"
            means = [float(s.mean()) for s in shares]
            lines.append([named, *(f"{m:.1%}" for m in [*means, np.mean(means), min(means)])])
    return table("hints right | 1 % | 5 % | 10 % | 20 % | mean | worst", lines)


def _shrink(rows: Sequence[Row]) -> str:
    lines = [
        [f"{float(r['fraction']):.0%}", "none" if r["hint"] == "none" else f"right {float(r['hint']):.0%}",
         r["lru_capacity"], r["learned_capacity"], f"{float(r['smaller']):.0%}"]
        for r in rows
    ]  # fmt: skip
    return table("LRU's cache | hints | LRU's blocks | learned's blocks | smaller by", lines)


MIXES = ("chat", "agent", "rag", "batch", "mixed")


def _complete(book: _Book, trace: str) -> bool:
    return all(len(book.hits(trace, "test", f, "learned", "0.8")) for f in FRACTIONS)


def _generated(book: _Book) -> str:
    lines = []
    for trace in (m for m in MIXES if _complete(book, m)):
        lru, bound = ([book.hits(trace, "test", f, n) for f in FRACTIONS] for n in ("lru", "belady"))
        gaps = [b - a for a, b in zip(lru, bound, strict=True)]
        rows = [("best simple one in hindsight", [book.best(trace, "test", f) for f in FRACTIONS])]
        rows += [
            (_named("learned", h), [book.hits(trace, "test", f, "learned", h) for f in FRACTIONS])
            for h in ("none", "text", "0.8")
        ]
        for name, hits in rows:
            # All seeds' hits over all seeds' gaps: a gap of a few blocks says nothing by itself.
            shares = [(h - a).sum() / max(g.sum(), 1.0) for h, a, g in zip(hits, lru, gaps, strict=True)]
            lines.append([trace, name, *(f"{s:.0%}" for s in [*shares, np.mean(shares), min(shares)])])
    return table("mix | policy | 1 % | 5 % | 10 % | 20 % | mean | worst", lines)


def _never_below(book: _Book) -> str:
    """Return hits beyond those of the best simple policy of each cell, in percent of them."""
    lines = []
    for trace in (CONVERSATION, *(m for m in MIXES if _complete(book, m))):
        cells, most = [], []
        for f in FRACTIONS:
            best = book.best(trace, "test", f)
            more = book.hits(trace, "test", f, "learned") / best - 1.0
            cells.append(f"{more.mean():+.1%} ± {more.std(ddof=1) / np.sqrt(len(more)):.1%}")
            most.append(float(more.min()))
        lines.append([trace.partition("_")[0], *cells, f"{min(most):+.1%}"])
    return table("trace | 1 % | 5 % | 10 % | 20 % | worst seed", lines)


def _choices(rows: Sequence[Row]) -> str:
    lines = []
    cells = [(r["trace"], r["fraction"], r["seed"]) for r in rows]
    whole = {c for c in cells if cells.count(c) == len({r["choice"] for r in rows})}
    rows = [r for r, cell in zip(rows, cells, strict=True) if cell in whole]
    recorded = [r for r in rows if r["trace"] == CONVERSATION]
    made = [r for r in rows if r["trace"] != CONVERSATION]

    def closed(found: Sequence[Row]) -> list[float]:
        return [(int(r["hits"]) - int(r["lru"])) / max(int(r["belady"]) - int(r["lru"]), 1) for r in found]

    for choice in dict.fromkeys(r["choice"] for r in rows):
        own = [[r for r in part if r["choice"] == choice] for part in (recorded, made)]
        by_size = [np.mean(closed([r for r in own[0] if r["fraction"] == f]) or [np.nan]) for f in FRACTIONS]
        more = [int(r["hits"]) / max(int(r["lru"]), 1) - 1.0 for r in own[1]]
        shown = [*(f"{g:.1%}" for g in [*by_size, np.mean(by_size)])]
        lines.append([choice, *shown, *((f"{np.mean(more):+.1%}", f"{min(more):+.1%}") if more else ("-", "-"))])
    header = "setting | 1 % | 5 % | 10 % | 20 % | mean | generated: hits over LRU's | worst"
    return table(header, lines)


def _server(book: _Book) -> str:
    lines = []
    for policy, hint in (("lru", "none"), ("learned", "none"), ("learned", "0.8"), ("belady", "none")):
        for fraction in ("0.05", "0.2"):
            v = [book.value(CONVERSATION, fraction, policy, hint, c) for c in
                 ("token_hit_ratio", "flops_saved", "ttft_p50", "ttft_p90", "ttft_p99")]  # fmt: skip
            shown = [f"{v[0]:.1%}", f"{v[1] / 1e18:.2f}", *(f"{x:.2f}" for x in v[2:])]
            lines.append([_named(policy, hint), f"{float(fraction):.0%}", *shown])
    return table("policy | cache | prefill tokens saved | EFLOPs saved | TTFT P50, s | P90 | P99", lines)


def _plot(path: Path, book: _Book) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "kvpredict"
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    x = [100 * float(f) for f in FRACTIONS]
    shown = [("lru", "none"), ("lfu", "none"), ("workload", "none"), ("learned", "none"), ("learned", "0.8"),
             ("learned", "1.0"), ("belady", "none")]  # fmt: skip
    for policy, hint in shown:
        y = [book.value(CONVERSATION, f, policy, hint, "prefix_hit_ratio") for f in FRACTIONS]
        left.plot(x, y, marker="o", label=_named(policy, hint), ls="--" if policy == "belady" else "-")
    left.set(xscale="log", xlabel="cache, % of distinct blocks", ylabel="prefix-hit ratio", xticks=x, xticklabels=x)
    left.legend(fontsize=7)
    accuracies = ["0.6", "0.7", "0.8", "0.9", "1.0"]
    for k, fraction in enumerate(FRACTIONS):
        shares = [book.closed(CONVERSATION, "test", "learned", a)[k] for a in accuracies]
        y = [100 * s.mean() if len(s) else np.nan for s in shares]
        right.plot([100 * float(a) for a in accuracies], y, marker="o", label=f"{100 * float(fraction):g} %")
    right.set(xlabel="hints right, %", ylabel="LRU-to-Belady gap closed, %")
    right.legend(title="cache", fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
