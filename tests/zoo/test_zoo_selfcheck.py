"""The knobs' self-check on every architecture of the zoo: what is offered proves itself, nothing stops by mistake."""

import pytest

from chronostat.errors import KnobError
from chronostat.execution.execute import BatchRequest
from chronostat.execution.trials import TrialRunner
from chronostat.knobs.registry import find_space
from chronostat.measure.clock import FakeClock
from chronostat.models.weights import weights_checksum
from chronostat.runs.knob_check import prove_knobs, varying_knobs
from zoo.cases import MEASURED, NEW_TOKENS, architecture


@pytest.mark.slow
@pytest.mark.parametrize("name", [architecture(name) for name in MEASURED])
def test_every_knob_proves_itself(name, warm):
    zoo = warm(name).zoo
    if "input_ids" not in zoo.batch:
        pytest.skip("its request has no text, so it cannot be executed as a ready batch")
    try:
        space, _ = find_space(zoo.model, None, {})
    except KnobError:
        pytest.skip("it has no knob")
    runner = TrialRunner(
        model=zoo.model,
        processor=None,
        quality=None,
        full=space.full,
        max_new_tokens=NEW_TOKENS,
        clock=FakeClock(),
        seed=0,
        keep=lambda trial: None,
        anchor_every_s=1e9,
    )
    weights = weights_checksum(zoo.model)
    request = BatchRequest(batch=zoo.batch, id="zoo")
    runner.run("warmup", 0, request, [space.full])
    proofs = prove_knobs(runner, space, [request], index=2, weights=weights)
    assert list(proofs) == varying_knobs(space.settings)
    for proof in proofs.values():
        assert proof.idle == ()
        assert all(count < proof.full for count in proof.values.values())
