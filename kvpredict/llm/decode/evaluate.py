"""What a token budget costs: the change in the likelihood of text that follows, with its uncertainty.

Attention recalled and rank correlations mislead; what counts is the negative log-likelihood (NLL, nats a token) that a
model gives to real text after eviction, minus that with everything kept, on the same sequences. *Once*: a prefix is
read, the cache evicts, and the continuation is scored. *Online*: a text is read from its start in blocks, with the
budget kept at all times.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kvpredict.core.errors import KvpredictError

if TYPE_CHECKING:
    from kvpredict.llm.decode.cache import DecodeCache

__all__ = ["Interval", "Make", "agreement", "interval", "nll_once", "nll_online", "step_times"]

Make = Callable[[Any, str], "DecodeCache"]  # from the ids that will be read, and "prefill" or "steps", to a new cache


@dataclass(frozen=True)
class Interval:
    """A mean over sequences and its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def interval(values: Any) -> Interval:
    """Return the mean of ``values`` [n] and Student's 95 % interval; of one value the interval is not known (nan).

    For a paired comparison give the differences. The quantile is Cornish and Fisher's expansion, good to 1 % from four
    values on.
    """
    x = np.asarray(values, np.float64)
    if x.size < 2:
        return Interval(float(x.mean()), float("nan"), float("nan"))
    z, n = 1.959964, x.size - 1
    t = z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    half = float(t * x.std(ddof=1) / np.sqrt(x.size))
    return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half)


def nll_once(model: Any, ids: Any, prefix: int, make: Make) -> tuple[np.ndarray, "DecodeCache"]:
    """Evict after a prefix and score what follows.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    ids : integer tensor [B, tokens]
        Whole sequences, without padding.
    prefix : int
        Tokens before the eviction; those from the second after it on are scored.
    make : callable
        Makes the cache: ``make(ids, "prefill")``.

    Returns
    -------
    nll : float64 [B]
        Nats a token.
    cache : DecodeCache
        As it was left.
    """
    import torch

    if not 0 < prefix < ids.shape[1] - 1:
        raise KvpredictError(f"prefix must leave two tokens of {ids.shape[1]} to score, got {prefix}")
    cache = make(ids, "prefill")
    with torch.no_grad():
        model(ids[:, :prefix], past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = model(ids[:, prefix:-1], past_key_values=cache, use_cache=True).logits
    return _nll(logits, ids[:, prefix + 1 :]).mean(1), cache


def nll_online(model: Any, ids: Any, make: Make, block: int = 32) -> tuple[np.ndarray, "DecodeCache"]:
    """Read sequences from their start in blocks and score every token but the first; see ``nll_once``."""
    import torch

    cache, out = make(ids, "steps"), []
    with torch.no_grad():
        for start in range(0, ids.shape[1] - 1, block):
            stop = min(start + block, ids.shape[1] - 1)
            logits = model(ids[:, start:stop], past_key_values=cache, use_cache=True).logits
            out.append(_nll(logits, ids[:, start + 1 : stop + 1]))
    return np.concatenate(out, 1).mean(1), cache


def agreement(model: Any, ids: Any, make: Make, new: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Compare greedy generation with a full cache's.

    The full cache's answer is written first; then the cache at test reads prompt and answer, one token a step. Up to
    the first difference that *is* its own greedy generation.

    Returns
    -------
    same : float64 [B]
        Share of the answer's tokens that it would have chosen as well, each after the full cache's text.
    until : int64 [B]
        Tokens before the first difference.
    """
    import torch
    from transformers import DynamicCache

    with torch.no_grad():
        truth, step, full = [], ids, DynamicCache(config=model.config)
        for _ in range(new):
            step = model(step, past_key_values=full, use_cache=True, logits_to_keep=1).logits[:, -1:].argmax(-1)
            truth.append(step)
        answer = torch.cat(truth, 1)  # [B, new]
        cache = make(torch.cat([ids, answer], 1), "steps")
        model(ids[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        step, chosen = ids[:, -1:], []
        for k in range(new):
            logits = model(step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            chosen.append(logits[:, -1:].argmax(-1))
            step = answer[:, k : k + 1]
    same = (torch.cat(chosen, 1) == answer).cpu().numpy()
    return same.mean(1), np.cumprod(same, 1).sum(1)


def step_times(model: Any, ids: Any, make: Make, steps: int = 32) -> dict[str, float]:
    """Time decoding after a prompt: ``step_us`` a step, and of it ``policy_us``, in microseconds.

    Means, since ranking happens every few steps: a median would leave it out. The policy's part is what it notes,
    scores and ranks; attention and the writing of slots are not it.
    """
    import torch

    def wait() -> None:
        if ids.device.type == "cuda":
            torch.cuda.synchronize()

    cache = make(ids, "steps")
    whole: list[float] = []
    part: list[float] = []
    with torch.no_grad():
        model(ids[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        step = ids[:, -1:]
        for _ in range(steps):
            cache.policy_seconds = 0.0
            wait()
            started = time.perf_counter()
            step = model(step, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
            wait()
            whole.append(time.perf_counter() - started)
            part.append(cache.policy_seconds)
    return {"step_us": 1e6 * float(np.mean(whole)), "policy_us": 1e6 * float(np.mean(part))}


def _nll(logits: Any, targets: Any) -> np.ndarray:
    """Return [B, tokens] nats."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits.float().transpose(1, 2), targets, reduction="none").double().cpu().numpy()
