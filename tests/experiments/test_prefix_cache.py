"""What the texts say of the prefix cache is what the committed results say."""

import csv
import json
from pathlib import Path

import numpy as np

from experiments.prefix_cache.tables import FRACTIONS

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"


def rows(name: str) -> list[dict[str, str]]:
    with open(EXPERIMENTS / name, newline="") as file:
        return list(csv.DictReader(file))


def words(name: str) -> str:
    return " ".join((ROOT / name).read_text().split())


def hits(fraction: str, policy: str, hint: str) -> float:
    """Return the mean hits over seeds on the recorded trace."""
    cell = {"trace": "conversation_trace", "part": "test", "fraction": fraction, "policy": policy, "hint": hint}
    found = [int(row["hits"]) for row in rows("prefix_cache/results.csv") if cell.items() <= row.items()]
    return float(np.mean(found))


def closed(policy: str, hint: str = "none") -> list[float]:
    """Return the shares of the gap closed, by size."""
    out = []
    for fraction in FRACTIONS:
        lru, bound = hits(fraction, "lru", "none"), hits(fraction, "belady", "none")
        out.append((hits(fraction, policy, hint) - lru) / (bound - lru))
    return out


def test_the_readme_says_what_was_measured_on_mooncakes_conversations() -> None:
    text = words("README.md")
    learned, hinted = float(np.mean(closed("learned"))), float(np.mean(closed("learned", "0.8")))
    simple = {row["policy"] for row in rows("prefix_cache/results.csv")} - {"learned", "belady", "lru"}
    best = float(np.mean(np.maximum(0.0, np.max([closed(policy) for policy in simple], axis=0))))
    assert (
        f"closes {100 * learned:.0f} % of the gap between LRU and Belady, with hints that are right 80 % of the time "
        f"{100 * hinted:.0f} %, where the best simple rule in hindsight closes {100 * best:.0f} %"
    ) in text
    smaller = {
        row["fraction"]: float(row["smaller"]) for row in rows("prefix_cache/shrink.csv") if row["hint"] == "none"
    }
    assert f"a cache {100 * smaller['0.05']:.0f} % ({100 * smaller['0.1']:.0f} %) smaller" in text


def test_the_page_says_what_was_measured_in_vllm() -> None:
    text = words("docs/prefix_cache.md")
    found = {(row["cache"], row["policy"]): row for row in rows("prefix_vllm/results.csv")}

    def share(cache: str, policy: str, column: str = "hit_ratio") -> str:
        return f"{float(found[cache, policy][column]):.2f}".removeprefix("0")

    own, tier = "its own, 70 blocks, seed 1", "36 blocks of its own, LRU, and an offload tier of 100"
    assert f"LRU finds {share(own, 'vLLM LRU')}, the learned policy {share(own, 'learned')}, with" in text
    for policy, shown in {
        "learned": "| **learned** | **{}** | **{}** |",
        "vLLM LRU": "| vLLM's LRU | {} | {} |",
        "vLLM ARC": "| vLLM's ARC (differs from run to run) | {} | {} |",
    }.items():
        assert shown.format(share(tier, policy, "tier_hit_ratio"), share(tier, policy)) in text


def test_the_benchmarks_page_says_what_was_timed() -> None:
    text = words("benchmarks/README.md")
    report = json.loads((ROOT / "benchmarks" / "prefix.json").read_text())
    first = report["first decision of a process, s"]
    many, few = (report[f"live index, {blocks} blocks a request, µs"] for blocks in (126, 24))
    for policy, speed in report["simulator, M block uses/s"].items():
        cost = [f"{many[policy][what]:.2f}" for what in ("use", "eviction and store")] if policy in many else ["", ""]
        begun = [f"{first[policy]['cold']:.1f}", f"{first[policy]['warm']:.2f}"] if policy in first else ["", ""]
        assert " ".join(f"| {policy} | {' | '.join([*cost, f'{speed:.2f}', *begun])} |".split()) in text
    for policy, cost in few.items():
        assert f"| {policy} | {cost['use']:.2f} | {cost['eviction and store']:.2f} |" in text
    for policy in ("lru", "learned"):
        assert f"{few[policy]['found']:.2f}".removeprefix("0") + f" ({policy})" in text
