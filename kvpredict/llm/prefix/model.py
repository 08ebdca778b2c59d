"""The hazard model: rows of segments, one example for each age bin that a block lived through, boosted trees.

A row that was reused counts in every bin up to that one, where its label is 1; a row not yet reused counts in the bins
that are over (it is censored, not negative). Blocks of a segment weigh together.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kvpredict.core.errors import ArtifactError, KvpredictError, MissingExtra
from kvpredict.llm.prefix.hazard import BINS, EDGES
from kvpredict.llm.prefix.turns import FEATURES, Turns
from kvpredict.scorers.trees import Node, Trees, check, make_trees

__all__ = ["Model", "examples", "fit_model", "lacking", "load_model", "no_model", "save_model"]

FORMAT = 1
MOST = 400_000  # examples
REUSES = 20  # examples of these, at least
DEPTH = 8
RATE, LEAST, FRACTION, L2 = 0.1, 50, 0.8, 1.0  # LightGBM's
BAGS = 1
_JSON, _ARRAYS = "prefix_policy.json", "model.npz"


@dataclass(frozen=True, eq=False)
class Model:
    """Trees that score a row with its age bin; ``importance`` is each feature's share of the gain."""

    trees: Trees
    importance: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


def no_model() -> Model:
    """Return a model that knows nothing."""
    return Model(make_trees([Node(value=-6.0)]))


def examples(turns: Turns, now: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features float32 ``[e, features + 1]``, labels and weights ``[e]`` of all that is known at ``now``."""
    rows = np.flatnonzero(turns.stamp >= 0)
    reused = turns.reused[rows] <= now
    lived = np.where(reused, turns.reused[rows], now) - turns.born[rows]
    inside = np.clip(np.searchsorted(EDGES, np.maximum(lived, 0.0), side="right") - 1, 0, BINS - 1)
    bins = np.where(reused, inside + 1, np.where(lived >= EDGES[-1], BINS, inside))
    if bins.sum() > MOST:
        chosen = np.random.default_rng(seed).random(len(rows)) < MOST / bins.sum()
        rows, reused, bins = rows[chosen], reused[chosen], bins[chosen]
    which = np.repeat(np.arange(len(rows)), bins)
    bin_of = np.arange(len(which)) - np.repeat(np.cumsum(bins) - bins, bins)
    x = np.empty((len(which), len(FEATURES) + 1), np.float32)
    x[:, :-1] = np.nan_to_num(turns.x[rows][which], nan=-1.0)
    x[:, -1] = bin_of
    y = reused[which] & (bin_of == bins[which] - 1)
    return x, y.astype(np.float32), turns.blocks[rows][which]


def lacking(turns: Turns, y: np.ndarray, least: int) -> str | None:
    """Return what there is too little of to train on the rows in ``turns``, whose labels are ``y``; else None."""
    segments, reused = int((turns.stamp >= 0).sum()), int(y.sum())
    if segments < least:
        return f"{segments} segments of prompts, at least {least} are needed"
    if reused < REUSES:
        return (
            f"{reused} of {segments} segments of prompts used again after their request had ended, at least {REUSES} "
            "are needed; what requests in progress at the same time share does not count"
        )
    if reused == len(y):
        return f"none of {segments} segments of prompts was without use for {EDGES[1]:g} seconds"
    return None


def fit_model(
    turns: Turns, now: float, *, least: int = 500, rounds: int = 80, leaves: int = 15, seed: int = 0
) -> Model | None:
    """Train on the rows in ``turns``; None where ``lacking`` names something."""
    x, y, weight = examples(turns, now, seed)
    if lacking(turns, y, least):
        return None
    try:
        import lightgbm
    except ImportError as error:
        raise MissingExtra(f'training needs LightGBM: pip install "kvpredict[train]" ({error})') from error
    data = lightgbm.Dataset(x, y, weight=weight, params={"max_bin": 63, "verbosity": -1}, free_raw_data=False)
    roots, gain = [], np.zeros(x.shape[1])
    for bag in range(BAGS):  # averages several, which differ by the features that each tree may use
        booster = lightgbm.train(
            {
                "objective": "binary",
                "num_leaves": leaves,
                "max_depth": DEPTH,
                "learning_rate": RATE,
                "min_data_in_leaf": LEAST,
                "max_bin": 63,
                "feature_fraction": FRACTION,
                "lambda_l2": L2,
                "seed": BAGS * seed + bag,
                "deterministic": True,
                "force_row_wise": True,
                "num_threads": 1,
                "verbosity": -1,
            },
            data,
            num_boost_round=rounds,
        )
        gain += booster.feature_importance("gain")
        roots += [_node(tree["tree_structure"], 1.0 / BAGS) for tree in booster.dump_model()["tree_info"]]
    shares = dict(zip((*FEATURES, "age_bin"), (gain / max(gain.sum(), 1e-9)).tolist(), strict=True))
    return Model(make_trees(roots), shares)


def _node(tree: Mapping[str, Any], weight: float) -> Node:
    if "split_feature" not in tree:
        return Node(value=weight * tree["leaf_value"])
    return Node(
        feature=tree["split_feature"],
        threshold=tree["threshold"],
        left=_node(tree["left_child"], weight),
        right=_node(tree["right_child"], weight),
    )


def save_model(
    folder: str | Path, model: Model | None, settings: Mapping[str, Any], metadata: Mapping[str, Any]
) -> Path:
    """Write a model (None: none yet), the settings of its policy and where it came from; nothing is pickled."""
    folder = Path(folder)
    model = model or no_model()
    content = {
        "format": FORMAT,
        "features": [*FEATURES, "age_bin"],
        "edges": EDGES.tolist(),
        "policy": dict(settings),
        "importance": dict(model.importance),
        "metadata": {**model.metadata, **metadata},
    }
    arrays = io.BytesIO()
    np.savez(arrays, **model.trees._asdict())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _ARRAYS).write_bytes(arrays.getvalue())
        (folder / _JSON).write_text(json.dumps(content, indent=1, allow_nan=False))
    except OSError as error:
        raise ArtifactError(f"cannot write the prefix policy to {folder}: {error}") from error
    return folder


def load_model(folder: str | Path) -> tuple[Model, dict[str, Any]]:
    """Return model and settings from ``folder``.

    Raises
    ------
    ArtifactError
        When the folder holds no prefix policy, a damaged or newer one, or one made for other features.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / _JSON).read_text())
        if content["format"] > FORMAT:
            raise ArtifactError(f"{folder} is in format {content['format']}, this kvpredict reads {FORMAT}: upgrade it")
        if content["features"] != [*FEATURES, "age_bin"] or content["edges"] != EDGES.tolist():
            raise ArtifactError(
                f"{folder} was made for other features or age bins than this kvpredict's: train it anew"
            )
        with np.load(folder / _ARRAYS, allow_pickle=False) as arrays:
            trees = Trees(**{name: np.ascontiguousarray(arrays[name]) for name in arrays.files})
        check(trees, len(FEATURES) + 1)
        return Model(trees, content["importance"], content["metadata"]), dict(content["policy"])
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder} holds no prefix policy: {error.filename} is missing") from error
    except KvpredictError:
        raise
    except Exception as error:  # whatever a damaged file makes the parsers raise
        raise ArtifactError(f"{folder} is damaged ({type(error).__name__}: {error}); save the policy again") from error
