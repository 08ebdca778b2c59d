"""The tables and the plot of the experiment's README."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.common import into_readme, table

__all__ = ["write"]

FRACTIONS = ("0.01", "0.05", "0.1", "0.2")
Row = dict[str, str]


def write(folder: Path, rows: Sequence[Row], smaller: Sequence[Row]) -> None:
    """Write every table into the README, and the plot."""
    book = _Book(rows)
    into_readme(folder, "conversation", _conversation(book))
    into_readme(folder, "accuracy", _accuracy(book))
    into_readme(folder, "shrink", _shrink(smaller) if smaller else "Not computed yet.")
    generated = _generated(book)
    into_readme(folder, "generated", generated if generated.count("\n") > 2 else "Not computed yet.")
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
            lru, bound = (self.hits(trace, part, fraction, name)[0] for name in ("lru", "belady"))
            out.append((self.hits(trace, part, fraction, policy, hint) - lru) / max(bound - lru, 1.0))
        return out

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
            mean = np.mean([s.mean() for s in shares])
            spread = np.array([s for s in shares if len(s) > 1])
            seeds = f" ± {spread.mean(axis=0).std():.1%}" if len(spread) else ""
            lines.append([_named(policy, hint), *(f"{s.mean():.1%}" for s in shares), f"{mean:.1%}{seeds}"])
        simple = [p for p, h in book.policies(CONVERSATION, part) if h == "none" and p not in ("learned", "belady")]
        best = [max(book.closed(CONVERSATION, part, p)[k][0] for p in simple) for k in range(4)]
        lines.append(["best simple one in hindsight", *(f"{b:.1%}" for b in best), f"{np.mean(best):.1%}"])
        ratios = [
            [name, *(f"{book.value(CONVERSATION, f, name, 'none', 'prefix_hit_ratio'):.4f}" for f in FRACTIONS)]
            for name in ("lru", "belady")
        ]
        out.append(f"{part.capitalize()} part:\n\n" + table("policy | 1 % | 5 % | 10 % | 20 % | mean", lines))
        if part == "test":
            out.append("Prefix-hit ratios at the ends:\n\n" + table("policy | 1 % | 5 % | 10 % | 20 %", ratios))
    return "\n".join(out)


def _accuracy(book: _Book) -> str:
    lines = []
    for hint in ("none", "0.6", "0.7", "0.8", "0.9", "1.0"):
        shares = book.closed(CONVERSATION, "test", "learned", hint)
        if all(len(s) for s in shares):
            named = "no hints" if hint == "none" else f"{float(hint):.0%}"
            lines.append([named, *(f"{s.mean():.1%}" for s in shares), f"{np.mean([s.mean() for s in shares]):.1%}"])
    return table("hints right | 1 % | 5 % | 10 % | 20 % | mean", lines)


def _shrink(rows: Sequence[Row]) -> str:
    lines = [
        [f"{float(r['fraction']):.0%}", "none" if r["hint"] == "none" else f"right {float(r['hint']):.0%}",
         r["lru_capacity"], r["learned_capacity"], f"{float(r['smaller']):.0%}"]
        for r in rows
    ]  # fmt: skip
    return table("LRU's cache | hints | LRU's blocks | learned's blocks | smaller by", lines)


def _generated(book: _Book) -> str:
    lines = []
    for trace in ("chat", "agent", "rag", "batch", "mixed"):
        found = book.policies(trace, "test")
        if not all(len(book.hits(trace, "test", f, "learned")) for f in FRACTIONS):
            continue
        simple = [p for p, h in found if h == "none" and p not in ("learned", "belady")]
        best = [max(book.closed(trace, "test", p)[k][0] for p in simple) for k in range(4)]
        lines.append([trace, "best simple one in hindsight", *(f"{b:.0%}" for b in best), f"{np.mean(best):.0%}"])
        for hint in ("none", "text", "0.8"):
            shares = [float(s.mean()) for s in book.closed(trace, "test", "learned", hint) if len(s)]
            if len(shares) == 4:
                cells = [f"{s:.0%}" for s in shares]
                lines.append([trace, _named("learned", hint), *cells, f"{np.mean(shares):.0%}"])
    return table("mix | policy | 1 % | 5 % | 10 % | 20 % | mean", lines)


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
