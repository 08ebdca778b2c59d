"""Fit: from a trace to a learned policy, in one call.

The policy is trained on its own decisions. A first round serves the trace by recency and logs decisions; a model
trained on them serves the next round, whose decisions it meets are added, and so on (DAgger: Ross et al., AISTATS
2011), so that the rows come from the cache that the policy itself keeps. The last part in time judges the model; the
policy returned is trained on all of it.
"""

import inspect
import itertools
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np

from kvpredict.artifact import Artifact
from kvpredict.core.arguments import whole_number
from kvpredict.core.errors import KvpredictError, unknown_name
from kvpredict.features.schema import BASE_FEATURES, Schema
from kvpredict.learn.dataset import Dataset, record_decisions
from kvpredict.learn.evaluate import FitReport, calibration, metrics
from kvpredict.learn.learner import Curves, Fitted, Game, Learner, NothingToLearn, Past
from kvpredict.learn.origin import origin
from kvpredict.policies.guarded import Guarded
from kvpredict.policies.learned import MODES, Learned
from kvpredict.scorers.trees import Node, make_trees
from kvpredict.simulate.simulate import check_trace, simulate, whole_capacity
from kvpredict.trace.trace import Trace

__all__ = ["NothingToLearn", "fit"]

ADMISSION_QUANTILES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
MIN_ROWS = 200
OF_GUARDED = ("candidates", "batch", "history")  # parameters of Guarded that fit passes on
OF_POLICY = (*OF_GUARDED, "base")  # those of Learned


def fit(
    trace: Trace,
    capacity: int,
    *,
    learner: str | Learner = "best",
    unit: str = "objects",
    mode: str = "evict",
    objective: str = "objects",
    extra: tuple[str, ...] | list[str] = (),
    horizon: float = 1.5,
    rounds: int = 2,
    rows: int = 50_000,
    validation: float = 0.25,
    cv: int = 0,
    seed: int = 0,
    **policy_params: Any,
) -> Learned | Guarded:
    """Train a policy for caches like the one of ``capacity`` on ``trace``.

    Parameters
    ----------
    trace : Trace
        The past. Judge the policy on what comes after it.
    capacity : int
        Objects, or bytes with ``unit="bytes"``. Features are in units of the cache's own residence time, so the
        policy also serves other capacities.
    learner : str or Learner, default "best"
        A name (see ``learner_names``) or a learner with its hyper-parameters. "best" compares, on the last part of
        ``trace``, a policy that learns while it serves with one that does so from a prior trained on ``trace``, and
        returns the better one. Both are under a guard: later requests may differ from all of ``trace``, and then they
        follow the best of several heuristics. It says too what a model frozen after it was trained (LightGBM's) would
        have missed there, and returns that only if told to: ``learner("best", unguarded=True)``. Any other learner
        returns its model, frozen and without a guard.
    mode : {"evict", "admit", "both"}, default "evict"
        What the model decides on. With "admit" and "both" it is always the frozen one.
    objective : {"objects", "bytes", "cost"}, default "objects"
        What a miss counts for: one, its size, or its cost (the trace's column "cost").
    extra : sequence of str, default ()
        Further columns of the trace to use as features of a frozen model; an error where none would be returned.
    horizon : float, default 1.5
        A row's label is 1 when the object is reused within this many residence times.
    rounds : int, default 2
        Rounds of serving and training.
    rows : int, default 50000
        Decisions sampled a round.
    validation : float, default 0.25
        Share of the trace, its last part, on which the model is judged.
    cv : int, default 0
        Folds of a time-series cross-validation within the trace; 0 for none.
    seed : int, default 0
    **policy_params
        Further parameters of the policy: ``candidates``, ``batch``, ``history``, ``base``.

    Returns
    -------
    Learned or Guarded
        Its ``report`` holds metrics, calibration and importances of the frozen model, settings, what was compared
        (``settings["compared"]``: the loss of each) and what was chosen. Where nothing could be learned from ``trace``,
        "best" returns the policy that learns while it serves, and ``settings["nothing_learned"]`` says why.

    Raises
    ------
    NothingToLearn
        When the trace holds too few evictions, or only decisions of one outcome, and ``learner`` is not "best" or
        ``mode`` not "evict"; or no requests.
    KvpredictError
        When an argument is out of range.
    """
    from kvpredict.learn import learner as make_learner

    check_trace(trace)
    capacity, seed = whole_capacity(capacity, unit), whole_number("seed", seed, least=None)
    learner = make_learner(learner) if isinstance(learner, str) else learner
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    rounds, cv = whole_number("rounds", rounds), whole_number("cv", cv, least=0)
    rows = whole_number("rows", rows, least=MIN_ROWS)
    for name, given, most in (("validation", validation, 1), ("horizon", horizon, np.inf)):
        if not isinstance(given, Real) or not 0 < given < most:
            raise KvpredictError(f"fit: {name} must be a number above 0 and below {most}, got {given!r}")
    for name in policy_params:
        if name not in OF_POLICY:
            own = inspect.signature(fit).parameters.keys() - {"policy_params"}
            raise unknown_name("argument of fit", name, [*own, *OF_POLICY])
    schema = _schema(trace, tuple(extra))
    if extra and mode == "evict" and not learner.freezes:
        raise KvpredictError(
            f"fit: extra={list(extra)} would have no effect: only frozen models look at further columns, and learner "
            f"{learner.name!r} returns none: give learner='lightgbm', or mode='admit' or 'both'"
        )
    chooses = learner.combines and mode == "evict"
    passed = {name: policy_params[name] for name in OF_GUARDED if name in policy_params} if chooses else {}
    cold = Guarded(objective=objective, **passed)  # refuses what is out of range before any work is done
    settings = {
        "learner": learner.name,
        "learner_params": learner.params(),
        "mode": mode,
        "objective": objective,
        "unit": unit,
        "capacity": capacity,
        "horizon": horizon,
        "rounds": rounds,
        "rows": rows,
        "validation": validation,
        "seed": seed,
    }
    served = {"mode": mode, "objective": objective, **policy_params}
    models: tuple[Learned, Learned] | None = None
    try:
        models = _frozen(trace, learner, schema, served, settings, cv)
        report = models[1].report
    except NothingToLearn as error:
        if not (chooses and len(trace)):
            raise
        report = FitReport({}, {}, {}, settings=settings | {"rows": 0, "nothing_learned": str(error)})
    if models is not None and not chooses:
        return models[1]
    past = Past(trace, _cut(trace, validation), capacity, unit, seed)
    return learner.choose(past, cold, models, report)


