"""A tiny real model in the shape of the first Molmo generation: its module names, its batch keys, tuples from blocks.

``model.vision_backbone`` holds tower, pooling and projector; ``model.transformer.blocks`` the decoder; a batch has
``input_ids``, ``images``, ``image_masks`` and ``image_input_idx``. Nothing is encoded before the first forward.
"""

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

CROPS, PATCHES, PIXELS, POOLED = 2, 4, 6, 2  # a crop's 4 patches of 6 values are pooled to 2 image tokens
PROMPT_TOKENS = 8
IMAGE_START = 1  # the 4 image tokens of the two crops stand at positions 1 to 4


class MolmoLikeConfig(PreTrainedConfig):
    model_type = "molmo_like"

    def __init__(self, hidden_size=16, num_hidden_layers=4, vocab_size=32, experts=4, moe_top_k=2, **others):
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.vocab_size = vocab_size
        self.experts = experts
        self.moe_top_k = moe_top_k
        self.num_attention_heads = 2
        super().__init__(**others)


class VisionBackbone(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.image_vit = nn.Sequential(nn.Linear(PIXELS, config.hidden_size), nn.GELU())
        self.image_pooling_2d = nn.Linear(2 * config.hidden_size, config.hidden_size)
        self.image_projector = nn.Sequential(nn.Linear(config.hidden_size, config.hidden_size))

    def forward(self, images: Tensor, image_masks: Tensor) -> Tensor:
        """[1, crops, patches, pixels] and [1, crops, patches] -> [1, crops, pooled, d]."""
        features = self.image_vit(images) * image_masks[..., None]
        pairs = features.unflatten(2, (POOLED, -1)).flatten(3)
        return self.image_projector(self.image_pooling_2d(pairs))


class Moe(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.top_k = config.moe_top_k
        self.gate = nn.Linear(config.hidden_size, config.experts, bias=False)
        self.experts = nn.ModuleList(nn.Linear(config.hidden_size, config.hidden_size) for _ in range(config.experts))

    def forward(self, hidden: Tensor) -> Tensor:
        """[1, q, d] -> [1, q, d]; only the chosen experts see a token."""
        weights, chosen = self.gate(hidden).softmax(-1).topk(self.top_k, dim=-1)
        mixed = torch.zeros_like(hidden)
        for index, expert in enumerate(self.experts):
            _, token, place = torch.where(chosen == index)
            if len(token):
                mixed[0].index_add_(0, token, expert(hidden[0, token]) * weights[0, token, place, None])
        return mixed


class Block(nn.Module):
    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx
        self.heads = config.num_attention_heads
        self.att_norm, self.mlp_norm = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.mlp = Moe(config)

    def forward(self, hidden: Tensor, layer_past: DynamicCache | None) -> tuple[Tensor, None]:
        """[1, q, d] -> ([1, q, d], None), as Molmo's blocks return a tuple."""
        query, key, value = self.qkv(self.att_norm(hidden)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        past = key.shape[2] - query.shape[2]
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=hidden.device).tril(past)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        hidden = hidden + attended.transpose(1, 2).flatten(2)
        return hidden + self.mlp(self.mlp_norm(hidden)), None


class MolmoLikeModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.vision_backbone = VisionBackbone(config)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.hidden_size),
                "wpe": nn.Embedding(64, config.hidden_size),
                "blocks": nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers)),
                "ln_f": nn.LayerNorm(config.hidden_size),
            }
        )


class MolmoLike(PreTrainedModel, GenerationMixin):
    config_class = MolmoLikeConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = MolmoLikeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.transformer["wte"]

    def get_output_embeddings(self):
        return self.lm_head

    def prepare_inputs_for_generation(self, input_ids, is_first_iteration=False, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if inputs.get("past_key_values") is not None and not is_first_iteration:
            inputs.update(images=None, image_masks=None, image_input_idx=None)
        return inputs

    def forward(
        self,
        input_ids: Tensor,
        images: Tensor | None = None,
        image_masks: Tensor | None = None,
        image_input_idx: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        use_cache: bool | None = None,
        **_: object,
    ) -> CausalLMOutputWithPast:
        parts = self.model.transformer
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        positions = torch.arange(past, past + input_ids.shape[1], device=input_ids.device)
        hidden = parts["wte"](input_ids) + parts["wpe"](positions)
        if images is not None:
            features = self.model.vision_backbone(images, image_masks)
            hidden = hidden.index_add(1, image_input_idx.flatten(), features.flatten(1, 2))
        for block in parts["blocks"]:
            hidden, _present = block(hidden, layer_past=past_key_values)
        logits = self.lm_head(parts["ln_f"](hidden))
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)


def molmo_like(kind: type[MolmoLike] = MolmoLike, **config: int) -> MolmoLike:
    """Random weights, the same at each call; no end-of-sequence token, so answers have the length asked for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(MolmoLikeConfig(**config)).eval()
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.5)
    model.generation_config.pad_token_id = 0
    return model


def molmo_batch(seed: int = 0) -> dict[str, Tensor]:
    """One request with the four keys of the first Molmo generation."""
    generator = torch.Generator().manual_seed(seed)
    tokens = CROPS * POOLED
    return {
        "input_ids": torch.randint(1, 32, (1, PROMPT_TOKENS), generator=generator),
        "images": torch.randn(1, CROPS, PATCHES, PIXELS, generator=generator),
        "image_masks": torch.ones(1, CROPS, PATCHES),
        "image_input_idx": torch.arange(IMAGE_START, IMAGE_START + tokens).reshape(1, CROPS, POOLED),
    }
