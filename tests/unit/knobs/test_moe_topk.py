"""How many experts a token is routed to: what counts as experts, which values there are, and where they are written."""

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from chronostat.errors import KnobError
from chronostat.knobs.moe_topk import MoeTopk
from chronostat.knobs.registry import applied, find_knob, find_space
from chronostat.knobs.routing import Place, RoutedBlock
from chronostat.models.anatomy import anatomy_of
from chronostat.records import Setting
from stand_ins.molmo_like import Moe, molmo_batch, molmo_like
from stand_ins.observing import Snapshot


def knob_of(*trained):
    """Blocks 1, 2, ... have experts; block 0 is dense."""
    places = [Place(path=f"{i}.gate", field="top_k", in_config=False, trained=k) for i, k in enumerate(trained, 1)]
    return MoeTopk([RoutedBlock(index=i, places=(place,)) for i, place in enumerate(places, 1)])


def moes(model):
    return [block.mlp for block in model.model.transformer["blocks"]]


def pairs_per_token(model, **setting):
    """(Token, expert) pairs of each block, counted at the experts' inputs, by token."""
    rows = Counter()
    with applied(Setting(setting), model, None):  # looks at the experts once, with short forwards of its own
        handles = [
            expert.register_forward_pre_hook(lambda _, args, index=index: rows.update({index: len(args[0])}))
            for index, moe in enumerate(moes(model))
            for expert in moe.experts
        ]
        model(**molmo_batch())
    for handle in handles:
        handle.remove()
    return [rows[index] / 8 for index in range(4)]  # 8 prompt tokens


def test_the_default_values_halve_the_trained_number():
    assert knob_of(8, 8).levels == (8, 4, 2, 1)
    assert knob_of(6, 2).levels == (6, 3, 1)


def test_the_first_block_can_keep_its_trained_number():
    knob = knob_of(8, 8, 4)
    assert knob.keeping_first(2) == (8, 2, 2)
    assert knob.offered({"moe_keep_first": True}) == (8, (8, 4, 4), (8, 2, 2), (8, 1, 1))
    assert knob.offered({"moe_keep_first": False}) == knob.levels
    assert knob_of(4, 1).offered({"moe_keep_first": True}) == (4,)  # the other block has no fewer
    with pytest.raises(KnobError, match=r"one block has experts, so knobs\.moe_keep_first leaves none to change"):
        knob_of(4).offered({"moe_keep_first": True})


def test_the_first_block_is_kept_in_the_space():
    space, _ = find_space(molmo_like(), None, {"moe_keep_first": True})
    assert space.levels["moe_topk"] == (2, (2, 1, 1, 1))


def test_routers_may_differ_and_each_block_is_capped_at_its_own_number():
    model = molmo_like()
    moes(model)[1].top_k = 3
    moes(model)[2].top_k = 1
    knob = find_knob("moe_topk", model, None)
    assert knob.trained == (2, 3, 2)  # block 2 has no fewer, so it counts as one without a choice
    assert knob.levels == (3, 1)
    assert pairs_per_token(model) == pairs_per_token(model, moe_topk=3) == [2, 3, 1, 2]
    assert pairs_per_token(model, moe_topk=2) == [2, 2, 1, 2]
    assert pairs_per_token(model, moe_topk=(1, 3, 2)) == [1, 3, 1, 2]
    assert [moe.top_k for moe in moes(model)] == [2, 3, 1, 2]
    with pytest.raises(KnobError, match=r"for each of the 3 decoder blocks with experts, at most 2, 3, 2"):
        knob.check((3, 3, 2))


@pytest.mark.parametrize("value", [(2, 1, 1, 2), (1, 2, 2, 1)])
def test_one_number_for_each_block_survives_text_and_acts(value):
    model = molmo_like()
    setting = Setting.parse(str(Setting(moe_topk=value)))
    assert setting == Setting(moe_topk=value)
    before = Snapshot(model)
    assert pairs_per_token(model, **setting) == list(value)
    before.assert_equals(model)
    assert pairs_per_token(model, block_skip=(0,), **setting) == [0, *value[1:]]
    assert pairs_per_token(model, **setting, block_skip=(0,)) == [0, *value[1:]]
    before.assert_equals(model)


