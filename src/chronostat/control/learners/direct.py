"""The direct learner: predict the quality of every setting, then take the best that the budget can pay."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from chronostat.config import Config
from chronostat.control.learners.base import Learner, Outcome
from chronostat.control.learners.frozen import frozen_state, load_frozen_state
from chronostat.control.learners.means_and_tail import Limits
from chronostat.control.learners.memory import Scale, Trials
from chronostat.control.learners.tensors import (
    load_training_state,
    training_state,
    with_prefix,
    without_prefix,
)
from chronostat.knobs.space import ActionSpace
from chronostat.records import Budget


class QualityModel(nn.Module):
    """An ensemble of small networks that predict the quality of every setting for a request.

    One hidden layer over the observation and the ordered levels of the knobs. Members differ by their start and
    their minibatches.

    Args:
        space: S settings.
        observation_size: D.
        members: M.
        hidden: H.
        generator: draws the weights.
    """

    steps: Tensor

    def __init__(
        self, space: ActionSpace, observation_size: int, members: int, hidden: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        steps = _level_steps(space)

        def normal(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(*shape, generator=generator))

        self.request = normal(members, observation_size, hidden, scale=observation_size**-0.5)
        self.bias = nn.Parameter(torch.zeros(members, 1, hidden))
        self.levels = normal(members, steps.shape[1], hidden, scale=1.0)
        self.out = normal(members, hidden, 1, scale=hidden**-0.5)
        self.offset = nn.Parameter(torch.zeros(members, 1, 1))
        self.register_buffer("steps", steps, persistent=False)

    def forward(self, observations: Tensor, settings: Tensor | None = None) -> Tensor:
        """Logits of quality.

        Args:
            observations: scaled, [N, D] for all members or [M, N, D].
            settings: positions in the space, [M, N, G]; all of them for every request if absent.

        Returns:
            Shape [M, N, S], or [M, N, G].
        """
        request = (observations @ self.request + self.bias)[:, :, None]  # [M, N, 1, H]
        setting = self.steps @ self.levels  # [M, S, H]
        if settings is None:
            setting = setting[:, None]
        else:
            members = torch.arange(len(settings))[:, None, None]
            setting = setting[members, settings]  # [M, N, G, H]
        return ((request + setting).relu() @ self.out[:, None]).squeeze(-1) + self.offset


def _level_steps(space: ActionSpace) -> Tensor:
    """Ordered code of each setting, +1/2 or -1/2, shape [S, steps of all knobs].

    A knob with n levels has n - 1 steps; step i tells the levels beyond i from those up to it, so that neighbours
    differ in one place and what is learned of a level carries over to the next.
    """
    columns = [
        torch.tensor(levels)[:, None] > torch.arange(len(values) - 1)
        for levels, values in zip(zip(*space.level_indices, strict=True), space.levels.values(), strict=True)
    ]
    return torch.cat(columns, dim=1).float() - 0.5


class DirectLearner(Learner):
    """Chooses ``argmax quality(observation, setting) - multiplier * latency_mean(setting) / limit``.

    Quality comes from an ensemble trained on every measured (observation, setting, quality) of the run; the latency
    of a setting is the mean of what was measured for it. Under a deadline: the highest predicted quality among the
    settings whose slow requests (``LatencyMeans.tail``) still meet it.

    Training explores as Thompson (1933) did: each draw follows one member of the ensemble, not the mean of all, and
    strays from its best setting by a softmax. All budgets learn from one model of quality, so what is executed does
    not depend on the budget: latency has the average price of the mean budgets.
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
        self._config = config.direct
        self._levels = space.levels
        self._reward = config.reward
        self._generator = torch.Generator().manual_seed(seed)
        self._model = QualityModel(space, observation_size, self._config.members, self._config.hidden, self._generator)
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=self._config.learning_rate, weight_decay=self._config.weight_decay
        )
        self._scale = Scale(observation_size)
        self._limits = Limits(latency_means, budgets, margin=self._reward.margin)
        self._trials = Trials(observation_size, config.train.group_size, self._config.capacity, ("quality",))

    @torch.no_grad()
    def propose(self, observation: Tensor, budget: Budget, draws: int, generator: torch.Generator) -> Tensor:
        """For each draw one member's view of the settings at the average price of latency; see ``Learner``."""
        quality = self._quality(observation[None])[:, 0]  # [M, S]
        members = torch.randint(len(quality), (draws,), generator=generator)
        scores = quality[members] - self._limits.mean_price() * self._limits.latencies.means
        scores = self._limits.only_legal(scores)
        return (scores / self._config.temperature).softmax(dim=-1).multinomial(1, generator=generator)[:, 0]

    def learn(self, outcome: Outcome) -> dict[str, float]:
        """Keep the trial, fit the ensemble to minibatches of all trials, move the prices; see ``Learner``."""
        settings = torch.tensor(list(dict.fromkeys(outcome.settings.tolist())))
        same = outcome.settings == settings[:, None]  # [distinct, draws]; sampled answers of one setting can differ
        quality = torch.stack([outcome.quality[draws].mean() for draws in same])
        self._limits.latencies.add(outcome.settings, outcome.latency)
        self._scale.add(outcome.observation)
        self._trials.add(outcome.observation, settings, quality=quality)
        losses = [self._update() for _ in range(self._config.updates)]
        self._move_prices(outcome.observation)
        price = self._limits.prices.at(outcome.budget.fraction) if outcome.budget.kind == "mean" else 0.0
        return {"loss": sum(losses) / len(losses), "multiplier": price}

    def _update(self) -> float:
        rows = torch.randint(len(self._trials), (self._config.members, self._config.batch), generator=self._generator)
        observations = self._scale(self._trials["observation"][rows])
        logits = self._model(observations, self._trials["settings"][rows])
        loss = (
            nn.functional.binary_cross_entropy_with_logits(
                logits, self._trials["quality"][rows], weight=self._trials["valid"][rows].float(), reduction="sum"
            )
            / self._config.batch
        )
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return float(loss.detach()) / self._config.members

    def head_gradients(self) -> Mapping[str, float]:
        """Of each knob's steps and of the output, in the member where it is shortest; see ``Learner``."""
        steps, offset = self._model.levels.grad, self._model.offset.grad
        if steps is None or offset is None:
            return {}
        rows = steps.split([len(values) - 1 for values in self._levels.values()], dim=1)  # [M, steps of a knob, H] each
        heads = {name: row for name, row in zip(self._levels, rows, strict=True) if row.shape[1]}
        return {
            name: float(gradient.flatten(1).norm(dim=1).min()) for name, gradient in {**heads, "output": offset}.items()
        }

    @torch.no_grad()
    def _move_prices(self, observation: Tensor) -> None:
        means, prices = self._limits.latencies.means, self._limits.prices
        quality = self._quality(observation[None]).mean(dim=0)[0]
        choices = [
            int(self._limits.penalised(quality, Budget(kind="mean", fraction=f)).argmax()) for f in prices.fractions
        ]
        prices.ascend(means[choices].tolist(), self._reward.multiplier_rate)

    def _quality(self, observations: Tensor) -> Tensor:
        """Predicted quality [M, N, S] of observations [N, D]."""
        return self._model(self._scale(observations)).sigmoid()

    def take_out(self, settings: Sequence[int]) -> None:
        """Mask them in draws and choices; see ``Learner``."""
        self._limits.take_out(settings)

    @torch.no_grad()
    def decide(self, observation: Tensor, budget: Budget) -> int:
        """Best mean prediction less the price of latency; see ``Learner``."""
        return self._limits.choose(self._quality(observation[None]).mean(dim=0)[0], budget)

    @torch.no_grad()
    def settle(self, observations: Tensor, latency_means: Tensor | None = None) -> None:
        """Fit the price of every mean budget; see ``Learner``."""
        quality = self._quality(observations).mean(dim=0)
        self._limits.settle(lambda _: quality, latency_means)

    def state(self) -> dict[str, Tensor]:
        """Networks, optimizer, random state, trials, scale and limits."""
        return {
            **training_state(self._model, self._optimizer, self._generator),
            **with_prefix("scale", self._scale.state()),
            **with_prefix("limits", self._limits.state()),
            **with_prefix("trials", self._trials.state()),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what ``state`` gave."""
        load_training_state(self._model, self._optimizer, self._generator, state)
        self._scale.load(without_prefix("scale", state))
        self._limits.load(without_prefix("limits", state))
        self._trials.load(without_prefix("trials", state))

    def policy_state(self) -> dict[str, Tensor]:
        """Networks, scale and limits."""
        return frozen_state(self._model, self._scale, self._limits)

    def load_policy_state(self, state: Mapping[str, Tensor]) -> None:
        """Decide as the learner did that gave ``policy_state``."""
        load_frozen_state(self._model, self._scale, self._limits, state)
