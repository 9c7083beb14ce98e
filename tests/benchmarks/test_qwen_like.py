"""The Qwen-like model: requests of very different size, told beforehand and read in fact."""

import numpy as np
import pytest
import torch
import transformers
from benchmarks.kit.qwen_like import QwenLikeTask, qwen_like

from chronostat.execution.execute import execute, request_for
from chronostat.execution.sizes import RequestSizes
from chronostat.knobs.registry import find_space

if not hasattr(transformers, "Qwen2_5_VLProcessor"):
    pytest.skip(f"transformers {transformers.__version__} has no Qwen2_5_VLProcessor", allow_module_level=True)


def test_sizes_differ_by_far_and_are_what_is_read():
    vlm = qwen_like()
    space, _ = find_space(vlm.model, vlm.processor, {})
    assert space.levels == {"vision_tokens": (640, 360, 160, 40), "block_skip": ((), (3, 4), (2, 3, 4, 5))}
    sizes = RequestSizes(vlm.model, vlm.processor, space)
    assert all(sizes.exact.values())
    samples = QwenLikeTask().split("test")
    requests = [request_for(sample, vlm.processor, None) for sample in samples[:40]]
    told = np.stack([sizes(request) for request in requests])  # [requests, S, 2]
    low, high = np.quantile(told[:, 0, 0], (0.05, 0.95))
    assert high > 10 * low
    for request, rows in list(zip(requests, told, strict=True))[:3]:
        for setting in (space.full, space.settings[-1]):
            execution = execute(vlm.model, request, setting=setting, max_new_tokens=2)
            assert execution.timing.source == "measured"
            image, text = rows[space.index(setting)]
            assert (image, image + text) == (execution.image_tokens, execution.prompt_tokens)


def test_samples_and_weights_are_the_same_on_every_look():
    one, other = (QwenLikeTask().split("train")[7] for _ in range(2))
    assert (one.id, one.prompt) == (other.id, other.prompt)
    assert all(np.array_equal(a, b) for a, b in zip(one.load_images(), other.load_images(), strict=True))
    assert QwenLikeTask().split("validation")[7].prompt != one.prompt
    first, again = (next(qwen_like().model.parameters()) for _ in range(2))
    assert torch.equal(first, again)
