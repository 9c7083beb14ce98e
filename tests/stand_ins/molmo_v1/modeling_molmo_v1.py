"""A tiny model with the interface and the quirks of the first Molmo generation's code, which is of transformers 4.

No ``GenerationMixin``, no ``post_init()``, ``tie_weights`` and ``_init_weights`` as they were, a list of (keys, values)
as cache, ``cache_position`` where the keyword arguments are updated, ``can_generate`` on the instance.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_molmo_v1 import MolmoV1Config  # noqa: TID252 - files of a checkpoint find each other so

PIXELS, POOLED = 6, 2
IMAGE_TOKENS = 4


class VisionBackbone(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.joined = config.patches_per_token
        self.image_vit = nn.Sequential(nn.Linear(config.pixels, config.d_model), nn.GELU())
        self.image_pooling_2d = nn.Linear(self.joined * config.d_model, config.d_model)
        self.image_projector = nn.Sequential(nn.Linear(config.d_model, config.d_model))

    def forward(self, images: Tensor, image_masks: Tensor) -> tuple[Tensor, None]:
        """[1, crops, patches, pixels], [1, crops, patches] -> ([1, crops, pooled, d], None)."""
        features = self.image_vit(images) * image_masks[..., None]
        pooled = self.image_pooling_2d(features.unflatten(2, (-1, self.joined)).flatten(3))
        return self.image_projector(pooled), None


class SparseMoe(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.top_k = config.moe_top_k
        self.gate = nn.Linear(config.d_model, config.moe_num_experts, bias=False)
        self.experts = nn.ModuleList(nn.Linear(config.d_model, config.d_model) for _ in range(config.moe_num_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[1, q, d] -> ([1, q, d], router logits); only the chosen experts see a token."""
        router_logits = self.gate(x)
        weights, chosen = router_logits.softmax(-1).topk(self.top_k, dim=-1)
        mixed = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            _, token, place = torch.where(chosen == index)
            if len(token):
                mixed[0].index_add_(0, token, expert(x[0, token]) * weights[0, token, place, None])
        return mixed, router_logits


class TokenEmbedding(nn.Module):
    """Two tables: the words, and behind them the tokens that stand for images."""

    def __init__(self, words, image_tokens, features):
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(words, features))
        self.new_embedding = nn.Parameter(torch.randn(image_tokens, features))

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, torch.cat([self.embedding, self.new_embedding]))


