"""Known ways of fooling a latency tool: each ends in a number that is refused or flagged, never in a short one."""

import threading

import pytest
import torch

import chronostat.measure.clock
from chronostat import measuring
from chronostat.errors import MeasurementError
from chronostat.measure.clock import CpuClock, FakeClock
from chronostat.measure.cross_checks import TimedMark, span_doubt
from chronostat.measure.generate import measure_generate
from chronostat.measure.stages import TOLERANCE_MS
from stand_ins.molmo_like import MolmoLike, molmo_batch, molmo_like
from stand_ins.observing import delay


def measured(model, clock=None, tokens=3):
    return measure_generate(model, molmo_batch(), max_new_tokens=tokens, clock=clock)


# A wrapped clock


class HalfClock(CpuClock):
    """Counts every second millisecond only."""

    def host_ns(self):
        return super().host_ns() // 2


class FrozenClock(CpuClock):
    def host_ns(self):
        return 0


@pytest.mark.parametrize("kind", [HalfClock, FrozenClock])
def test_a_wrapped_clock_is_refused(kind):
    with pytest.raises(MeasurementError, match=r"system's raw monotonic clock .* wrapped, patched or was set"):
        measured(molmo_like(), clock=kind())


def test_a_patched_clock_is_refused(monkeypatch):
    real = chronostat.measure.clock.perf_counter_ns
    monkeypatch.setattr(chronostat.measure.clock, "perf_counter_ns", lambda: real() // 2)
    with pytest.raises(MeasurementError, match="no number comes of it"):
        measured(molmo_like())


def test_marks_that_pass_slower_than_the_host_are_flagged(monkeypatch):
    class SlowMarks(FakeClock):
        """Half of the time between marks is lost, as with a patched ``elapsed_time``."""

        def between_ms(self, start, end):
            return super().between_ms(start, end) / 2

    model, clock = molmo_like(), SlowMarks()
    delay(monkeypatch, clock, model.lm_head, 100)
    timing = measured(model, clock).timing
    assert timing.source == "total_only"
    assert "generate() took 300.000 ms by the host, its marks say 150.000 ms" in timing.unseen


# A reused result


class Remembers(MolmoLike):
    """Answers the second time from memory."""

    def generate(self, **batch):
        answers = vars(self).setdefault("answers", {})
        key = batch["input_ids"].numpy().tobytes()
        if key not in answers:
            answers[key] = super().generate(**batch)
        return answers[key]


def test_an_answer_from_memory_is_refused():
    model = molmo_like(Remembers)
    assert measured(model).timing.source == "measured"
    with pytest.raises(MeasurementError, match="returned 3 tokens, but no part of the model ran: the answer was"):
        measured(model)


def test_image_features_from_memory_are_flagged(monkeypatch):
    model = molmo_like()
    tower = model.model.vision_backbone
    features = tower.forward(molmo_batch()["images"], molmo_batch()["image_masks"])
    monkeypatch.setattr(tower, "_call_impl", lambda *_: features)
    timing = measured(model).timing
    assert (timing.source, timing.unseen) == ("total_only", "not seen: vision, projector")


# Work elsewhere


class VisionInAThread(MolmoLike):
    """Encodes the image beside the prefill, and waits for it only where it is needed."""

    def forward(self, input_ids, images=None, image_masks=None, image_input_idx=None, **kwargs):
        if images is None:
            return super().forward(input_ids, **kwargs)
        result = {}
        tower = self.model.vision_backbone

        def encode():
            with torch.no_grad():
                result["features"] = tower(images, image_masks)

        worker = threading.Thread(target=encode)
        worker.start()
        worker.join()
        return super().forward(input_ids, images, image_masks, image_input_idx, **kwargs)


def test_work_in_another_thread_is_flagged():
    timing = measured(molmo_like(VisionInAThread)).timing
    assert timing.source == "total_only"
    assert "vision, which ran in another thread" in timing.unseen


@pytest.mark.parametrize(
    ("path", "stage"),
    [("model.vision_backbone.image_vit", "vision"), ("model.transformer.blocks.0", "decoder blocks")],
)
def test_a_part_that_works_in_another_thread_is_flagged(monkeypatch, path, stage):
    model = molmo_like()
    module = model.get_submodule(path)
    original = module._call_impl

    def elsewhere(*args, **kwargs):
        results = []
        worker = threading.Thread(target=torch.no_grad()(lambda: results.append(original(*args, **kwargs))))
        worker.start()
        worker.join()
        return results[0]

    monkeypatch.setattr(module, "_call_impl", elsewhere)
    timing = measured(model).timing
    assert (timing.source, timing.unseen) == ("total_only", f"not seen: {stage}, which ran in another thread")


# Numbers that contradict each other


class OwnStages(FakeClock):
    """Gives the marks that a test names, in the order they are taken: entry, four pairs, tokens, return."""

    def __init__(self, *marks_ms):
        super().__init__()
        self._left = list(marks_ms)

    def mark(self):
        return round(self._left.pop(0) * 1e6)

    def host_ns(self):
        return 0 if len(self._left) > 0 else round(self.total_ms * 1e6)

    cross_check_ns = host_ns
    total_ms = 50.0


#        entry, forward in, vision in, projector in + out, vision out, blocks in + out, forward out, tokens, return
HONEST = [0, 1, 2, 5, 6, 10, 12, 20, 22, 23, 30, 50]


def with_marks(**changes):
    marks = list(HONEST)
    names = ["entry", "forward", "vision", "projector", "projector_out", "vision_out", "blocks", "blocks_out"]
    names += ["forward_out", "first", "second", "end"]
    for name, value in changes.items():
        marks[names.index(name)] = value
    return OwnStages(*marks)


def test_honest_marks_are_measured():
    timing = measured(molmo_like(), with_marks(), tokens=2).timing
    assert (timing.source, timing.vision_ms, timing.projector_ms, timing.llm_prefill_ms) == ("measured", 7, 1, 8)
    assert (timing.prefill_ms, timing.ttft_ms, timing.decode_ms, timing.other_ms) == (21, 23, 7, 22)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"vision": 11}, "vision lies from 11.000 to 10.000 ms"),
        ({"blocks_out": 24}, "decoder blocks lies from 12.000 to 24.000 ms, the first token at 23.000 ms"),
        ({"forward": -1}, "prefill forward lies from -1.000 to 22.000 ms"),
        ({"second": 22}, "the token marks are not in the order of the tokens"),
        ({"second": 51}, "the last token lies 51.000 ms after the entry, the return 50.000 ms"),
    ],
)
def test_marks_that_contradict_each_other_are_flagged(changes, expected):
    timing = measured(molmo_like(), with_marks(**changes), tokens=2).timing
    assert timing.source == "total_only"
    assert f"the stages contradict each other: {expected}" in timing.unseen
    assert timing.prefill_ms is None


