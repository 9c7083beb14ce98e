"""What would each setting answer, and what does the controller see? The stored table of the bundled model.

Nothing is executed: which answers are right was measured with the recipe of the bundled model
(``python -m recipes.demo_vlm table`` and ``costs``); the model is loaded for its token embeddings and the sizes of its
requests.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from recipes.demo_vlm.__main__ import RESULTS
from recipes.demo_vlm.answers import draw_questions
from recipes.demo_vlm.costs import cost_shares, read_costs
from recipes.demo_vlm.gap import measured
from recipes.demo_vlm.table import Setting as Triple
from recipes.demo_vlm.table import read_table

from chronostat.config import Config
from chronostat.control.observer import Observer
from chronostat.data.demo.scenes import CANVAS_PX
from chronostat.data.samples import Sample
from chronostat.evidence.linear import Floats, Indices
from chronostat.evidence.observation import Observation
from chronostat.knobs.registry import find_space
from chronostat.knobs.space import ActionSpace
from chronostat.models.load import load_vlm
from chronostat.records import Setting


@dataclass(frozen=True, kw_only=True)
class Table:
    """Answers to K kinds of questions about N scenes under S settings; a prompt may be asked of many scenes.

    Attributes:
        space: the settings.
        right: whether an answer is right, bool of shape [N, K, S].
        cost: latency as a fraction of that of ``full``, shape [S].
        share: of each kind in the requests, shape [K].
        prompt: position of the prompt of a question, shape [N, K].
        texts: the P different prompts.
        observations: what the controller sees of a request with each of them.
    """

    space: ActionSpace
    right: NDArray[np.bool_]
    cost: Floats
    share: Floats
    prompt: Indices
    texts: tuple[str, ...]
    observations: tuple[Observation, ...]


def stored_table() -> Table:
    """The table of the bundled model."""
    task = measured(read_table(RESULTS / "test-seed2.json").rows, cost_shares(read_costs(RESULTS / "costs.json")))
    assert task.right is not None, "the stored table says which questions were answered right"
    vlm = load_vlm()
    space, _ = find_space(vlm.model, vlm.processor, Config().knobs.model_dump())
    order = [task.settings.index(_triple(setting)) for setting in space.settings]
    right = task.right[order].transpose(2, 1, 0)
    _, questions = draw_questions("test", len(right))
    asked = [[questions[kind][scene].prompt for kind in task.kinds] for scene in range(len(right))]
    texts = tuple(sorted({text for row in asked for text in row}))
    position = {text: i for i, text in enumerate(texts)}
    observer = Observer(vlm.model, vlm.processor, space)
    return Table(
        space=space,
        right=right,
        cost=task.cost[order],
        share=task.weight,
        prompt=np.array([[position[text] for text in row] for row in asked], dtype=np.intp),
        texts=texts,
        observations=tuple(observer.seen(_unloaded(text)) for text in texts),
    )


def _triple(setting: Setting) -> Triple:
    tokens, experts, skipped = (setting[name] for name in ("vision_tokens", "moe_topk", "block_skip"))
    assert isinstance(tokens, int)
    assert isinstance(experts, int)
    assert isinstance(skipped, tuple)
    return tokens, experts, tuple(int(block) for block in skipped)


def _unloaded(text: str) -> Sample:
    """A sample of the task whose picture nobody draws."""
    shape = (CANVAS_PX, CANVAS_PX)
    return Sample(id=text, split="test", prompt=text, references=(), load_images=tuple, image_shapes=lambda: (shape,))
