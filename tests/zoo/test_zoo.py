"""Every architecture of the zoo: the parts are found, every stage is seen, delays land where they were put.

What is expected of each model was written down by reading it (expected.json), apart from the code that finds it.
"""

import functools
import re

import pytest
import torch
from transformers import GenerationConfig

from chronostat.errors import ModelError
from chronostat.measure.clock import FakeClock
from chronostat.measure.flow import parts_followed
from chronostat.measure.generate import measure_generate
from chronostat.models.anatomy import anatomy_of, find_anatomy
from stand_ins.observing import delay, hook_counts
from zoo.build import build, build_full_size, expectations
from zoo.cases import MEASURED, NEW_TOKENS, PARTS, REFUSED, architecture, every

OUTER_FORWARD_NEVER_CALLED = {  # and the language model inside whose forward is called instead
    "blip": "text_decoder",
    "instructblip": "language_model",
    "instructblipvideo": "language_model",
    "kosmos-2": "text_model",
}
STAGES = ("ttft_ms", "prefill_ms", "vision_ms", "projector_ms", "llm_prefill_ms", "prefill_rest_ms", "decode_ms")
WAYS = {
    "no cache": {"use_cache": False},  # image towers that run inside the forward then run again in every step
    "sampling": {"do_sample": True},
    "beams": {"num_beams": 2},
    "chunked prefill": {"prefill_chunk_size": 5},
    "static cache": {"cache_implementation": "static"},
}


def _parts_of(name):
    """(part, module path, stage) for everything that a delay can be put into."""
    parts = PARTS[name]
    found = [("vision", path, "vision_ms") for path in parts["vision"] or ()]
    found += [("projector", path, "projector_ms") for path in parts["projector"] or ()]
    found += [("first block", f"{parts['blocks']}.0", "llm_prefill_ms")]
    found += [("last block", f"{parts['blocks']}.-1", "llm_prefill_ms")]
    return [*found, ("head", parts["head"], "prefill_rest_ms")]


def entry_of(path):
    """The method by which a part is entered: tokenizers of images are called by ``encode``."""
    return "encode" if path.endswith("vqmodel") else "forward"


EVERY_PART = [
    architecture(name, path, stage, part=f"{part}-{path}") for name in MEASURED for part, path, stage in _parts_of(name)
]
HOOKED = [
    param for param in EVERY_PART if param.values[2] != "prefill_rest_ms" and entry_of(param.values[1]) == "forward"
]
RUNS_IN_DECODE = [param for param in EVERY_PART if param.values[2] in {"llm_prefill_ms", "prefill_rest_ms"}]


def module_at(model, path):
    if path.endswith(".-1"):
        return model.get_submodule(path.removesuffix(".-1"))[-1]
    return model.get_submodule(path)


def installed(model):
    """Hooks, and methods that instances have of their own."""
    own = {(path, key) for path, m in model.named_modules() for key, value in vars(m).items() if callable(value)}
    return hook_counts(model), own


def measured(zoo, **options):
    torch.manual_seed(0)
    return measure_generate(zoo.model, zoo.batch, **{"max_new_tokens": NEW_TOKENS, **options})


def as_expected(anatomy):
    return {
        "vision": sorted(anatomy.vision) or None,
        "projector": sorted(anatomy.projector) or None,
        "blocks": anatomy.block_list,
        "head": anatomy.head,
    }


def in_order(parts):
    return {part: sorted(path) if isinstance(path, list) else path for part, path in parts.items()}


@pytest.mark.parametrize("name", every())
def test_the_parts_are_found(name, warm, tally):
    found = as_expected(find_anatomy(warm(name).zoo.model))
    tally["anatomy"][name] = found == in_order(PARTS[name])
    assert found == in_order(PARTS[name])


@pytest.mark.parametrize("name", every())
def test_what_flows_through_the_model_shows_the_same_parts(name, warm):
    zoo, plain = warm(name)
    before = installed(zoo.model)
    torch.manual_seed(0)
    with parts_followed(zoo.model):
        output = zoo.model.generate(**zoo.batch, **zoo.options, max_new_tokens=NEW_TOKENS, do_sample=False)
    assert torch.equal(getattr(output, "sequences", output), plain)
    assert installed(zoo.model) == before
    anatomy = anatomy_of(zoo.model)
    assert (as_expected(anatomy), anatomy.doubts) == (in_order(PARTS[name]), ())


