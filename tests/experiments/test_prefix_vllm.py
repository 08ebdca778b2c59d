"""The table of what was measured in a real vLLM says what the committed results say."""

import csv
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "experiments" / "prefix_vllm"


def test_the_readme_shows_the_results() -> None:
    readme = (FOLDER / "README.md").read_text()
    with open(FOLDER / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["policy"] for row in rows} >= {"vLLM LRU", "vLLM ARC", "learned"}
    for row in rows:
        tier = f"{float(row['tier_hit_ratio']):.3f}" if "tier" in row["cache"] else ""
        assert f"| {row['cache']} | {row['policy']} | {tier} | {float(row['hit_ratio']):.3f} |" in readme
        for package in ("kvpredict", "vllm", "numba", "python"):
            assert f"{package} {row[package]}" in readme
