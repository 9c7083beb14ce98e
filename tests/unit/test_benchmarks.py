import json

import pytest
import torch
import transformers
from benchmarks import progress
from benchmarks.cells import CellFile, TimeBox, arguments
from benchmarks.common import ratio_interval
from benchmarks.models import MODELS, build
from benchmarks.progress import fill_rows, run_benchmark
from benchmarks.truth.tables import tables
from benchmarks.truth.timeline import Kernel, agrees, parse_trace, stage_in, stages

from chronostat.errors import MeasurementError
from chronostat.measure.generate import measure_generate
from chronostat.models.prepare import image_token_id


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


def test_ratio_interval_is_that_of_the_paired_ratios():
    # ratios 1..6 of 6 pairs: the smallest and the largest bound the median with 1 - 2/64 = 97 %
    estimate = ratio_interval([2, 4, 6, 8, 10, 12], [2] * 6)
    assert (estimate.low, estimate.point, estimate.high) == (1, 3.5, 6)


def test_cells_go_on_under_like_conditions_only(tmp_path, capsys):
    model = build("toy-qwen", "cpu", torch.float32).model
    first = CellFile("trial", tmp_path, "abc")
    first.open("m:1", model, tokens=8)["rows"] = [1.234567891]
    first.save()
    again = CellFile("trial", tmp_path, "def").open("m:1", model, tokens=8)
    assert again["rows"] == [1.23457]
    assert again["commit"] == "abc"
    assert "rows" not in CellFile("trial", tmp_path, "def").open("m:1", model, tokens=9)
    assert "tokens: 8 != 9" in capsys.readouterr().out
    stored = json.loads((tmp_path / "trial.json").read_text())
    stored["cells"]["m:1"]["conditions"]["device"] = "another"
    (tmp_path / "trial.json").write_text(json.dumps(stored))
    assert "rows" not in CellFile("trial", tmp_path, "def").open("m:1", model, tokens=8)
    assert "device: another != cpu" in capsys.readouterr().out


def test_a_benchmark_goes_on_with_what_is_missing_and_tells_a_failure_until_it_is_mended(tmp_path, capsys):
    options = arguments(None).parse_args(["--out", str(tmp_path), "--commit", "abc"])
    options.cells = "toy-qwen:1,toy-qwen"
    asked = []

    def run(broken):
        def measure(subject, tiles, key, file, box):
            asked.append(key)
            cell = file.open(key, subject.model)
            if tiles == broken:
                raise MeasurementError("no stages")
            cell["rows"] = [tiles]
            file.save()

        return run_benchmark(
            "trial",
            options,
            is_complete=lambda cell, model, tiles: cell.get("rows") == [tiles] and model == "toy-qwen",
            measure=measure,
            table=lambda cells: " ".join(f"{key} {cell.get('failed')}" for key, cell in cells.items()),
            default_tiles=2,
        )

    assert run(broken=2) == 1
    assert capsys.readouterr().out.endswith("\ntoy-qwen:1 None toy-qwen:2 MeasurementError: no stages\n")
    assert run(broken=None) == 0
    assert asked == ["toy-qwen:1", "toy-qwen:2", "toy-qwen:2"]
    assert capsys.readouterr().out.endswith("\ntoy-qwen:1 None toy-qwen:2 None\n")
    options.show = True
    assert run(broken=1) == 0
    assert capsys.readouterr().out == "toy-qwen:1 None toy-qwen:2 None\n"


def test_a_cell_is_named_by_model_tiles_mode_and_card(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200 NVL")
    assert (progress.accelerator("cuda"), progress.accelerator("cpu")) == ("H200", "")
    monkeypatch.setattr(progress, "accelerator", lambda device: "H200")
    options, names = arguments(None).parse_args(["--out", str(tmp_path)]), []
    options.cells = "toy-qwen:1"
    run_benchmark(
        "trial",
        options,
        is_complete=lambda *_: False,
        measure=lambda subject, tiles, key, file, box: names.append(key),
        table=lambda cells: "",
        mode="compiled",
    )
    assert names == ["toy-qwen:1 compiled H200"]


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


def test_a_block_that_cannot_be_measured_is_no_row_and_too_many_of_them_end_it(tmp_path):
    def block(number):
        if number % 2:
            raise MeasurementError(f"block {number}")
        return {"number": number}

    cell, file = {}, CellFile("trial", tmp_path, "abc")
    fill_rows(cell, 3, TimeBox(None), file, block)
    assert cell == {"rows": [{"number": 0}, {"number": 2}, {"number": 4}], "dropped": ["block 1", "block 3"]}
    fill_rows(cell, 3, TimeBox(None), file, pytest.fail)  # nothing is missing
    broken = {}
    with pytest.raises(MeasurementError, match="block 1"):
        fill_rows(broken, 2, TimeBox(None), file, lambda number: block(1))
    assert broken == {"rows": [], "dropped": ["block 1"] * 3}


def test_time_box():
    assert TimeBox(None).allows(1e9)
    assert TimeBox(100).allows(50)
    assert not TimeBox(100).allows(101)


@pytest.mark.parametrize(("name", "tokens"), [("toy-qwen", (4, 20)), ("toy-moe", (4, 20)), ("toy-molmo2", (16, 52))])
def test_models_see_as_many_image_tokens_as_they_are_asked_for(name, tokens):
    family, _ = MODELS[name]
    if not hasattr(transformers, family.config_class):
        pytest.skip(f"transformers {transformers.__version__} has no {family.config_class}")
    subject = build(name, "cpu", torch.float32)
    for tiles, expected in zip((1, 5), tokens, strict=True):
        batch = subject.batch(tiles)
        assert (batch["input_ids"] == image_token_id(subject.model)).sum() == expected
        timing = measure_generate(subject.model, batch, max_new_tokens=3).timing
        assert timing.source == "measured", timing.unseen
        assert timing.new_tokens == 3


@pytest.mark.parametrize(
    ("name", "billions"),
    [("qwen2.5-vl-7b", 8.29), ("internvl-moe-30b", 30.85), ("molmo2-8b", 8.66), ("cpu-300m", 0.302)],
)
def test_models_have_their_real_sizes(name, billions):
    family, _ = MODELS[name]
    if not hasattr(transformers, family.config_class):
        pytest.skip(f"transformers {transformers.__version__} has no {family.config_class}")
    assert build(name, "meta", torch.bfloat16).parameters / 1e9 == pytest.approx(billions, abs=0.006)
