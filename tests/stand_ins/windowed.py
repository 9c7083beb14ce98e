"""A tiny Qwen2.5-VL, whose vision tower attends in windows, and a request of two pictures."""

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

GRIDS = ((4, 6), (3, 5))  # rows and columns of the features of each; a window holds two by two of them
IMAGE = 100


def qwen2_5(full=(1, 7)):
    """Random weights; three blocks in the tower, of which the second attends to the whole picture."""
    torch.manual_seed(0)
    vision = {"depth": 3, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 16}
    vision |= {"patch_size": 4, "spatial_merge_size": 2, "window_size": 16, "fullatt_block_indexes": list(full)}
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 128}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": None}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, vision_start_token_id=99)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def two_pictures():
    """A request as the processor makes it."""
    grids = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in GRIDS])
    ids = [1]
    for rows, columns in GRIDS:
        ids += [99, *[IMAGE] * (rows * columns), 5]
    ids = torch.tensor([[*ids, 6, 7]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": torch.randn(int(grids.prod(dim=1).sum()), 3 * 2 * 4 * 4),
        "image_grid_thw": grids,
    }
