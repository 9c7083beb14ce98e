"""Made-up records, and a whole run of them, for tests of the store and the report."""

from itertools import product
from pathlib import Path

import numpy as np

from chronostat.records import (
    Budget,
    Comparison,
    Decision,
    Estimate,
    Execution,
    Phase,
    PolicyScore,
    Setting,
    StageTiming,
    Step,
    Trial,
)
from chronostat.runs.store import (
    Counted,
    FixedScore,
    KindScore,
    KindsDiffer,
    NoiseFloor,
    PolicyComparison,
    RunStore,
    Selected,
    Validation,
)

SPACE = {"vision_tokens": [80, 40, 20, 10], "moe_topk": [2, 1], "block_skip": [[], [2, 3]]}
SETTINGS = tuple(
    Setting(vision_tokens=tokens, moe_topk=topk, block_skip=tuple(skip))
    for tokens, topk, skip in product(*SPACE.values())
)
FULL = SETTINGS[0]
KINDS = ("color", "count", "digit", "shape", "sum")
FULL_MS = 40.0
BUDGETS = tuple(
    Budget(kind=kind, fraction=fraction)
    for kind, fractions in (("mean", (0.3, 0.4, 0.5)), ("deadline", (0.4, 0.6, 0.8)))
    for fraction in fractions
)
CONDITIONS = {
    "machine": "bench-1",
    "cpu": "Example CPU 9000 <fast>",
    "cores": 2,
    "device": "cpu",
    "driver": "none",
    "threads": 1,
    "torch": "2.14.1",
    "transformers": "5.23.0",
    "dtype": "float32",
    "attention": "sdpa",
}


def around(point: float, half: float) -> Estimate:
    return Estimate(point=point, low=point - half, high=point + half)


def a_trial(index: int = 0, **changes: object) -> Trial:
    timing = StageTiming(source="measured", total_ms=30.0, new_tokens=3, decode_steps=2, prefill_ms=20.0)
    metadata = {"sample_id": "s1", "split": "train", "kind": "color", "quality": 1.0, "preprocess_ms": 2.0}
    ran = (
        Execution(**metadata, setting=Setting(vision_tokens=80), timing=timing, controller_ms=0.5),
        Execution(**metadata, setting=Setting(vision_tokens=16, block_skip=(2, 3)), timing=timing),
        Execution(**metadata, setting=Setting(vision_tokens=8), timing=None, invalid="RuntimeError: out of memory"),
    )
    values = {"phase": "train", "index": index, "sample_id": "s1", "executions": ran, "draws": (0, 1, 0), "anchor": 0}
    return Trial(**{**values, **changes})


def a_step(index: int = 0) -> Step:
    budget = Budget(kind="mean", fraction=0.4)
    return Step(index=index, executed_ms=1e3, quality=0.5, latency_fraction=0.6, budget=budget, metrics={"loss": 0.1})


def a_decision() -> Decision:
    budget = Budget(kind="deadline", fraction=0.4)
    setting = Setting(vision_tokens=16)
    return Decision(sample_id="s1", split="test", kind="color", budget=budget, setting=setting, controller_ms=0.1)


def metadata(**changes: object) -> dict[str, object]:
    """What ``run.json`` of the run holds."""
    phases = {
        "calibrate": {"seconds": 21.5, "generate_calls": 160},
        "select": {"seconds": 9.5, "generate_calls": 60},
        "train": {"seconds": 149.8, "generate_calls": 452},
        "test": {"seconds": 61.0, "generate_calls": 648},
    }
    values: dict[str, object] = {
        "version": "0.1.0",
        "command": "chronostat demo --seed 7",
        "started": "2026-03-04T05:06:07+00:00",
        "seed": 7,
        "config": {"train": {"learner": "direct", "executions": 450}},
        "model": {"name": "demo_vlm", "fingerprint": "0123456789abcdef" * 4, "parameters": 5_812_345},
        "space": SPACE,
        "conditions": CONDITIONS,
        "metric": "prefill_ms",
        "source": "measured",
        "full_ms": {"calibrate": FULL_MS, "test": 41.0},
        "phases": phases,
        "budget_range": [0.21, 0.97],
        "forecast": {"error": 0.094, "executions": 672},
        "taken_out": {str(SETTINGS[5]): "RuntimeError: out of memory"},
    }
    return {**values, **changes}