@pytest.mark.slow
@pytest.mark.parametrize("name", expectations().full_size)
def test_the_parts_of_other_architectures_are_found_at_full_size(name):
    assert as_expected(find_anatomy(build_full_size(name))) == in_order(expectations().full_size[name])


@pytest.mark.slow
def test_what_cannot_be_found_is_an_error_that_lists_candidates():
    model = build_full_size("pi0")  # a robot policy: a denoiser beside a vision-language model
    candidates = "model.dit.layers (18 modules), model.vlm.language_model.layers (18 modules)"
    with pytest.raises(ModelError, match=re.escape(candidates) + ".*Name the right one with model.layout.blocks"):
        find_anatomy(model)
    blocks = "model.vlm.language_model.layers"
    assert find_anatomy(model, {"blocks": blocks}).block_list == blocks


@pytest.mark.parametrize("name", every(MEASURED))
def test_a_layout_of_all_parts_gives_the_same_anatomy(name, warm):
    model = warm(name).zoo.model
    layout = {part: path or () for part, path in PARTS[name].items()}
    assert as_expected(find_anatomy(model, layout)) == in_order(PARTS[name])


def test_an_image_of_which_nothing_was_found_leaves_only_the_total():
    zoo = build("llava")
    anatomy_of(zoo.model, {"vision": (), "projector": ()})
    timing = measured(zoo).timing
    assert timing.source == "total_only"
    assert timing.unseen == (
        "not seen: vision (found neither a vision tower nor a projector; name them with model.layout or --layout)"
    )


@pytest.mark.parametrize("name", every(MEASURED))
def test_every_stage_is_seen_in_its_place(name, warm, tally):
    zoo, plain = warm(name)
    before = installed(zoo.model)
    result = measured(zoo)
    timing = result.timing
    tally["source"][name] = timing.source
    assert torch.equal(result.sequences, plain)
    assert installed(zoo.model) == before
    assert (timing.source, timing.unseen) == ("measured", None)
    assert (timing.new_tokens, timing.decode_steps) == (NEW_TOKENS, NEW_TOKENS - 1)  # one mark per token
    assert (timing.vision_ms is not None) == bool(PARTS[name]["vision"])
    assert (timing.projector_ms is not None) == bool(PARTS[name]["projector"])
    seen = [getattr(timing, stage) for stage in STAGES if getattr(timing, stage) is not None]
    assert min(seen) > 0
    parts = (timing.vision_ms or 0) + (timing.projector_ms or 0) + timing.llm_prefill_ms + timing.prefill_rest_ms
    assert parts == pytest.approx(timing.prefill_ms)
    assert timing.prefill_ms < timing.ttft_ms
    assert timing.ttft_ms + timing.decode_ms < timing.total_ms
    assert timing.decode_ms_per_token == timing.decode_ms / timing.decode_steps
    assert timing.other_ms >= -0.1


@pytest.mark.parametrize("name", every(MEASURED))
def test_one_new_token_has_no_decode(name, warm):
    zoo, plain = warm(name)
    result = measured(zoo, max_new_tokens=1)
    timing = result.timing
    assert result.sequences.tolist() == plain[:, : plain.shape[1] - NEW_TOKENS + 1].tolist()
    assert (timing.source, timing.new_tokens, timing.decode_steps, timing.decode_ms) == ("measured", 1, 0, None)


@pytest.mark.parametrize(("name", "path", "stage"), EVERY_PART)
def test_a_delay_lands_in_its_stage_and_nowhere_else(name, path, stage, warm, monkeypatch):
    zoo = warm(name).zoo
    clock = FakeClock()
    module = module_at(zoo.model, path)
    delay(monkeypatch, clock, module, 7, method=entry_of(path), calls=(0,))
    timing = measured(zoo, clock=clock).timing
    late = {"total_ms", "ttft_ms", "prefill_ms", stage}
    seen = {stage: getattr(timing, stage) for stage in ("total_ms", *STAGES, "other_ms")}
    assert seen == {stage: None if value is None else 7.0 * (stage in late) for stage, value in seen.items()}
    assert seen[stage] == 7


@pytest.mark.parametrize(
    "name", every(sorted(set(MEASURED) - {"pp_formulanet", "udop"}))
)  # these name no module in use
def test_embedding_the_prompt_belongs_to_the_prefill(name, warm, monkeypatch):
    zoo = warm(name).zoo
    clock = FakeClock()
    delay(monkeypatch, clock, zoo.model.get_input_embeddings(), 7, calls=(0,))
    timing = measured(zoo, clock=clock).timing
    assert (timing.prefill_ms, timing.prefill_rest_ms, timing.total_ms, timing.other_ms) == (7, 7, 7, 0)