@pytest.mark.parametrize(("beyond_ms", "source"), [(TOLERANCE_MS / 2, "measured"), (2 * TOLERANCE_MS, "total_only")])
def test_stages_longer_than_the_whole_are_flagged(beyond_ms, source):
    # prefill 0 to 23, decode 23 to 50 + what is beyond: together that much more than the total of 50
    clock = with_marks(forward=0, forward_out=23, second=50 + beyond_ms)
    timing = measured(molmo_like(), clock, tokens=2).timing
    assert timing.source == source
    if source == "total_only":
        assert "the stages take 50.200 ms together, the whole call 50.000" in timing.unseen
    else:
        assert timing.other_ms == pytest.approx(-0.05)


@pytest.mark.parametrize(("beyond_ms", "source"), [(0.5, "measured"), (2, "total_only")])
def test_in_a_long_call_two_clocks_may_drift_apart(beyond_ms, source):
    clock = with_marks(forward=0, forward_out=23, second=1000 + beyond_ms, end=1000)
    clock.total_ms = 1000.0
    assert measured(molmo_like(), clock, tokens=2).timing.source == source


# What the caller brings into the measurement


def test_measuring_flags_the_users_call_likewise():
    model = molmo_like(VisionInAThread)
    with measuring(model) as seen:
        model.generate(**molmo_batch(), max_new_tokens=2)
    assert seen.timing.source == "total_only"


@pytest.mark.parametrize(("before_ms", "inside_ms", "doubted"), [(0, 77, False), (5, 77, False), (5, 60, True)])
def test_a_core_lost_beside_a_mark_is_no_doubt_but_missing_work_is(before_ms, inside_ms, doubted):
    # the host saw 77 ms between the marks, and lost its core for some ms before the first one
    entry_ns, end_ns = round(before_ms * 1e6), round((before_ms + 77) * 1e6)
    entry = TimedMark(entry_ns, 0, entry_ns)
    end = TimedMark(entry_ns + round(inside_ms * 1e6), end_ns, end_ns)
    doubt = span_doubt(FakeClock(), entry, end, waited_ms=0, total_ms=77 + before_ms)
    assert (doubt is not None) == doubted