class DecoderLayer(nn.Module):
    def __init__(self, layer_id, config):
        super().__init__()
        self.layer_id = layer_id
        self.heads = config.n_heads
        self.attn_norm, self.ff_norm = nn.LayerNorm(config.d_model), nn.LayerNorm(config.d_model)
        self.att_proj = nn.Linear(config.d_model, 3 * config.d_model)
        self.mlp = SparseMoe(config)

    def forward(self, x, attention_bias=None, position_ids=None, drop_mask=None, layer_past=None, use_cache=False):
        """[1, q, d] -> ([1, q, d], (keys, values) of the whole sequence so far or None)."""
        query, key, value = self.att_proj(self.attn_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if layer_past is not None:
            key, value = torch.cat([layer_past[0], key], dim=-2), torch.cat([layer_past[1], value], dim=-2)
        present = (key, value) if use_cache else None
        length, whole = query.shape[-2], key.shape[-2]
        bias = attention_bias[:, :, whole - length : whole, :whole]
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        x = x + attended.transpose(1, 2).flatten(2)
        return x + self.mlp(self.ff_norm(x))[0], present


class MolmoV1(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vision_backbone = VisionBackbone(config)
        self.transformer = nn.ModuleDict(
            {
                "wte": TokenEmbedding(config.vocab_size, IMAGE_TOKENS, config.d_model),
                "wpe": nn.Embedding(64, config.d_model),
                "ln_f": nn.LayerNorm(config.d_model),
                "blocks": nn.ModuleList(DecoderLayer(i, config) for i in range(config.n_layers)),
            }
        )

    def forward(
        self,
        input_ids,
        attention_mask,
        images,
        image_masks,
        image_input_idx,
        position_ids,
        past_key_values,
        use_cache,
        append_last_valid_logits,
        last_logits_only,
    ):
        assert images is None or past_key_values is None, "images only come with the first step"
        past = 0 if past_key_values is None else past_key_values[0][0].shape[-2]
        length = input_ids.shape[1]
        if self.config.use_position_ids:
            if attention_mask is None:
                attention_mask = input_ids != -1
            if position_ids is None:
                position_ids = attention_mask.long().cumsum(-1) - 1
        else:
            position_ids = torch.arange(past, past + length, device=input_ids.device)[None]
        x = self.transformer.wte(input_ids)
        if images is not None:
            features, _ = self.vision_backbone(images, image_masks)
            places = image_input_idx.flatten()  # below 0: another crop has this part of the image
            x = x.index_add(1, places[places >= 0], features.flatten(1, 2)[:, places >= 0])
        x = x + self.transformer.wpe(position_ids)
        lowest = torch.finfo(torch.float32).min
        bias = torch.full((past + length, past + length), lowest, device=x.device).triu(1)[None, None]
        if attention_mask is not None:
            attention_mask = attention_mask[:, : past + length].float()
            size = attention_mask.shape[-1]
            bias = bias[:, :, :size, :size] + (1 - attention_mask[:, None, None, :]) * lowest
        presents = [] if use_cache else None
        for i, block in enumerate(self.transformer.blocks):
            layer_past = None if past_key_values is None else past_key_values[i]
            x, present = block(x, attention_bias=bias, layer_past=layer_past, use_cache=use_cache)
            if presents is not None:
                assert present is not None
                presents.append(present)
        if last_logits_only:
            last = append_last_valid_logits
            x = x[:, -1:] if last is None else x[torch.arange(len(x)), last][:, None]
        return self.transformer.ln_f(x), presents


class MolmoV1ForCausalLM(PreTrainedModel):
    config_class = MolmoV1Config
    base_model_prefix = "model"

    def __init__(self, config, model=None, init_params=False):
        super().__init__(config)
        self.model = model or MolmoV1(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def _init_weights(self):
        for weight in self.parameters():
            weight.data.fill_(float("nan"))  # whoever initialises what was loaded is seen

    def tie_weights(self):
        pass

    def can_generate(self):
        return True

    def get_input_embeddings(self):
        return self.model.transformer.wte

    def get_output_embeddings(self):
        return self.lm_head

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        images=None,
        image_masks=None,
        image_input_idx=None,
        position_ids=None,
        past_key_values=None,
        use_cache=None,
        last_logits_only=None,
        append_last_valid_logits=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        cache_position=None,
    ):
        x, presents = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            images=images,
            image_masks=image_masks,
            image_input_idx=image_input_idx,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=self.config.use_cache if use_cache is None else use_cache,
            append_last_valid_logits=append_last_valid_logits,
            last_logits_only=last_logits_only,
        )
        return CausalLMOutputWithPast(logits=self.lm_head(x), past_key_values=presents)

    @torch.no_grad()
    def generate_from_batch(self, batch, generation_config=None, **kwargs):
        assert generation_config is None or generation_config.use_cache
        input_ids, mask, named = batch["input_ids"], batch.get("attention_mask"), {}
        if self.config.use_position_ids and mask is None:
            mask = input_ids != -1
            named["position_ids"] = mask.long().cumsum(-1) - 1
            named["append_last_valid_logits"] = mask.long().sum(-1) - 1
            mask = torch.cat([mask, mask.new_ones(len(mask), generation_config.max_new_tokens)], dim=1)
        images = {key: batch.get(key) for key in ("images", "image_masks", "image_input_idx")}
        return super().generate(input_ids, generation_config, attention_mask=mask, **images, **named, **kwargs)

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, **kwargs):
        step = {"input_ids": input_ids[:, -1:] if past_key_values else input_ids, "past_key_values": past_key_values}
        if not self.config.use_position_ids:  # whatever generate() brings goes to the forward
            return {"use_cache": self.config.use_cache, **kwargs, **step}
        passed = ["attention_mask", "position_ids"]
        if not past_key_values:
            passed += ["images", "image_masks", "image_input_idx", "append_last_valid_logits"]
        return {**step, **{name: kwargs.get(name) for name in passed}, "use_cache": True, "last_logits_only": True}

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, is_encoder_decoder=False, num_new_tokens=1):
        """Three things that transformers 5 does not have: positions without a request for them, a helper, a key."""
        seen = model_kwargs["cache_position"][-1:]
        name, cache = self._extract_past_from_model_output(outputs)
        later = {name: cache, "cache_position": seen + num_new_tokens}
        if self.config.use_position_ids:
            later["position_ids"] = model_kwargs["position_ids"][:, -1:] + num_new_tokens
        return {**model_kwargs, **later}
