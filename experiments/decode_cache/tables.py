"""The tables and the plot of the decode cache's experiment, from its rows."""

import csv
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from experiments.common import into_readme, table
from kvpredict.llm.decode.evaluate import interval

__all__ = ["added", "write"]

LEARNED = ("learned", "learned_equal")
REFERENCE = "h2o"
ORDER = ("oracle", *LEARNED, "ridge", "h2o", "snapkv", "tova", "keydiff", "keynorm", "window", "random")

# (length, mode, policy, budget) -> sequence (genre, document, offset) -> added loss
Added = dict[tuple[int, str, str, float], dict[tuple[str, str, int], float]]


def read(file: Path) -> list[dict[str, str]]:
    """Return the rows of a csv file; none where it is missing."""
    if not file.is_file():
        return []
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def added(rows: Iterable[dict[str, str]], part: str) -> Added:
    """Return what each policy adds to the full cache's loss, by sequence."""
    nll: dict[tuple[int, str, str, float], dict[tuple[str, str, int], float]] = defaultdict(dict)
    for row in rows:
        if row["part"] == part:
            cell = (int(row["length"]), row["mode"], row["policy"], float(row["budget"]))
            nll[cell][(row["genre"], row["document"], int(row["offset"]))] = float(row["nll"])
    out: Added = {}
    for (length, mode, policy, budget), found in nll.items():
        full = nll.get((length, mode, "full", 1.0), {})
        if policy != "full":
            out[(length, mode, policy, budget)] = {k: v - full[k] for k, v in found.items() if k in full}
    return out


def share(mine: dict, theirs: dict) -> tuple[float, float, float, float]:  # type: ignore[type-arg]
    """Return the ratio of two mean added losses over the sequences of both, and the paired difference's interval."""
    both = sorted(mine.keys() & theirs.keys())
    a, b = np.array([mine[k] for k in both]), np.array([theirs[k] for k in both])
    paired = interval(a - b)
    return float(a.mean() / b.mean()), paired.mean, paired.low, paired.high


def losses(found: Added, length: int, mode: str) -> str:
    """Return the table of added loss by policy and budget, with H2O's share and the paired interval."""
    budgets = sorted({cell[3] for cell in found if cell[:2] == (length, mode)}, reverse=True)
    lines = []
    names = sorted({cell[2] for cell in found if cell[:2] == (length, mode)} - set(ORDER))
    for policy in (*ORDER, *names):
        cells = [found.get((length, mode, policy, budget)) for budget in budgets]
        if not any(cells):
            continue
        line = [policy]
        for budget, cell in zip(budgets, cells, strict=True):
            reference = found.get((length, mode, REFERENCE, budget))
            if not cell:
                line += ["", ""]
                continue
            line.append(f"{np.mean(list(cell.values())):.4f}")
            if not reference or policy == REFERENCE:
                line.append("")
            else:
                ratio, mean, low, high = share(cell, reference)
                line.append(f"{ratio:.2f} ({mean:+.3f}, {low:+.3f} to {high:+.3f})")
        lines.append(line)
    head = " | ".join(f"{budget:.1%} | share of H2O's (paired difference, 95 %)" for budget in budgets)
    return table(f"policy | {head}", lines) if lines else ""


def by_genre(found: Added, length: int, mode: str, budget: float) -> str:
    """Return the table of H2O's loss and the learned policies' shares of it, by genre."""
    reference = found.get((length, mode, REFERENCE, budget), {})
    lines = []
    for genre in sorted({key[0] for key in reference}):
        theirs = {k: v for k, v in reference.items() if k[0] == genre}
        line = [genre, str(len(theirs)), f"{np.mean(list(theirs.values())):.4f}"]
        for policy in LEARNED:
            mine = {k: v for k, v in found.get((length, mode, policy, budget), {}).items() if k[0] == genre}
            line.append(f"{share(mine, theirs)[0]:.2f}" if mine else "")
        lines.append(line)
    return table(f"genre | sequences | {REFERENCE} | {' | '.join(LEARNED)}", lines) if lines else ""


def retrieval(rows: list[dict[str, str]], part: str) -> str:
    """Return the table of passkeys and needles found, of those that the full cache finds."""
    cells: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for row in rows:
        if row["part"] == part and row["full"] == "1":
            cells[(row["policy"], row["budget"], row["kind"])].append(int(row["kept"]))
    lines = []
    for policy in ORDER:
        for budget in sorted({c[1] for c in cells if c[0] == policy}, reverse=True):
            line = [policy, f"{float(budget):.1%}"]
            for kind in ("passkey", "needle"):
                got = cells.get((policy, budget, kind), [])
                line.append(f"{sum(got)} of {len(got)}" if got else "")
            lines.append(line)
    return table("policy | budget | passkeys | needles", lines) if lines else ""


def learners(rows: list[dict[str, str]]) -> str:
    """Return the table of the learners of stage 1."""
    lines: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)
    for row in rows:
        lines[row["learner"]][(row["scope"], row["budget"])] = f"{float(row['added_nll']):.4f}"
    cells = [(scope, budget) for scope in ("model", "head") for budget in ("0.25", "0.125")]
    head = " | ".join(
        f"{'one threshold' if scope == 'model' else 'equal slots'}, {float(budget):.1%}" for scope, budget in cells
    )
    return table(f"learner | {head}", [[name, *(got.get(c, "") for c in cells)] for name, got in lines.items()])


def plot(found: Added, file: Path) -> None:
    """Draw added loss over budgets for sequences of 1,024 tokens, evicted once."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for policy in ORDER:
        cells = sorted((b, c) for (n, mode, p, b), c in found.items() if (n, mode, p) == (1024, "once", policy))
        if cells:
            means = [float(np.mean(list(c.values()))) for _, c in cells]
            style = {"linewidth": 2.6} if policy in LEARNED else {"linewidth": 1.2, "alpha": 0.8}
            axes.plot([100 * b for b, _ in cells], means, marker="o", markersize=3.5, label=policy, **style)  # type: ignore[arg-type]
    axes.set_xlabel("budget, % of the prefix")
    axes.set_ylabel("added NLL, nats a token")
    axes.set_ylim(bottom=0)
    axes.legend(ncols=2)
    figure.savefig(file, format="svg", metadata={"Date": None})


def write(folder: Path, part: str = "test") -> None:
    """Write the tables into the folder's README, and its plot."""
    found = added(read(folder / "results.csv"), part)
    for length, mode in ((1024, "once"), (1024, "online"), (4096, "once"), (4096, "online")):
        text = losses(found, length, mode)
        if text:
            count = max(len(cell) for key, cell in found.items() if key[:2] == (length, mode))
            into_readme(folder, f"{mode} {length}", f"{count} sequences.\n\n{text}")
    for budget in (0.25, 0.125):
        into_readme(folder, f"genres {budget:g}", by_genre(found, 1024, "once", budget))
    into_readme(folder, "retrieval", retrieval(read(folder / "found.csv"), part))
    into_readme(folder, "learners", learners(read(folder / "learners.csv")))
    peers = read(folder / "kvpress.csv")
    if peers:
        # Each is measured against the full cache of its own transformers.
        into_readme(folder, "kvpress", losses(added(peers, part) | found, 1024, "once"))
    if found:
        plot(found, folder / "plot.svg")
