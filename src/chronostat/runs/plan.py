"""What a run will execute, and what that takes here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from chronostat.control.calibration import GROUP, calibrated_settings
from chronostat.records import Phase, Trial
from chronostat.runs.session import Session
from chronostat.runs.workload import Workload

LEAST_JUDGED = 100  # samples, even where the box of the whole run has ended: fewer say too little of a controller
_JUDGED_SETTINGS = 10  # about how many distinct settings a judged sample runs under
_OF_ONE_BESIDE = 3  # further ones for each policy that is judged beside the controller
_BETWEEN = 1.1  # of the time inside requests: what passes between them


def planned_executions(workload: Workload) -> dict[Phase, int]:
    """About how many executions each phase of a run takes; anchors that become due come on top."""
    config, data, space = workload.config, workload.dataset, workload.space
    calibrated = calibrated_settings(space, config.train.calibration_executions, config.seed)
    most_selected = min(len(space), GROUP) * len(data.split("validation"))
    return {
        "calibrate": sum(map(len, calibrated[: len(data.split("train"))])),
        "select": min(config.train.select_executions, most_selected),
        "train": config.train.executions,
        "test": judged_samples(workload) * executions_of_a_trial(workload, "test"),
    }


def judged_samples(workload: Workload) -> int:
    """How many samples a run judges on, where its time box does not end it."""
    return min(workload.config.validation.samples, len(workload.dataset.split("test")))


def executions_of_a_trial(workload: Workload, phase: Phase) -> int:
    """About how many executions one trial of a phase holds."""
    settings, train = len(workload.space), workload.config.train
    judged = _JUDGED_SETTINGS + _OF_ONE_BESIDE * len(workload.config.validation.beside)
    of_phase = {"calibrate": GROUP, "select": GROUP, "train": train.group_size, "test": judged}
    return min(settings, of_phase.get(phase, settings))


def warm_ms(probe: Trial, counted: Trial) -> float:
    """What a request takes on average over the settings, in milliseconds.

    Args:
        probe: ``full`` alone.
        counted: every setting, slowed by counting the work that each knob takes away; by how much ``full`` tells.
    """
    full = probe.executions[0]
    ran = {e.setting: e.request_ms for e in counted.executions if e.request_ms is not None}
    slowed_ms = ran.get(full.setting)
    pace = 1.0 if full.request_ms is None or slowed_ms is None else full.request_ms / slowed_ms
    return pace * fmean(ran.values())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What lies ahead of a run that has warmed up.

    Attributes:
        execution_s: what an execution takes here, with what passes between two of them.
        executions: of each phase, as many as the time box allows to judge.
        samples: that will be judged.
        asked: that would be judged without the time box.
        elapsed_s: since the run began.
    """

    execution_s: float
    executions: Mapping[Phase, int]
    samples: int
    asked: int
    elapsed_s: float

    @classmethod
    def of(cls, session: Session) -> "Plan":
        """By what the warm-up measured."""
        execution_s = _BETWEEN * warm_ms(*session.store.trials("warmup")[-2:]) / 1e3
        planned = planned_executions(session.workload)
        asked = judged_samples(session.workload)
        of_a_sample = planned["test"] / asked
        before = sum(planned.values()) - planned["test"]
        left_s = session.time_left_s() - before * execution_s
        samples = asked
        if left_s < asked * of_a_sample * execution_s:
            samples = min(asked, max(LEAST_JUDGED, math.ceil(left_s / (of_a_sample * execution_s))))
        return cls(
            execution_s=execution_s,
            executions={**planned, "test": round(samples * of_a_sample)},
            samples=samples,
            asked=asked,
            elapsed_s=session.runner.elapsed_s,
        )

    @property
    def minutes(self) -> int:
        """What the whole run takes, rounded up."""
        return math.ceil((self.elapsed_s + sum(self.executions.values()) * self.execution_s) / 60)
