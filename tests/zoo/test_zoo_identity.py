"""Who is the same model, on every architecture of the zoo: a cast and run-time switches do not make another one."""

import copy

import pytest
import torch

from chronostat.models.identity import fingerprint, unlike
from chronostat.models.weights import weights_checksum
from zoo.build import build
from zoo.cases import every


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Casting complex values")  # of Llama 4, whose rotary buffer is made anew
@pytest.mark.parametrize("name", every())
def test_a_cast_and_use_cache_leave_the_model_the_same(name):
    model = build(name).model
    stored, bits = fingerprint(model), weights_checksum(model)
    for dtype in (torch.bfloat16, torch.float16):
        assert unlike(stored, copy.deepcopy(model).to(dtype)) is None
    model.config.use_cache = False
    assert fingerprint(model) == stored
    assert weights_checksum(model) == bits
    with torch.no_grad():
        max(model.parameters(), key=torch.numel).add_(1)
    assert unlike(stored, model) == "its weights"
