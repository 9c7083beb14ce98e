"""Greedy decoding by default; sampled answers that follow from a seed and disturb nothing."""

import copy
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

import chronostat.execution.execute
from chronostat.control.controller import load_controller
from chronostat.control.failures import Failures
from chronostat.control.trainer import outcome_of
from chronostat.errors import ConfigError, MeasurementError, UnlikeConditions
from chronostat.evidence.evidence import Evidence
from chronostat.evidence.observation import Observation
from chronostat.execution.conditions import as_it_was, read_conditions
from chronostat.execution.execute import BatchRequest, execute, request_for
from chronostat.execution.trials import TrialRunner
from chronostat.knobs.space import ActionSpace
from chronostat.measure.clock import FakeClock
from chronostat.measure.decoding import decoding_of, draw_seed, own_decoding, seeded
from chronostat.measure.generate import measuring
from chronostat.progress import Silent
from chronostat.records import NOT_RECORDED, Budget, Execution, Setting, StageTiming, Trial
from chronostat.runs.store import RunStore
from chronostat.runs.training import train
from chronostat.studies.survey import Arm, Plan, repeated, survey
from chronostat.studies.survey.result import refuse_unequal
from chronostat.validation import validate
from stand_ins.control_fixtures import make_bench
from stand_ins.molmo_like import PROMPT_TOKENS, molmo_batch, molmo_like
from stand_ins.runs import interrupt_after
from stand_ins.survey_fixtures import column, comparison, shot, timing

FULL, FAST = Setting(moe_topk=2, block_skip=()), Setting(moe_topk=1, block_skip=(1,))
REQUEST = BatchRequest(batch=molmo_batch(), id="molmo-1")
HOT = {"do_sample": True, "temperature": 30.0, "top_k": 0}


@pytest.fixture
def model():
    """A model whose checkpoint asks for sampling."""
    model = molmo_like()
    model.generation_config.update(**HOT)
    return model


@pytest.fixture
def hot_bundled(bundled, monkeypatch):
    """The bundled model, hot enough to answer differently each time."""
    config = copy.deepcopy(bundled.model.generation_config)
    config.update(**HOT)
    monkeypatch.setattr(bundled.model, "generation_config", config)
    return bundled


def answer(model, seed=None, **options):
    options = {"setting": Setting(), "max_new_tokens": 6, **options}
    return execute(model, REQUEST, sampling_seed=seed, **options).output_ids


# which decoding


