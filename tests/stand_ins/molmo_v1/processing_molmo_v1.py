"""The processor that such a checkpoint brings as code: ``process`` writes one request, with overlapping crops.

Tiny numbers: a crop is 6 x 6 patches of one pixel, of which 2 x 2 are its own, and 2 x 2 patches become one token.
"""

import numpy as np
import torch
from transformers import ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs

BOS, START, END, COLUMN, PATCH = 0, 1, 2, 3, 4
SIDE, OWN, MARGINS = 6, 2, 4


class MolmoV1ImagesKwargs(ImagesKwargs, total=False):
    max_crops: int | None
    overlap_margins: list[int] | None
    base_image_input_size: list[int] | None
    image_patch_size: int | None


class MolmoV1ProcessorKwargs(ProcessingKwargs, total=False):
    images_kwargs: MolmoV1ImagesKwargs
    _defaults = {"text_kwargs": {"padding": False}}  # noqa: RUF012 - where such code keeps them


class MolmoV1ImageProcessor(BaseImageProcessor):
    def __init__(
        self,
        max_crops=3,
        overlap_margins=(2, 2),
        base_image_input_size=(SIDE, SIDE),
        image_patch_size=1,
        **others,
    ):
        super().__init__(**others)
        self.max_crops = max_crops
        self.overlap_margins = overlap_margins
        self.base_image_input_size = base_image_input_size
        self.image_patch_size = image_patch_size

    def multimodal_preprocess(self, images, tokens, max_crops=None, **_):
        """Each image's tokens before those of the text: the whole image, then the crops row by row."""
        ids, crops, places = [BOS], [], []
        for image in images:
            for rows, columns in ((1, 1), tiling(image, max_crops or self.max_crops)):
                own_crops, own_places, own_ids = cut(image, rows, columns, first=len(ids))
                crops, places, ids = [*crops, *own_crops], [*places, *own_places], [*ids, *own_ids]
        return {
            "input_ids": np.asarray([*ids, *tokens]),
            "images": np.stack(crops).astype(np.float32),
            "image_masks": np.ones((len(crops), SIDE * SIDE), np.float32),
            "image_input_idx": np.stack(places),
        }


def tiling(image, most):
    """Rows and columns of crops for which the image is scaled least; the fewest of them."""
    wanted = np.array([(image.height - MARGINS) / OWN, (image.width - MARGINS) / OWN])
    options = [(a, b) for a in range(1, most + 1) for b in range(1, most + 1) if a * b <= most]
    return min(options, key=lambda shape: (abs(1 - (np.array(shape) / wanted).min()), shape[0] * shape[1]))


def cut(image, rows, columns, first):
    """Crops [n, 36, 3], where their 3 x 3 tokens are in the sequence (-100: in another crop), and the sequence."""
    height, width = (count * OWN + MARGINS for count in (rows, columns))
    pixels = np.asarray(image.resize((width, height)), dtype=np.float32) / 255
    along = width // 2
    number = first + 1 + np.arange(height // 2)[:, None] * (along + 1) + np.arange(along)
    taken = np.zeros(number.shape, bool)
    crops, places = [], []
    for i in range(rows):
        for j in range(columns):
            top, left = i * OWN, j * OWN
            crops.append(pixels[top : top + SIDE, left : left + SIDE].reshape(SIDE * SIDE, 3))
            part = (slice(i, i + SIDE // 2), slice(j, j + SIDE // 2))
            places.append(np.where(taken[part], -100, number[part]).flatten())
            taken[part] = True
    return crops, places, [START, *[*[PATCH] * along, COLUMN] * (height // 2), END]


class MolmoV1Processor(ProcessorMixin):
    attributes = ("image_processor", "tokenizer")
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(self, image_processor=None, tokenizer=None, **_):
        super().__init__(image_processor, tokenizer)

    def process(self, text=None, images=None, *, tokens=None, **kwargs):
        """One request without a batch dimension."""
        merged = self._merge_kwargs(MolmoV1ProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        tokens = self.tokenizer.encode(f" User: {text} Assistant:") if tokens is None else tokens
        made = self.image_processor.multimodal_preprocess(images=images, tokens=tokens, **merged["images_kwargs"])
        return {key: torch.from_numpy(value) for key, value in made.items()}
