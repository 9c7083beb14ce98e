"""The table of the card: every kind under every setting, through the real processor and the real `generate()`."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from PIL import Image
from recipes.demo_vlm.table import Answered, Row, Table, pack_bits, read_table, shares, write_table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, ProcessorMixin

from chronostat.data.demo.questions import KINDS, Question
from chronostat.data.demo.render import render
from chronostat.data.demo.scenes import Scene, draw_scene
from chronostat.data.demo.task import UNSEEN_SUFFIX
from chronostat.data.quality import exact
from chronostat.data.samples import Split
from chronostat.errors import DataError
from chronostat.knobs.registry import applied, find_space
from chronostat.models.load import Vlm
from chronostat.models.prepare import prepare
from chronostat.records import Setting

NEW_TOKENS = 8  # the longest answer has five digits and its end
_STREAM = 20_241  # names the scenes of tables: other ones than the samples of the task, with the handwriting of a split
_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Level(NamedTuple):
    """Everything that the processor makes of the questions at one number of image tokens.

    Attributes:
        tiles: [scene, tile, 3, 32, 32] pixel values.
        ids: token ids of each scene's prompt, by kind.
    """

    tiles: Tensor
    ids: dict[str, list[list[int]]]


def draw_questions(split: Split, per_kind: int) -> tuple[list[Scene], dict[str, list[Question]]]:
    """Scenes, and for each kind a question about each of them; the test split has the unseen wordings as kinds too."""
    scenes: list[Scene] = []
    questions: dict[str, list[Question]] = {kind: [] for kind in shares()}
    if split == "test":
        questions |= {kind + UNSEEN_SUFFIX: [] for kind in shares()}
    for index in range(per_kind):
        rng = np.random.default_rng([_STREAM, _SPLITS.index(split), index])
        scenes.append(draw_scene(rng, split))
        for kind, asked in questions.items():
            unseen = kind.endswith(UNSEEN_SUFFIX)
            asked.append(KINDS[kind.removesuffix(UNSEEN_SUFFIX)].draw(rng, scenes[-1], unseen=unseen))
    return scenes, questions


def measure_table(
    vlm: Vlm,
    *,
    out: Path,
    split: Split,
    per_kind: int,
    batch: int,
    workers: int,
    seconds: float,
    single_knobs: bool = False,
) -> Table:
    """Measures the settings that the table at `out` lacks, and stores it after each.

    Unseen wordings are asked where at most one knob is turned: enough to show what they change, at a quarter of the
    time.

    Args:
        vlm: the model, in float32.
        out: the table; one that was begun goes on.
        split: whose handwriting is shown.
        per_kind: questions of each kind.
        batch: questions in one `generate()` call.
        workers: processes that preprocess.
        seconds: no setting begins after this time.
        single_knobs: only the settings in which at most one knob is turned.

    Raises:
        DataError: the table at `out` is of other weights, another split or another number of questions.
    """
    start = perf_counter()
    table = begin_table(out, vlm, split, per_kind, batch)
    scenes, questions = draw_questions(split, per_kind)
    space, _ = find_space(vlm.model, vlm.processor, {})
    wanted = [setting for setting in space.settings if not single_knobs or _turned(setting, space.full) < 2]
    missing = [setting for setting in wanted if _key(setting) not in table.settings]
    for _, settings in groupby(missing, key=lambda setting: setting["vision_tokens"]):
        level: Level | None = None
        for setting in settings:
            if perf_counter() - start > seconds:
                return table
            level = level or preprocess(vlm, setting, scenes, questions, workers)
            asked = {
                kind: q
                for kind, q in questions.items()
                if UNSEEN_SUFFIX not in kind or _turned(setting, space.full) < 2
            }
            table = Table(page=table.page, rows=[*table.rows, *_answer_setting(vlm, setting, level, asked, batch)])
            write_table(out, table)
            print(
                f"{len(table.settings)} of {len(wanted)} settings, {perf_counter() - start:.0f} s: {setting}",
                flush=True,
            )
    return table


def begin_table(out: Path, vlm: Vlm, split: Split, per_kind: int, batch: int) -> Table:
    """The table that is there, or an empty one.

    Raises:
        DataError: it is of other weights, another split or another number of questions.
    """
    page = {"fingerprint": vlm.fingerprint, "split": split, "per_kind": per_kind}
    if not out.exists():
        device = vlm.model.device
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        how = "the real processor and generate(), greedy, float32"
        return Table(page={**page, "how": how, "device": where, "batch": batch, **versions}, rows=[])
    table = read_table(out)
    differing = {name: (table.page.get(name), value) for name, value in page.items() if table.page.get(name) != value}
    if differing:
        text = "; ".join(f"{name} is {old}, not {new}" for name, (old, new) in differing.items())
        raise DataError(f"{out} was begun for something else: its {text}; give --out another name or delete it")
    return table


def _key(setting: Setting) -> tuple[Any, Any, Any]:
    return setting["vision_tokens"], setting["moe_topk"], setting["block_skip"]


def _turned(setting: Setting, full: Setting) -> int:
    """How many knobs are not at full."""
    return sum(setting[knob] != full[knob] for knob in full)


def preprocess(
    vlm: Vlm, setting: Setting, scenes: Sequence[Scene], questions: dict[str, list[Question]], workers: int
) -> Level:
    """Runs the real processor over all scenes and prompts, under one number of image tokens."""
    prompts = [[asked[i].prompt for asked in questions.values()] for i in range(len(scenes))]
    with applied(setting, vlm.model, vlm.processor) as arguments:
        rows = _Preprocessed(vlm.processor, arguments, scenes, prompts)
        loaded: Iterator[tuple[Tensor, list[list[int]]]] = iter(DataLoader(rows, batch_size=None, num_workers=workers))
        tiles, ids = zip(*((pixels.clone(), row) for pixels, row in loaded), strict=True)  # shared: an open file each
    by_kind = {kind: [row[k] for row in ids] for k, kind in enumerate(questions)}
    return Level(tiles=torch.stack(tiles).to(vlm.model.device), ids=by_kind)


class _Preprocessed(Dataset[tuple[Tensor, list[list[int]]]]):
    """Each scene's pixel values, and the token ids of its prompts."""

    def __init__(
        self,
        processor: ProcessorMixin,
        arguments: dict[str, Any],
        scenes: Sequence[Scene],
        prompts: list[list[str]],
    ) -> None:
        self._prepare: Callable[..., dict[str, Tensor]] = partial(
            prepare, processor, device=torch.device("cpu"), dtype=torch.float32, image_arguments=arguments
        )
        self._scenes = scenes
        self._prompts = prompts
        # All images have one size, so the ids depend on the prompt alone; there are a few hundred distinct ones.
        self._ids = cache(lambda prompt: self._prepare([_image(scenes[0])], prompt)["input_ids"][0].tolist())

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, list[list[int]]]:
        tiles = self._prepare([_image(self._scenes[index])], self._prompts[index][0])["pixel_values"]
        return tiles, [self._ids(prompt) for prompt in self._prompts[index]]


