"""What a setting costs: prefill measured inside real executions, as a share of the full setting's."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from recipes.demo_vlm.table import Setting, setting_of

from chronostat import records as library
from chronostat.data.samples import Sample
from chronostat.errors import DataError, MeasurementError
from chronostat.execution.conditions import read_conditions
from chronostat.execution.execute import execute, request_for
from chronostat.knobs.registry import find_space
from chronostat.models.load import Vlm

RESAMPLES = 2_000
WARM_UPS = 3


def measure_costs(
    vlm: Vlm, samples: Sequence[Sample], settings: Sequence[library.Setting] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Executes every setting once on each sample, in random order, and compares each with full on the same sample.

    Args:
        vlm: the model.
        samples: of one split.
        settings: full first; those of the model's own action space if absent.
        seed: draws the order.

    Returns:
        Plain data: conditions, and for each setting its median prefill in ms, its median share of full, and the bounds
        of that share's 95 % bootstrap interval over samples.
    """
    rng = np.random.default_rng(seed)
    settings = settings or find_space(vlm.model, vlm.processor, {})[0].settings
    for setting in (settings[0], settings[-1]) * WARM_UPS:
        _prefill_ms(vlm, samples[0], setting)
    measured: dict[Any, list[float]] = defaultdict(list)  # by setting: one prefill for each sample
    for sample in samples:
        for index in rng.permutation(len(settings)):
            setting = settings[int(index)]
            measured[setting].append(_prefill_ms(vlm, sample, setting))
    full_ms = np.array(measured[settings[0]])
    return {
        "fingerprint": vlm.fingerprint,
        "metric": "prefill_ms",
        "split": samples[0].split,
        "samples": len(samples),
        "conditions": asdict(read_conditions(vlm.model)),
        "settings": [
            {
                **setting,
                "block_skip": list(setting["block_skip"]),
                **_summary(np.array(measured[setting]), full_ms, rng),
            }
            for setting in settings
        ],
    }


def _prefill_ms(vlm: Vlm, sample: Sample, setting: Any) -> float:  # noqa: ANN401 - a setting of the library
    request = request_for(sample, vlm.processor, None)
    timing = execute(vlm.model, request, setting=setting, max_new_tokens=1).timing
    if timing is None or timing.prefill_ms is None:
        raise MeasurementError(f"prefill was not seen on sample {sample.id} under {setting}; run chronostat doctor")
    return timing.prefill_ms


def _summary(times_ms: NDArray[np.float64], full_ms: NDArray[np.float64], rng: np.random.Generator) -> dict[str, float]:
    """Medians over samples, [sample] each, and the bootstrap interval of the share."""
    ratios = times_ms / full_ms
    drawn = rng.integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), [0.025, 0.975])
    return {
        "prefill_ms": round(float(np.median(times_ms)), 3),
        "share": round(float(np.median(ratios)), 4),
        "share_low": round(float(low), 4),
        "share_high": round(float(high), 4),
    }


def write_costs(path: Path, costs: dict[str, Any]) -> None:
    """Stores costs, one setting a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page = {name: value for name, value in costs.items() if name != "settings"}
    lines = ",\n".join(json.dumps(row) for row in costs["settings"])
    path.write_text(f'{{"page": {json.dumps(page)},\n"settings": [\n{lines}\n]}}\n')


def read_costs(path: Path) -> dict[str, Any]:
    """Reads what `write_costs` stored.

    Raises:
        DataError: there is no such file.
    """
    if not path.is_file():
        raise DataError(f"there are no costs {path}; measure them with: python -m recipes.demo_vlm costs")
    stored = json.loads(path.read_text())
    return {**stored["page"], "settings": stored["settings"]}


def cost_shares(costs: dict[str, Any]) -> dict[Setting, float]:
    """Each setting's prefill as a share of full."""
    return {setting_of(row): row["share"] for row in costs["settings"]}
