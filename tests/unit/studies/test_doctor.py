import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from chronostat.cli.actions.doctor import findings_table, floors_table, verdict_lines
from chronostat.errors import ConfigError, MeasurementError
from chronostat.execution.execute import request_for
from chronostat.machine.findings import Finding
from chronostat.machine.gpu import GpuProperties, GpuState
from chronostat.machine.watch import MachineWatch
from chronostat.measure.clock import FakeClock
from chronostat.records import Conditions, Execution, Setting, StageTiming
from chronostat.studies.doctor import EXIT_STATUS, LEAST_PAIRS, examine, examined
from stand_ins.fake_linux import FakeLinux
from stand_ins.sample_run import CONDITIONS as SAMPLE_CONDITIONS

CONDITIONS = Conditions(**SAMPLE_CONDITIONS)
FINE = Finding(topic="governor", fact="performance")
BAD = Finding(topic="stolen CPU time", fact="4.0 %", level="problem", advice="use another machine")


def repeat(prefill_ms=40.0, step_ms=5.0, *, disturbed=None, source="measured"):
    stages = {"prefill_ms": prefill_ms, "decode_ms_per_token": step_ms} if source == "measured" else {}
    timing = StageTiming(
        source=source,
        total_ms=100.0,
        new_tokens=9,
        decode_steps=8,
        unseen=None if stages else "no hook fired",
        **stages,
    )
    return Execution(sample_id="a", split="test", setting=Setting(), timing=timing, disturbed=disturbed)


def pairs_of(*latencies_ms):
    return [(repeat(a, a / 8), repeat(b, b / 8)) for a, b in latencies_ms]


def found(pairs, *findings):
    return examined("a model", CONDITIONS, findings or (FINE,), pairs)


def test_repeats_that_never_differ_need_one_pair_and_are_trustworthy():
    exam = found(pairs_of(*[(40.0, 40.0)] * 8))
    assert [floor.metric for floor in exam.floors] == ["prefill_ms", "decode_ms_per_token"]
    prefill = exam.floors[0]
    assert (prefill.median_ms.point, prefill.ratio.point, prefill.spread) == (40.0, 1.0, 0.0)
    assert prefill.pairs == {0.02: 1, 0.05: 1, 0.1: 1}
    assert (exam.verdict, exam.exit_status, exam.doubts) == ("trustworthy", 0, ())


def test_pairs_that_are_needed_by_hand():
    exam = found(pairs_of(*[(40.0, 42.0)] * 10))
    # neighbours differ by ln(42 / 40) = 0.04879; s = 0.04879 / 0.67449 = 0.07234; z = 1.95996 + 1.28155 = 3.24151
    # n = (3.24151 * 0.07234 / ln(1.05)) ** 2 = (0.23448 / 0.04879) ** 2 = 23.1
    # for 10 %: (0.23448 / 0.09531) ** 2 = 6.05, for 2 %: (0.23448 / 0.01980) ** 2 = 140.2
    assert exam.floors[0].spread == pytest.approx(0.05)
    assert exam.floors[0].pairs == {0.02: 141, 0.05: 24, 0.1: 7}
    assert exam.floors[0].ratio.point == pytest.approx(40 / 42)
    assert exam.verdict == "trustworthy"  # 24 of at most 30


def test_a_machine_that_needs_many_pairs_is_noisy():
    exam = found(pairs_of(*[(40.0, 43.0)] * 10))
    assert exam.verdict == "noisy"
    assert exam.exit_status == 10
    pairs = "prefill_ms: 51 pairs are needed to separate 5 %"  # (3.24151*0.10723/0.04879)**2 = 50.8
    assert f"{pairs}; compare with as many repeats or more, or at a quieter hour" in exam.doubts


def test_a_problem_of_the_machine_makes_it_noisy_and_a_note_does_not():
    quiet = pairs_of(*[(40.0, 40.0)] * 8)
    assert found(quiet, FINE, replace(BAD, level="note")).verdict == "trustworthy"
    exam = found(quiet, FINE, BAD)
    assert (exam.verdict, exam.doubts) == ("noisy", ("stolen CPU time: 4.0 %",))


