"""Fingerprint, checksum, knobs and their self-check on every storage of the bundled model that can be loaded here."""

from math import inf
from types import SimpleNamespace

import pytest
import torch
from benchmarks.storages import SETTINGS, STORAGES, look
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import AutoModelForImageTextToText

from chronostat.data.demo import DemoTask
from chronostat.data.quality import exact
from chronostat.errors import ModelError
from chronostat.execution.trials import TrialRunner
from chronostat.knobs.registry import find_space
from chronostat.measure.clock import CpuClock
from chronostat.models.identity import fingerprint, unlike
from chronostat.models.load import BUNDLED, load_vlm
from chronostat.models.weights import weights_checksum
from chronostat.runs.knob_check import prove_knobs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # of the libraries that quantise, at import and as they load
]
LAYER = "model.language_model.layers.0.self_attn.q_proj"
QUANTISED = [name for name, storage in STORAGES.items() if storage.needs]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Each storage loaded once: folder and model."""
    known = {}

    def load(name):
        storage = STORAGES[name]
        if storage.missing:
            pytest.skip(f"{', '.join(storage.missing)} not installed")
        if name not in known:
            folder = tmp_path_factory.mktemp("storage")
            known[name] = SimpleNamespace(folder=folder, vlm=storage.load(folder))
        return known[name]

    return load


@pytest.mark.parametrize("name", STORAGES)
def test_knobs_take_the_same_work_away_in_every_storage(loaded, name):
    seen = look(loaded(name).vlm)
    counts = [(work.image_tokens, work.experts_per_token, work.blocks_run) for work in seen.works.values()]
    assert list(seen.works) == list(SETTINGS)
    assert counts == [(272, 4, 8), (80, 4, 8), (272, 1, 8), (272, 4, 4)]
    assert seen.bits_stay
    assert seen.same_model
    assert seen.answers_stay


@pytest.mark.parametrize("name", QUANTISED)
def test_a_quantised_model_is_another_one_and_the_same_when_it_is_loaded_again(loaded, bundled, name):
    vlm = loaded(name).vlm
    assert unlike(bundled.fingerprint, vlm.model) == "its architecture or configuration"
    again = load_vlm(loaded(name).folder, device="cpu", dtype="bfloat16")
    assert unlike(vlm.fingerprint, again.model) is None


@pytest.mark.parametrize("name", QUANTISED)
def test_the_self_check_of_a_run_passes(loaded, name):
    vlm = loaded(name).vlm
    offered, _ = find_space(vlm.model, vlm.processor, {})
    space, _ = find_space(vlm.model, vlm.processor, {knob: levels[:2] for knob, levels in offered.levels.items()})
    trial_inputs = DemoTask().split("train")[:1]
    runner = TrialRunner(
        model=vlm.model,
        processor=vlm.processor,
        quality=exact,
        full=space.full,
        max_new_tokens=2,
        clock=CpuClock(),
        seed=0,
        keep=lambda _: None,
        anchor_every_s=inf,
    )
    weights = weights_checksum(vlm.model)
    runner.run("warmup", 0, runner.request(trial_inputs[0]), [space.full])
    assert set(prove_knobs(runner, space, trial_inputs, index=1, weights=weights)) == set(space.levels)


@pytest.mark.parametrize("name", STORAGES)
def test_the_checksum_sees_one_bit_of_a_stored_weight(loaded, name):
    vlm = loaded(name).vlm
    before, stored = weights_checksum(vlm.model), stored_bytes(vlm.model.get_submodule(LAYER))
    stored[0] ^= 1
    try:
        after = weights_checksum(vlm.model)
    finally:
        stored[0] ^= 1
    (moved,) = [entry for entry in before if before[entry] != after[entry]]
    assert moved.startswith(LAYER)
    assert weights_checksum(vlm.model) == before


def stored_bytes(layer):
    """The bytes in which a layer keeps its weight, or the first part of it; to be changed in place."""
    weight = layer.weight if hasattr(layer, "weight") else layer.qweight
    while is_traceable_wrapper_subclass(weight):
        weight = getattr(weight, weight.__tensor_flatten__()[0][0])
    return weight.data.view(torch.uint8).flatten()


@pytest.mark.parametrize("name", ["bitsandbytes 4 bit", "bitsandbytes 4 bit, scales quantised too"])
def test_reading_a_4_bit_weight_changes_no_answer_and_packing_is_undone(loaded, name):
    vlm = load_vlm(loaded(name).folder, device="cpu", dtype="float32")
    batch = {"input_ids": torch.tensor([[1, 9, 3, 5]])}
    before, bits = fingerprint(vlm.model), weights_checksum(vlm.model)
    with torch.no_grad():
        first = vlm.model(**batch).logits  # a CPU with AVX-512 BF16 packs the weights here
        assert weights_checksum(vlm.model) == bits
        assert fingerprint(vlm.model) == before
        assert torch.equal(vlm.model(**batch).logits, first)


@pytest.mark.parametrize("whole", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_quantised_weights_in_a_pickle_are_not_read(tmp_path, whole):
    # as torchao's were saved before it wrote safetensors; unpickling this one would end the process
    (tmp_path / "config.json").write_text(
        '{"model_type": "internvl", "quantization_config": {"quant_method": "torchao"}}'
    )
    (tmp_path / whole).write_bytes(b"cos\n_exit\n(I1\ntR.")
    with pytest.raises(ModelError, match=f"holds only pickled weights .*{whole}.*; Chronostat loads safetensors only"):
        load_vlm(tmp_path, device="cpu")


def test_weights_that_are_not_in_memory():
    with torch.device("meta"):
        layer = torch.nn.Linear(2, 2)
    with pytest.raises(
        ModelError, match="weight is not in memory: it was offloaded by a device_map; load the model whole"
    ):
        fingerprint(layer)


def test_entries_of_a_state_dict_that_are_no_tensors():
    class Keeps(torch.nn.Module):
        def __init__(self, extra):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))
            self.extra = extra

        def get_extra_state(self):
            return self.extra

    first = {"bits": 4, "shape": [2, 3], "scales": torch.ones(3), "bytes": b"12", "none": None}
    sums = weights_checksum(Keeps(first))
    assert len(sums) == 7  # weight, bits, two of the shape, scales, bytes, none
    for change in ({"bits": 8}, {"bytes": b"13"}, {"scales": torch.zeros(3)}):
        other = Keeps(first | change)
        changed = weights_checksum(other)
        assert [name for name in sums if sums[name] != changed[name]] == [f"_extra_state.{next(iter(change))}"]
        assert unlike(fingerprint(Keeps(first)), other) == "its weights"
    with pytest.raises(ModelError, match="_extra_state in the state of the model is a object, which cannot be read"):
        weights_checksum(Keeps(object()))


def test_a_model_that_quantises_as_it_is_loaded_in_python():
    pytest.importorskip("torchao")
    from benchmarks.storages import _torchao

    model = AutoModelForImageTextToText.from_pretrained(
        BUNDLED, quantization_config=_torchao("Int8WeightOnlyConfig", version=2), dtype=torch.float32
    )
    assert unlike(fingerprint(model), model) is None
    assert weights_checksum(model) == weights_checksum(model)
