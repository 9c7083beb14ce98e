"""The library model's own function, written for training: questions packed, experts dense, knobs as arguments.

Each question of a packed row sees the image and itself; its positions restart after the image. So one pass over the
image serves all questions, and each gets the logits that it would get alone (a test compares them).
"""

from functools import cache
from typing import NamedTuple

import torch
from recipes.demo_vlm.batches import SLOT_TOKENS, SLOTS
from recipes.demo_vlm.build import BLOCKS, IMAGE_TOKENS, TOKENS_PER_TILE, USER, vocabulary
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name
from transformers import InternVLForConditionalGeneration

KEPT_BLOCKS = {8: tuple(range(BLOCKS)), 6: (0, 1, 2, 5, 6, 7), 4: (0, 1, 6, 7)}
TOP_KS = (4, 2, 1)


class Layout(NamedTuple):
    """Where things are in a packed row.

    Attributes:
        before: ids of the tokens before the image.
        after: id of the token after the image.
        positions: [1, sequence].
        visible: [1, 1, sequence, sequence] true where a token may look.
        first_question: index of the first slot's first token.
    """

    before: Tensor
    after: Tensor
    positions: Tensor
    visible: Tensor
    first_question: int


@cache
def layout(image_tokens: int, device: torch.device) -> Layout:
    """The layout for a number of image tokens; padded to a multiple of 8, which fast attention asks for."""
    first = image_tokens + 3
    length = -(-(first + len(SLOTS) * SLOT_TOKENS) // 8) * 8
    index = torch.arange(length)
    slot = (index - first).div(SLOT_TOKENS, rounding_mode="floor").clamp(min=-1)  # -1: the shared part
    positions = torch.where(slot < 0, index, first + (index - first) % SLOT_TOKENS)
    causal = index[:, None] >= index[None, :]
    visible = causal & ((slot[None, :] < 0) | (slot[:, None] == slot[None, :]))
    ids = {token: i for i, token in enumerate(vocabulary())}
    return Layout(
        before=torch.tensor([ids[USER], ids[IMAGE_TOKENS["start_image_token"]]], device=device),
        after=torch.tensor([ids[IMAGE_TOKENS["end_image_token"]]], device=device),
        positions=positions[None].to(device),
        visible=visible[None, None].to(device),
        first_question=first,
    )


class Read(NamedTuple):
    """What the text model made of a batch.

    Attributes:
        logits: [scene, slot, token, vocabulary].
        early: image tokens after the second block, which always runs, [scene, image token, hidden].
        router: mean balance loss and mean sum of squared expert weights of the blocks that ran, [2].
    """

    logits: Tensor
    early: Tensor
    router: Tensor


def see(model: InternVLForConditionalGeneration, tiles: Tensor, layer_fn: object = None) -> Tensor:
    """[scene, tiles, 3, 32, 32] levels -> [scene, image tokens, hidden] as the text model gets them."""
    inner = model.model
    run = layer_fn or vision_layer
    x = inner.vision_tower.embeddings((tiles.flatten(0, 1).float() / 255 - 0.5) / 0.5)
    x = x[0] if isinstance(x, tuple) else x
    for layer in inner.vision_tower.encoder.layer:
        x = run(layer, x)
    x = inner.vision_tower.layernorm(x)[:, 1:]
    side = int(x.shape[1] ** 0.5)
    x = inner.pixel_shuffle(x.reshape(len(x), side, side, -1), scale_factor=0.5)
    x = inner.multi_modal_projector(x.reshape(len(x), TOKENS_PER_TILE, -1))
    return x.reshape(tiles.shape[0], -1, x.shape[-1])


def read(
    model: InternVLForConditionalGeneration,
    image: Tensor,
    tokens: Tensor,
    *,
    kept: tuple[int, ...],
    top_k: int,
    layer_fn: object = None,
) -> Read:
    """Runs the text model over packed rows.

    Args:
        model: the library's model, whose weights are used.
        image: [scene, image tokens, hidden] from `see`.
        tokens: [scene, slot, 14] ids of questions and answers.
        kept: the blocks that run.
        top_k: experts per token.
        layer_fn: a compiled `text_layer`; the plain one if not given.
    """
    text = model.model.language_model
    where = layout(image.shape[1], image.device)
    x = _embed(text, where, image, tokens)
    cos, sin = text.rotary_emb(x, where.positions)
    experts = torch.arange(TOP_KS[0], device=x.device) < top_k
    run = layer_fn or text_layer
    early, router = image, []
    for index in kept:
        x, losses = run(text.layers[index], x, cos, sin, where.visible, experts)
        router.append(losses)
        if index == 1:
            early = x[:, 2 : 2 + image.shape[1]]
    questions = x[:, where.first_question :][:, : tokens[0].numel()]
    logits = model.lm_head(text.norm(questions)).unflatten(1, tokens.shape[1:])
    return Read(logits=logits, early=early, router=torch.stack(router).mean(0))


def _embed(text: nn.Module, where: Layout, image: Tensor, tokens: Tensor) -> Tensor:
    """[scene, sequence, hidden]: mark, image, mark, questions, padding."""
    rows = len(image)
    ids = tokens.flatten(1)
    ids = F.pad(ids, (0, where.positions.shape[1] - where.first_question - ids.shape[1]))
    before, after = (text.embed_tokens(part).expand(rows, -1, -1) for part in (where.before, where.after))
    return torch.cat([before, image.to(before.dtype), after, text.embed_tokens(ids)], dim=1)


def vision_layer(layer: nn.Module, x: Tensor) -> Tensor:
    """One vision layer, [tile, patch, hidden] -> the same."""
    out = layer(x)
    return out[0] if isinstance(out, tuple) else out


def text_layer(
    layer: nn.Module, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor, experts: Tensor
) -> tuple[Tensor, Tensor]:
    """One decoder block on [scene, sequence, hidden], and its router losses [2]."""
    attended, _ = layer.self_attn(
        hidden_states=layer.input_layernorm(x), position_embeddings=(cos, sin), attention_mask=visible
    )
    x = x + attended
    mixed, losses = _mixture(layer.mlp, layer.post_attention_layernorm(x), experts)
    return x + mixed, losses


def _mixture(block: nn.Module, x: Tensor, experts: Tensor) -> tuple[Tensor, Tensor]:
    """The experts of a block, all computed and weighted by 0 where not chosen: the same function as choosing."""
    gate_up, down = block.experts.gate_up_proj, block.experts.down_proj  # [expert, 2 wide, hidden], [e, hidden, wide]
    probabilities = F.softmax(F.linear(x, block.gate.weight).float(), dim=-1)
    best, chosen = probabilities.topk(TOP_KS[0], dim=-1)
    best = best * experts
    best = best / best.sum(-1, keepdim=True)
    weights = torch.zeros_like(probabilities).scatter(-1, chosen, best)
    gate, up = F.linear(x, gate_up.flatten(0, 1)).unflatten(-1, gate_up.shape[:2]).chunk(2, dim=-1)
    hidden = F.silu(gate) * up * weights[..., None].to(up.dtype)
    out = F.linear(hidden.flatten(-2), down.transpose(0, 1).flatten(1))
    share = (weights > 0).float().mean((0, 1)) / experts.sum()
    balance = len(share) * (share * probabilities.mean((0, 1))).sum()
    return out, torch.stack([balance, best.square().sum(-1).mean()])