@pytest.mark.parametrize(
    ("own", "sample", "text", "note"),
    [
        ({}, False, "greedy", None),
        ({"temperature": 0.7, "top_p": 0.8}, False, "greedy", None),
        (
            {"do_sample": True, "temperature": 0.7, "top_p": 0.8},
            False,
            "greedy",
            "the checkpoint's generation_config asks for do_sample = True, temperature = 0.7, top_p = 0.8; answers are "
            "greedy here; --sample keeps its sampling",
        ),
        (
            {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
            False,
            "greedy",
            "the checkpoint's generation_config asks for num_beams = 3; answers are greedy here",
        ),
        (
            {"do_sample": True, "num_return_sequences": 2},
            False,
            "greedy",
            "the checkpoint's generation_config asks for do_sample = True, num_return_sequences = 2; answers are "
            "greedy here; --sample keeps its sampling",
        ),
        (
            {"penalty_alpha": 0.6, "top_k": 4},
            False,
            "greedy",
            "the checkpoint's generation_config asks for penalty_alpha = 0.6; answers are greedy here",
        ),
        ({"repetition_penalty": 1.05}, False, "greedy, repetition_penalty=1.05", None),
        ({"suppress_tokens": list(range(30))}, False, "greedy, suppress_tokens=#3adfd43b", None),
        ({"do_sample": True}, True, "sampled, temperature=1.0, top_k=50", None),
        (
            {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05},
            True,
            "sampled, temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05",
            None,
        ),
        (
            {"do_sample": True, "num_return_sequences": 2},
            True,
            "sampled, temperature=1.0, top_k=50",
            "the checkpoint's generation_config asks for num_return_sequences = 2; a request has one answer here",
        ),
    ],
)
def test_each_wish_of_a_checkpoint_is_decided_and_said(own, sample, text, note):
    model = molmo_like()
    plain = answer(model)
    model.generation_config = GenerationConfig(pad_token_id=0, **own)
    decoding = decoding_of(model, sample=sample)
    assert (decoding.text, decoding.note) == (text, note)
    execution = execute(model, REQUEST, setting=Setting(), max_new_tokens=6, sampling_seed=3 if sample else None)
    assert execution.timing.decode_steps == 5  # one token after the other, whatever was asked for
    assert execution.timing.decode_ms_per_token is not None
    if text == "greedy":
        assert execution.output_ids == plain


def test_nothing_is_told_to_generate_where_the_checkpoint_is_greedy():
    assert decoding_of(molmo_like(), sample=False).changes == {}
    assert decoding_of(molmo_like(), sample=False).config(None) is None


@pytest.mark.parametrize(
    ("own", "given", "sample", "error", "text"),
    [
        ({}, None, True, ConfigError, r"sampling was asked for, but .* \(do_sample is not true\); leave --sample"),
        ({}, {"do_sample": True}, False, ConfigError, r"\(do_sample = True\) without a seed.*give sampling_seed too"),
        ({}, {"num_beams": 2}, False, MeasurementError, "asks for beam_search.*set num_beams = 1"),
        ({"do_sample": True, "num_beams": 2}, None, True, MeasurementError, "asks for beam_sample"),
        ({"prompt_lookup_num_tokens": 2}, None, False, MeasurementError, "asks for assisted_generation"),
    ],
)
def test_what_cannot_be_decoded_here_is_refused_before_anything_runs(own, given, sample, error, text):
    model, config = molmo_like(), None if given is None else GenerationConfig(**given)
    model.generation_config.update(**own)
    model.model.vision_backbone.forward = None
    with pytest.raises(error, match=text):
        execute(
            model,
            REQUEST,
            setting=Setting(),
            max_new_tokens=1,
            generation_config=config,
            sampling_seed=0 if sample else None,
        )


@pytest.mark.parametrize("seed", [-1, 1.5, "7", 2**63])
def test_a_seed_that_is_none_is_refused(model, seed):
    with pytest.raises(ConfigError, match=r"sampling_seed = .*whole number of at least 0 and below 2\*\*63"):
        answer(model, seed)


def test_what_the_caller_gives_is_kept(model):
    plain = answer(model)
    config = GenerationConfig(suppress_tokens=[plain[0]], pad_token_id=0)
    changed = answer(model, generation_config=config)
    assert changed[0] != plain[0]
    cold = GenerationConfig(temperature=1e-4, pad_token_id=0)
    assert {answer(model, seed, generation_config=cold) for seed in range(3)} == {plain}
    assert model.generation_config.temperature == 30.0


# one answer, one seed


def test_answers_are_greedy_unless_there_is_a_seed(model):
    plain = molmo_like().generate(**molmo_batch(), max_new_tokens=6)[0, PROMPT_TOKENS:].tolist()
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        execution = execute(model, REQUEST, setting=Setting(), max_new_tokens=6)
        assert list(execution.output_ids) == plain
        assert execution.sampling_seed is None


def test_equal_seeds_give_equal_answers_of_the_bundled_model_and_others_do_not(hot_bundled, demo_sample):
    request = request_for(demo_sample, hot_bundled.processor, None)

    def sampled(seed):
        execution = execute(hot_bundled.model, request, setting=Setting(), max_new_tokens=4, sampling_seed=seed)
        assert execution.sampling_seed == seed
        return execution.output_ids

    answers = {seed: sampled(seed) for seed in (1, 2, 3)}
    torch.rand(7)  # whatever happens in between
    assert sampled(2) == answers[2]
    assert len(set(answers.values())) == 3


def test_a_seed_is_that_of_generate_by_hand(model):
    """The same tokens as torch.manual_seed before one's own call."""
    torch.manual_seed(11)
    by_hand = model.generate(**molmo_batch(), max_new_tokens=6)[0, PROMPT_TOKENS:].tolist()
    assert list(answer(model, 11)) == by_hand


@pytest.mark.parametrize("seed", [None, 5])
def test_the_random_stream_of_the_caller_goes_on_bit_for_bit(model, seed, monkeypatch):
    before = torch.get_rng_state()
    answer(model, seed)
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answer(model, seed)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeding_is_in_no_latency(model, monkeypatch):
    clock = FakeClock()

    def slowly(device, seed):
        clock.advance_ms(1_000)
        return seeded(device, seed)

    monkeypatch.setattr(chronostat.execution.execute, "seeded", slowly)
    execution = execute(model, REQUEST, setting=Setting(), max_new_tokens=2, sampling_seed=1, clock=clock)
    assert clock.host_ns() >= 1e9
    assert execution.request_ms == execution.timing.total_ms == 0


def test_measuring_changes_nothing_of_the_callers_own_sampling(model):
    def two(measured):
        torch.manual_seed(4)
        if not measured:
            output = model.generate(**molmo_batch(), max_new_tokens=6)
        else:
            with measuring(model):
                output = model.generate(**molmo_batch(), max_new_tokens=6)
        return output, torch.get_rng_state()

    (plain, state), (measured, same_state) = two(measured=False), two(measured=True)
    assert torch.equal(plain, measured)
    assert torch.equal(state, same_state)
    assert tuple(plain[0, PROMPT_TOKENS:].tolist()) != answer(model)


def test_a_seed_depends_on_each_of_its_parts_and_on_nothing_else():
    parts = [
        (0, "a", FULL, "train", 1, 0),
        (1, "a", FULL, "train", 1, 0),
        (0, "b", FULL, "train", 1, 0),
        (0, "a", FAST, "train", 1, 0),
        (0, "a", FULL, "test", 1, 0),
        (0, "a", FULL, "train", 2, 0),
        (0, "a", FULL, "train", 1, 1),
    ]
    seeds = [draw_seed(*each) for each in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**48 for seed in seeds)
    assert draw_seed(0, "a", Setting(block_skip=(), moe_topk=2), "train", 1, 0) == seeds[0]
    assert draw_seed(0, "a", FULL, 0) == 34222810814513  # the same in every process and version


# trials


def make_runner(model, **options):
    options = {"seed": 0, "sample": True, "keep": lambda _: None, "anchor_every_s": 3.0, **options}
    return TrialRunner(
        model=model, processor=None, quality=None, full=FULL, max_new_tokens=6, clock=FakeClock(), **options
    )


def counted_generate(monkeypatch, model):
    calls, generate = [], model.generate
    monkeypatch.setattr(model, "generate", lambda **batch: (calls.append(1), generate(**batch))[1])
    return calls


@pytest.mark.parametrize(("sample", "executed"), [(True, 5), (False, 2)])
def test_where_the_model_samples_every_draw_is_executed(model, monkeypatch, sample, executed):
    calls = counted_generate(monkeypatch, model)
    trial = make_runner(model, sample=sample).run("train", 0, REQUEST, [FAST, FULL, FAST, FAST, FULL])
    assert len(calls) == len(trial.executions) == executed
    assert [trial.executions[i].setting for i in trial.draws] == [FAST, FULL, FAST, FAST, FULL]
    assert len(set(trial.draws)) == executed
    seeds = {execution.sampling_seed for execution in trial.executions}
    assert seeds == {None} if not sample else len(seeds) == 5
    assert len({execution.output_ids for execution in trial.executions}) == executed


def answers(trial, draws=None):
    return [trial.executions[i].output_ids for i in trial.draws[:draws]]


def test_an_answer_depends_on_no_order_and_on_no_anchor(model):
    group = [FAST, FAST, FULL]
    fresh = make_runner(model)
    first = fresh.run("train", 3, REQUEST, group)
    used = make_runner(model, anchor_every_s=1e9)
    used.run("calibrate", 0, REQUEST, [FULL, FAST])
    torch.rand(3)
    later = used.run("train", 3, REQUEST, group, again=[FAST, FULL])  # two more, so another order
    assert answers(later) == answers(first)
    assert len({execution.output_ids for execution in later.executions}) == 5
    with_anchor = make_runner(model).run("train", 3, REQUEST, [FAST, FAST])
    assert with_anchor.anchor is not None
    assert answers(with_anchor) == answers(first, 2)
    assert answers(make_runner(model, seed=1).run("train", 3, REQUEST, group)) != answers(first)
    assert answers(make_runner(model).run("train", 4, REQUEST, group)) != answers(first)


def test_a_failed_execution_keeps_its_seed(model, monkeypatch):
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden: 1 / 0)
    trial = make_runner(model).run("train", 0, REQUEST, [FULL])
    assert trial.executions[0].invalid.startswith("ZeroDivisionError")
    assert trial.executions[0].sampling_seed is not None