def _cut(trace: Trace, validation: float) -> int:
    """Return the requests before the part on which a model is judged."""
    return int(len(trace) * (1 - validation))


def _frozen(
    trace: Trace, learner: Learner, schema: Schema, served: dict[str, Any], settings: dict[str, Any], cv: int
) -> tuple[Learned, Learned]:
    """Return the policy of a model trained on all but the last part, and the one to serve, with its report."""
    mode, objective, unit, capacity = (settings[name] for name in ("mode", "objective", "unit", "capacity"))
    horizon, rows, seed = (settings[name] for name in ("horizon", "rows", "seed"))
    if capacity >= (trace.unique if unit == "objects" else trace.footprint):
        raise NothingToLearn(
            f"{trace.name}: a cache of {capacity} {unit} holds all of its {trace.unique} keys and evicts nothing, so "
            "there is nothing to learn. Choose a smaller capacity"
        )
    end, cut = len(trace) + 1, _cut(trace, settings["validation"]) + 1
    learning = served | {"mode": "evict" if mode == "evict" else "both"}
    policy = Learned(_recency(schema), **learning, log_rows=rows)
    rounds_data: list[Dataset] = []
    for _ in range(settings["rounds"]):
        data = record_decisions(trace, policy, capacity, unit=unit, seed=seed)
        if mode == "admit":
            data = _only_incoming(data)
        rounds_data.append(data)
        fitted = _train(learner, rounds_data, horizon, 0, cut, seed)
        policy = Learned(_artifact(fitted, schema), **learning, log_rows=rows)
    curves: Curves = {}
    if learner.plays and mode != "admit":
        game = _game(trace, capacity, unit, cut, policy, _gather(rounds_data, horizon, 0, cut), seed)
        fitted, curves = learner.play(fitted, game, seed)
        policy = Learned(_artifact(fitted, schema), **learning)
    x, y = _gather(rounds_data[-1:], horizon, cut, end)
    base_rate = float(_gather(rounds_data, horizon, 0, cut)[1].mean())
    predicted = policy.artifact.predict(x)
    # Who played has chosen with the help of the last part already.
    final = fitted if curves else _train(learner, rounds_data, horizon, 0, end, seed)
    report = FitReport(
        metrics=metrics(y, predicted, base_rate),
        calibration=calibration(y, predicted),
        importance=dict(zip(schema.names, final.importance.tolist(), strict=True)),
        folds=_cross_validate(learner, rounds_data, horizon, end, cv, seed),
        settings=settings | {"rows": sum(len(data) for data in rounds_data)},
        curves=curves,
    )
    frozen = Learned(_artifact(fitted, schema), **served)
    if mode == "admit":
        served = served | {
            "threshold": _choose_threshold(trace, frozen, capacity, unit, objective, cut, predicted, seed)
        }
    return frozen, Learned(_artifact(final, schema, origin(trace, report)), **served, report=report)


