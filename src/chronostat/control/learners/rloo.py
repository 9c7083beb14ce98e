"""The policy gradient: settings are drawn from a softmax; those that did better than their group become likelier."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from chronostat.config import Config
from chronostat.control.learners.base import Learner, Outcome, Proposal
from chronostat.control.learners.multipliers import Multipliers
from chronostat.control.reward import reward_for
from chronostat.evidence.evidence import Evidence
from chronostat.evidence.observation import Observation
from chronostat.knobs.space import ActionSpace
from chronostat.policy.scorers import NetworkScorer
from chronostat.records import Budget, BudgetKind

_STD_FLOOR = 0.1  # in units of reward: differences far below one answer are noise, not signal
_STEEPEST = 50.0  # most logits that the latency of full costs at the start
_START_PENALTY = 20.0  # logits that each budget of overshoot costs at the start
_BIAS_SPEED = 10.0  # step size of what a budget wants of all requests, relative to what a request wants


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
        prompt_size: 1 + F.
        budgets: those of the training, B.
        start: logits before anything is learned, shape [B, S].
        hidden: H.
        generator: draws the weights.

    Attributes:
        one_hot: 1 where a setting has a level of a knob, shape [S, levels of all knobs].
        start: logits before anything is learned, shape [B, S].
    """

    start: Tensor

    def __init__(
        self,
        space: ActionSpace,
        prompt_size: int,
        budgets: Sequence[Budget],
        start: Tensor,
        hidden: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.one_hot = _level_one_hot(space)
        self._budgets = tuple(budgets)
        levels = self.one_hot.shape[1]
        scale = prompt_size**-0.5
        self.request = nn.Parameter(scale * torch.randn(prompt_size, hidden, generator=generator))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.heads = nn.Parameter(torch.zeros(hidden, levels))
        self.budget_heads = nn.Parameter(torch.zeros(len(budgets), levels))
        self.register_buffer("start", start)

    def forward(self, observations: Tensor, positions: Tensor, legal: Tensor | None = None) -> Tensor:
        """Log-probabilities of all settings: one softmax over the legal ones, minus infinity for the others.

        Args:
            observations: features of prompts, shape [N, 1 + F].
            positions: of P budgets, shape [P, B].
            legal: bool, shape [S]; all of them if absent.

        Returns:
            Shape [N, P, S]; their exponentials sum to 1 over S.
        """
        request = (observations @ self.request + self.bias).relu() @ self.heads  # [N, levels]: the heads side by side
        levels = request[:, None] + positions @ self.budget_heads  # [N, P, levels]
        logits = levels @ self.one_hot.T + positions @ self.start
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

    A measured draw has one quality and one latency whatever the budget was, so each group is scored under all budgets
    of the training at once, with clipped importance weights; so it learns from groups that were drawn alike for all
    settings, too. The Lagrange multiplier of a budget moves by what the policy costs under it: the sum over settings of
    probability times forecast latency. A budget's votes are divided by 1 + its price of latency, so that a tight budget
    does not drown the others.
    """

    def __init__(
        self, space: ActionSpace, evidence: Evidence, config: Config, budgets: Sequence[Budget], seed: int
    ) -> None:
        self._config = config.rloo
        self._levels = space.levels
        self._reward = config.reward
        self._evidence = evidence
        by_kind: dict[BudgetKind, list[float]] = {
            kind: sorted({b.fraction for b in budgets if b.kind == kind}) for kind in ("mean", "deadline")
        }
        self._budgets = tuple(Budget(kind=kind, fraction=f) for kind, group in by_kind.items() for f in group)
        self._multipliers: dict[BudgetKind, Multipliers] = {kind: Multipliers(g) for kind, g in by_kind.items()}
        self._legal = torch.ones(len(space), dtype=torch.bool)
        means = evidence.forecast().mean(evidence.prompts, evidence.tokens).mean(axis=0)
        start = torch.stack([start_logits(means.tolist(), budget) for budget in self._budgets])
        generator = torch.Generator().manual_seed(seed)
        self._policy = Policy(space, evidence.features.size, self._budgets, start, self._config.hidden, generator)
        self._optimizer = self._make_optimizer()
        self._outcomes: list[Outcome] = []
        self._order = np.random.default_rng(seed)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        rate, fast = self._config.learning_rate, self._policy.budget_heads
        slow = [parameter for parameter in self._policy.parameters() if parameter is not fast]
        return torch.optim.Adam([{"params": slow, "lr": rate}, {"params": [fast], "lr": _BIAS_SPEED * rate}])

    @torch.no_grad()
    def propose(self, observation: Observation, budget: Budget, draws: int, rng: np.random.Generator) -> Proposal:
        """Draws from the policy; see ``Learner``."""
        position = self._policy.position(budget)[None]
        logarithms = self._policy(self._features(observation), position, self._legal)[0, 0].double()
        probabilities = (logarithms.exp() / logarithms.exp().sum()).numpy()
        settings = rng.choice(len(probabilities), size=draws, p=probabilities)
        return Proposal(settings=settings, probabilities=probabilities[settings], version=len(self._outcomes))

    def learn(self, outcome: Outcome) -> dict[str, float]:
        """Follow the gradient of one group under all budgets, then move the multipliers; see ``Learner``."""
        self._outcomes.append(outcome)
        metrics = [self._update(outcome) for _ in range(self._config.updates)][-1]
        self._move_multipliers(outcome.observation)
        if outcome.budget is None:
            return metrics
        return metrics | {"multiplier": self._multipliers[outcome.budget.kind].at(outcome.budget.fraction)}

    def finish(self) -> None:
        """Learn from every group again, in random order; see ``Learner``."""
        for _ in range(self._config.epochs):
            for index in self._order.permutation(len(self._outcomes)).tolist():
                self._update(self._outcomes[index])
                self._move_multipliers(self._outcomes[index].observation)

    def _update(self, outcome: Outcome) -> dict[str, float]:
        log_probabilities = self._under_all_budgets(self._features(outcome.observation))  # [B, S]
        drawn = torch.from_numpy(np.log(outcome.probabilities)).float()
        settings = torch.from_numpy(outcome.settings)
        votes = policy_loss(log_probabilities[:, settings], drawn, self._advantages(outcome), self._config.weight_clip)
        legal = log_probabilities[:, self._legal]  # the others have none: 0 times minus infinity is no number
        entropy = -(legal.exp() * legal).sum(dim=-1).mean()
        loss = votes.mean() - self._config.entropy * entropy
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return {"loss": float(loss.detach()), "entropy": float(entropy.detach())}

    def _advantages(self, outcome: Outcome) -> Tensor:
        """Of each draw under every budget of the training, shape [B, G]."""
        rewards = self._rewards(outcome)
        valid = torch.ones(rewards.shape[-1], dtype=torch.bool)
        return group_advantages(rewards, valid, self._config.advantage) / (1 + self._prices()[:, None])

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
        quality, latency = (torch.from_numpy(values).float() for values in (outcome.quality, outcome.latency))
        parts = [
            reward_for(kind, self._reward).value(
                quality,
                latency,
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
    def _move_multipliers(self, observation: Observation) -> None:
        features = self._evidence.features(observation.prompt[None])
        latency = self._evidence.forecast().mean(features, observation.tokens[None])[0]
        probabilities = self._under_all_budgets(torch.from_numpy(features).float()).exp().double()
        costs = (probabilities @ torch.from_numpy(latency)).tolist()
        for group in self._multipliers.values():
            group.ascend([costs.pop(0) for _ in group.fractions], self._reward.multiplier_rate)

    def _features(self, observation: Observation) -> Tensor:
        """Shape [1, 1 + F]."""
        return torch.from_numpy(self._evidence.features(observation.prompt[None])).float()

    def _under_all_budgets(self, features: Tensor) -> Tensor:
        """Log-probabilities of all settings under every budget of the training, [1, 1 + F] -> [B, S]."""
        return self._policy(features, torch.eye(len(self._budgets)), self._legal)[0]

    def take_out(self, settings: Sequence[int]) -> None:
        """Mask them in the softmax; see ``Learner``."""
        self._legal[list(settings)] = False

    @torch.no_grad()
    def scorer(self) -> NetworkScorer:
        """The network's log-probabilities; see ``Learner``."""
        heads = self._policy.heads @ self._policy.one_hot.T
        budgets = self._policy.budget_heads @ self._policy.one_hot.T + self._policy.start
        fractions = {kind: np.array(group.fractions) for kind, group in self._multipliers.items()}
        request, bias = self._policy.request, self._policy.bias
        arrays = {"request": request, "bias": bias, "heads": heads, "budgets": budgets}
        return NetworkScorer(
            means=fractions["mean"],
            deadlines=fractions["deadline"],
            **{name: value.detach().double().numpy().copy() for name, value in arrays.items()},
        )
