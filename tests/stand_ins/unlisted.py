"""Small models as people publish them: parts whose names say nothing, images that go another way than the library's.

Each is a vision tower, something that carries its output to a Llama of three blocks, and the Llama. The class says what
differs.
"""

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, LlamaConfig, LlamaModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama import LlamaForCausalLM

PIXELS, SEEN, WIDTH, PATCHES, VOCABULARY = 4, 8, 16, 5, 64


class UnlistedConfig(PretrainedConfig):
    model_type = "unlisted"

    def __init__(self, num_hidden_layers=3, **others):
        self.num_hidden_layers = num_hidden_layers
        super().__init__(**others)


def llama() -> LlamaConfig:
    return LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        vocab_size=VOCABULARY,
        eos_token_id=None,
        bos_token_id=None,
    )


def tower() -> nn.Module:
    return nn.Sequential(nn.Linear(PIXELS, SEEN), nn.GELU(), nn.Linear(SEEN, SEEN))


def carrier() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(SEEN), nn.Linear(SEEN, WIDTH))


class Plain(PreTrainedModel, GenerationMixin):
    """Everything inside the forward; the projector is ``mlp1``."""

    config_class = UnlistedConfig
    base_model_prefix = "decoder"
    carrier = "mlp1"

    def __init__(self, config):
        super().__init__(config)
        self.decoder = LlamaModel(llama())
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.see()
        self.post_init()

    def see(self) -> None:
        """Make the parts that the image goes through."""
        self.vision_tower = tower()
        self.mlp1 = carrier()

    def features(self, pixel_values: Tensor) -> Tensor:
        """[1, patches, pixels] -> [1, patches, width]."""
        return self.mlp1(self.vision_tower(pixel_values))

    def merged(self, features: Tensor, embedded: Tensor) -> Tensor:
        """The image takes the first places of the prompt."""
        merged = embedded.clone()
        merged[:, :PATCHES] = features.flip(1)  # through an operation in place on a view
        return merged

    def get_input_embeddings(self):
        return self.decoder.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def prepare_inputs_for_generation(self, input_ids, is_first_iteration=False, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration:
            inputs["pixel_values"] = None
        return inputs

    def forward(
        self, input_ids=None, pixel_values=None, attention_mask=None, past_key_values=None, use_cache=None, **_: object
    ):
        embedded = self.decoder.embed_tokens(input_ids)
        if pixel_values is not None:
            embedded = self.merged(self.features(pixel_values), embedded)
        out = self.decoder(
            inputs_embeds=embedded, attention_mask=attention_mask, past_key_values=past_key_values, use_cache=use_cache
        )
        return CausalLMOutputWithPast(logits=self.lm_head(out.last_hidden_state), past_key_values=out.past_key_values)


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision_tower = tower()
        self.glue = carrier()

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.glue(self.vision_tower(pixel_values))


class Beside(Plain):
    """Tower and projector in one module that is named for neither."""

    carrier = "sight.glue"

    def see(self):
        self.sight = Holder()

    def features(self, pixel_values):
        return self.sight(pixel_values)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.key, self.value = nn.Linear(SEEN, WIDTH), nn.Linear(SEEN, WIDTH)

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(queries, self.key(features), self.value(features))


class Resampling(Plain):
    """The projector takes queries of the model's own beside what the tower saw."""

    carrier = "reader"

    def see(self):
        self.vision_tower = tower()
        self.queries = nn.Parameter(torch.randn(1, PATCHES, WIDTH))
        self.reader = Reader()

    def features(self, pixel_values):
        return self.reader(self.queries, self.vision_tower(pixel_values))


class Bridge(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(SEEN), nn.Linear(SEEN, WIDTH)

    def cross(self, features: Tensor) -> Tensor:
        return self.out(self.norm(features))

    def forward(self, features: Tensor) -> Tensor:
        return self.cross(features)


class ByMethod(Plain):
    """The projector is never called: a method of it is."""

    carrier = "bridge.cross"

    def see(self):
        self.vision_tower = tower()
        self.bridge = Bridge()

    def features(self, pixel_values):
        return self.bridge.cross(self.vision_tower(pixel_values))


class ByForward(ByMethod):
    """The projector's ``forward`` is called, past its hooks."""

    carrier = "bridge.forward"

    def features(self, pixel_values):
        return self.bridge.forward(self.vision_tower(pixel_values))


class InTwo(Plain):
    """A norm and a layer with shuffling between them, both on their own."""

    carrier = "first"

    def see(self):
        self.vision_tower = tower()
        self.first, self.second = nn.LayerNorm(SEEN), nn.Linear(SEEN, WIDTH)

    def features(self, pixel_values):
        return self.second(self.first(self.vision_tower(pixel_values)).roll(1, dims=1))


class Buffered(Plain):
    """What the tower saw is written into places of a buffer first."""

    def features(self, pixel_values):
        buffer = pixel_values.new_zeros(1, PATCHES + 1, SEEN)
        buffer[:, 1:].copy_(self.vision_tower(pixel_values))
        return self.mlp1(buffer)[:, 1:]


class AdapterAfter(Plain):
    """What is named like a projector works on the merged sequence."""

    def see(self):
        super().see()
        self.adapter = nn.Linear(WIDTH, WIDTH)

    def merged(self, features, embedded):
        return self.adapter(super().merged(features, embedded))


class SecondTower(Plain):
    """Another tower, whose name says nothing, takes the image too."""

    def see(self):
        super().see()
        self.fovea = tower()

    def features(self, pixel_values):
        return self.mlp1(self.vision_tower(pixel_values) + self.fovea(pixel_values))


class OwnGenerate(PreTrainedModel):
    """Encodes the image in its own ``generate()`` and leaves the rest to a model inside, no ``GenerationMixin``."""

    config_class = UnlistedConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.vision_model = tower()
        self.mlp1 = carrier()
        self.language_model = LlamaForCausalLM(llama())
        self.post_init()

    def extract_feature(self, pixel_values: Tensor) -> Tensor:
        return self.mlp1(self.shuffle(self.vision_model(pixel_values)))

    def shuffle(self, features: Tensor) -> Tensor:
        return features.flip(1)

    @torch.no_grad()
    def generate(self, pixel_values=None, input_ids=None, attention_mask=None, **options):
        embedded = self.language_model.get_input_embeddings()(input_ids)
        embedded = torch.cat([self.extract_feature(pixel_values), embedded], dim=1)
        mask = torch.ones(embedded.shape[:2], dtype=torch.long)
        return self.language_model.generate(inputs_embeds=embedded, attention_mask=mask, **options)


class Forwarding(nn.Module):
    """Stands where a model stood, and passes calls and attributes on, as wrappers of adapters do."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def generate(self, *args, **kwargs):
        return self.inner.generate(*args, **kwargs)


def unlisted(kind: type):
    """Random weights, the same at each call; no end of sequence, so answers have the length asked for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(UnlistedConfig()).eval()
    generating = model.language_model if issubclass(kind, OwnGenerate) else model
    generating.generation_config.pad_token_id = 0
    return model


def unlisted_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(1, VOCABULARY, (1, 9), generator=generator),
        "pixel_values": torch.randn(1, PATCHES, PIXELS, generator=generator),
    }
