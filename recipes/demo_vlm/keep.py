"""``image_keep`` on the bundled model: every kind at numbers of image tokens in the decoder that tiles give as well."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from recipes.demo_vlm.answers import NEW_TOKENS, Level, answered, begin_table, draw_questions, preprocess
from recipes.demo_vlm.table import FULL, Row, Table, accuracies, mean_over_mix, shares, write_table
from torch import Tensor

from chronostat.data.demo.questions import Question
from chronostat.data.samples import Split
from chronostat.models.load import Vlm
from chronostat.models.prepare import image_token_id
from chronostat.records import Setting
from chronostat.tokens.methods import METHODS
from chronostat.tokens.methods.method import Method
from chronostat.tokens.selection import Picture, all_of
from chronostat.tokens.selection import shares as shared_out

TOKENS = (160, 80, 16)  # of nine tiles, four and one, with the whole beside them where there are several
_TOPK, _BLOCKS = FULL[1:3]
SETTINGS = tuple(
    Setting(vision_tokens=FULL[0], moe_topk=_TOPK, block_skip=_BLOCKS, image_keep=value)
    for value in (1.0, *(f"{method}:{tokens}" for method in METHODS for tokens in TOKENS))
)
"""Full first, then each method with each number; all other knobs stay at full."""


def measure_kept(
    vlm: Vlm, *, out: Path, split: Split, per_kind: int, batch: int, workers: int, seconds: float
) -> Table:
    """Measures the settings that the table at `out` lacks, and stores it after each.

    The questions are those of ``measure_table``. What the knob does to one request is done to many at once here: the
    library's methods choose from the features of all images, and prompts with fewer placeholders are answered in
    batches (``tests/recipes/test_keep.py`` holds the answers against those of single executions).

    Args:
        vlm: the model, in float32.
        out: the table; one that was begun goes on.
        split: whose handwriting is shown.
        per_kind: questions of each kind.
        batch: questions in one `generate()` call.
        workers: processes that preprocess.
        seconds: no setting begins after this time.

    Raises:
        DataError: the table at `out` is of other weights, another split or another number of questions.
    """
    start = perf_counter()
    table = begin_table(out, vlm, split, per_kind, batch)
    scenes, drawn = draw_questions(split, per_kind)
    questions = {kind: drawn[kind] for kind in shares()}
    done = {row["image_keep"] for row in table.rows if "image_keep" in row}
    missing = [setting for setting in SETTINGS[1:] if setting["image_keep"] not in done]
    level: Level | None = None
    for setting in missing:
        if perf_counter() - start > seconds:
            break
        level = level or preprocess(vlm, SETTINGS[0], scenes, questions, workers)
        table = Table(page=table.page, rows=[*table.rows, *_answer_setting(vlm, setting, level, questions, batch)])
        write_table(out, table)
        print(f"{setting['image_keep']}: {perf_counter() - start:.0f} s", flush=True)
    return table


def _answer_setting(
    vlm: Vlm, setting: Setting, level: Level, questions: dict[str, list[Question]], batch: int
) -> list[Row]:
    kept = str(setting["image_keep"])
    method, _, count = kept.partition(":")
    rows = answered(level, questions, batch, partial(kept_answers, vlm, METHODS[method], int(count)))
    full = {"vision_tokens": FULL[0], "moe_topk": _TOPK, "block_skip": list(_BLOCKS)}
    return [{**full, "image_keep": kept, **row} for row in rows]


@torch.inference_mode()
def kept_answers(vlm: Vlm, method: type[Method], count: int, tiles: Tensor, ids: Sequence[Sequence[int]]) -> list[str]:
    """Greedy answers to several prompts at once from ``count`` of their image tokens, padded on the left.

    Args:
        vlm: the model, on the device of `tiles`.
        method: chooses the tokens.
        count: of each image.
        tiles: [prompt, tile, 3, 32, 32].
        ids: of each prompt, image placeholders included.
    """
    placeholder, device = image_token_id(vlm.model), tiles.device
    text = [torch.tensor([token for token in row if token != placeholder], device=device) for row in ids]
    features = _kept_features(vlm, method, count, tiles, text)  # [prompt, count, d]
    fewer = [_with_placeholders(row, placeholder, count) for row in ids]
    width, pad = max(map(len, fewer)), vlm.model.generation_config.pad_token_id
    padded = torch.tensor([[pad] * (width - len(row)) + row for row in fewer], device=device)
    embeddings = vlm.model.get_input_embeddings()(padded)
    embeddings[padded == placeholder] = features.flatten(0, 1)
    visible = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in fewer], device=device)
    output = vlm.model.generate(
        inputs_embeds=embeddings, attention_mask=visible, max_new_tokens=NEW_TOKENS, do_sample=False
    )
    return [answer.strip() for answer in vlm.processor.batch_decode(output, skip_special_tokens=True)]


def _kept_features(vlm: Vlm, method: type[Method], count: int, tiles: Tensor, text: Sequence[Tensor]) -> Tensor:
    """The features that are left of each image, [prompt, count, d]: a tile is a picture of 4 by 4 tokens."""
    encoder = method(vlm.model, text[0])
    with encoder.encoding():
        every = vlm.model.model.get_image_features(tiles.flatten(0, 1), return_dict=True).pooler_output
    pictures, tokens = tiles.shape[1], every.shape[1]
    side = int(tokens**0.5)
    given_out = shared_out([tokens] * pictures, count)
    kept: list[Tensor] = []
    for prompt, words in enumerate(text):
        encoder.read(words)
        for picture, share in enumerate(given_out):
            index = prompt * pictures + picture
            one = Picture(index=index, together=len(every), features=every[index], grid=(side, side))
            chosen = encoder.choose(one, share) if 0 < share < tokens else all_of(share and tokens, tiles.device)
            kept.append(chosen.of(every[index]))
    return torch.cat(kept).view(len(text), count, -1)


def _with_placeholders(row: Sequence[int], placeholder: int | None, count: int) -> list[int]:
    """A prompt with ``count`` of its placeholders, which stand side by side."""
    first = list(row).index(placeholder)
    return [*row[:first], *[placeholder] * count, *(token for token in row[first:] if token != placeholder)]


def kept_lines(rows: Iterable[Row]) -> list[list[str]]:
    """A head and a line for each kind, then for the mean over the mix: tiles and each method at equal tokens."""
    table = accuracies(rows)
    at = [(tokens, f"{name}:{tokens}") for tokens in TOKENS for name in ("tiles", *METHODS)]
    settings = {name: (tokens, *FULL[1:3]) if name.startswith("tiles") else (*FULL[:3], name) for tokens, name in at}
    columns = {name: table[setting] for name, setting in settings.items() if setting in table}
    lines = [["kind", *columns]]
    lines += [[kind, *(f"{column[kind]:.3f}" for column in columns.values())] for kind in shares()]
    return [*lines, ["mean over the mix", *(f"{mean_over_mix(column):.3f}" for column in columns.values())]]


def print_kept(rows: Iterable[Row]) -> None:
    """Prints accuracy by kind, tiles beside each method at equal numbers of tokens, as a table in Markdown."""
    head, *lines = kept_lines(rows)
    for line in (head, ["---"] * len(head), *lines):
        print(f"| {' | '.join(line)} |")
