"""What each value of each knob does: work counted by hooks, ratios by the fake clock, and the flags that follow."""

import io
import json
import math

import pytest
import torch
from benchmarks.knob_effects import _verdict
from rich.console import Console
from torch import nn

import stand_ins.runs
from chronostat.cli.actions.knobs import effects_tables
from chronostat.errors import MeasurementError
from chronostat.execution.execute import execute, request_for
from chronostat.knobs.registry import KNOBS
from chronostat.knobs.space import ActionSpace
from chronostat.measure.work import Work, counted_work, removed
from chronostat.models.anatomy import anatomy_of
from chronostat.records import Estimate, Setting, StageTiming
from chronostat.runs.workload import BareModel
from chronostat.studies.knob_effects import MORE_WORK, NO_TIME, NO_WORK, OPEN, _flag, measure_effects
from stand_ins.knobs import AttributeOnly
from stand_ins.molmo_like import PROMPT_TOKENS, molmo_batch, molmo_like
from stand_ins.observing import Snapshot
from stand_ins.runs import StandIn, stand_in

__all__ = ["stand_in"]


def work_of(vlm, request, setting="full", new_tokens=3):
    with counted_work(vlm.model) as works:
        execute(vlm.model, request, setting=Setting.parse(setting), max_new_tokens=new_tokens)
    (work,) = works
    return work


@pytest.fixture
def request_(bundled, demo_sample):
    return request_for(demo_sample, bundled.processor, None)


def test_the_work_of_the_bundled_model(bundled, request_):
    full = work_of(bundled, request_)
    assert (full.image_tokens, full.experts_per_token, full.blocks_run) == (272, 4, 8)
    assert full.vision_inputs == 17 * 3 * 32 * 32  # 16 tiles and the thumbnail
    small = work_of(bundled, request_, "vision_tokens=16 moe_topk=1 block_skip=2,3,7")
    assert (small.image_tokens, small.experts_per_token, small.blocks_run) == (16, 1, 5)
    assert small.vision_inputs == 3 * 32 * 32
    assert small.prefill_inputs < full.prefill_inputs / 10


def test_counting_leaves_no_trace_and_changes_no_answer(bundled, request_):
    plain = execute(bundled.model, request_, setting=Setting(), max_new_tokens=3)
    before = Snapshot(bundled.model)
    with counted_work(bundled.model) as works:
        counted = execute(bundled.model, request_, setting=Setting(), max_new_tokens=3)
    before.assert_equals(bundled.model)
    assert "generate" not in vars(bundled.model)
    assert counted.output_ids == plain.output_ids
    assert len(works) == 1


def test_a_call_that_fails_is_counted_up_to_there_and_leaves_no_hook(monkeypatch):
    model = molmo_like()
    before = Snapshot(model)

    def fail(*_, **__):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(model.model.transformer["blocks"][2], "forward", fail)
        with counted_work(model) as works, pytest.raises(RuntimeError):
            model.generate(**molmo_batch(), max_new_tokens=2)
    before.assert_equals(model)
    assert works[0].blocks_run == 3


def test_the_work_of_single_experts_is_counted_by_their_rows():
    model = molmo_like()
    with counted_work(model) as works:
        model.generate(**molmo_batch(), max_new_tokens=3)
        for block in model.model.transformer["blocks"]:
            block.mlp.top_k = 1
        model.generate(**molmo_batch(), max_new_tokens=1)
    assert [work.experts_per_token for work in works] == [2, 1]
    assert [work.forwards for work in works] == [3, 1]
    assert [work.image_tokens for work in works] == [4, 4]  # the places that image_input_idx names
    assert works[0].vision_inputs == 2 * 4 * 6 + 2 * 4  # pixels and masks of both crops


def test_what_leaf_modules_read_before_the_second_pass():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = None
            self.blocks = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])

        def generate(self):
            for _ in range(2):
                hidden = torch.ones(3, 4)
                for block in self.blocks:
                    hidden = block(hidden)

    model = Two()
    anatomy_of(model, {"blocks": "blocks"})
    with counted_work(model) as works:
        model.generate()
    # 2 blocks x 3 x 4 elements; the second pass reads as many, which do not count
    assert works[0] == Work(
        image_tokens=None,
        vision_inputs=None,
        experts_per_token=None,
        blocks_run=2,
        prefill_inputs=24,
        forwards=2,
    )


def test_an_unknown_count_has_not_fallen():
    known = Work(image_tokens=4, vision_inputs=None, experts_per_token=2, blocks_run=3, prefill_inputs=9, forwards=2)
    assert not removed("image_tokens", known, known)
    assert not removed("vision_inputs", known, known)


