"""``measuring`` around the user's own call: own ``generate()``, encoder-decoders, image as the main input."""

import pytest
import torch

from chronostat import measuring
from zoo.cases import NEW_TOKENS, PARTS, architecture


@pytest.mark.parametrize(
    "name",
    [
        architecture(name)
        for name in ("blip", "instructblip", "kosmos-2", "udop", "pix2struct", "git", "mllama", "llava")
    ],
)
def test_the_users_own_call(name, warm):
    zoo = warm(name).zoo
    arguments = {**zoo.batch, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    plain = zoo.model.generate(**arguments)
    with measuring(zoo.model) as measured:
        output = zoo.model.generate(**arguments)
    assert torch.equal(output, plain)
    timing = measured.timing
    assert (timing.source, timing.unseen) == ("measured", None)
    assert (timing.new_tokens, timing.decode_steps) == (NEW_TOKENS, NEW_TOKENS - 1)
    assert (timing.vision_ms is not None) == bool(PARTS[name]["vision"])
    assert "generate" not in vars(zoo.model)
