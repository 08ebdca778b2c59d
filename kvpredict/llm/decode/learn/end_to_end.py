"""End to end: train probes on what eviction does to the model's predictions, through soft gates.

A prefix is run once; its free tokens get gates (``gates``) from the probe's scores, and the loss of a step is the
divergence of the continuation's predictions from the full model's, KL(full || gated). What this finds, and no label
holds, is how scores of different layers and heads compare: so each head has a scale and a shift of its own, and one
tau for all heads lets them compete for slots. With ``scope="head"`` every head keeps equally many and learns to rank.
The model is frozen and computes in its own type, probes and loss in float32. Afterwards the learned split is read off:
how many tokens each head kept on training sequences, on average.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvpredict.core.errors import KvpredictError, TraceError
from kvpredict.core.place import atomic_path
from kvpredict.llm.decode.features import SPAN, early_feature
from kvpredict.llm.decode.fingerprint import model_identity
from kvpredict.llm.decode.gates import SCOPES, gated, hard, kept, log_gates
from kvpredict.llm.decode.learn.learner import Curves, Progress, quiet, require
from kvpredict.llm.decode.observe import Observed, observe, prefix_cache
from kvpredict.llm.decode.probe import Probe

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EndToEnd", "Trained", "added_loss", "prefix_scores"]

_FEW = ("norms", "ages", "bias", "early", "received", "stretch")  # parameters with a few numbers a head
_MANY = ("weight", "inner", "inner_bias", "outer")
_JUDGED = "added_nll_"  # curves of the added loss on validation, one a budget


@dataclass(frozen=True)
class Trained:
    """A trained probe, training's curves, and the splits that go with the probe, [budgets, L, H], each of mean 1.

    No splits for equal slots. ``step`` is when the probe was at that state; 0 is the start.
    """

    probe: Probe
    shares: "Tensor | None"
    curves: Curves
    step: int


@dataclass(frozen=True)
class EndToEnd:
    """Gradient descent through soft gates.

    Parameters
    ----------
    steps : int, default 150
        Sequences seen, one a step.
    prefix, continuation : int, default 768 and 256
        Tokens that may be evicted, and tokens whose predictions are compared.
    budgets : tuple of floats, default (0.25, 0.125)
        Shares of the prefix that are kept; each step draws one.
    scope : {"model", "head"}, default "model"
        Who shares the budget: all heads, or each has its own.
    sinks, recent : int, default 4 and 32
        First and last tokens of the prefix that always stay, inside the budget.
    temperature : tuple of two floats, default (0.6, 0.15)
        Of the gates, at the first and at the last step.
    rate, rate_few : float, default 0.001 and 0.01
        Adam's peak learning rates, for weights of the hidden state and for the few others.
    every : int, default 25
        Steps between checkpoints, and between validations.
    average : float, default 0.0
        What is judged and returned is an average over the steps in which each older one weighs this much less, at most
        0.999: one sequence a step is noisy. 0.0: the parameters as they are.
    attention : bool, default False
        Whether the attention that tokens have received so far counts too (``received_features``). A cache with such a
        policy has to compute attention weights.
    """

    name = "end_to_end"

    steps: int = 150
    prefix: int = 768
    continuation: int = 256
    budgets: tuple[float, ...] = (0.25, 0.125)
    scope: str = "model"
    sinks: int = 4
    recent: int = 32
    temperature: tuple[float, float] = (0.6, 0.15)
    rate: float = 1e-3
    rate_few: float = 1e-2
    every: int = 25
    average: float = 0.0
    attention: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "budgets", tuple(self.budgets))
        object.__setattr__(self, "temperature", tuple(self.temperature))
        require(self.steps >= 0, self, f"steps must be at least 0, got {self.steps}")
        require(self.continuation >= 2, self, f"continuation must be at least 2 tokens, got {self.continuation}")
        require(self.scope in SCOPES, self, f"scope must be one of {', '.join(SCOPES)}, got {self.scope!r}")
        require(len(self.temperature) == 2 and min(self.temperature) > 0, self, "temperature must be two above 0")
        for rate in (self.rate, self.rate_few):
            require(0 < rate < inf, self, f"learning rates must be finite and above 0, got {rate}")
        require(self.every >= 1, self, f"every must be at least 1, got {self.every}")
        require(0 <= self.average <= 0.999, self, f"average must be 0 to 0.999, got {self.average}")
        require(self.sinks >= 0 and self.recent >= 1, self, "sinks must be at least 0, recent at least 1")
        require(
            not self.attention or self.prefix % SPAN == 0, self, f"with attention, prefix must be a multiple of {SPAN}"
        )
        require(bool(self.budgets), self, "budgets must hold a share of the prefix, such as 0.25")
        for budget in self.budgets:
            least = self.sinks + self.recent
            require(0 < budget < 1, self, f"budgets must be shares of the prefix above 0 and below 1, got {budget}")
            require(
                self.free_slots(budget) > 0,
                self,
                f"budget {budget} of a prefix of {self.prefix} must leave more than the {least} protected tokens",
            )
            require(
                self.free_slots(budget) < self.prefix - least,
                self,
                f"budget {budget} of a prefix of {self.prefix} is all of it: nothing would be evicted",
            )

    def check(self, sequences: Sequence[Sequence[int]], validation: Sequence[Sequence[int]] = ()) -> None:
        """Raise ``KvpredictError`` unless there are sequences, all of them long enough."""
        length = self.prefix + self.continuation
        if not sequences or min(map(len, [*sequences, *validation])) < length:
            raise KvpredictError(
                f"training end to end needs sequences of {length} tokens (prefix + continuation) or more"
            )

    def free_slots(self, budget: float) -> int:
        """Return the tokens a head keeps beside the protected ones."""
        return round(budget * self.prefix) - self.sinks - self.recent

    def fit(
        self,
        model: Any,
        sequences: Sequence[Sequence[int]],
        probe: Probe,
        *,
        delay: int = 0,
        checkpoint: Path | None = None,
        validation: Sequence[Sequence[int]] = (),
        origin: Mapping[str, Any] | None = None,
        seed: int = 0,
        progress: Progress = quiet,
    ) -> Trained:
        """Train ``probe`` for ``model``.

        Parameters
        ----------
        model : transformers causal LM
            Its parameters do not change.
        sequences, validation : sequences of token lists
            Each of at least ``prefix + continuation`` tokens. The state with the least added loss on ``validation``,
            which may be the start, is returned; without any, the last one.
        probe : Probe
            Where to start, such as a ridge probe.
        delay : int, default 0
            Steps after which tokens are judged, with the attention that they got till then.
        checkpoint : Path, optional
            A file to write the state of training to, and to go on from where it is there.
        origin : mapping of plain values, optional
            How ``probe`` was made; a checkpoint that began with a probe of another origin is refused. The probe's own
            numbers are not compared, as fitting one again may round otherwise.

        Raises
        ------
        TraceError
            When ``checkpoint`` is of a training with other settings, model, sequences or probe, damaged, or cannot be
            written.
        """
        self.check(sequences, validation)
        device = next(model.parameters()).device
        state = _State.begin(probe.to(device), self)
        about: dict[str, Any] = {} if checkpoint is None else {
            "settings": asdict(self) | {"seed": seed},
            "model": model_identity(model)["digest"],
            "delay": delay,
            "sequences": _digest(sequences),
            "validation sequences": _digest(validation),
            "probe": {name: list(value.shape) for name, value in state.values.items()} | {"origin": dict(origin or {})},
        }  # fmt: skip
        if checkpoint is not None and checkpoint.is_file():
            state.load(checkpoint, about)
        trained = any(p.requires_grad for p in model.parameters())
        model.requires_grad_(False)

        def judge(step: int) -> None:
            if validation:
                state.judge(step, _mean(added_loss(model, validation, state.found(), self, delay=delay)))

        try:
            if state.step == 0:
                judge(0)
            for step in progress(range(state.step, self.steps), "training end to end", self.steps - state.step):
                self._step(model, sequences, state, step, delay, seed)
                if (step + 1) % self.every == 0 or step + 1 == self.steps:
                    judge(step + 1)
                    if checkpoint is not None:
                        state.save(checkpoint, about)
            found = state.best()
            shares = self._shares(model, sequences[:12], found, delay) if self.scope == "model" else None
        finally:
            model.requires_grad_(trained)
        return Trained(found.to("cpu"), shares, state.curves, state.best_step())

    def seen(self, model: Any, ids: "Tensor", delay: int, tail: int = 1) -> Observed:
        """Return what the scores need to know of a sequence, and the last ``tail`` tokens' logits."""
        return observe(model, ids, tail=tail, attention=self.attention or delay > 0, early=delay)

    def _step(
        self, model: Any, sequences: Sequence[Sequence[int]], state: "_State", step: int, delay: int, seed: int
    ) -> None:
        import torch

        # Drawn from the step's number alone, so that a run that was cut off goes on as it would have.
        order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(seed + step // len(sequences)))
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        tokens = sequences[int(order[step % len(sequences)])]
        budget = self.budgets[int(torch.randint(len(self.budgets), (1,), generator=generator))]
        room = len(tokens) - self.prefix - self.continuation
        start = int(torch.randint(room + 1, (1,), generator=generator))
        ids = torch.tensor([list(tokens[start : start + self.prefix + self.continuation])], device=state.device)
        done = step / max(1, self.steps - 1)
        first, last = self.temperature
        temperature = first * (last / first) ** done

        seen = self.seen(model, ids, delay, self.continuation)
        with torch.enable_grad():
            score = prefix_scores(state.probe(), seen, self.prefix, delay)
            free = score[..., self.sinks : self.prefix - self.recent]
            gates = log_gates(free, self.free_slots(budget), temperature, self.scope)
            gates = torch.nn.functional.pad(gates, (self.sinks, self.recent))
            with gated(model, gates):
                out = model(ids[:, self.prefix :], past_key_values=prefix_cache(seen, self.prefix), use_cache=True)
            loss = torch.nn.functional.kl_div(
                out.logits[0].float().log_softmax(-1),
                seen.logits.float().log_softmax(-1),
                log_target=True,
                reduction="batchmean",
            )
        state.descend(loss, step, done)

    def _shares(self, model: Any, sequences: Sequence[Sequence[int]], probe: Probe, delay: int) -> "Tensor":
        """Return the splits that one threshold for all heads makes of each budget, mean over sequences."""
        import torch

        found = []
        for tokens in sequences:
            ids = torch.tensor([list(tokens[: self.prefix])], device=probe.weight.device)
            seen = self.seen(model, ids, delay)
            free = prefix_scores(probe, seen, self.prefix, delay)[..., self.sinks : self.prefix - self.recent]
            counts = [kept(free, self.free_slots(budget)).sum(-1) + self.sinks + self.recent for budget in self.budgets]
            found.append(torch.stack([count / count.float().mean() for count in counts]))
        return torch.stack(found).mean(0).cpu()


def prefix_scores(probe: Probe, seen: Observed, prefix: int, delay: int = 0) -> "Tensor":
    """Return the scores of the first ``prefix`` tokens as they stand after the last of them, [L, H, prefix]."""
    import torch

    device = probe.weight.device
    age = prefix - torch.arange(prefix, device=device)  # [prefix]
    scores = []
    for layer, hidden in enumerate(seen.hidden):
        token = probe.token(layer, hidden[:, :prefix], seen.norms(probe.factor, layer, prefix))[0]  # [H, prefix]
        score = token + probe.age(layer, slice(None), age.expand(1, token.shape[0], prefix), prefix)[0]
        if delay:
            score = score + early_feature(seen.attention[layer].early[:, :prefix]) * probe.early[layer][:, None]
        if seen.attention:
            received = seen.attention[layer].received(prefix)[None]
            score = score + probe.watched(layer, slice(None), received, age.expand(1, len(token), prefix))[0]
        scores.append(score)
    return torch.stack(scores)


def added_loss(
    model: Any,
    sequences: Sequence[Sequence[int]],
    probe: Probe,
    settings: EndToEnd,
    *,
    shares: "Tensor | None" = None,
    delay: int = 0,
) -> "Tensor":
    """Return what hard eviction after the prefix adds to the continuation's mean loss, [sequences, budgets].

    Tokens are chosen as ``settings.scope`` says, or with ``shares`` [budgets, L, H] by fixed slots a head.
    """
    import torch

    device = probe.weight.device
    out = []
    for tokens in sequences:
        ids = torch.tensor([list(tokens[: settings.prefix + settings.continuation])], device=device)
        seen = settings.seen(model, ids, delay, settings.continuation)
        target = ids[0, settings.prefix + 1 :]
        full = torch.nn.functional.cross_entropy(seen.logits[:-1].float(), target)
        with torch.no_grad():
            score = prefix_scores(probe, seen, settings.prefix, delay)
        score[..., : settings.sinks] = torch.inf
        score[..., settings.prefix - settings.recent :] = torch.inf
        row = []
        for number, budget in enumerate(settings.budgets):
            slots: Any = round(budget * settings.prefix)
            if shares is not None:
                from kvpredict.llm.decode.budgets import allocate

                least = settings.sinks + settings.recent
                _, layers, heads = shares.shape
                slots = torch.as_tensor(allocate(slots, shares[number], layers, heads, least))
            chosen = kept(score, slots, settings.scope)
            with torch.no_grad(), gated(model, hard(chosen)):
                cache = prefix_cache(seen, settings.prefix)
                logits = model(ids[:, settings.prefix :], past_key_values=cache, use_cache=True).logits[0]
            row.append(torch.nn.functional.cross_entropy(logits[:-1].float(), target) - full)
        out.append(torch.stack(row))
    return torch.stack(out).cpu()


def _digest(sequences: Sequence[Sequence[int]]) -> str:
    return hashlib.blake2b(repr([list(map(int, s)) for s in sequences]).encode(), digest_size=16).hexdigest()


def _mean(losses: "Tensor") -> list[float]:
    return [float(value) for value in losses.mean(0)]


@dataclass
class _State:
    """What a training is at: parameters, Adam's moments, the best probe so far."""

    start: Probe
    values: "dict[str, Tensor]"
    optimizer: Any
    rates: list[float]
    curves: Curves
    average: float
    step: int = 0
    least: float = float("inf")
    kept_best: "dict[str, Tensor] | None" = None
    mean: "dict[str, Tensor] | None" = None  # of the parameters, over steps

    @property
    def device(self) -> Any:
        return self.start.weight.device

    @classmethod
    def begin(cls, probe: Probe, settings: EndToEnd) -> "_State":
        import torch

        values = {name: array.clone() for name, array in probe.arrays().items() if name in (*_FEW, *_MANY)}
        if not settings.attention:
            del values["received"]
        values["stretch"] = torch.zeros_like(probe.bias)  # logarithm of each head's scale
        for value in values.values():
            value.requires_grad_(True)
        groups = [
            {"params": [values[n] for n in _MANY], "lr": settings.rate},
            {"params": [values[n] for n in _FEW if n in values], "lr": settings.rate_few},
        ]
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98))
        return cls(probe, values, optimizer, [settings.rate, settings.rate_few], {}, settings.average)

    def probe(self, values: "dict[str, Tensor] | None" = None) -> Probe:
        values = self.values if values is None else values
        arrays = {name: value for name, value in values.items() if name != "stretch"}
        return replace(self.start, **arrays).scaled(values["stretch"].exp())

    def descend(self, loss: "Tensor", step: int, done: float) -> None:
        """Take a step down; the rate warms up over ten steps and falls to a tenth along a cosine."""
        import math

        import torch

        if not bool(torch.isfinite(loss)):
            raise KvpredictError(f"the loss of step {step} is {float(loss)}: lower the rates, or check the model")
        self.optimizer.zero_grad()
        loss.backward()
        parameters = [p for p in self.values.values() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        shape = min(1.0, (step + 1) / 10) * (0.55 + 0.45 * math.cos(math.pi * done))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * shape
        self.optimizer.step()
        self.step = step + 1
        if self.average:
            with torch.no_grad():
                self.mean = self.mean or {name: value.detach().clone() for name, value in self.values.items()}
                for name, value in self.values.items():
                    self.mean[name].lerp_(value, 1 - self.average)
        self._log("loss", step, float(loss.detach()))

    def judge(self, step: int, added: list[float]) -> None:
        """Note the added loss on validation; keep the best."""
        for number, value in enumerate(added):
            self._log(f"{_JUDGED}{number}", step, value)
        if sum(added) < self.least:
            self.least = sum(added)
            self.kept_best = {name: value.detach().clone() for name, value in (self.mean or self.values).items()}

    def found(self) -> Probe:
        """Return the probe as it stands: of the average, if there is one."""
        return self.probe(self.mean)

    def best(self) -> Probe:
        import torch

        with torch.no_grad():
            found = self.probe(self.kept_best or self.mean)
        return Probe(**{name: array.detach() for name, array in found.arrays().items()})

    def best_step(self) -> int:
        """Return the step of the state that ``best`` returns, by the curves, which every checkpoint has."""
        judged = [curve for name, curve in self.curves.items() if name.startswith(_JUDGED)]
        if self.kept_best is None or not judged:
            return self.step
        totals = [sum(values) for values in zip(*(curve["value"] for curve in judged), strict=True)]
        least = min(range(len(totals)), key=lambda at: (totals[at] != totals[at], totals[at]))  # nan is never least
        return int(judged[0]["step"][least])

    def _log(self, name: str, step: int, value: float) -> None:
        curve = self.curves.setdefault(name, {"step": [], "value": []})
        curve["step"].append(step)
        curve["value"].append(value)

    def save(self, path: Path, about: dict[str, Any]) -> None:
        """Write the state beside its place and rename it; ``about`` says of what training."""
        import torch

        content = {
            **about,
            "values": self.values,
            "optimizer": self.optimizer.state_dict(),
            "curves": self.curves,
            "step": self.step,
            "least": self.least,
            "best": self.kept_best,
            "mean": self.mean,
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as part:
                torch.save(content, part)
        except (OSError, RuntimeError) as error:  # torch's own where the disk is full
            raise TraceError(
                f"the checkpoint {path} cannot be written ({error}): an older one stays, and training goes on from it"
            ) from error

    def load(self, path: Path, about: dict[str, Any]) -> None:
        """Go on from a file that ``save`` wrote about the same training; tensors and plain values only are read."""
        import torch

        try:
            content = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # whatever a damaged file makes the reader raise
            raise TraceError(f"the checkpoint {path} cannot be read ({error}): remove it to start anew") from error
        known = content | {"settings": {"average": 0.0, "attention": False} | content["settings"]}
        # What a file of an earlier version does not tell is taken to be the same.
        differs = [what for what, value in about.items() if known.get(what, value) != value]
        if differs:
            raise TraceError(
                f"the checkpoint {path} is of a training with other {', '.join(differs)}: remove it to start anew, or "
                "choose another folder"
            )
        with torch.no_grad():
            for name, value in self.values.items():
                value.copy_(content["values"][name])
        self.optimizer.load_state_dict(content["optimizer"])
        self.curves, self.step, self.least = content["curves"], content["step"], content["least"]
        self.kept_best, self.mean = content["best"], content.get("mean")
