"""The policy gradient: settings are drawn from a softmax; those that did better than their group become likelier."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from chronostat.config import Config
from chronostat.control.learners.base import Learner, Outcome
from chronostat.control.learners.frozen import frozen_state, load_frozen_state
from chronostat.control.learners.means_and_tail import Limits
from chronostat.control.learners.memory import Scale
from chronostat.control.learners.multipliers import Multipliers
from chronostat.control.learners.tensors import (
    load_training_state,
    training_state,
    with_prefix,
    without_prefix,
)
from chronostat.control.reward import reward_for
from chronostat.knobs.space import ActionSpace
from chronostat.records import Budget, BudgetKind

_STD_FLOOR = 0.1  # in units of reward: differences far below one answer are noise, not signal
_STEEPEST = 50.0  # most logits that the latency of full costs at the start
_START_PENALTY = 20.0  # logits that each budget of overshoot costs at the start
_BIAS_SPEED = 10.0  # step size of what a budget wants of all requests, relative to what a request wants
_LOWEST_PRICE = -100.0  # log-probability; far below any that spends a budget


def group_advantages(rewards: Tensor, valid: Tensor, estimator: str) -> Tensor:
    """How much better each draw did than its group.

    ``rloo``: less the mean of the other draws, ``r - (sum - r) / (n - 1)`` (Kool et al., Buy 4 REINFORCE samples,
    2019; Ahmadian et al., Back to basics, 2024). ``grpo``: ``(r - mean) / (std + 0.1)`` (Shao et al., DeepSeekMath,
    2024, with 1e-8 for 0.1: there, a group of equal answers becomes a full-sized vote on the noise of the latency).
    ``grpo_nostd``: ``r - mean`` (Liu et al., Understanding R1-Zero-like training, 2025).

    Args:
        rewards: shape [..., G].
        valid: which draws count, broadcastable to [..., G].
        estimator: one of the three names.

    Returns:
        Shape [..., G]; sums to 0 over each group; 0 for draws that do not count, and for the only one that does.
    """
    count = valid.sum(dim=-1, keepdim=True)
    mean = (rewards * valid).sum(dim=-1, keepdim=True) / count.clamp(min=1)
    deviation = (rewards - mean) * (valid & (count > 1))
    if estimator == "rloo":
        return deviation * count / (count - 1).clamp(min=1)
    if estimator == "grpo":
        return deviation / ((deviation**2).sum(dim=-1, keepdim=True) / count.clamp(min=1)).sqrt().add(_STD_FLOOR)
    return deviation


def policy_loss(log_probabilities: Tensor, drawn_log_probabilities: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Loss whose negative gradient is the policy gradient.

    ``-w * A * log pi(a)`` with the importance weight ``w = min(clip, pi(a) / mu(a))`` held constant, where ``mu`` is
    the policy that drew. For draws of the present policy w = 1.

    Args:
        log_probabilities: of the draws under the policy that learns, shape [..., G].
        drawn_log_probabilities: of the draws under the policy that drew them, broadcastable to [..., G].
        advantages: shape [..., G].
        clip: largest weight.

    Returns:
        Shape [..., G].
    """
    weights = (log_probabilities.detach() - drawn_log_probabilities).exp().clamp(max=clip)
    return -weights * advantages * log_probabilities


def start_logits(latency_means: Sequence[float], budget: Budget) -> Tensor:
    """A policy that keeps a budget before anything is learned, so that learning is about quality from the start.

    For a ``mean`` budget the least biased one that costs just the budget, ``exp(-t * latency)`` (maximum entropy);
    for a ``deadline`` every setting alike, less 20 for each budget of overshoot.

    Args:
        latency_means: of the calibration, as fractions of ``full``, length S.
        budget: the budget.

    Returns:
        Logits of shape [S].
    """
    means = torch.tensor(latency_means, dtype=torch.float32)
    if budget.kind == "deadline":
        return -_START_PENALTY * (means / budget.fraction - 1).clamp(min=0)
    low, high = -_STEEPEST, _STEEPEST
    for _ in range(40):
        tilt = (low + high) / 2
        within = float((-tilt * means).softmax(0) @ means) <= budget.fraction
        low, high = (low, tilt) if within else (tilt, high)
    return -high * means


