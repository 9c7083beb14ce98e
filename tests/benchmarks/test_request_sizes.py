"""Forecasts from recorded sizes: what is known of a request never comes from itself."""

import numpy as np
import pytest
from benchmarks.kit.results import RESULTS, read_compressed
from benchmarks.request_sizes import FOLDS, HEAD, REFERENCE, _forecast, row_of


def recorded(ms_of, requests=40):
    """Two settings; the second has half the tokens. The reference takes 10 ms, then 20, by turns."""
    tokens = [[10 + 7 * i, 5 + i // 2] for i in range(requests)]
    executions = {key: [] for key in ("request", "setting", "anchor", "started_s", "prefill_ms", "quality")}
    for i, full in enumerate(tokens):
        slow = 1 + i // 2 % 2
        for request, setting, ms in ((REFERENCE, 0, 10.0), *((i, s, ms_of(full[s], 6)) for s in (0, 1))):
            row = (request, setting, False, float(i), ms * slow, 1.0 if request % 2 else 0.0)
            for key, value in zip(executions, row, strict=True):
                executions[key].append(value)
    return {
        "requests": [{"image_tokens": each, "text_tokens": [6, 6]} for each in tokens],
        "executions": executions,
    }


def test_a_law_in_tokens_is_found_once_the_drift_is_taken_out():
    """3 + 0.1 a token: beside the reference the line is exact, without it off by the slow half, the median by sizes."""
    cell = recorded(lambda image, text: 3 + 0.1 * image + 0.1 * text)
    values = dict(zip(HEAD[1:], row_of(cell), strict=True))
    assert values["requests, executions"] == "40, 80"
    assert values["right at full"] == "50 %"
    assert values["beside the reference"] == "0.0 %"
    assert float(values["of the line through tokens"].removesuffix(" %")) > 10
    assert values["image tokens of full: 5, 50, 95 %"] == "24, 146, 269"  # 10 + 7 * 39 * (0.05, 0.5, 0.95)


def test_a_forecast_does_not_know_its_own_request():
    """One request takes a hundred times as long: its own error is that of a forecast from the others, 99 %."""
    request = np.arange(20)
    ms = np.where(request == 7, 100.0, 1.0)
    size = np.column_stack([request, request]).astype(float)
    forecast = _forecast(np.zeros(20, int), size, request, ms, by_tokens=False)
    assert forecast[7] == pytest.approx(1.0)
    assert 20 % FOLDS == 0


def test_what_is_stored_differs_by_six_times():
    for name, cell in read_compressed(RESULTS / "request_sizes.json.gz")["raw"].items():
        own = [request["image_tokens"][0] for request in cell["requests"]]
        low, high = np.quantile(own, (0.05, 0.95))
        assert high > 6 * low, name
        assert {len(values) for values in cell["executions"].values()} == {len(cell["executions"]["request"])}
