"""What would make a run worthless, said before its time is spent: prompts, and what ``full`` answers."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from chronostat.compare.reasons import kind_of
from chronostat.data.checking import looked_at
from chronostat.data.samples import SPLITS, Dataset, Sample
from chronostat.errors import DataError
from chronostat.execution.execute import request_for
from chronostat.models.load import Vlm
from chronostat.models.refusals import image_marks, try_prepare
from chronostat.records import Setting, Trial

_FEWEST = 3  # answers of ``full``, all of them wrong, that say something


def check_prompts(dataset: Dataset, vlm: Vlm) -> None:
    """Accept the prompts of all splits, and what the processor makes of the first sample of each.

    Raises:
        DataError: prompts hold a mark that the processor takes for the place of an image, or it refuses a sample; says
            where, and how many.
        ModelError: the processor lacks a package, or its template leaves images out.
    """
    for split in SPLITS:
        check_prompts_of(looked_at(dataset, split), vlm)


def check_prompts_of(samples: Sequence[Sample], vlm: Vlm) -> None:
    """The same for the samples of one split, in the order of a run.

    Raises:
        DataError, ModelError: as ``check_prompts``.
    """
    _refuse_marks(samples, image_marks(vlm.processor), vlm.name)
    for sample in samples[:1]:
        prepared(sample, vlm)


def prepared(sample: Sample, vlm: Vlm) -> Mapping[str, Tensor]:
    """What the processor makes of a sample at full.

    Raises:
        DataError: it refuses the sample.
        ModelError: it lacks a package, or its template leaves images out.
    """
    return try_prepare(
        vlm.processor,
        request_for(sample, vlm.processor, None).images,
        sample.asked,
        model=vlm.name,
        request=sample.place,
        device=vlm.model.device,
        dtype=vlm.model.dtype,
    )


def what_full_answered(trials: Sequence[Trial], full: Setting) -> Iterator[str]:
    """What a person should know of the calibration before training: nothing is right, or executions failed.

    Args:
        trials: of the calibration.
        full: the setting that leaves the model as it is.
    """
    executions = [execution for trial in trials for execution in trial.executions]
    scored = [each for each in executions if each.setting == full and each.quality is not None]
    if len(scored) >= _FEWEST and not any(each.quality for each in scored):
        first = scored[0]
        yield (
            f"full answered 0 % of {len(scored)} calibration samples right, such as {first.sample_id} with "
            f"{first.answer!r}: nothing can be learned from that; end this with ctrl-C and look at data.quality, at "
            "the references (chronostat data check) and at measure.max_new_tokens"
        )
    reasons = Counter(kind_of(each.invalid.splitlines()[0]) for each in executions if each.invalid)
    for reason, count in reasons.most_common():
        share = f"{count} of {len(executions)} executions of the calibration failed ({count / len(executions):.0%})"
        yield f"{share}: {reason}"


def _refuse_marks(samples: Sequence[Sample], marks: frozenset[str], model: str) -> None:
    stray = [(sample, mark) for sample in samples for mark in marks if mark in _said(sample)]
    if stray:
        (sample, mark), count = stray[0], len({sample.id for sample, _ in stray})
        raise DataError(
            f"{sample.place}: its prompt holds {mark!r}, which {model} takes for a part of an image, as do {count} of "
            f"{len(samples)} prompts of {sample.split}; take it out, or name the place with <image>"
        )


def _said(sample: Sample) -> str:
    return "\n".join(turn.text for turn in sample.turns) if sample.turns else sample.prompt
