"""fit_decode: from a model and texts to a learned decode policy, in two stages.

Stage 1 records what attention did and fits probes to it; stage 2 trains them end to end through soft gates, which is
where most of the gain lies. Both take up what an interrupted run left in their folder.
"""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kvpredict.core.errors import KvpredictError
from kvpredict.llm.decode.fingerprint import model_identity, output_factor
from kvpredict.llm.decode.learn import ImportanceLearner, decode_learner
from kvpredict.llm.decode.learn.end_to_end import EndToEnd, Trained
from kvpredict.llm.decode.learn.learner import Curves, Fitted, Progress, quiet
from kvpredict.llm.decode.policies.learned import Learned
from kvpredict.llm.decode.record import record

__all__ = ["FitDecode", "check_fit", "fit_decode"]


class FitDecode(NamedTuple):
    """The policy, what stage 1 alone found, and the curves of both trainings."""

    policy: Learned
    first: Learned
    curves: Curves


def fit_decode(
    model: Any,
    sequences: Sequence[Sequence[int]],
    folder: str | Path,
    *,
    validation: Sequence[Sequence[int]] = (),
    learner: str | ImportanceLearner = "ridge",
    end_to_end: EndToEnd | None = None,
    recorded: int = 30,
    horizon: int = 256,
    every: int = 256,
    label: str = "attention",
    rank: int = 0,
    delay: int = 0,
    seed: int = 0,
    progress: Progress = quiet,
) -> FitDecode:
    """Train a decode policy for ``model``.

    Parameters
    ----------
    model : transformers causal LM
        Its parameters do not change.
    sequences, validation : sequences of token lists
        Of different documents. Both stages see ``sequences`` only; ``validation`` chooses among the states of stage 2,
        the start from stage 1 included; the step of the one that is saved is the policy's metadata ``saved_step``.
    folder : path
        Where the recording and checkpoints go.
    learner : str or ImportanceLearner, default "ridge"
        Of stage 1.
    end_to_end : EndToEnd, optional
        Stage 2; default: ``EndToEnd()``. With ``steps=0`` there is none, and slots are equal.
    recorded : int, default 30
        Sequences that stage 1 records.
    horizon, every, label, rank :
        Of ``record``.
    delay : int, default 0
        Steps after which a token is judged, with the attention that it got meanwhile.
    """
    folder = Path(folder)
    stage2 = EndToEnd() if end_to_end is None else end_to_end
    stage1 = decode_learner(learner) if isinstance(learner, str) else learner
    check_fit(stage2, recorded, delay)
    if stage2.steps:
        stage2.check(sequences, validation)
    recording = record(
        model, sequences[:recorded], folder / "recording",
        horizon=horizon, every=every, label=label, rank=rank, early=delay, seed=seed, progress=progress,
    )  # fmt: skip
    fitted: Fitted = stage1.fit(recording, output_factor(model), seed, progress)
    identity = model_identity(model)
    metadata = {
        "learner": stage1.name,
        "learner_settings": stage1.params(),
        "label": label,
        "sequences": len(sequences),
        "recorded": len(recording),
        "validation": len(validation),
        "python": platform.python_version(),
    }
    first = Learned(fitted.probe, identity, longest=stage2.prefix, delay=delay, metadata=metadata)
    if stage2.steps == 0:
        return FitDecode(first, first, fitted.curves)
    trained: Trained = stage2.fit(
        model,
        sequences,
        fitted.probe,
        delay=delay,
        checkpoint=folder / "end_to_end.pt",
        validation=validation,
        origin={"learner": stage1.name, "recorded": len(recording), **stage1.params()},
        seed=seed,
        progress=progress,
    )
    metadata = metadata | {
        "steps": stage2.steps,
        "saved_step": trained.step,
        "scope": stage2.scope,
        "budgets": list(stage2.budgets),
    }
    budgets = () if trained.shares is None else stage2.budgets
    policy = Learned(
        trained.probe, identity, trained.shares, budgets,
        longest=stage2.prefix, delay=delay, attention=stage2.attention, recent=stage2.recent, metadata=metadata,
    )  # fmt: skip
    return FitDecode(policy, first, fitted.curves | trained.curves)


def check_fit(end_to_end: EndToEnd, recorded: int, delay: int) -> None:
    """Raise ``KvpredictError`` on settings of ``fit_decode`` that do not go together."""
    if recorded < 1:
        raise KvpredictError(f"recorded={recorded}: stage 1 needs at least 1 recorded sequence")
    if delay > end_to_end.recent:
        raise KvpredictError(
            f"delay={delay} exceeds recent={end_to_end.recent}: tokens would go before they are judged"
        )