def test_a_single_block_with_experts_is_written_with_a_comma():
    knob_of(2).check(Setting.parse("moe_topk=1,")["moe_topk"])
    knob_of(2).check(Setting.parse("moe_topk=1")["moe_topk"])


def test_blocks_that_are_skipped_have_no_experts_to_choose():
    knob = knob_of(2, 2)
    skips_all = {"block_skip": (1, 2)}
    assert knob.effect(2, skips_all) == knob.effect(1, skips_all)
    assert knob.effect((2, 1), {"block_skip": (1,)}) == knob.effect(1, {"block_skip": (1,)})
    assert knob.effect((2, 1), {}) != knob.effect(1, {})
    assert knob.effect(2, {}) == knob.effect((2, 2), {})


class RunsAll(Moe):
    """Every expert reads every token, as in Llama 4; the choice is in the weights."""

    def forward(self, hidden):
        scores = self.gate(hidden).softmax(-1)
        weights = torch.zeros_like(scores).scatter(-1, *reversed(scores.topk(self.top_k, dim=-1)))
        return sum(expert(hidden) * weights[..., i, None] for i, expert in enumerate(self.experts))


class ChoosesTwo(Moe):
    """Has a number that nothing reads, as in PhiMoE."""

    def forward(self, hidden):
        asked, self.top_k = self.top_k, 2
        mixed = super().forward(hidden)
        self.top_k = asked
        return mixed


class FunctionsOnly(Moe):
    """Calls no module for its experts."""

    def forward(self, hidden):
        return hidden


class ReadsConfig(Moe):
    """Has no number of its own, as in Gemma 4."""

    def forward(self, hidden):
        self.top_k = self.config.top_k_experts
        mixed = super().forward(hidden)
        del self.top_k
        return mixed


def of_kind(kind):
    model = molmo_like()
    for moe in moes(model):
        moe.__class__ = kind
    return model


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (
            RunsAll,
            "MolmoLike runs 4 experts for each token whatever its routers choose, so choosing fewer saves no work",
        ),
        (ChoosesTwo, "the routers of MolmoLike choose 2 experts per token whatever their top_k says"),
        (FunctionsOnly, "the experts of MolmoLike are no modules whose inputs could be counted"),
    ],
)
def test_a_number_that_saves_no_work_is_refused(kind, reason):
    model = of_kind(kind)
    before = Snapshot(model)
    with pytest.raises(KnobError, match=f"^moe_topk: {reason}"):
        find_knob("moe_topk", model, None)
    before.assert_equals(model)


def test_one_expert_per_token_cannot_be_fewer():
    with pytest.raises(KnobError, match="MolmoLike was built with 1 expert per token; there are no fewer"):
        find_knob("moe_topk", molmo_like(moe_top_k=1), None)


def test_experts_that_cannot_be_seen_at_work_say_why(monkeypatch):
    model = molmo_like()
    monkeypatch.setattr(type(model), "forward", None)
    monkeypatch.setattr(type(model), "forward", lambda self, images: images.float())
    with pytest.raises(
        KnobError, match="moe_topk: cannot see what the experts are given; cannot run the blocks of Mol"
    ):
        find_knob("moe_topk", model, None)


