"""Everything that a run has measured, as what is known of quality and latency."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chronostat.evidence.features import PromptFeatures
from chronostat.evidence.latency import Forecast, LatencyModel
from chronostat.evidence.linear import Floats, Indices
from chronostat.evidence.observation import Observation
from chronostat.evidence.quality import QualityModel
from chronostat.knobs.space import ActionSpace

_GROWTH = 1.25  # more measurements, by which strengths are fitted anew


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the executions of one request showed.

    Attributes:
        settings: positions in the space, shape [n].
        quality: in [0, 1], shape [n]; NaN where an answer has none.
        latency: without the controller's own, as a fraction of ``full`` of the same moment, shape [n]; NaN where it is
            not to be counted.
        drift: what the latencies were divided by beside: ``full`` of the moment over ``full`` in the calibration.
        first: which of them began its trial: it finds caches cold and takes longer; None: none did.
    """

    settings: Indices
    quality: Floats
    latency: Floats
    drift: float = 1.0
    first: int | None = None


class Evidence:
    """Learns from every execution of every phase; the test split alone stays apart.

    Whoever adds the same answers in the same order knows the same, bit for bit, so a run resumes from what it stored.

    Args:
        space: S settings.
        unseen: observations of requests of the kind to come, which need not be executed.
        seed: of what is drawn.

    Attributes:
        features: of prompts.
        prompts: features of the unseen requests, shape [N, 1 + F].
        tokens: of the unseen requests under each setting, shape [N, S, 2].
        quality: of settings.
        latency: of settings.
        version: how often it was fitted.
    """

    def __init__(self, space: ActionSpace, unseen: Sequence[Observation], seed: int) -> None:
        prompts = np.stack([observation.prompt for observation in unseen])
        self.features = PromptFeatures.of(prompts, seed)
        self.prompts = self.features(prompts)
        self.tokens = np.stack([observation.tokens for observation in unseen])
        self.quality = QualityModel(space, self.features.size)
        self.latency = LatencyModel(space, self.prompts, self.tokens)
        self.version = 0
        self._seed = seed
        self._fit_at = 0

    def add(self, observation: Observation, answers: Answers) -> None:
        """Take what one request showed; strengths are fitted anew whenever there is a quarter more to know."""
        prompt = self.features(observation.prompt[None])[0]
        scored, timed = np.isfinite(answers.quality), np.isfinite(answers.latency)
        self.quality.add(prompt, answers.settings[scored], answers.quality[scored])
        cold = np.arange(len(timed)) == (-1 if answers.first is None else answers.first)
        settings, latency = answers.settings[timed], answers.latency[timed]
        self.latency.add(prompt, observation.tokens, settings, latency, cold=cold[timed], drift=answers.drift)
        if self.quality.count + self.latency.count >= self._fit_at:
            self.fit()

    def update(self) -> None:
        """Take into account everything that was added, at the present strengths."""
        self.quality.update()
        self.latency.update()

    def fit(self) -> None:
        """The same, at strengths that maximise the evidence."""
        self.quality.fit()
        self.latency.fit()
        self.version += 1
        self._fit_at = _GROWTH * (self.quality.count + self.latency.count)

    def rng(self) -> np.random.Generator:
        """Of what is drawn from the present version."""
        return np.random.default_rng([self._seed, self.version])

    def order(self) -> np.ndarray:
        """Which settings are taken to be no better than which, see ``QualityModel.order``."""
        return self.quality.order(self.prompts, self.rng())

    def forecast(self) -> Forecast:
        """Of latencies, see ``LatencyModel.forecast``."""
        return self.latency.forecast()

    def mean_deviation(self) -> float:
        """Standard deviation of the mean latency of what is best at a middling price, as a share of it.

        Forecasts may be off, and the requests that were looked at are a sample of those to come.
        """
        latency = self.forecast().mean(self.prompts, self.tokens)
        chosen = (self.prompts @ self.quality.mean() - latency).argmax(axis=1)
        taken = latency[np.arange(len(chosen)), chosen]
        of_forecast = self.latency.deviation(self.prompts, self.tokens, chosen, taken)
        of_sample = taken.std() / (taken.mean() * np.sqrt(len(taken)))
        return float(np.hypot(of_forecast, of_sample))
