"""decode_evaluate: what a token budget costs a language model on later documents, policy by policy."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kvpredict.core.errors import KvpredictError
from kvpredict.pipelines.config import Config, ConfigError, DecodeEvaluate
from kvpredict.pipelines.progress import track

__all__ = ["run"]

LEARNED, FULL = "learned", "full"
PARTS = 32  # columns of the picture of kept tokens
REFERENCES = (FULL, "oracle")  # rows that nobody can serve with


def run(config: Config, folder: Path, start: Path) -> dict[str, Any]:
    """Run the pipeline; nothing is saved but the result."""
    from kvpredict.llm.decode import evaluate, text
    from kvpredict.llm.layers import check_positions
    from kvpredict.pipelines.decode_data import load, parted

    s: DecodeEvaluate = config.pipeline
    chosen, trained = _chosen(s), _trained(s, start)
    earlier, later = parted(s, start)
    if not later:
        raise KvpredictError(
            f"pipeline.later={s.later} leaves none of the documents in pipeline.text ({len(earlier)} found) to judge "
            "on: lower it (pipeline.later=0 takes all)"
        )
    length = s.prefix + s.continuation
    model, tokenizer = load(s, start)
    check_positions(model, length, "pipeline.prefix + continuation")
    check_positions(model, s.prefix + s.answer, "pipeline.prefix + answer")
    cut, names = text.cut(later, tokenizer, length, s.sequences, each=s.each)
    ids = text.on_device(cut, model)
    makers = {name: _maker(name, model, s, trained) for name in chosen}
    budgets = sorted({max(1, round(share * s.prefix)) for share in s.budgets}, reverse=True)
    cells = [(name, budget) for name in makers for budget in (budgets if name != FULL else [length])]
    for name, budget in cells:  # one that is too small is named before the others have taken their time
        if name != "oracle":
            makers[name](budget)(ids, "steps")
    rows, depths, kept = [], [], []
    truth: dict[str, np.ndarray] = {}
    for name, budget in track(cells, "judging policies", len(cells)):
        make = makers[name](budget)
        row, pictures = _judge(evaluate, model, ids, make, s, truth)
        hidden = [] if name == FULL else _hidden(model, tokenizer, cut, make, s, config.seed)
        for kind in ("passkey", "needle"):
            there = [f.kept for f in hidden if f.kind == kind and f.full]
            row[kind] = float(np.mean(there)) if there else None
        head = {"policy": name, "capacity": budget}
        depths += [head | {"kind": f.kind, "depth": f.depth, "found": f.kept} for f in hidden]
        if name != FULL and budget == min(budgets):
            kept.append({"policy": name, "share": pictures})
            depths += [
                {"policy": FULL, "capacity": None, "kind": f.kind, "depth": f.depth, "found": f.full}
                for f in hidden
                if len(kept) == 1
            ]
        rows.append({**head, "oracle": name in REFERENCES, "unit": "tokens", **row})
    rows.sort(key=lambda r: (-r["capacity"], r["once_added"], r["policy"]))
    return {
        "trace": {
            "name": "Python's help topics" if not s.text else ", ".join(Path(p).name for p in s.text),
            "fingerprint": hashlib.sha256(cut.tobytes()).hexdigest()[:12],
            "sequences": len(cut),
            "tokens": length,
            "documents": len(set(names)),
            "of_documents": len(earlier) + len(later),
        },
        "model": {
            "name": s.model,
            "type": model.config.model_type,
            "layers": model.config.get_text_config(decoder=True).num_hidden_layers,
            "heads": int(makers[FULL](length)(ids, "steps").slots.shape[1]),
            "parameters": model.num_parameters(),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "capacity": {"count": budgets[0], "unit": "tokens"},
        "policies": rows,
        "depths": depths,
        "kept": kept,
        "learned": None,
    }


def _chosen(s: DecodeEvaluate) -> list[str]:
    """Return the policies to judge; the full cache is the first, for it is what others are measured against."""
    from kvpredict.llm.decode.policies import decode_policy_class

    if LEARNED in s.policies and s.policy is None:
        raise KvpredictError("pipeline.policies has learned: give its folder or MLflow URI as pipeline.policy")
    if not s.policies and s.policy is None:
        raise ConfigError("pipeline.policies=[] and no pipeline.policy: name one policy at least to judge")
    if not s.budgets:
        raise ConfigError("pipeline.budgets=[]: give shares of the prefix, such as [0.25]")
    for name in s.policies:
        if name != LEARNED:
            decode_policy_class(name)  # raises for an unknown one, with the nearest right name
    return list(dict.fromkeys([FULL, *([LEARNED] if s.policy is not None else []), *s.policies]))


def _trained(s: DecodeEvaluate, start: Path) -> Any:
    """Return the policy of ``pipeline.policy``; None without one."""
    from kvpredict.llm.decode.cache import find_policy
    from kvpredict.llm.decode.policies.learned import Learned

    if s.policy is None:
        return None
    if not s.policy.strip():
        raise ConfigError("pipeline.policy is empty: give the folder or MLflow URI of a trained one, or leave it out")
    folder = (start / Path(s.policy).expanduser()).resolve()
    policy = find_policy(folder if folder.is_dir() else s.policy)
    if not isinstance(policy, Learned):
        raise ConfigError(f"pipeline.policy={s.policy} is not a trained policy: put its name in pipeline.policies")
    return policy


def _maker(name: str, model: Any, s: DecodeEvaluate, trained: Any) -> Callable[[int], Callable[[Any, str], Any]]:
    """Return what makes, from a budget, what makes a cache for sequences."""
    from kvpredict.llm.decode.cache import DecodeCache
    from kvpredict.llm.decode.policies.oracle import Oracle, record_future

    def make(budget: int) -> Callable[[Any, str], DecodeCache]:
        def new(ids: Any, when: str) -> DecodeCache:
            policy: Any = trained.for_budget(budget / s.prefix) if name == LEARNED else name
            if name == "oracle":
                policy = Oracle(record_future(model, ids), 32)
            recent = int(s.recent) if s.recent is not None and s.recent >= 1 else s.recent
            return DecodeCache(
                budget,
                policy,
                model=model,
                sinks=s.sinks,
                recent=recent,
                split=s.shares,
                when=when,
                interval=s.interval,
            )

        return new

    return make


def _judge(
    evaluate: Any, model: Any, ids: Any, make: Any, s: DecodeEvaluate, truth: dict[str, np.ndarray]
) -> tuple[dict[str, Any], Any]:
    """Return the figures of one policy at one budget, and where its kept tokens are, [layers, PARTS]."""
    row: dict[str, Any] = dict.fromkeys(
        f"{mode}_{figure}" for mode in ("once", "online") for figure in ("nll", "perplexity", "added", "low", "high")
    )
    once, online = [], []
    picture: Any = 0.0
    for sequence in ids.split(1):
        nll, cache = evaluate.nll_once(model, sequence, s.prefix, make)
        once.append(nll[0])
        held = [np.concatenate(heads) for heads in cache.kept()]
        edges = np.linspace(0, s.prefix, PARTS + 1)
        picture = picture + np.array([np.histogram(h[h < s.prefix], edges)[0] for h in held]) / len(ids)
        if s.online:
            online.append(evaluate.nll_online(model, sequence, make, s.block)[0][0])
    for mode, nll in (("once", once), ("online", online)):
        if nll:
            full = truth.setdefault(mode, np.array(nll))  # the first policy is the full cache
            added = evaluate.interval(np.array(nll) - full)
            mean = float(np.mean(nll))
            row |= {f"{mode}_nll": mean, f"{mode}_perplexity": float(np.exp(mean)), f"{mode}_added": added.mean}
            row |= {f"{mode}_low": added.low, f"{mode}_high": added.high}
    row |= {"same_tokens": None, "first_difference": None, "policy_us": None, "step_us": None}
    if s.answer:
        same, until = evaluate.agreement(model, ids[:, : s.prefix], make, s.answer)
        row |= {"same_tokens": float(same.mean()), "first_difference": float(until.mean())}
        row |= evaluate.step_times(model, ids[:1, : s.prefix], make, s.answer)
    cache = make(ids[:1, : s.prefix], "steps")
    evaluate.nll_online(model, ids[:1, : s.prefix], lambda *_: cache, s.block)
    group = cache.layers[0].groups[0]
    a_token = group.nbytes / group.keys[..., 0].numel()
    # What transformers' own cache would hold; it keeps no more of a layer with a sliding window than the window.
    everything = a_token * sum(len(at.slots_of) * min(s.prefix, at.window or s.prefix) for at in cache.layers)
    row |= {"kv_bytes": cache.nbytes, "freed": max(0.0, 1 - cache.nbytes / everything)}
    return row, np.asarray(picture).tolist()


def _hidden(model: Any, tokenizer: Any, filler: np.ndarray, make: Any, s: DecodeEvaluate, seed: int) -> list[Any]:
    from kvpredict.llm.decode.retrieval import KINDS, retrieve

    return [
        found
        for kind in KINDS
        for found in retrieve(
            model, tokenizer, filler[:, : s.prefix], make, kind=kind, depths=s.depths, trials=s.trials, seed=seed
        )
    ]
