"""Bayesian linear regression whose prior strengths follow from the evidence."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Flags = NDArray[np.bool_]

_MOST = 1e2  # prior variance of a weight; beyond it the prior says nothing any more
_LEAST = 1e-8  # below it a weight is 0
_STEPS = 20  # of the fixed point; it has settled to some percent by then


class BayesianLinear:
    """``y = x . w + noise``, with ``w ~ N(0, v_g)`` for each group g of features and ``noise ~ N(0, noise)``.

    The variances of the groups and of the noise maximise the evidence, by the fixed point of MacKay (Bayesian
    interpolation, Neural Computation 4, 1992): ``gamma_g = n_g - trace(C_g) / v_g``, ``v_g = |m_g|^2 / gamma_g``,
    ``noise = |y - X m|^2 / (N - sum gamma)``. A group that explains nothing fades to 0, so that features may be offered
    before it is known whether they help. Group 0 keeps its variance: it is what is always there, such as the mean.

    Only sums over the data are kept, so what is known does not depend on how much was measured.

    Args:
        groups: group of each feature, int of shape [D].
        variances: prior variance of each group at first.
        noise: variance of the noise at first.
        least_noise: smallest variance of the noise.
    """

    def __init__(self, groups: Indices, variances: Sequence[float], noise: float, least_noise: float) -> None:
        size = len(groups)
        self._groups = groups
        self._variances = np.array(variances, dtype=np.float64)
        self._least_noise = least_noise
        self._gram, self._moment, self._squares = np.zeros((size, size)), np.zeros(size), 0.0
        self.noise: float = noise
        self.count = 0
        self._solve()

    def add(self, x: Floats, y: Floats) -> None:
        """Take measurements: x [n, D], y [n]. They count from the next ``update`` or ``fit`` on."""
        self._gram += x.T @ x
        self._moment += x.T @ y
        self._squares += float(y @ y)
        self.count += len(y)

    def retake(self, x: Floats, y: Floats) -> None:
        """Take these measurements in place of all that were added; see ``add``."""
        self._gram, self._moment, self._squares, self.count = x.T @ x, x.T @ y, float(y @ y), len(y)

    def without(self, x: Floats, y: Floats) -> "BayesianLinear":
        """What would be known without some of the measurements, at the same strengths; x [n, D], y [n]."""
        other = BayesianLinear(self._groups, self._variances.tolist(), self.noise, self._least_noise)
        other._gram, other._moment = self._gram - x.T @ x, self._moment - x.T @ y
        other._squares, other.count = self._squares - float(y @ y), self.count - len(y)
        other._solve()
        return other

    def update(self) -> None:
        """Take into account what was added, at the present strengths."""
        self._solve()

    def fit(self) -> None:
        """The same, with strengths that maximise the evidence."""
        for _ in range(_STEPS if self.count else 0):
            covariance = np.linalg.inv(self._precision)
            self.mean = covariance @ self._moment / self.noise
            explained = self._strengthen(np.diag(covariance).astype(np.float64))
            residual = self._squares - 2 * self.mean @ self._moment + self.mean @ self._gram @ self.mean
            self.noise = float(max(residual / max(self.count - explained, 1.0), self._least_noise))
            self._weigh()
        self._solve()

    def _strengthen(self, variances: Floats) -> float:
        """One step for the variances of the groups, from those of the weights [D]; how many weights are determined."""
        explained = 0.0
        for group, variance in enumerate(self._variances):
            mine = self._groups == group
            determined = float(mine.sum() - variances[mine].sum() / variance)
            explained += determined
            if group and determined > 0:
                strength = float(self.mean[mine] @ self.mean[mine]) / determined
                self._variances[group] = np.clip(strength, _LEAST, _MOST)
        return explained

    def _weigh(self) -> None:
        self._precision: Floats = self._gram / self.noise + np.diag(1 / self._variances[self._groups])

    def _solve(self) -> None:
        self._weigh()
        self.mean: Floats = np.linalg.solve(self._precision, self._moment / self.noise).astype(np.float64)

    @property
    def log_evidence(self) -> float:
        """Logarithm of the probability density of everything that was added, at the present strengths."""
        strengths = float(np.log(self._variances[self._groups]).sum() + np.linalg.slogdet(self._precision)[1])
        unexplained = (self._squares - float(self.mean @ self._moment)) / self.noise
        return -(self.count * np.log(2 * np.pi * self.noise) + strengths + unexplained) / 2

    def variance(self, x: Floats) -> Floats:
        """Of ``x . w``, without the noise; x [n, D] -> [n]."""
        return (x.T * np.linalg.solve(self._precision, x.T)).sum(axis=0)

    def draw(self, rng: np.random.Generator, count: int) -> Floats:
        """Draws of ``w``, shape [count, D]."""
        factor = np.linalg.cholesky(self._precision)
        return self.mean + np.linalg.solve(factor.T, rng.standard_normal((len(self.mean), count))).T