def test_pairs_with_a_disturbed_repeat_are_left_out_and_counted():
    spoilt = (repeat(400.0, disturbed="waited 3.0 ms for a CPU, 2 involuntary context switches"), repeat())
    exam = found([*pairs_of(*[(40.0, 40.0)] * 9), spoilt])
    assert (exam.pairs, exam.repeats) == (9, 20)
    assert exam.disturbed == {"waited for a CPU, involuntary context switches": 1}
    assert exam.disturbed_share == 0.05
    assert exam.floors[0].spread == 0.0
    assert exam.verdict == "trustworthy"


def test_a_slow_pair_that_nothing_disturbed_stays():
    exam = found(pairs_of(*[(40.0, 40.0)] * 9, (400.0, 40.0)))
    assert exam.pairs == 10
    # of the 55 averages of two pairs the 10 with the slow one are above 0: one ln(10), nine ln(10) / 2; the interval of
    # ten pairs goes from the ninth lowest to the ninth highest: 2 * P(rank sum <= 8) = 2 * 25 / 1024 = .049
    ratio = exam.floors[0].ratio
    assert (ratio.low, ratio.point, ratio.high) == pytest.approx((1.0, 1.0, 10**0.5))


def test_the_fewest_pairs_have_an_interval_that_covers():
    rng = np.random.default_rng(0)
    exams = [found(pairs_of(*(40 * np.exp(0.05 * rng.standard_normal((LEAST_PAIRS, 2)))).tolist())) for _ in range(300)]
    assert np.mean([e.floors[0].ratio.low <= 1 <= e.floors[0].ratio.high for e in exams]) >= 0.93  # truly 1 - 2 / 64