def _image(scene: Scene) -> Image.Image:
    return Image.fromarray(render(scene))


def _answer_setting(
    vlm: Vlm, setting: Setting, level: Level, questions: dict[str, list[Question]], batch: int
) -> list[Row]:
    tokens, top_k, skipped = _key(setting)

    def answers(tiles: Tensor, ids: Sequence[Sequence[int]]) -> list[str]:
        return generate_answers(vlm.model, vlm.processor, tiles, ids)

    with applied(setting, vlm.model, vlm.processor):
        rows = answered(level, questions, batch, answers)
    return [{"vision_tokens": tokens, "moe_topk": top_k, "block_skip": list(skipped), **row} for row in rows]


def answered(
    level: Level,
    questions: dict[str, list[Question]],
    batch: int,
    answers: Callable[[Tensor, Sequence[Sequence[int]]], list[str]],
) -> Iterator[Answered]:
    """How each kind of question is answered, as much of a row as does not name the setting.

    Args:
        level: what the processor makes of the questions.
        questions: by kind, one for each scene of the level.
        batch: questions that are answered at once.
        answers: to some prompts, from their tiles and token ids.
    """
    for kind, asked in questions.items():
        given: list[str] = []
        for first in range(0, len(asked), batch):
            part = slice(first, first + batch)
            given += answers(level.tiles[part], level.ids[kind][part])
        right = [bool(exact(answer, (q.answer,))) for answer, q in zip(given, asked, strict=True)]
        yield {"kind": kind, "n": len(right), "right": sum(right), "bits": pack_bits(right)}


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel, processor: ProcessorMixin, tiles: Tensor, ids: Sequence[Sequence[int]]
) -> list[str]:
    """Greedy answers to several prompts at once, padded on the left.

    Args:
        model: on the device of `tiles`.
        processor: decodes the answers.
        tiles: [prompt, tile, 3, 32, 32].
        ids: of each prompt, image placeholders included.
    """
    width = max(map(len, ids))
    pad = model.generation_config.pad_token_id
    padded = torch.tensor([[pad] * (width - len(row)) + list(row) for row in ids], device=tiles.device)
    visible = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=tiles.device)
    output = model.generate(
        input_ids=padded,
        attention_mask=visible,
        pixel_values=tiles.flatten(0, 1).to(model.dtype),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
    )
    return [text.strip() for text in processor.batch_decode(output[:, width:], skip_special_tokens=True)]
