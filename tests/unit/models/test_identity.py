"""Who is the same model, and by which rule."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from chronostat.models.identity import fingerprint, unlike
from chronostat.models.load import load_vlm

BY_FIRST_RULE = "2e29f80f8ab1"  # the bundled model in float32, as versions before the second rule stored it
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def module_of(values, **config):
    module = nn.Module()
    module.weight = nn.Parameter(values, requires_grad=False)
    if config:
        module.config = Described(**config)
    return module


@dataclass
class Described:
    """A configuration, as far as a fingerprint reads one."""

    eps: float = 1e-6
    use_cache: bool = True
    attention_dropout: float = 0.0

    def to_dict(self):
        return {**vars(self), "dtype": "float32", "_name_or_path": "somewhere", "transformers_version": "5.23.0"}


@dataclass
class DescribedByANewerVersion(Described):
    shift: int = 0


@pytest.fixture(scope="module")
def casts():
    """The bundled checkpoint, which is float16, as it is loaded in each dtype."""
    return {dtype: load_vlm(device="cpu", dtype=str(dtype).removeprefix("torch.")).model for dtype in DTYPES}


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("loaded", DTYPES)
def test_a_model_is_the_same_in_every_dtype(casts, stored, loaded):
    assert unlike(fingerprint(casts[stored]), casts[loaded]) is None


@pytest.mark.parametrize("checkpoint", DTYPES)
def test_what_survives_a_cast_is_known(checkpoint):
    # values down to 1e-9, where float16 has 0, and up to 1e5, where it has infinity
    spread = torch.logspace(-9, 5, 4096, dtype=torch.float64) * torch.rand(4096, dtype=torch.float64).sub(0.5).sign()
    saved = spread.to(checkpoint)
    models = {dtype: module_of(saved.to(dtype)) for dtype in DTYPES}
    lost = {
        torch.bfloat16,
        torch.float16,
    }  # of a float32 checkpoint the rounding of one is not to be had from the other
    for mine, model in models.items():
        for other, cast in models.items():
            differing = unlike(fingerprint(model), cast)
            assert (differing is None) == (checkpoint != torch.float32 or {mine, other} != lost), (mine, other)


def test_one_step_of_bfloat16_is_another_model():
    # 1 + 2**-7 is the next bfloat16 after 1, 1 + 2**-9 is rounded to 1
    one, next_one, near_one = (module_of(torch.full((3,), value)) for value in (1.0, 1 + 2**-7, 1 + 2**-9))
    assert unlike(fingerprint(one), next_one) == "its weights"
    assert unlike(fingerprint(one), near_one) is None


def test_switches_that_change_no_result_are_not_the_model(bundled):
    model = copy.copy(bundled.model)
    model.config = copy.deepcopy(bundled.model.config)
    for config in (model.config, model.config.text_config):
        config.use_cache = not getattr(config, "use_cache", False)
        config.output_hidden_states = True
        config._attn_implementation = "eager"
    assert unlike(bundled.fingerprint, model) is None
    model.config.text_config.rms_norm_eps = 1e-3
    assert unlike(bundled.fingerprint, model) == "its architecture or configuration"


def test_a_field_that_a_newer_library_adds_is_not_the_model():
    before, after = module_of(torch.ones(2), eps=1e-3), module_of(torch.ones(2))
    after.config = DescribedByANewerVersion(eps=1e-3)
    assert unlike(fingerprint(before), after) is None
    after.config.shift = 1
    assert unlike(fingerprint(before), after) == "its architecture or configuration"


def test_names_shapes_and_the_class_are_the_architecture():
    stored = fingerprint(module_of(torch.ones(6)))
    renamed = nn.Module()
    renamed.scale = nn.Parameter(torch.ones(6))
    other_class = nn.Linear(1, 6, bias=False)
    for other in (renamed, other_class, module_of(torch.ones(2, 3))):
        assert unlike(stored, other) == "its architecture or configuration"


def test_a_stored_buffer_belongs_to_the_model():
    module = module_of(torch.ones(2))
    module.register_buffer("scales", torch.ones(2))
    stored = fingerprint(module)
    module.scales += 1
    assert unlike(stored, module) == "its weights"


def test_a_compiled_model_is_the_same():
    module = nn.Linear(2, 2)
    assert unlike(fingerprint(module), torch.compile(module)) is None


def test_the_old_rule_holds_for_what_was_stored_with_it(casts):
    assert unlike(BY_FIRST_RULE, casts[torch.float32]) is None
    said = "its weights, configuration or dtype (it was stored by a rule that does not tell them apart)"
    assert unlike(BY_FIRST_RULE, casts[torch.bfloat16]) == said
    assert unlike("no fingerprint", casts[torch.float32]) == said


def test_a_weight_is_sampled_not_read():
    # 2 ** 40 values, which no memory here holds, made of one
    module = module_of(torch.ones(1).expand(2**40))
    assert fingerprint(module).startswith("2-")


def test_the_fingerprint_of_the_bundled_model_stays(bundled):
    # a change here makes every stored controller one of another model: then there has to be a third rule
    assert bundled.fingerprint == "2-5b8d40601b2e-e811fdbea591-e811fdbea591"