def execution(sample: int, setting: Setting, split: str, random: np.random.Generator, source: str) -> Execution:
    """One made-up execution; every 97th sample fails under one setting."""
    kind = KINDS[sample % len(KINDS)]
    common = {"sample_id": f"{split}-{sample}", "split": split, "setting": setting, "kind": kind}
    if sample % 97 == 13 and setting == SETTINGS[5]:
        return Execution(**common, timing=None, invalid="RuntimeError: out of memory")
    tokens, topk, skip = setting["vision_tokens"], setting["moe_topk"], setting["block_skip"]
    assert isinstance(tokens, int)
    assert isinstance(topk, int)
    assert isinstance(skip, tuple)
    noise = float(np.exp(random.normal(0, 0.1)))
    vision = 0.15 * tokens * noise
    llm = (4 + 0.18 * tokens) * (1 - 0.25 * len(skip) / 2) * (0.7 + 0.15 * topk) * noise
    decode, rest, other = 6.0 * noise, 0.8, 1.1
    prefill = vision + 0.6 + llm + rest
    hard = {"color": 5, "count": 30, "digit": 70, "shape": 15, "sum": 60}[kind]
    chance = 0.97 - max(0, hard - tokens) / 90 - 0.04 * len(skip) - 0.05 * (2 - topk)
    stages = {
        "ttft_ms": prefill + 0.5,
        "prefill_ms": prefill,
        "vision_ms": vision,
        "projector_ms": 0.6,
        "llm_prefill_ms": llm,
        "prefill_rest_ms": rest,
        "decode_ms": decode,
        "decode_ms_per_token": decode / 2,
        "other_ms": other,
    }
    if source != "measured":
        stages = {"unseen": "no vision tower was found"}
    timing = StageTiming(source=source, total_ms=prefill + decode + other, new_tokens=3, decode_steps=2, **stages)
    return Execution(
        **common,
        timing=timing,
        output_ids=(1, 2, 3),
        answer="red",
        quality=float(random.random() < chance),
        preprocess_ms=1.5,
        prompt_tokens=20,
        image_tokens=tokens,
        disturbed="stolen CPU time 20 ms; cgroup throttled 3.2 ms" if sample % 20 == 7 else None,
    )


def trial(phase: Phase, index: int, settings: list[Setting], random: np.random.Generator, source: str) -> Trial:
    split = {"test": "test", "select": "validation"}.get(phase, "train")
    distinct = list(dict.fromkeys(settings))
    if phase == "test" and index % 5 == 0:
        distinct.append(FULL)  # once more, for the noise floor
    ran = tuple(execution(index, setting, split, random, source) for setting in distinct)
    return Trial(
        phase=phase,
        index=index,
        sample_id=f"{split}-{index}",
        executions=ran,
        draws=tuple(distinct.index(setting) for setting in settings),
        anchor=distinct.index(FULL) if FULL in distinct else None,
        started_s={"calibrate": 0.0, "select": 10.0, "train": 20.0, "test": 130.0}[phase] + index * 0.9,
        drift=None if phase == "calibrate" else around(1.0 + index / 1000, 0.05),
    )