# --- effects on the stand-in: 6 ms of vision, 4 blocks of 3 ms and 0.5 ms for each of 2 experts


def effects_of(stand: StandIn, **options):
    vlm = BareModel(model=stand.model, name="molmo-like")
    space = ActionSpace({"moe_topk": (2, 1), "block_skip": ((), (1, 2)), **options.pop("levels", {})})
    given = {"new_tokens": 3, "repeats": 12, "clock": stand.clock, **options}
    return measure_effects(vlm, stand.batches.split("test")[0], space, {"vision_tokens": "no processor"}, **given)


def test_the_conditions_are_those_of_the_measuring_not_of_afterwards(stand_in):
    before = torch.get_num_threads()
    effects = effects_of(stand_in, repeats=1, advance=lambda share, note: torch.set_num_threads(before + 1))
    assert (effects.conditions.threads, torch.get_num_threads()) == (before + 1, before)


def test_ratios_and_counts_are_those_of_the_stand_in(stand_in):
    effects = effects_of(stand_in)
    assert (effects.source, effects.full.blocks_run, effects.full.experts_per_token) == ("measured", 4, 2)
    topk, skip = effects.effects
    assert (topk.setting, topk.work.experts_per_token) == (Setting(moe_topk=1, block_skip=()), 1)
    assert (skip.setting, skip.work.blocks_run) == (Setting(moe_topk=2, block_skip=(1, 2)), 2)
    # prefill: 6 + 4 * 3.5 and 6 + 2 * 4 of 22 ms; a decode step: 4 * 3.5 and 2 * 4 of 16 ms
    for effect, prefill, decode in ((topk, 20 / 22, 14 / 16), (skip, 14 / 22, 8 / 16)):
        assert effect.comparisons["prefill_ms"].ratio.point == pytest.approx(prefill)
        assert effect.comparisons["decode_ms_per_token"].ratio.point == pytest.approx(decode)
        assert {each.verdict for each in effect.comparisons.values()} == {"faster"}
        assert effect.flag is None
    assert effects.mechanisms["moe_topk"] == "top_k of the routers in 4 decoder blocks"
    assert effects.absent == {"vision_tokens": "no processor"}


def test_a_value_that_removes_work_but_no_time_is_flagged(stand_in, monkeypatch):
    monkeypatch.setattr(stand_ins.runs, "EXPERT_MS", 0.0)
    topk, skip = effects_of(stand_in).effects
    assert (topk.removes_work, topk.flag) == (True, NO_TIME)
    assert topk.comparisons["prefill_ms"].verdict == "same"
    assert skip.flag is None


def test_a_value_that_removes_no_work_is_flagged(stand_in, monkeypatch):
    monkeypatch.setitem(KNOBS, "lazy", AttributeOnly)
    lazy = effects_of(stand_in, levels={"lazy": (2, 1)}).effects[-1]
    assert (lazy.knob, lazy.removes_work, lazy.flag) == ("lazy", False, NO_WORK)


