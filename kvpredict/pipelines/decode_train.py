"""decode_train: learn which tokens of a long context a language model needs, and say what forgetting the others costs.

Two stages on the training documents: probes on recorded attention, then end to end through soft gates. The table
compares them on the validation documents, with hard eviction after the prefix; ``pipeline=decode_evaluate`` then
judges the saved policy against the heuristics, on documents that neither stage has seen.
"""

from pathlib import Path
from typing import Any

from kvpredict.llm.decode.fit import check_fit, fit_decode
from kvpredict.llm.decode.learn import decode_learner
from kvpredict.llm.decode.learn.end_to_end import EndToEnd, added_loss
from kvpredict.llm.decode.policies.learned import Learned
from kvpredict.pipelines.config import Config, ConfigError, DecodeTrain
from kvpredict.pipelines.decode_data import Data, load_data
from kvpredict.pipelines.progress import track
from kvpredict.tracking import WORK

__all__ = ["run"]


def run(config: Config, folder: Path, start: Path) -> dict[str, Any]:
    """Run the pipeline; the policy is saved in ``folder / "policy"``."""
    settings = config.pipeline
    stage1 = decode_learner(**config.decode_learner)
    stage2 = EndToEnd(**vars(settings.end_to_end))
    _check(settings, stage2)
    data = load_data(config, start)
    work = folder / WORK if settings.work is None else (start / Path(settings.work).expanduser()).resolve()
    fitted = fit_decode(
        data.model,
        data.train,
        work,
        validation=data.validation,
        learner=stage1,
        end_to_end=stage2,
        recorded=settings.recorded,
        horizon=settings.horizon,
        every=settings.interval,
        label=settings.label,
        rank=settings.rank,
        delay=settings.delay,
        seed=config.seed,
        progress=track,
    )
    fitted.policy.save(folder / "policy")
    stages = {stage1.name: fitted.first} | ({"end to end": fitted.policy} if stage2.steps else {})
    rows = _judge(data, stage2, stages) if data.validation else []
    budget = round(stage2.budgets[0] * stage2.prefix)
    last = rows[-len(stage2.budgets) :]
    saved = _saved(fitted.policy, stage2)
    table = {
        "title": f"{data.facts['name']}: loss added on {len(data.validation)} validation sequences; saved is {saved}",
        "columns": ["policy", "slots", "budget", "tokens a head", "added NLL, nats a token"],
        "rows": rows,
    }
    return {
        "trace": data.facts | {"saved": saved},
        "subject": " and ".join(stages),
        "capacity": {"count": budget, "unit": "tokens"},
        "split": {"at": len(data.train), "trained_on": len(data.train), "compared_on": len(data.validation)},
        "tables": [table] if rows else [],
        "learned": {
            "metrics": {f"added_nll_{round(100 * row[2])}": row[4] for row in last},
            "calibration": {},
            "importance": {},
            "folds": [],
            "settings": dict(fitted.policy.metadata),
            "curves": fitted.curves,
        },
    }


def _check(settings: DecodeTrain, stage2: EndToEnd) -> None:
    """Refuse settings that do not go together, before anything is loaded or written."""
    whole = stage2.prefix + stage2.continuation
    if settings.length < whole:
        raise ConfigError(
            f"pipeline.length={settings.length} is below the {whole} tokens of pipeline.end_to_end.prefix + "
            "continuation: raise it, or lower those"
        )
    check_fit(stage2, settings.recorded, settings.delay)


def _saved(policy: Learned, stage2: EndToEnd) -> str:
    """Return which state of training was saved, in words."""
    step = policy.metadata.get("saved_step", 0)
    return f"the state after step {step} of {stage2.steps}" if step else "what stage 1 found"


def _judge(data: Data, stage2: EndToEnd, policies: dict[str, Learned]) -> list[list[Any]]:
    """Return the table's rows: each policy with equal slots, and with its own split where it has one."""
    rows = []
    for name, policy in track(policies.items(), "judging", len(policies)):
        equal = EndToEnd(**{**vars(stage2), "scope": "head"})
        splits: dict[str, Any] = {"equal": None} | ({} if policy.splits is None else {"learned": policy.splits})
        for slots, shares in splits.items():
            assert policy.probe is not None
            probe = policy.probe.to(next(data.model.parameters()).device)
            added = added_loss(data.model, data.validation, probe, equal, shares=shares, delay=policy.delay)
            for number, budget in enumerate(stage2.budgets):
                tokens = round(budget * stage2.prefix)
                rows.append([name, slots, budget, tokens, float(added[:, number].mean())])
    return rows