def test_a_runner_that_shall_sample_what_does_not_is_refused():
    with pytest.raises(ConfigError, match="does not sample"):
        make_runner(molmo_like())


def an_execution(quality, total_ms, seed, *, fails=False):
    return Execution(
        sample_id="a",
        split="train",
        setting=FULL,
        timing=None if fails else StageTiming(source="measured", total_ms=total_ms, new_tokens=1, decode_steps=0),
        invalid="boom" if fails else None,
        quality=None if fails else quality,
        sampling_seed=seed,
    )


SPACE = ActionSpace({"moe_topk": (2, 1), "block_skip": ((), (1,))})
SEEN = Observation(prompt=np.zeros(2), tokens=np.full((4, 2), 9.0))


def a_trial(*executions):
    count = len(executions)
    return Trial(
        phase="train",
        index=0,
        sample_id="a",
        executions=executions,
        draws=tuple(range(count)),
        probabilities=(0.25,) * count,
        budget=Budget(kind="mean", fraction=0.5),
    )


def test_a_sampled_draw_is_worth_its_own_answer():
    trial = a_trial(an_execution(1.0, 40, 1), an_execution(0.0, 60, 2), an_execution(0.0, 0, 3, fails=True))
    found = outcome_of(trial, SEEN, SPACE, "total_ms", full_ms=100.0)
    assert found.quality.tolist() == [1.0, 0.0]  # the failed draw takes no other one's answer
    assert found.latency.tolist() == [0.5, 0.5]  # the median of 40 and 60 ms, for both


