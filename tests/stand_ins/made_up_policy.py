"""A policy of made-up numbers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from chronostat.evidence.features import PromptFeatures
from chronostat.evidence.latency import Forecast
from chronostat.evidence.observation import Observation
from chronostat.policy.frontier import Requests
from chronostat.policy.policy import Policy
from chronostat.policy.scorers import QualityScorer
from stand_ins.control_fixtures import forecast_of

Floats = NDArray[np.float64]


def made_up(
    quality: Floats,
    latency: Floats,
    *,
    forecast: Forecast | None = None,
    draws: Floats | None = None,
    legal: Sequence[bool] | None = None,
    margin: float = 0.0,
    priced: bool = True,
) -> Policy:
    """One whose requests are all alike: settings of known quality [S] and latency [S].

    Args:
        quality: of each setting.
        latency: of each setting, as a fraction of full.
        forecast: another one than that of the latencies.
        draws: qualities as they may be, shape [K, 1, S]; the known one alone if absent.
        legal: settings that may be chosen; all if absent.
        margin: of mean budgets.
        priced: find the prices; without them it can be looked at, not used.
    """
    order = np.eye(len(quality), dtype=bool)
    scorer = QualityScorer(by_setting=np.array(quality)[None], order=order)
    parts = {
        "learner": "direct",
        "features": PromptFeatures.restored(
            {
                "centre": np.zeros(1),
                "directions": np.zeros((1, 1)),
                "anchors": np.zeros((1, 1)),
                "scale": np.array(1.0),
                "weights": np.zeros((1, 0)),
            }
        ),
        "scorers": {"learned": scorer, "plain": scorer},
        "forecast": forecast or forecast_of(latency),
        "requests": Requests(prompts=np.ones((20, 1)), tokens=np.full((20, len(quality), 2), 10.0)),
        "draws": np.array(quality)[None, None] if draws is None else draws,
        "legal": np.ones(len(quality), dtype=bool) if legal is None else np.array(legal),
        "margin": margin,
    }
    return Policy.of(**parts) if priced else Policy(**parts, frontiers={}, deadlines={}, gains={})


def request_alike(settings: int) -> Observation:
    """One of the requests that are all alike."""
    return Observation(prompt=np.zeros(1), tokens=np.full((settings, 2), 10.0))
