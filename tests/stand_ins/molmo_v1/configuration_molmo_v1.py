"""Configuration of the stand-in, in the names that the first Molmo generation uses."""

from transformers import PretrainedConfig


class MolmoV1Config(PretrainedConfig):
    model_type = "molmo"

    def __init__(
        self,
        d_model=16,
        n_layers=4,
        n_heads=2,
        vocab_size=32,
        moe_num_experts=4,
        moe_top_k=2,
        pixels=6,
        patches_per_token=2,
        use_position_ids=True,
        use_cache=True,
        **others,
    ):
        self.d_model = d_model
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.vocab_size = vocab_size
        self.moe_num_experts = moe_num_experts
        self.moe_top_k = moe_top_k
        self.pixels = pixels  # numbers of one patch
        self.patches_per_token = patches_per_token
        self.use_position_ids = use_position_ids
        self.use_cache = use_cache
        super().__init__(**others)