def test_each_sampled_answer_is_evidence():
    trainer = make_bench(begun=False).trainer
    trainer.space, trainer.metric = SPACE, "total_ms"
    trainer.evidence, trainer.failures = Evidence(SPACE, [SEEN], 0), Failures(SPACE)
    trainer.absorb(a_trial(*(an_execution(quality, 50, seed) for seed, quality in enumerate((1.0, 0.0, 0.0)))), SEEN)
    assert (trainer.evidence.quality.count, trainer.evidence.latency.count) == (3, 3)
    for _ in range(100):
        trainer.absorb(a_trial(*(an_execution(quality, 50, i) for i, quality in enumerate((1.0, 0.0, 0.0)))), SEEN)
    trainer.evidence.fit()
    learned = trainer.evidence.features(SEEN.prompt[None]) @ trainer.evidence.quality.mean()
    assert learned[0, SPACE.index(FULL)] == pytest.approx(1 / 3, abs=0.02)


# runs

SAMPLE = "measure.sample=true"


@pytest.fixture
def sampling(stand_in):
    """The stand-in run with a checkpoint that asks for sampling."""
    stand_in.model.generation_config.update(do_sample=True, temperature=2.0)
    return stand_in


class Warnings(Silent):
    def __init__(self):
        self.said = []

    def warn(self, text):
        self.said.append(text)


def drawn(store, phase):
    """The answers of all executions by their seed, whatever their order."""
    return {e.sampling_seed: (e.sample_id, e.setting, e.output_ids) for t in store.trials(phase) for e in t.executions}