def _game(
    trace: Trace,
    capacity: int,
    unit: str,
    cut: int,
    policy: Learned,
    labelled: tuple[np.ndarray, np.ndarray],
    seed: int,
) -> Game:
    """Return the part before ``cut`` as a game of objects of one size, and the part after it as its judge."""

    def judge(scorer: Any) -> float:
        served = replace(policy, artifact=Artifact(scorer, policy.artifact.schema), log_rows=0)
        result = simulate(trace, served, capacity, unit=unit, warmup=cut - 1, seed=seed)
        return result.loss(policy.objective)

    past = trace.head(cut - 1)
    objects = capacity if unit == "objects" else max(1, capacity * trace.unique // trace.footprint)
    return Game(past, objects, policy.artifact.schema, policy.history, *labelled, judge)


def _schema(trace: Trace, extra: tuple[str, ...]) -> Schema:
    for name in extra:
        trace.column(name)  # raises for an unknown one, with the nearest right name
    return Schema(extra, {name: trace.categories[name] for name in extra if name in trace.categories})


def _recency(schema: Schema) -> Artifact:
    """Return the model of the first round: what was used longest ago goes first."""
    # One tree, so that most learners need no second compilation of the policy: 64 steps of recency, a factor 1.2 apart.
    return Artifact(make_trees([_steps(0, 64)]), schema, "logit")


def _steps(low: int, high: int) -> Node:
    if high - low == 1:
        return Node(value=-float(low))
    middle = (low + high) // 2
    return Node(
        feature=BASE_FEATURES.index("recency"),
        threshold=1e-3 * 1.2**middle,
        left=_steps(low, middle),
        right=_steps(middle, high),
    )


def _artifact(fitted: Fitted, schema: Schema, metadata: dict[str, Any] | None = None) -> Artifact:
    return Artifact(fitted.scorer, schema, fitted.link, metadata or {})


def _only_incoming(data: Dataset) -> Dataset:
    part = data.incoming == 1
    return Dataset(data.x[part], data.now[part], data.distance[part], data.unit[part], data.incoming[part])


def _gather(rounds_data: list[Dataset], horizon: float, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    parts = [data.labelled(horizon, start, stop) for data in rounds_data]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def _train(learner: Learner, rounds_data: list[Dataset], horizon: float, start: int, stop: int, seed: int) -> Fitted:
    x, y = _gather(rounds_data, horizon, start, stop)
    if len(y) < MIN_ROWS or y.min() == y.max():
        raise NothingToLearn(
            f"too few decisions to learn from: {len(y)} have a label, {int(y.sum())} of them a reuse; at least "
            f"{MIN_ROWS} are needed, and both kinds. Give a longer past, or another capacity"
        )
    return learner.fit(x, y, seed)


def _cross_validate(
    learner: Learner,
    rounds_data: list[Dataset],
    horizon: float,
    end: int,
    folds: int,
    seed: int,
) -> list[dict[str, float]]:
    """Return metrics of ``folds`` models, each trained on all parts before the one it is judged on."""
    edges = np.linspace(0, end, folds + 2).astype(int)
    results = []
    for stop, later in itertools.pairwise(edges[1:]) if folds else ():
        fitted = _train(learner, rounds_data, horizon, 0, int(stop), seed)
        x, y = _gather(rounds_data[-1:], horizon, int(stop), int(later))
        base_rate = float(_gather(rounds_data, horizon, 0, int(stop))[1].mean())
        results.append(metrics(y, Artifact(fitted.scorer, Schema(), fitted.link).predict(x), base_rate))
    return results


def _choose_threshold(
    trace: Trace,
    policy: Learned,
    capacity: int,
    unit: str,
    objective: str,
    cut: int,
    predicted: np.ndarray,
    seed: int,
) -> float:
    """Return the score below which admission is refused: of some quantiles, the one with the fewest misses."""
    probability = np.clip(predicted, 1e-9, 1 - 1e-9)
    raw = np.log(probability / (1 - probability)) if policy.artifact.link == "logit" else predicted
    thresholds = [-1e30, *(float(np.quantile(raw, q)) for q in ADMISSION_QUANTILES if len(raw))]
    misses = [
        simulate(trace, replace(policy, threshold=t), capacity, unit=unit, warmup=cut - 1, seed=seed).loss(objective)
        for t in thresholds
    ]
    return thresholds[int(np.argmin(misses))]
