"""An estimator of latency, learned from the stored trials of a measured run."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import nn

from chronostat.errors import StoreError, UnlikeConditions
from chronostat.models.identity import unlike
from chronostat.records import Conditions, Execution, Setting, StageTiming
from chronostat.runs.store import RunStore

LEAST_EXECUTIONS = 50
_TARGETS = ("prefill_ms", "llm_prefill_ms", "ttft_ms", "decode_ms_per_token")


class Estimator:
    """Predicts the latencies of an execution from what is known before it runs.

    That is: the tokens of the prompt, the image tokens among them, the setting, and how many new tokens answers under
    this setting had on average. For each latency a regression of its logarithm on these and their products, with
    Huber's loss: a spike in the stored measurements counts as one, not by its size.

    Args:
        executions: measured ones, of one model under one set of conditions.

    Raises:
        StoreError: too few executions to learn from.
    """

    def __init__(self, executions: Iterable[Execution]) -> None:
        measured = [e for e in executions if e.timing is not None and e.timing.source == "measured"]
        if len(measured) < LEAST_EXECUTIONS:
            raise StoreError(
                f"an estimator needs at least {LEAST_EXECUTIONS} measured executions, there are {len(measured)}; let "
                "it learn from a longer run"
            )
        timings = [cast("StageTiming", execution.timing) for execution in measured]
        self._new_tokens = _mean_new_tokens(measured)
        self._any_new_tokens = float(np.mean([timing.new_tokens for timing in timings]))
        self._models = {
            target: _fit([self._features(measured[i]) for i in seen], [getattr(timings[i], target) for i in seen])
            for target in _TARGETS
            if len(seen := [i for i, timing in enumerate(timings) if getattr(timing, target) is not None])
            >= LEAST_EXECUTIONS
        }
        ends = [t.total_ms - t.ttft_ms - (t.decode_ms or 0.0) for t in timings if t.ttft_ms is not None]
        self._after_last_token_ms = float(np.median(ends))

    def timing(self, execution: Execution) -> StageTiming:
        """The latencies of an execution that ran, as estimates; of what was measured only the token counts remain.

        ``decode_ms`` is the estimated time per token for the decode steps that ran, and ``total_ms`` is
        ``ttft_ms + decode_ms`` and what ``generate()`` usually does after the last token.
        """
        return self.timings([execution])[0]

    def timings(self, executions: Sequence[Execution]) -> list[StageTiming]:
        """The same for many executions at once, which is faster."""
        features = [self._features(execution) for execution in executions]
        ms = {target: np.exp(model.predict(features)) for target, model in self._models.items()}
        return [
            self._timing(execution, {target: float(values[i]) for target, values in ms.items()})
            for i, execution in enumerate(executions)
        ]

    def _timing(self, execution: Execution, ms: dict[str, float]) -> StageTiming:
        ran = execution.timing
        steps = 0 if ran is None else ran.decode_steps
        if steps == 0:
            ms.pop("decode_ms_per_token", None)
        decode_ms = ms["decode_ms_per_token"] * steps if "decode_ms_per_token" in ms else None
        return StageTiming(
            source="estimated",
            total_ms=ms["ttft_ms"] + (decode_ms or 0.0) + self._after_last_token_ms,
            new_tokens=0 if ran is None else ran.new_tokens,
            decode_steps=steps,
            decode_ms=decode_ms,
            unseen=None if ran is None else ran.unseen,
            **ms,
        )

    def _features(self, execution: Execution) -> dict[str, float]:
        features = {
            "prompt_tokens": float(execution.prompt_tokens or 0),
            "image_tokens": float(execution.image_tokens or 0),
            "expected_new_tokens": self._new_tokens.get(execution.setting, self._any_new_tokens),
        }
        for knob, value in execution.setting.items():
            if not isinstance(value, tuple):
                features[knob] = float(value)
                continue
            features[f"{knob} count"] = float(len(value))
            features[f"{knob} sum"] = float(sum(value))
            features.update({f"{knob} {part}": 1.0 for part in value})
        return features


def estimator_from(run: Path, *, model: nn.Module, conditions: Conditions) -> Estimator:
    """An estimator learned from a stored run of the same model under the same conditions.

    Raises:
        StoreError: there is no such run, or too few executions in it.
        UnlikeConditions: the run is of another model, of other conditions, or was not measured itself.
    """
    store = RunStore.open(run)
    require_measured(store, model=model, conditions=conditions)
    return Estimator(stored_executions(store))


def stored_executions(store: RunStore) -> list[Execution]:
    """What a run executed once it was warm."""
    return [e for trial in store.trials() if trial.phase != "warmup" for e in trial.executions]


def require_measured(store: RunStore, *, model: nn.Module, conditions: Conditions) -> None:
    """Accept a stored run that was measured on this model under these conditions.

    Raises:
        UnlikeConditions: names what differs.
    """
    metadata = store.metadata
    if metadata.get("source") != "measured":
        raise UnlikeConditions(
            f"the latencies of {store.folder} are {metadata.get('source', 'not known yet')}; an estimator learns from "
            "measured ones only, name a measured run"
        )
    differing = unlike(metadata["model"]["fingerprint"], model)
    if differing is not None:
        raise UnlikeConditions(
            f"{store.folder} was measured on model {metadata['model']['fingerprint']}, this is another: {differing} "
            "differ; name a run of this model"
        )
    Conditions.from_json(metadata.get("conditions", {})).require_comparable(conditions)


def _mean_new_tokens(executions: Sequence[Execution]) -> dict[Setting, float]:
    counts: defaultdict[Setting, list[int]] = defaultdict(list)
    for execution in executions:
        assert execution.timing is not None
        counts[execution.setting].append(execution.timing.new_tokens)
    return {setting: float(np.mean(seen)) for setting, seen in counts.items()}


def _fit(features: Sequence[dict[str, float]], latencies_ms: Sequence[float]) -> Any:  # noqa: ANN401 - without types
    # imported here: scikit-learn takes a second, and measured runs never need it
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.linear_model import HuberRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    model: Any = make_pipeline(
        DictVectorizer(sparse=False),
        StandardScaler(),
        PolynomialFeatures(2, include_bias=False),  # tokens count times blocks, blocks times experts
        HuberRegressor(alpha=1.0, max_iter=10_000),
    )
    return model.fit(features, np.log(latencies_ms))