@pytest.mark.parametrize(("name", "path", "stage"), RUNS_IN_DECODE)
def test_a_delay_in_a_decode_step_lands_in_decode(name, path, stage, warm, monkeypatch):
    zoo = warm(name).zoo
    clock = FakeClock()
    delay(monkeypatch, clock, module_at(zoo.model, path), 7, calls=(1, 3))
    timing = measured(zoo, clock=clock).timing
    assert (timing.prefill_ms, timing.decode_ms, timing.total_ms, timing.other_ms) == (0, 14, 14, 0)


@pytest.mark.parametrize(("name", "path", "stage"), HOOKED)
def test_a_part_whose_hooks_stay_silent_is_never_a_short_time(name, path, stage, warm, monkeypatch):
    zoo, plain = warm(name)
    module = module_at(zoo.model, path)
    monkeypatch.setattr(module, "_call_impl", module.forward)
    result = measured(zoo)
    word = {"vision_ms": "vision", "projector_ms": "projector", "llm_prefill_ms": "decoder blocks"}[stage]
    assert result.timing.source == "total_only"
    assert word in result.timing.unseen
    assert torch.equal(result.sequences, plain)


@pytest.mark.parametrize("name", every(MEASURED))
def test_a_forward_whose_hooks_stay_silent_is_never_a_short_time(name, warm, monkeypatch):
    zoo = warm(name).zoo
    forward = zoo.model.get_submodule(OUTER_FORWARD_NEVER_CALLED.get(name, ""))
    monkeypatch.setattr(forward, "_call_impl", forward.forward)
    timing = measured(zoo).timing
    assert (timing.source, timing.unseen) == ("total_only", "not seen: prefill forward")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", every(MEASURED))
def test_other_ways_of_generating(name, way, warm):
    zoo = warm(name).zoo
    before = installed(zoo.model)

    def config():
        return GenerationConfig(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, pad_token_id=0, **WAYS[way])

    torch.manual_seed(0)
    try:
        plain = zoo.model.generate(**zoo.batch, generation_config=config())
    except (RuntimeError, ValueError, LookupError) as error:  # the model itself cannot generate this way
        with pytest.raises(type(error)):
            measured(zoo, generation_config=config())
    else:
        result = measured(zoo, generation_config=config())
        timing = result.timing
        assert torch.equal(result.sequences, plain)
        assert (timing.source, timing.new_tokens, timing.decode_steps) == ("measured", NEW_TOKENS, NEW_TOKENS - 1)
        assert (timing.vision_ms is not None) == bool(PARTS[name]["vision"])
        assert (timing.decode_ms_per_token is None) == (way == "beams")
    assert installed(zoo.model) == before


@pytest.mark.parametrize("name", [architecture(name) for name in ("git", "kosmos-2.5", "mllama")])
def test_image_work_that_is_repeated_in_decode_belongs_to_decode(name, warm, monkeypatch):
    zoo = warm(name).zoo
    clock = FakeClock()
    delay(monkeypatch, clock, zoo.model.get_submodule(PARTS[name]["vision"][0]), 7)
    config = GenerationConfig(use_cache=False, pad_token_id=0)
    timing = measured(zoo, clock=clock, generation_config=config).timing
    assert (timing.vision_ms, timing.prefill_ms, timing.decode_ms) == (7, 7, 21)  # 1 and 3 calls


@pytest.mark.parametrize("name", every(sorted(REFUSED)))
def test_block_diffusion_is_refused_by_name(name, warm, tally):
    zoo = warm(name).zoo
    before = installed(zoo.model)
    with pytest.raises(ModelError, match=f"{type(zoo.model).__name__} does not generate one token after the other"):
        measured(zoo)
    assert installed(zoo.model) == before
    tally["source"][name] = "refused"


@pytest.mark.parametrize(("name", "path", "stage"), EVERY_PART)
def test_nothing_stays_when_a_part_raises(name, path, stage, warm, monkeypatch):
    zoo = warm(name).zoo
    before = installed(zoo.model)
    module = module_at(zoo.model, path)

    @functools.wraps(getattr(module, entry_of(path)))  # generate() reads the signature
    def fail(*_, **__):
        raise RuntimeError("no memory")

    with monkeypatch.context() as broken:
        broken.setattr(module, entry_of(path), fail)
        with pytest.raises(RuntimeError, match="no memory"):
            measured(zoo)
    assert installed(zoo.model) == before