def validation() -> Validation:
    """A judgement whose numbers are easy to recognise."""
    scores: list[PolicyScore] = []
    for i, budget in enumerate(BUDGETS):
        policies = {"controller": 0.813, "best fixed": 0.763, "static mix": 0.783, "full": 0.938}
        for policy, base in policies.items():
            share = 1.0 if policy == "full" else budget.fraction * 0.98
            accuracy = base + (0 if policy == "full" else 0.02 * (i % 3))
            gain = None if policy == "controller" else around(0.813 + 0.02 * (i % 3) - accuracy, 0.034)
            used = {
                "controller": ((str(SETTINGS[12]), 0.62), (str(SETTINGS[4]), 0.38)),
                "best fixed": ((str(SETTINGS[8 - 2 * (i % 3)]), 1.0),),
                "static mix": ((str(SETTINGS[12]), 0.55), (str(SETTINGS[0]), 0.45)),
                "full": ((str(FULL), 1.0),),
            }[policy]
            scores.append(
                PolicyScore(
                    policy=policy,
                    budget=budget,
                    budget_ms=budget.ms(FULL_MS),
                    samples=312,
                    settings=used,
                    accuracy=around(accuracy, 0.041),
                    mean_ms=around(share * FULL_MS, 0.7),
                    p50_ms=share * FULL_MS * 0.97,
                    p95_ms=share * FULL_MS * 1.4,
                    share_within=around(0.61 if budget.kind == "mean" else 0.955, 0.03),
                    gain=gain,
                    kept=policy != "full",
                )
            )
    fixed = tuple(
        FixedScore(
            setting=str(setting),
            n=312,
            accuracy=around(0.4 + 0.54 * (1 - i / len(SETTINGS)) ** 0.5, 0.045),
            mean_ms=around(FULL_MS * (1 - 0.8 * i / len(SETTINGS)), 0.6),
            p95_ms=FULL_MS * (1.4 - i / len(SETTINGS)),
        )
        for i, setting in enumerate(SETTINGS)
    )
    by_kind = tuple(
        KindScore(
            kind=kind,
            budget="mean 0.40",
            policy=policy,
            n=62,
            accuracy=0.7 + 0.03 * i,
            setting_shares={str(SETTINGS[12 if kind in {"color", "shape"} else 4]): 0.8, str(SETTINGS[0]): 0.2},
        )
        for i, kind in enumerate(KINDS)
        for policy in ("controller", "best fixed")
    )
    return Validation(
        scores=tuple(scores),
        fixed=fixed,
        by_kind=by_kind,
        samples=312,
        selection={
            str(budget): Selected(
                setting=str(SETTINGS[8]), expected=0.771, shortfall=0.013, learned=budget.fraction > 0.35
            )
            for budget in BUDGETS
        },
        kinds_differ=KindsDiffer(
            budget="mean 0.40", p_value=0.0004, most_chosen={"color": str(SETTINGS[12]), "sum": str(SETTINGS[4])}
        ),
        counted=Counted(executions=648, generate_calls=648),
        comparisons=tuple(
            PolicyComparison(
                budget=str(budget),
                policy=policy,
                gain=around(0.05, 0.034),
                accuracy="better",
                latency=Comparison(
                    metric="prefill_ms",
                    ratio=around(0.912, 0.02),
                    verdict="faster",
                    pairs=297,
                    margin=0.02,
                    left_out={"stolen CPU time": 15},
                ),
            )
            for budget in BUDGETS
            for policy in ("best fixed", "full")
        ),
        noise=NoiseFloor(
            comparison=Comparison(
                metric="prefill_ms", ratio=around(1.001, 0.01), verdict="same", pairs=57, margin=0.02
            ),
            spread=0.083,
            asked=60,
            left_out={"stolen CPU time": 3},
        ),
        stop="all samples were judged",
    )


def write_run(folder: Path, *, source: str = "measured", until: str = "validate", **changes: object) -> RunStore:
    """Write the run as far as ``measure``, ``train`` or ``validate``; ``changes`` go to ``run.json``."""
    random = np.random.default_rng(7)
    store = RunStore.create(folder, metadata(**{"source": source, **changes}))
    store.append([trial("calibrate", i, list(SETTINGS), random, source) for i in range(10)])
    if until != "measure":
        _train(store, random, source)
    if until == "validate":
        _judge(store, random, source)
    store.close()
    return store


def _train(store: RunStore, random: np.random.Generator, source: str) -> None:
    drawn_alike = [[SETTINGS[(7 * i + j) % len(SETTINGS)] for j in range(6)] for i in range(10)]
    own = np.random.default_rng(8)
    store.append([trial("select", i, drawn, own, source) for i, drawn in enumerate(drawn_alike)])
    trials: list[Trial] = []
    steps: list[Step] = []
    for index in range(120):
        drawn = [SETTINGS[i] for i in random.integers(len(SETTINGS), size=4)]
        settings = [*drawn, FULL] if index % 5 == 0 else drawn
        budget = BUDGETS[index % len(BUDGETS)]
        trials.append(trial("train", index, settings, random, source))
        quality = float(np.clip(0.55 + index / 500 + random.normal(0, 0.15), 0, 1)) if index != 3 else float("nan")
        step = Step(
            index=index,
            executed_ms=900.0 * (index + 1),
            quality=quality,
            latency_fraction=0.7 - index / 500,
            budget=budget,
            metrics={"loss": 0.7 - index / 300},
        )
        steps.append(step)
    store.append(trials)
    store.append(steps)


def _judge(store: RunStore, random: np.random.Generator, source: str) -> None:
    store.append([trial("test", i, list(SETTINGS), random, source) for i in range(40)])
    chosen: list[Decision] = []
    for budget, sample in product(BUDGETS, range(40)):
        kind = KINDS[sample % len(KINDS)]
        easy = kind in {"color", "shape"}
        setting = SETTINGS[12 if easy else 4] if budget.fraction < 0.6 else SETTINGS[8 if easy else 1]
        chosen.append(
            Decision(
                sample_id=f"test-{sample}", split="test", kind=kind, budget=budget, setting=setting, controller_ms=0.12
            )
        )
    store.append(chosen)
    store.write_json("validation.json", validation().to_json())