def test_what_a_model_raises_is_said_with_the_setting(stand_in, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of pixels")

    monkeypatch.setattr(stand_in.model, "generate", broken)
    with pytest.raises(MeasurementError, match=r"moe_topk=2.*: the request ended with RuntimeError \(out of pixels\)"):
        effects_of(stand_in)


def test_answers_have_the_length_that_is_asked_for(stand_in):
    assert {effect.work.forwards for effect in effects_of(stand_in, new_tokens=5).effects} == {5}


def test_one_token_has_no_decode_step(stand_in):
    effects = effects_of(stand_in, new_tokens=1)
    assert all(list(effect.comparisons) == ["prefill_ms", "total_ms"] for effect in effects.effects)


def test_the_limit_of_executions_and_of_seconds(stand_in):
    few = effects_of(stand_in, repeats=1)
    assert few.ended == "the limit of 1 times the cost of one shot was reached"
    assert {effect.flag for effect in few.effects} == {OPEN}
    # one shot of the three settings takes 54 + 48 + 30 ms, so 0.1 s allow less than one more
    assert effects_of(stand_in, seconds=0.1).executions == few.executions


def test_every_execution_is_counted(stand_in, monkeypatch):
    import chronostat.studies.knob_effects

    ran = []
    monkeypatch.setattr(
        chronostat.studies.knob_effects,
        "execute",
        lambda *args, **options: (ran.append(1), execute(*args, **options))[1],
    )
    effects = effects_of(stand_in, repeats=1)
    assert effects.executions == len(ran)


def test_effects_are_plain_data(stand_in):
    data = json.loads(json.dumps(effects_of(stand_in).to_json()))
    assert data["settings"] == 4
    assert data["effects"][1]["setting"] == "moe_topk=2 block_skip=1,2"
    assert data["effects"][1]["comparisons"]["prefill_ms"]["verdict"] == "faster"
    assert data["conditions"]["device"] == "cpu"
    few = json.loads(json.dumps(effects_of(stand_in, repeats=1).to_json(), allow_nan=False))
    assert few["effects"][0]["comparisons"]["prefill_ms"]["ratio"]["high"] is None  # JSON has no infinity


def test_stages_that_are_seen_under_some_settings_only_cannot_be_compared(stand_in, monkeypatch):
    import chronostat.studies.knob_effects

    def sometimes(model, request, *, setting, **options):
        execution = execute(model, request, setting=setting, **options)
        if setting["moe_topk"] == 2:
            return execution
        timing = StageTiming(source="total_only", total_ms=1.0, new_tokens=1, decode_steps=0, unseen="nothing")
        return type(execution)(**{**vars(execution), "timing": timing})

    monkeypatch.setattr(chronostat.studies.knob_effects, "execute", sometimes)
    with pytest.raises(MeasurementError, match=r"seen under some settings only \(measured, total_only\)"):
        effects_of(stand_in)


def test_a_repeat_whose_stages_are_doubtful_is_left_out_and_its_value_is_still_judged(stand_in, monkeypatch):
    import chronostat.studies.knob_effects

    calls = 0

    def once_doubtful(model, request, *, setting, **options):
        nonlocal calls
        calls += 1
        execution = execute(model, request, setting=setting, **options)
        if calls != 15:  # the first call, 3 counted ones, 2 rounds of warm-up, and into the blocks
            return execution
        timing = StageTiming(source="total_only", total_ms=1.0, new_tokens=3, decode_steps=2, unseen="a doubt")
        return type(execution)(**{**vars(execution), "timing": timing})

    monkeypatch.setattr(chronostat.studies.knob_effects, "execute", once_doubtful)
    effects = effects_of(stand_in)
    assert calls > 15
    assert {effect.comparisons["prefill_ms"].verdict for effect in effects.effects} == {"faster"}


@pytest.mark.parametrize(
    ("verdicts", "removes", "changes", "flag"),
    [
        (["faster", "same"], True, True, None),
        (["same", "slower"], True, True, NO_TIME),
        (["same", "undecided"], True, True, OPEN),
        (["invalid"], True, True, OPEN),
        ([], True, True, OPEN),
        (["faster"], False, False, NO_WORK),
        (["slower"], False, True, MORE_WORK),
    ],
)
def test_flags(verdicts, removes, changes, flag):
    assert _flag(verdicts, removes=removes, changes=changes) == flag


@pytest.mark.parametrize(
    ("prefill", "decode", "pays"),
    [
        ((0.5, 0.97), (0.9, 1.1), "yes, in prefill"),
        ((0.5, 0.97), (0.5, 0.6), "yes, in prefill and decode"),
        ((0.5, 0.98), (0.98, 1.1), "undecided"),
        ((0.98, 1.02), (0.99, 1.1), "no"),
        ((0.5, 0.6), (1.03, 1.1), "yes, in prefill; slower in decode"),
        ((math.nan, math.nan), (0.99, 1.0), "undecided"),  # too few blocks for an interval
    ],
)
def test_whether_a_value_pays_is_decided_by_whole_intervals(prefill, decode, pays):
    low_high = {"prefill_ms": prefill, "decode_ms_per_token": decode}
    assert _verdict({kind: Estimate(point=1.0, low=low, high=high) for kind, (low, high) in low_high.items()}) == pays


def test_prompt_and_new_tokens_do_not_matter_for_experts_per_token():
    model = molmo_like()
    with counted_work(model) as works:
        model.generate(**molmo_batch(), max_new_tokens=1)
    # 4 blocks, 8 tokens, 2 experts each
    assert works[0].experts_per_token == 4 * PROMPT_TOKENS * 2 / (4 * PROMPT_TOKENS)


def test_the_tables_fit_a_terminal_of_80_columns(stand_in):
    effects = effects_of(stand_in)
    console = Console(width=80, record=True, file=io.StringIO())
    for table in effects_tables(effects):
        console.print(table)
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["moe_topk=1", "4", "1", "4", "3"] in lines
    half = next(line for line in lines if line[:1] == ["block_skip=1,2"] and len(line) > 5)
    assert [half[1], half[4], half[7]] == ["0.64", "0.50", "0.56"]  # of 22, 16 and 54 ms
    assert ["faster", "faster", "faster"] in lines
