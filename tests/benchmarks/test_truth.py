"""Stages from a profiler's trace made by hand, and how pairs of cells are pooled."""

import pytest
from benchmarks.truth.tables import tables
from benchmarks.truth.timeline import Kernel, agrees, parse_trace, stage_in, stages


def launch(number, ts, name="cudaLaunchKernel"):
    return {"ph": "X", "cat": "cuda_runtime", "name": name, "ts": ts, "dur": 1, "args": {"correlation": number}}


def kernel(number, ts, dur, cat="kernel"):
    return {"ph": "X", "cat": cat, "name": "k", "ts": ts, "dur": dur, "args": {"correlation": number}}


def noted(name, ts, dur):
    return {"ph": "X", "cat": "user_annotation", "name": f"chronostat:{name}", "ts": ts, "dur": dur}


# The host encodes an image from 0 to 100 us, runs the forward from 200 to 400 us and takes token marks at 410 and 900.
EVENTS = [
    noted("encode", 0, 100),
    noted("vision", 10, 80),
    noted("projector", 60, 20),
    noted("forward", 200, 200),
    noted("blocks", 250, 100),
    noted("token", 410, 1),
    noted("token", 900, 1),
    launch(1, 20),
    kernel(1, 30, 100),  # of the vision tower, runs 30 to 130
    launch(2, 70),
    kernel(2, 130, 20),  # of the projector, 130 to 150
    launch(3, 260, "cuLaunchKernelEx"),
    kernel(3, 300, 700),  # of the blocks, 300 to 1000: longer than the host waits
    launch(4, 500, "cudaMemcpyAsync"),
    kernel(4, 1000, 50, "gpu_memcpy"),  # of the decode step
    launch(5, 600),  # the profiler lost its kernel
    launch(6, 610, "cudaEventRecord"),  # no work
    {"ph": "M", "name": "process_name"},
]


def test_stages_of_a_trace_by_hand():
    trace = parse_trace(EVENTS)
    assert (len(trace.kernels), trace.launches, trace.lost) == (4, 5, 1)
    found = stages(trace)
    # vision: host windows 10-60 and 80-90; on the device 10 (idle) to 130 (its kernel), then 150 to 150
    assert found["vision"].reference_ms == pytest.approx(0.120)
    assert found["vision"].kernels == 1
    # prefill: 0 to 150 (the projector's kernel), then 200 (idle) to 1000; busy 30-150 and 300-1000
    assert found["prefill"].reference_ms == pytest.approx(0.150 + 0.800)
    assert found["prefill"].busy_ms == pytest.approx(0.120 + 0.700)
    assert found["prefill"].idle_ms == pytest.approx(0.130)
    assert found["prefill"].span_ms == pytest.approx(0.970)
    # blocks: 250 (idle) to 1000
    assert found["llm_prefill"].reference_ms == pytest.approx(0.750)
    # decode: the device reaches the first mark at 1000, when it is done with the blocks, the last one at 1050
    assert found["decode"].reference_ms == pytest.approx(0.050)
    assert found["decode"].idle_ms == pytest.approx(0.0)


def test_a_stage_without_kernels_has_its_host_length():
    stage = stage_in([], [(10.0, 30.0)])
    assert (stage.reference_ms, stage.span_ms, stage.busy_ms, stage.kernels) == (pytest.approx(0.02), 0.0, 0.0, 0)


def test_work_of_an_earlier_stage_moves_the_start():
    # launched before the window, still running until 25; the window's own kernel ends at 40
    stage = stage_in([Kernel(0.0, 5.0, 25.0), Kernel(12.0, 25.0, 40.0)], [(10.0, 20.0)])
    assert stage.reference_ms == pytest.approx(0.015)


@pytest.mark.parametrize(("ours", "reference", "verdict"), [(1.09, 1.0, True), (1.11, 1.0, False), (101, 100, True)])
def test_agreement_is_one_percent_or_a_tenth_of_a_millisecond(ours, reference, verdict):
    assert agrees(ours, reference) is verdict


def test_pairs_of_all_cells_of_one_card_and_mode_are_pooled():
    def cell(*totals):
        timing = {"prefill_ms": 10.0, "decode_ms": 80.0, "decode_steps": 8}
        rows = [
            {"bare_ms": 100.0, "again_ms": 100.0, "whole_ms": 2 * total, "timing": timing | {"total_ms": total}}
            for total in totals
        ]
        return {"image_tokens": 256, "rows": rows}

    text = tables(
        {
            "a:1 H200": cell(101.0, 101.0, 102.0),
            "b:5 H200": cell(103.0),
            "b:5 H200 (earlier 2)": cell(104.0),
            "a:1 compiled H200": cell(150.0),
            "a:1": cell(90.0),
            "b:1": cell(94.0, 94.0),
        }
    )
    pooled = [line.split(" | ")[:6] for line in text.splitlines() if line.startswith("| all")]
    assert [(row[0], row[2], row[3][:6], row[5][:6]) for row in pooled] == [
        ("| all b:5 H200", "2", "1.0350", "2.0700"),
        ("| all H200", "5", "1.0200", "2.0400"),
        ("| all CPU", "3", "0.9400", "1.8800"),
    ]