def test_a_number_that_is_read_from_the_configuration_is_changed_for_the_blocks_alone():
    model = of_kind(ReadsConfig)
    model.config.top_k_experts = 2
    for moe in moes(model):
        moe.config = model.config
        del moe.top_k
    before = Snapshot(model)
    knob = find_knob("moe_topk", model, None)
    assert (knob.levels, knob.trained) == ((2, 1), (2, 2, 2, 2))
    assert knob.mechanism == "top_k_experts of the configuration of the routers in 4 decoder blocks"
    assert pairs_per_token(model, moe_topk=1) == [1, 1, 1, 1]
    with applied(Setting(moe_topk=(2, 1, 1, 2)), model, None):
        assert model.config.top_k_experts == 2  # shared by everything else
        assert [moe.config.top_k_experts for moe in moes(model)] == [2, 1, 1, 2]
    assert all(moe.config is model.config for moe in moes(model))
    before.assert_equals(model)


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
}
LATENT = {
    "n_routed_experts": 4,
    "moe_intermediate_size": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 4,
}
FAMILIES = {  # class of the configuration, how it differs from SMALL, blocks with experts
    "deepseek_v2": ("DeepseekV2Config", {**LATENT, "q_lora_rank": None}, 2),
    "deepseek_v3": ("DeepseekV3Config", {**LATENT, "q_lora_rank": 16}, 2),
    "gpt_oss": ("GptOssConfig", {"num_local_experts": 4, "head_dim": 8}, 3),
    "granitemoe": ("GraniteMoeConfig", {"num_local_experts": 4}, 3),
    "jetmoe": ("JetMoeConfig", {"num_local_experts": 4, "kv_channels": 8}, 3),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}, 3),
    "olmoe": ("OlmoeConfig", {"num_experts": 4}, 3),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
        3,
    ),
    "qwen3_moe": ("Qwen3MoeConfig", {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8}, 3),
}


def language_model(kind, more):
    config = getattr(transformers, kind)(**SMALL, **more) if "num_key_value_heads" not in more else None
    config = config or getattr(transformers, kind)(**{**SMALL, **more})
    torch.manual_seed(0)
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()


@contextmanager
def experts_seen(model):
    """Experts per token at the inputs of the experts: the width of the index, or rows for each of 5 tokens."""
    seen = set()

    def note(_, args, kwargs):
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        index = [tensor for tensor in tensors if not tensor.is_floating_point() and tensor.ndim == 2]
        seen.add(index[0].shape[-1] if index else len(tensors[0]) / 5)

    handles = [
        module.register_forward_pre_hook(note, with_kwargs=True)
        for path, module in model.named_modules()
        if path.startswith(anatomy_of(model).block_list) and type(module).__name__.endswith("Experts")
    ]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_families_of_language_models_run_fewer_experts(name):
    kind, more, blocks = FAMILIES[name]
    model = language_model(kind, more)
    knob = find_knob("moe_topk", model, None)
    assert (knob.levels, len(knob.trained)) == ((2, 1), blocks)
    before = Snapshot(model)
    for value in (1, 2):
        with applied(Setting(moe_topk=value), model, None), experts_seen(model) as seen:
            model(input_ids=torch.ones(1, 5, dtype=torch.long))
        assert seen == {value}
    before.assert_equals(model)


@pytest.mark.slow
def test_phimoe_is_refused():
    model = language_model("PhimoeConfig", {"num_local_experts": 4})
    with pytest.raises(KnobError, match="the routers of PhimoeForCausalLM choose 2 experts per token whatever their"):
        find_knob("moe_topk", model, None)


@pytest.mark.slow
def test_aria_names_its_number_otherwise():
    text = transformers.AriaTextConfig(
        **{name: value for name, value in SMALL.items() if name != "num_experts_per_tok"},
        moe_num_experts=4,
        moe_topk=2,
        moe_num_shared_experts=1,
        pad_token_id=0,
    )
    vision = {"model_type": "idefics3_vision", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.AriaConfig(
        text_config=text,
        vision_config={**vision, "intermediate_size": 32, "image_size": 28, "patch_size": 14},
        projector_patch_to_query_dict={4: 2},
        image_token_index=63,
    )
    model = transformers.AriaForConditionalGeneration(config).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.1)
    knob = find_knob("moe_topk", model, None)
    assert (knob.levels, knob.trained) == ((2, 1), (2, 2, 2))