class Policy(nn.Module):
    """One head per knob over a hidden layer, one softmax over the settings.

    The logit of a setting is the sum of what the knobs' heads say of its levels, so that a log-probability belongs to
    exactly the combination that is executed. What a request wants is the same under every budget; a budget shifts the
    heads for all requests alike. Budgets between those of the training are interpolated, beyond them the ends hold.

    Args:
        space: S settings.
        observation_size: D.
        budgets: those of the training, B.
        start: logits before anything is learned, shape [B, S].
        hidden: H.
        generator: draws the weights.
    """

    start: Tensor

    def __init__(
        self,
        space: ActionSpace,
        observation_size: int,
        budgets: Sequence[Budget],
        start: Tensor,
        hidden: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self._one_hot = _level_one_hot(space)
        self._budgets = tuple(budgets)
        levels = self._one_hot.shape[1]
        scale = observation_size**-0.5
        self.request = nn.Parameter(scale * torch.randn(observation_size, hidden, generator=generator))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.heads = nn.Parameter(torch.zeros(hidden, levels))
        self.budget_heads = nn.Parameter(torch.zeros(len(budgets), levels))
        self.register_buffer("start", start)

    def forward(self, observations: Tensor, positions: Tensor, legal: Tensor | None = None) -> Tensor:
        """Log-probabilities of all settings: one softmax over the legal ones, minus infinity for the others.

        Args:
            observations: scaled, shape [N, D].
            positions: of P budgets, shape [P, B].
            legal: bool, shape [S]; all of them if absent.

        Returns:
            Shape [N, P, S]; their exponentials sum to 1 over S.
        """
        request = (observations @ self.request + self.bias).relu() @ self.heads  # [N, levels]: the heads side by side
        levels = request[:, None] + positions @ self.budget_heads  # [N, P, levels]
        logits = levels @ self._one_hot.T + positions @ self.start
        if legal is not None:
            logits = logits.masked_fill(~legal, -torch.inf)
        return logits.log_softmax(dim=-1)

    def position(self, budget: Budget) -> Tensor:
        """Weights of the budgets of the training in the place of any budget, shape [B]."""
        weights = torch.zeros(len(self._budgets))
        grid = [(known.fraction, i) for i, known in enumerate(self._budgets) if known.kind == budget.kind]
        if not grid:
            return weights
        right = min(bisect_left(grid, (budget.fraction, -1)), len(grid) - 1)
        (low, before), (high, after) = grid[max(right - 1, 0)], grid[right]
        share = min(max((budget.fraction - low) / (high - low), 0.0), 1.0) if high > low else 1.0
        weights[before] += 1 - share
        weights[after] += share
        return weights


def _level_one_hot(space: ActionSpace) -> Tensor:
    """1 where a setting has a level of a knob, shape [S, levels of all knobs]."""
    columns = [
        nn.functional.one_hot(torch.tensor(levels), len(values)).float()
        for levels, values in zip(zip(*space.level_indices, strict=True), space.levels.values(), strict=True)
    ]
    return torch.cat(columns, dim=1)


class RlooLearner(Learner):
    """Policy gradient with a leave-one-out baseline.

    A measured draw has one quality and one latency whatever the budget was, so each trial is scored under all budgets
    of the training at once, with clipped importance weights. The Lagrange multiplier of a budget moves by what the
    policy costs under it: the sum over settings of probability times mean measured latency. A budget's votes are
    divided by 1 + its price of latency, so that a tight budget does not drown the others.
    """

    def __init__(
        self,
        space: ActionSpace,
        observation_size: int,
        config: Config,
        seed: int,
        latency_means: Sequence[float],
        budgets: Sequence[Budget],
    ) -> None:
        self._config = config.rloo
        self._levels = space.levels
        self._reward = config.reward
        by_kind: dict[BudgetKind, list[float]] = {
            kind: sorted({b.fraction for b in budgets if b.kind == kind}) for kind in ("mean", "deadline")
        }
        self._budgets = tuple(Budget(kind=kind, fraction=f) for kind, group in by_kind.items() for f in group)
        self._multipliers: dict[BudgetKind, Multipliers] = {kind: Multipliers(g) for kind, g in by_kind.items()}
        self._generator = torch.Generator().manual_seed(seed)
        self._limits = Limits(latency_means, [], margin=self._reward.margin)
        known = self._limits.latencies.means.tolist()
        start = torch.stack([start_logits(known, budget) for budget in self._budgets])
        self._policy = Policy(space, observation_size, self._budgets, start, self._config.hidden, self._generator)
        self._optimizer = self._make_optimizer()
        self._scale = Scale(observation_size)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        rate, fast = self._config.learning_rate, self._policy.budget_heads
        slow = [parameter for parameter in self._policy.parameters() if parameter is not fast]
        return torch.optim.Adam([{"params": slow, "lr": rate}, {"params": [fast], "lr": _BIAS_SPEED * rate}])

    @torch.no_grad()
    def propose(self, observation: Tensor, budget: Budget, draws: int, generator: torch.Generator) -> Tensor:
        """Draws from the policy; see ``Learner``."""
        probabilities = self._log_probabilities(observation[None], budget)[0].exp()
        return probabilities.multinomial(draws, replacement=True, generator=generator)

    def learn(self, outcome: Outcome) -> dict[str, float]:
        """Follow the gradient of one trial under all budgets, then move the multipliers; see ``Learner``."""
        with torch.no_grad():
            drawn = self._log_probabilities(outcome.observation[None], outcome.budget)[0, outcome.settings]
        self._scale.add(outcome.observation)
        self._limits.latencies.add(outcome.settings, outcome.latency)
        rewards = self._rewards(outcome)
        valid = torch.ones(rewards.shape[-1], dtype=torch.bool)
        advantages = group_advantages(rewards, valid, self._config.advantage) / (1 + self._prices()[:, None])
        observation = self._scale(outcome.observation)[None]
        metrics = [self._update(observation, outcome.settings, drawn, advantages) for _ in range(self._config.updates)]
        self._move_multipliers(observation)
        own = self._multipliers[outcome.budget.kind].at(outcome.budget.fraction)
        return {**metrics[-1], "multiplier": own}

    def _update(self, observation: Tensor, settings: Tensor, drawn: Tensor, advantages: Tensor) -> dict[str, float]:
        log_probabilities = self._under_all_budgets(observation)  # [B, S]
        votes = policy_loss(log_probabilities[:, settings], drawn, advantages, self._config.weight_clip)  # [B, G]
        legal = log_probabilities[:, self._limits.legal]  # the others have none: 0 times minus infinity is no number
        entropy = -(legal.exp() * legal).sum(dim=-1).mean()
        loss = votes.mean() - self._config.entropy * entropy
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return {"loss": float(loss.detach()), "entropy": float(entropy.detach())}

    def head_gradients(self) -> Mapping[str, float]:
        """Of each knob's columns in both heads together; see ``Learner``."""
        heads, budget_heads = self._policy.heads.grad, self._policy.budget_heads.grad
        if heads is None or budget_heads is None:
            return {}
        columns = torch.cat([heads, budget_heads]).split([len(values) for values in self._levels.values()], dim=1)
        named = zip(self._levels, columns, strict=True)
        return {name: float(gradient.norm()) for name, gradient in named if gradient.shape[1] > 1}

    def _rewards(self, outcome: Outcome) -> Tensor:
        """Of each draw under every budget of the training, shape [B, G]."""
        parts = [
            reward_for(kind, self._reward).value(
                outcome.quality,
                outcome.latency,
                torch.tensor(group.fractions)[:, None],
                torch.tensor(group.values)[:, None],
                self._reward,
            )
            for kind, group in self._multipliers.items()
        ]
        return torch.cat(parts)

    def _prices(self) -> Tensor:
        """What exceeding each budget by all of itself costs in reward, shape [B]."""
        return torch.cat(
            [
                reward_for(kind, self._reward).price(torch.tensor(group.values), self._reward)
                for kind, group in self._multipliers.items()
            ]
        )

    @torch.no_grad()
    def _move_multipliers(self, observation: Tensor) -> None:
        probabilities = self._under_all_budgets(observation).exp().double()
        costs = (probabilities @ self._limits.latencies.means).tolist()
        for group in self._multipliers.values():
            group.ascend([costs.pop(0) for _ in group.fractions], self._reward.multiplier_rate)

    def _under_all_budgets(self, observation: Tensor) -> Tensor:
        """Of all settings under every budget of the training for one scaled observation, [1, D] -> [B, S]."""
        return self._policy(observation, torch.eye(len(self._budgets)), self._limits.legal)[0]

    def _log_probabilities(self, observations: Tensor, budget: Budget) -> Tensor:
        """Of all settings under one budget, [N, D] -> [N, S]."""
        return self._policy(self._scale(observations), self._policy.position(budget)[None], self._limits.legal)[:, 0]

    def take_out(self, settings: Sequence[int]) -> None:
        """Mask them in the softmax and in choices; see ``Learner``."""
        self._limits.take_out(settings)

    @torch.no_grad()
    def decide(self, observation: Tensor, budget: Budget) -> int:
        """The likeliest setting less the price of latency; see ``Learner``."""
        return self._limits.choose(self._log_probabilities(observation[None], budget)[0], budget)

    @torch.no_grad()
    def settle(self, observations: Tensor, latency_means: Tensor | None = None) -> None:
        """Fit each mean budget's price, below 0 where the likeliest settings leave some of it; see ``Learner``."""
        self._limits.settle(
            lambda budget: self._log_probabilities(observations, budget),
            latency_means,
            lowest=_LOWEST_PRICE,
        )

    def state(self) -> dict[str, Tensor]:
        """Policy, optimizer, random state, scale, limits and multipliers."""
        state = {
            **training_state(self._policy, self._optimizer, self._generator),
            **with_prefix("scale", self._scale.state()),
            **with_prefix("limits", self._limits.state()),
        }
        for kind, group in self._multipliers.items():
            state |= with_prefix(f"multipliers.{kind}", group.state())
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what ``state`` gave."""
        load_training_state(self._policy, self._optimizer, self._generator, state)
        self._scale.load(without_prefix("scale", state))
        self._limits.load(without_prefix("limits", state))
        for kind, group in self._multipliers.items():
            group.load(without_prefix(f"multipliers.{kind}", state))

    def policy_state(self) -> dict[str, Tensor]:
        """Policy, scale and limits."""
        return frozen_state(self._policy, self._scale, self._limits)

    def load_policy_state(self, state: Mapping[str, Tensor]) -> None:
        """Decide as the learner did that gave ``policy_state``."""
        load_frozen_state(self._policy, self._scale, self._limits, state)