@pytest.mark.parametrize(("options", "decoding"), [((), "greedy"), ((SAMPLE,), "sampled, temperature=2.0, top_k=50")])
def test_a_run_says_how_it_decoded(sampling, options, decoding):
    progress = Warnings()
    with sampling.session(*options, progress=progress) as session:
        train(session)
    metadata, store = sampling.store().metadata, sampling.store()
    assert metadata["conditions"]["decoding"] == decoding
    assert [each["decoding"] for each in metadata["conditions_by_fingerprint"].values()] == [decoding]
    asked = "the checkpoint's generation_config asks for do_sample = True, temperature = 2.0; answers are greedy here"
    assert [text for text in progress.said if "generation_config" in text] == (
        [] if options else [f"{asked}; --sample keeps its sampling"]
    )
    seeds = [e.sampling_seed for trial in store.trials() for e in trial.executions]
    assert all((seed is not None) == bool(options) for seed in seeds)
    assert len(set(seeds)) == (len(seeds) if options else 1)
    phases = metadata["phases"]
    assert phases["train"]["generate_calls"] == sum(len(trial.executions) for trial in store.trials("train"))
    if options:
        assert all(len(set(trial.draws)) == 4 for trial in store.trials("train"))


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_answers_and_is_judged_on_the_same(sampling, monkeypatch):
    with sampling.session(SAMPLE, name="whole") as session:
        validate(session, train(session))
    phases = sampling.store("whole").metadata["phases"]
    before = sum(phases[phase]["generate_calls"] for phase in ("warmup", "calibrate", "select"))
    with sampling.session(SAMPLE, name="killed") as session, monkeypatch.context() as pressed:
        interrupt_after(pressed, sampling.model, before + 10)  # within the third group of four draws
        with pytest.raises(KeyboardInterrupt):
            train(session)
    killed = sampling.store("killed")
    assert 0 < len(killed.trials("train")) < len(sampling.store("whole").trials("train"))
    torch.rand(5)
    with sampling.reopened(SAMPLE, name="killed") as session:
        validate(session, train(session))
    whole = sampling.store("whole")
    one, other = ([answers(trial) for trial in store.trials("train")] for store in (whole, killed))
    assert one == other
    assert len({ids for group in one for ids in group}) > 6  # draws, not one answer
    for phase in ("select", "test"):
        one, other = drawn(whole, phase), drawn(killed, phase)
        both = one.keys() & other.keys()  # what rivals there are depends on the clock
        assert len(both) >= len(whole.trials(phase))
        assert {key: one[key] for key in both} == {key: other[key] for key in both}


@pytest.mark.slow
def test_policies_that_choose_one_setting_share_its_answer(sampling):
    """Each setting once on a sample, and full once more where it is held against itself."""
    with sampling.session(SAMPLE, "validation.aa_every=2") as session:
        validate(session, train(session))
    for trial in sampling.store().trials("test"):
        counts = Counter(execution.setting for execution in trial.executions)
        assert counts.pop(session.space.full) == (2 if trial.index % 2 == 0 else 1)
        assert set(counts.values()) <= {1}


def test_greedy_and_sampled_never_meet_in_one_run(sampling):
    with sampling.session() as session:
        run = session.store
        session.runner.run("train", 0, session.runner.request(session.samples("train")[0]), [session.space.full])
    with pytest.raises(UnlikeConditions, match=r"decoding: greedy != sampled, temperature=2.0, top_k=50"):
        sampling.reopened(SAMPLE).__enter__()
    assert run.trials("train")


def test_the_way_to_sample_is_a_condition(sampling):
    with sampling.session(SAMPLE):
        pass
    sampling.model.generation_config.temperature = 3.0
    with pytest.raises(UnlikeConditions, match=r"temperature=2.0, top_k=50 != sampled, temperature=3.0"):
        sampling.reopened(SAMPLE).__enter__()


def test_a_run_that_shall_sample_what_does_not_leaves_no_store(stand_in):
    with pytest.raises(ConfigError, match="does not sample"):
        stand_in.session(SAMPLE).__enter__()
    assert not (stand_in.folder / "run").exists()


# what older versions stored


def forget_decoding(store):
    """As a version wrote it that took over what the checkpoint asked for."""
    metadata = store.metadata
    for each in (metadata["conditions"], *metadata["conditions_by_fingerprint"].values()):
        del each["decoding"]
    with store:
        store.update_metadata(**metadata)


def test_an_older_run_is_read_as_what_it_was(stand_in):
    with stand_in.session() as session:
        train(session)
    forget_decoding(stand_in.store())
    assert stand_in.store().trials("train")
    with stand_in.reopened() as session:
        assert session.store.trials("train")
    assert stand_in.store().metadata["conditions"]["decoding"] == "greedy"
    assert stand_in.store().trials("warmup")


def test_an_older_run_that_sampled_unseeded_is_no_greedy_one(stand_in):
    with stand_in.session():
        pass
    forget_decoding(stand_in.store())
    stand_in.model.generation_config.update(do_sample=True)
    with pytest.raises(UnlikeConditions, match=r"decoding: sampled, temperature=1.0, top_k=50 != greedy"):
        stand_in.reopened().__enter__()


def test_conditions_without_decoding_are_those_of_the_checkpoint(model):
    now = read_conditions(model, sample=True)
    assert as_it_was(replace(now, decoding=NOT_RECORDED), model) == now
    assert as_it_was(read_conditions(model), model).decoding == "greedy"
    model.generation_config.update(num_beams=2)
    assert own_decoding(model) == "beam_sample"


