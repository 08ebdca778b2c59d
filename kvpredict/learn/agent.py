"""A reinforcement-learning agent by PyTorch: a small net over candidates for eviction, trained for hits.

One net scores every candidate's row alike; the softmax of minus the scores is the policy that chooses the victim. It is
warm-started on labels, as the learner ``mlp``, then taught by Belady to pick, in the states that it leads itself into,
the candidate used again last (Liu et al., "An Imitation Learning Approach for Cache Replacement", ICML 2020), and then
trained by policy gradient with a clipped step and a critic (Williams, "Simple statistical gradient-following
algorithms", Machine Learning 1992; Schulman et al., "Proximal Policy Optimization Algorithms", 2017). Every miss on a
key seen before has one cause, the decision that evicted it, so by default each decision is charged with the miss that
it causes, discounted by the time until then; ``credit="hits"`` gives it all hits that follow, by generalised advantage
estimation, as if nothing were known of caches but how long they keep an object.

All runs on miniatures of the cache (``learn.lanes``). Of the nets met on the way the one with the fewest misses on the
validation part is kept. Its scores are turned into probabilities of reuse, which changes no order, and it goes into the
arrays of ``scorers.mlp``. In the manner of CleanRL (Huang et al., JMLR 2022), this file reads from top to bottom.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvpredict.core.errors import unknown_name
from kvpredict.learn.lanes import miniatures
from kvpredict.learn.learner import Curves, Fitted, Game, Learner, require, shares
from kvpredict.learn.mlp import NeuralNet, one_thread
from kvpredict.scorers.linear import compress_rows
from kvpredict.scorers.mlp import MLP

__all__ = ["Agent"]

CREDITS = ("charged", "hits")
PASSES, PART, CLIP, GRADIENT = 2, 512, 0.2, 0.5  # passes over a rollout, decisions a step, largest ratio - 1, norm
FAR = 1e15  # residence times, the most that may be looked ahead
CRITIC = 0.5  # weight of the critic's loss
JUDGED = 8  # times that a phase's net is judged on the validation part


@dataclass(frozen=True)
class Agent(Learner):
    """A net that plays the cache.

    Parameters
    ----------
    hidden : tuple of two ints, default (32, 16)
        Units of the hidden layers.
    imitation : int, default 60
        Updates by imitation of Belady; 0 for none.
    updates : int, default 60
        Updates by policy gradient; 0 for none.
    lanes : int, default 32
        Caches played side by side.
    steps : int, default 64
        Decisions a lane between two updates; with credit for hits no fewer than two for each slot, because what a
        decision spares is only seen when its object would have been asked for again.
    candidates : int, default 16
        Residents to choose from at a decision.
    slots : int, default 256
        Objects in the miniature of a cache that holds more.
    credit : {"charged", "hits"}, default "charged"
        What a decision is judged by: the miss that it causes, or all hits that follow.
    horizon : float, default 1.5
        Residence times after which a miss, or a hit, weighs 1/e, and beyond which Belady's choice is any.
    learning_rate : float, default 0.001
    entropy : float, default 0.003
        Reward of an undecided policy.
    """

    name = "agent"
    plays = True

    hidden: tuple[int, ...] = (32, 16)
    imitation: int = 60
    updates: int = 60
    lanes: int = 32
    steps: int = 64
    candidates: int = 16
    slots: int = 256
    credit: str = "charged"
    horizon: float = 1.5
    learning_rate: float = 1e-3
    entropy: float = 3e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "hidden", tuple(self.hidden))
        require(len(self.hidden) == 2 and min(self.hidden) >= 1, self, f"hidden must be two sizes, got {self.hidden}")
        for field, least in (
            ("imitation", 0),
            ("updates", 0),
            ("lanes", 1),
            ("steps", 1),
            ("candidates", 2),
            ("slots", 2),
        ):
            given = getattr(self, field)
            require(given >= least, self, f"{field} must be at least {least}, got {given}")
        if self.credit not in CREDITS:
            raise unknown_name("credit", self.credit, CREDITS)
        require(0 < self.horizon <= FAR, self, f"horizon must be above 0 and at most {FAR:g}, got {self.horizon}")
        require(self.learning_rate > 0, self, f"learning_rate must be above 0, got {self.learning_rate}")
        require(self.entropy >= 0, self, f"entropy must not be negative, got {self.entropy}")

    def fit(self, x: np.ndarray, y: np.ndarray, seed: int = 0) -> Fitted:
        """Warm start: what the learner ``mlp`` makes of rows and labels."""
        return NeuralNet(hidden=self.hidden).fit(x, y, seed)

    def play(self, fitted: Fitted, game: Game, seed: int = 0) -> tuple[Fitted, Curves]:
        """Imitate Belady, then follow the gradient of hits; see ``Learner.play``."""
        with one_thread():
            return self._play(fitted, game, seed)

    def _play(self, fitted: Fitted, game: Game, seed: int) -> tuple[Fitted, Curves]:
        import torch
        from torch.nn.functional import huber_loss, log_softmax

        from kvpredict.learn.env import CacheVectorEnv

        # --- the caches ---------------------------------------------------------------------------------------------
        traces, capacity = miniatures(game.trace, game.capacity, self.lanes, self.slots, seed)
        env = CacheVectorEnv(traces, capacity, self.candidates, game.schema, game.history)
        rng = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(seed)
        mean, scale = (torch.from_numpy(a) for a in fitted.scorer[:2])

        # --- the nets -----------------------------------------------------------------------------------------------
        a, b = self.hidden
        width = len(mean)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            actor = torch.nn.Sequential(
                torch.nn.Linear(width, a),
                torch.nn.ReLU(),
                torch.nn.Linear(a, b),
                torch.nn.ReLU(),
                torch.nn.Linear(b, 1),
            )
            # The critic sees the candidates' mean and their highest values, not which of them will go.
            critic = torch.nn.Sequential(torch.nn.Linear(2 * width, a), torch.nn.ReLU(), torch.nn.Linear(a, 1))
        with torch.no_grad():
            for to, by in zip(actor.parameters(), fitted.scorer[2:], strict=True):
                to.copy_(torch.from_numpy(by).reshape(to.shape))
        optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=self.learning_rate)

        def choice(rows: Any) -> Any:  # [n, k, width] -> log probability of each victim [n, k]
            return log_softmax(-actor((rows - mean) * scale)[..., 0], -1)

        def value(rows: Any) -> Any:  # [n, k, width] -> [n]
            scaled = (rows - mean) * scale
            return critic(torch.cat([scaled.mean(1), scaled.amax(1)], 1))[:, 0]

        def learn(loss: Any) -> None:
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*actor.parameters(), *critic.parameters()], GRADIENT)
            optimizer.step()

        # --- one rollout --------------------------------------------------------------------------------------------
        rows, info = env.reset(seed=seed)
        distance, ended = info["distance"], np.zeros(self.lanes, bool)

        def rollout(steps: int) -> dict[str, np.ndarray]:
            """Let the policy play, and return what happened, each ``[steps, lanes, …]``."""
            nonlocal rows, distance, ended
            told = defaultdict(list)
            for _ in range(steps):
                with torch.no_grad():
                    logp = choice(torch.from_numpy(rows)).numpy()
                # The largest of log probability + Gumbel noise is a draw from the policy.
                action = (logp - np.log(rng.exponential(size=logp.shape))).argmax(1)
                at = np.arange(self.lanes), action
                before = {"rows": rows, "distance": distance, "action": action, "logp": logp[at]}
                rows, hits, ended, _, info = env.step(action)
                for name, values in (before | {"hits": hits, "ended": ended}).items():
                    told[name].append(values)
                if ended.any():
                    rows, info = env.reset(options={"reset_mask": ended})
                distance = info["distance"]
            return {name: np.stack(values) for name, values in told.items()}

        def residence(hits: np.ndarray) -> float:
            return float(capacity * (1.0 + hits.mean()))  # slots times requests between misses

        # --- judging ------------------------------------------------------------------------------------------------
        curves: Curves = defaultdict(lambda: {"step": [], "value": []})
        best: tuple[float, MLP] = (np.inf, fitted.scorer)

        def note(name: str, step: int, figure: float) -> None:
            curves[name]["step"].append(step)
            curves[name]["value"].append(float(figure))

        def judge(step: int) -> None:
            nonlocal best
            scorer = _export(actor, mean, scale)
            misses = game.judge(scorer)
            note("validation_miss_ratio", step, misses)
            if misses < best[0]:
                best = misses, scorer

        judge(0)

        # --- imitation: the candidate used again last, in states of the policy's own --------------------------------
        for update in range(1, self.imitation + 1):
            told = rollout(self.steps)
            seen = torch.from_numpy(told["rows"].reshape(-1, *told["rows"].shape[2:]))  # [steps * lanes, k, width]
            far = np.minimum(told["distance"], self.horizon * residence(told["hits"])).reshape(len(seen), -1)
            wanted = torch.from_numpy((far == far.max(1, keepdims=True)).astype(np.float32))
            total = right = 0.0
            for part in torch.randperm(len(seen), generator=generator).split(PART):
                logp = choice(seen[part])
                loss = -torch.logsumexp(logp.masked_fill(wanted[part] == 0, -torch.inf), 1).mean()
                learn(loss)
                total += float(loss.detach()) * len(part)
                right += float(wanted[part].gather(1, logp.argmax(1, keepdim=True)).sum())
            note("imitation_loss", update, total / len(seen))
            note("imitation_accuracy", update, right / len(seen))
            note("hit_ratio", update, _hit_ratio(told["hits"]))
            if update % max(1, self.imitation // JUDGED) == 0:
                judge(update)

        # --- policy gradient ----------------------------------------------------------------------------------------
        with torch.no_grad():  # go on from the best net so far
            for to, by in zip(actor.parameters(), best[1][2:], strict=True):
                to.copy_(torch.from_numpy(by).reshape(to.shape))
        # In a residence time there are as many decisions as slots.
        discount, decay = np.exp(-1.0 / (self.horizon * capacity)), np.exp(-1.0 / capacity)
        steps = self.steps if self.credit == "charged" else max(self.steps, 2 * capacity)
        for update in range(self.imitation + 1, self.imitation + self.updates + 1):
            told = rollout(steps)
            seen = torch.from_numpy(told["rows"].reshape(-1, *told["rows"].shape[2:]))
            with torch.no_grad():
                expected = value(seen).numpy().reshape(steps, self.lanes)
                after = value(torch.from_numpy(rows)).numpy()
            if self.credit == "charged":
                caused = np.take_along_axis(told["distance"], told["action"][..., None], 2)[..., 0]
                returns = -np.exp(-caused / (self.horizon * residence(told["hits"])))
            else:
                returns = expected + _advantages(told["hits"], expected, after, told["ended"], discount, decay)
            advantage = returns - expected
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            action, logp, wanted, ahead = (  # each [steps * lanes]
                torch.from_numpy(values.reshape(-1).astype(kind))
                for values, kind in ((told["action"], "i8"), (told["logp"], "f4"), (returns, "f4"), (advantage, "f4"))
            )
            for _ in range(PASSES):
                for part in torch.randperm(len(seen), generator=generator).split(PART):
                    every = choice(seen[part])  # [part, k]
                    ratio = (every.gather(1, action[part, None])[:, 0] - logp[part]).exp()
                    clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
                    gain = torch.minimum(ratio * ahead[part], clipped * ahead[part]).mean()
                    undecided = -(every.exp() * every).sum(1).mean()
                    wrong = huber_loss(value(seen[part]), wanted[part])
                    learn(CRITIC * wrong - gain - self.entropy * undecided)
            note("entropy", update, float(undecided.detach()))
            note("hit_ratio", update, _hit_ratio(told["hits"]))
            if (update - self.imitation) % max(1, self.updates // JUDGED) == 0:
                judge(update)

        # --- export -------------------------------------------------------------------------------------------------
        return _fitted(best[1], game.x, game.y), {name: dict(curve) for name, curve in curves.items()}


def _hit_ratio(hits: np.ndarray) -> float:
    return float(hits.sum() / (hits.sum() + hits.size))  # every decision is a miss


def _advantages(
    rewards: np.ndarray, values: np.ndarray, after: np.ndarray, ended: np.ndarray, discount: float, decay: float
) -> np.ndarray:
    """Return generalised advantage estimates (Schulman et al., ICLR 2016), all arrays ``[steps, lanes]``.

    ``discount`` is what a hit weighs a decision later, ``decay`` what an error of the critic does besides.
    """
    out = np.zeros_like(rewards)
    running, following = np.zeros(len(after)), after
    for t in range(len(rewards) - 1, -1, -1):
        goes_on = 1.0 - ended[t]
        error = rewards[t] + discount * following * goes_on - values[t]
        running = error + discount * decay * goes_on * running
        out[t], following = running, values[t]
    return out


def _export(actor: Any, mean: Any, scale: Any) -> MLP:
    layers = [p.detach().numpy().copy() for p in actor.parameters()]
    layers[4] = layers[4][0]
    return MLP(mean.numpy(), scale.numpy(), *layers)


def _fitted(scorer: MLP, x: np.ndarray, y: np.ndarray) -> Fitted:
    """Return the net with its scores turned into the log-odds of reuse (Platt scaling, a rising line)."""
    import torch

    inputs = torch.from_numpy((compress_rows(x) - scorer.mean) * scorer.scale)  # float64 [m, width]
    inputs.requires_grad_(True)
    raw = _score(scorer, inputs)
    (slope,) = torch.autograd.grad(raw.sum(), inputs)
    raw = raw.detach()
    target = torch.from_numpy(np.asarray(y, np.float64))
    line = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # log of the factor, shift
    spread = raw.std() + 1e-9
    solver = torch.optim.LBFGS([line], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Any:
        solver.zero_grad()
        logit = line[0].exp() * (raw - raw.mean()) / spread + line[1]
        wrong = torch.nn.functional.binary_cross_entropy_with_logits(logit, target)
        wrong.backward()
        return wrong

    solver.step(loss)
    line = line.detach()
    factor = float(line[0].exp() / spread)
    shift = float(line[1]) - factor * float(raw.mean())
    scorer = scorer._replace(
        w3=(scorer.w3 * factor).astype(np.float32), b3=(scorer.b3 * factor + shift).astype(np.float32)
    )

    def predict(new: np.ndarray) -> np.ndarray:
        scaled = torch.from_numpy((compress_rows(np.asarray(new, np.float32)) - scorer.mean) * scorer.scale)
        probability: np.ndarray = torch.sigmoid(_score(scorer, scaled)).numpy()
        return probability

    return Fitted(scorer, "logit", shares(slope.abs().mean(0).numpy()), predict)


def _score(scorer: MLP, inputs: Any) -> Any:
    """Return torch's raw scores, float64 ``[m]``, of standardised rows."""
    import torch

    w1, b1, w2, b2, w3, b3 = (torch.from_numpy(np.asarray(array, np.float64)) for array in scorer[2:])
    return torch.relu(torch.relu(inputs @ w1.T + b1) @ w2.T + b2) @ w3 + b3
