"""Surveys with made-up numbers."""

from chronostat.measure.generate import Waterfall
from chronostat.records import Comparison, Conditions, Estimate, Execution, Setting, StageTiming
from chronostat.studies.survey import Column, Shot, Survey
from stand_ins.sample_run import CONDITIONS


def timing(prefill_ms=30.0, *, source="measured", total_ms=50.0, new_tokens=1, **stages):
    measured = {"prefill_ms": prefill_ms, **stages} if source == "measured" else {"unseen": "not seen: vision"}
    return StageTiming(source=source, total_ms=total_ms, new_tokens=new_tokens, decode_steps=new_tokens - 1, **measured)


def shot(timing, *, request=0, disturbed=None, peak_mib=None, quality=None, waterfall=None, **metadata):
    execution = Execution(
        sample_id=f"sample {request}",
        split="test",
        setting=Setting(),
        timing=timing,
        **{"answer": "[red]", "preprocess_ms": 2.0, "prompt_tokens": 90, "image_tokens": 80, **metadata},
        disturbed=disturbed,
        quality=quality,
    )
    return Shot(
        arm=0,
        request=request,
        execution=execution,
        peak_mib=peak_mib,
        compiled=False,
        waterfall=waterfall or Waterfall(),
    )


def column(*shots, name="full", **changes):
    return Column(
        **{
            "name": name,
            "model": "a model",
            "fingerprint": "0123",
            "setting": Setting(),
            "conditions": Conditions(**CONDITIONS),
            "shots": shots,
            "left_out": (),
            "peak_meaning": "resident in the process",
            **changes,
        }
    )


def a_survey(*columns, comparisons=None, requests=1, ended=None):
    return Survey(
        columns=columns,
        requests=tuple(f"sample {number}" for number in range(requests)),
        metric="prefill_ms",
        comparisons=comparisons or {},
        noise_floor={},
        ended=ended,
    )


def comparison(metric, point=0.5, *, verdict="faster", pairs=6, flags=()):
    ratio = Estimate(point=point, low=0.9 * point, high=1.1 * point)
    return Comparison(metric=metric, ratio=ratio, verdict=verdict, pairs=pairs, margin=0.02, flags=flags)