def test_what_the_model_raises_is_said_in_one_sentence(bundled, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of pixels")

    monkeypatch.setattr(bundled.model, "generate", broken)
    with pytest.raises(MeasurementError, match=r"the request ended with RuntimeError \(out of pixels\); see that"):
        examine(bundled, request_for_demo(bundled), seconds=1.0)


def test_many_disturbed_repeats_make_a_machine_noisy():
    spoilt = (repeat(disturbed="stolen CPU time 10 ms"), repeat(disturbed="stolen CPU time 30 ms"))
    exam = found([*pairs_of(*[(40.0, 40.0)] * 6), spoilt, spoilt])
    assert exam.disturbed == {"stolen CPU time": 4}
    doubt = "25 % of the repeats were disturbed; end what disturbs, or wait for a quieter hour"
    assert (exam.verdict, exam.doubts) == ("noisy", (doubt,))


def test_too_few_undisturbed_pairs_measure_nothing():
    exam = found(pairs_of(*[(40.0, 40.0)] * (LEAST_PAIRS - 1)))
    assert (exam.verdict, exam.exit_status, exam.floors) == ("cannot measure", 11, ())
    assert exam.doubts == ("5 undisturbed pairs, at least 6 are needed; give more --seconds",)


def test_a_model_whose_stages_are_not_seen_measures_nothing():
    exam = found([(repeat(source="total_only"), repeat(source="total_only"))] * 8)
    assert (exam.verdict, exam.floors) == ("cannot measure", ())
    assert exam.doubts == ("the stages cannot be measured: no hook fired",)


def test_a_repeat_whose_stages_are_doubtful_is_left_out_and_counted():
    exam = found([*pairs_of(*[(40.0, 40.0)] * 9), (repeat(source="total_only"), repeat())])
    assert (exam.pairs, exam.repeats) == (9, 20)
    assert exam.disturbed == {"no hook fired": 1}
    assert (exam.verdict, exam.unmeasured) == ("trustworthy", None)


def test_exit_statuses_are_no_error_codes():
    from chronostat import errors

    codes = {each.exit_code for each in vars(errors).values() if isinstance(each, type)}
    assert not codes & (set(EXIT_STATUS.values()) - {0})


def test_the_repeats_end_where_they_are_stopped(bundled, tmp_path):
    ran = []

    def run():
        ran.append(1)
        return repeat()

    exam = examine(
        bundled,
        request_for_demo(bundled),
        seconds=60.0,
        clock=FakeClock(),  # on which no time passes
        watch=MachineWatch(FakeLinux(tmp_path), processes=list, cpus=(0,)),
        run=run,
        stopped=lambda: len(ran) >= 20,
    )
    assert exam.repeats <= 20
    assert len(ran) in {20, 21}


def test_the_time_box_ends_the_repeats(bundled, tmp_path):
    clock, ran = FakeClock(), []

    def run():
        ran.append(clock.host_ns())
        clock.advance_ms(100)
        return repeat()

    watch = MachineWatch(FakeLinux(tmp_path), processes=list, cpus=(0,))
    request = request_for_demo(bundled)
    exam = examine(bundled, request, seconds=2.0, clock=clock, watch=watch, run=run)
    # 3 to warm up, then pairs of 200 ms until 2 s have passed
    assert len(ran) == 3 + 20
    assert (exam.pairs, exam.repeats) == (10, 20)
    assert exam.conditions.device == "cpu"


def test_the_card_that_the_model_is_on_is_looked_at(bundled, tmp_path):
    states = iter(GpuState(reasons=0x20, sm_clock_mhz=900, power_capped_ms=ms) for ms in (1000.0, 2500.0))
    properties = GpuProperties(uuid="GPU-1", driver="580", power_limit_w=700.0)
    card = SimpleNamespace(properties=lambda: properties, state=lambda: next(states))
    watch, clock = MachineWatch(FakeLinux(tmp_path), processes=list, cpus=(0,)), FakeClock()

    def run():
        clock.advance_ms(100)
        return repeat()

    exam = examine(bundled, request_for_demo(bundled), seconds=2.0, clock=clock, watch=watch, gpu=card, run=run)
    assert exam.doubts == ("GPU throttling: SwThermalSlowdown",)
    assert "700 W, held the clock for 1.5 s meanwhile" in {each.fact for each in exam.findings}
    assert exam.verdict == "noisy"


def test_a_time_box_of_nothing_is_refused(bundled):
    with pytest.raises(ConfigError, match=r"seconds = 0: repeats need some time; give seconds above 0"):
        examine(bundled, request_for_demo(bundled), seconds=0)


def request_for_demo(bundled):
    from chronostat.data.demo import DemoTask

    return request_for(DemoTask().split("validation")[0], bundled.processor, None)


def test_the_bundled_model_decodes_as_many_steps_as_are_compared(bundled, tmp_path):
    from chronostat.studies import doctor

    execution = doctor._execute(bundled, request_for_demo(bundled))
    assert execution.timing.decode_steps == 8


def test_json_holds_everything_and_is_plain():
    data = json.loads(json.dumps(found(pairs_of(*[(40.0, 42.0)] * 10), FINE, BAD).to_json(), allow_nan=False))
    assert (data["verdict"], data["exit_status"]) == ("noisy", 10)
    assert data["noise_floor"][0]["pairs"] == {"2%": 141, "5%": 24, "10%": 7}
    assert data["noise_floor"][0]["metric"] == "prefill_ms"
    assert data["findings"][1]["advice"] == "use another machine"
    assert data["conditions"]["cpu"] == CONDITIONS.cpu


def test_what_a_person_reads():
    out = Console(width=120, record=True, markup=False, highlight=False)
    exam = found(pairs_of(*[(40.0, 42.0)] * 10), FINE, BAD)
    out.print(findings_table(exam))
    out.print(floors_table(exam))
    for line in verdict_lines(exam):
        out.print(line)
    text = out.export_text()
    for part in ("stolen CPU time", "problem", "prefill_ms", "41.0 ms", "5.0 %", "141", "24", "verdict: noisy"):
        assert part in text
    assert "stolen CPU time: use another machine" in text
    assert "because of stolen CPU time: 4.0 %" in text


def test_arms_are_named_at_random_so_that_order_is_no_arm(bundled, tmp_path):
    clock = FakeClock()
    latencies = iter(np.tile([40.0, 44.0], 200).tolist())

    def run():
        clock.advance_ms(10)
        return repeat(next(latencies))

    watch = MachineWatch(FakeLinux(tmp_path), processes=list, cpus=(0,))
    exam = examine(bundled, request_for_demo(bundled), seconds=3.0, clock=clock, watch=watch, run=run)
    ratio = exam.floors[0].ratio
    assert ratio.low <= 1 <= ratio.high  # 40 / 44 in every pair if arms were the first and the second
