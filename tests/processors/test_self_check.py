"""The self-check of a run accepts the knob on processors that act by arguments, on both sides, and upwards."""

import pytest

from chronostat.data.quality import QUALITIES
from chronostat.data.samples import Sample
from chronostat.execution.execute import execute
from chronostat.execution.trials import TrialRunner
from chronostat.knobs.registry import find_space
from chronostat.measure.clock import CpuClock
from chronostat.models.weights import weights_checksum
from chronostat.records import Setting
from chronostat.runs.knob_check import prove_knobs
from processors.conftest import picture, request


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("Qwen2-VL", "image_tokens"),
        ("LLaVA-NeXT (336 px)", "image_tokens"),
        ("Mllama", "image_tokens"),
        pytest.param("Gemma 3", "image_tokens", marks=pytest.mark.slow),
    ],
)
def test_the_knob_is_proven(pair_of, name, count):
    pair, image = pair_of(name), picture(900, 600)
    found, _ = find_space(pair.model, pair.processor, {})
    fixed = {knob: (values[0],) for knob, values in found.levels.items() if knob != "vision_tokens"}
    space, _ = find_space(pair.model, pair.processor, fixed)
    runner = TrialRunner(
        model=pair.model,
        processor=pair.processor,
        quality=QUALITIES["exact"],
        full=space.full,
        max_new_tokens=2,
        clock=CpuClock(),
        seed=0,
        keep=lambda _: None,
        anchor_every_s=1e9,
    )
    execute(pair.model, request(pair.processor, image), setting=Setting(), max_new_tokens=2)
    sample = Sample(id="a", split="train", prompt="a b c", references=("a",), load_images=lambda: (image,))
    proofs = prove_knobs(runner, space, [sample], index=0, weights=weights_checksum(pair.model))
    assert proofs.keys() == {"vision_tokens"}
    proof = proofs["vision_tokens"]
    assert proof.count == count
    assert any(read != proof.full for read in proof.values.values())