def test_parts_without_the_seed_are_read(tmp_path):
    import pyarrow.parquet as pq

    trial = Trial(phase="train", index=0, sample_id="a", executions=(an_execution(1.0, 5, 7),), draws=(0,))
    with RunStore.create(tmp_path / "run", {}) as store:
        store.append(trial)
        store.append(trial)
    first = sorted((tmp_path / "run/executions").glob("*.parquet"))[0]
    pq.write_table(pq.read_table(first).drop_columns(["sampling_seed"]), first)
    with store:
        store.compact()
    older, newer = store.trials()
    assert older.executions == (replace(trial.executions[0], sampling_seed=None),)
    assert newer == trial


# surveys


@pytest.fixture
def arms(hot_bundled, demo_sample):
    request = request_for(demo_sample, hot_bundled.processor, None)
    return [Arm(name=str(s), vlm=hot_bundled, setting=s, requests=[request]) for s in (Setting(), Setting(moe_topk=1))]


@pytest.mark.slow
def test_a_survey_samples_each_execution_from_its_own_seed(arms):
    def shots(seed):
        made = repeated(arms, Plan(repeats=3, max_new_tokens=3, sample=True, seed=seed))
        return {arm: [each.execution for each in made if each.arm == arm] for arm in (0, 1)}

    first, again, other = shots(0), shots(0), shots(1)
    for arm in (0, 1):
        assert [e.output_ids for e in first[arm]] == [e.output_ids for e in again[arm]]
        assert len({e.output_ids for e in first[arm]}) == 3
        sample_id = first[arm][0].sample_id
        wanted = [draw_seed(0, sample_id, arms[arm].setting, number) for number in (1, 2, 3)]  # 0 is the warm-up
        assert [e.sampling_seed for e in first[arm]] == wanted
    assert [e.output_ids for e in other[0]] != [e.output_ids for e in first[0]]


def test_a_survey_says_how_it_decoded(arms):
    sampled = survey(arms[:1], Plan(repeats=2, max_new_tokens=2, sample=True))
    greedy = survey(arms[:1], Plan(repeats=2, max_new_tokens=2))
    texts = [found.to_json()["arms"][0]["conditions"]["decoding"] for found in (sampled, greedy)]
    assert texts == ["sampled, temperature=30.0, top_k=0", "greedy"]
    assert all(each["sampling_seed"] is not None for each in sampled.to_json()["arms"][0]["executions"])
    assert all(each["sampling_seed"] is None for each in greedy.to_json()["arms"][0]["executions"])


def test_sampled_answers_of_unequal_length_allow_no_verdict_on_totals():
    """The same lengths in both arms, but not equally often."""
    columns = [
        column(*(shot(timing(20.0, new_tokens=n)) for n in (2, 3, 3))),
        column(*(shot(timing(20.0, new_tokens=n)) for n in (2, 2, 3)), name="fast"),
    ]
    refused = refuse_unequal({"total_ms": {1: comparison("total_ms")}}, columns)["total_ms"][1]
    assert refused.verdict == "invalid"
    assert "answers of unequal length (2 or 3 tokens against 2 or 3)" in refused.flags[0]


# the controller


def test_a_controller_answers_as_it_was_trained(sampling, monkeypatch):
    with sampling.session(SAMPLE) as session:
        train(session)
    controller = load_controller(sampling.folder / "run/controller", sampling.model, None)
    assert controller.metadata.conditions.decoding == "sampled, temperature=2.0, top_k=50"
    with pytest.raises(
        UnlikeConditions, match=r"trained on sampled answers \(measure.sample = true\); give sampling_s"
    ):
        controller.generate(sampling.model, None, [], "?", budget_ms=30.0)
    sampling.model.generation_config.do_sample = False
    with pytest.raises(ConfigError, match="does not sample"):
        load_controller(sampling.folder / "run/controller", sampling.model, None)


def test_a_greedy_controller_refuses_a_seed(sampling):
    with sampling.session() as session:
        train(session)
    controller = load_controller(sampling.folder / "run/controller", sampling.model, None)
    with pytest.raises(UnlikeConditions, match="sampling_seed was given, but the controller was trained on greedy"):
        controller.generate(sampling.model, None, [], "?", budget_ms=30.0, sampling_seed=1)
