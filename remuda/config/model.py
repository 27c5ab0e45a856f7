"""What the engine, the planner and the models need to know of a model, normalised from Hugging Face's config.json."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from remuda.kv.groups import KVGroup, group_layers
from remuda.kv.specs import AnyAttention, KVShape


class RopeScaling(msgspec.Struct, frozen=True):
    """llama3-type frequency scaling; low_freq_factor may equal high_freq_factor (the blend band is then empty)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


class LayerConfig(msgspec.Struct, frozen=True):
    """What differs from layer to layer."""

    attention: AnyAttention
    rope: bool = True
    qk_norm: bool = False
    temperature_tuning: bool = False
    moe: bool = False


class MoEConfig(msgspec.Struct, frozen=True):
    num_experts: int
    top_k: int
    intermediate_size: int  # of one expert
    shared_intermediate_size: int  # 0: no shared expert
    renormalize: bool = False  # softmax routing: whether the chosen weights are made to add up to 1


class VisionConfig(msgspec.Struct, frozen=True):
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    num_channels: int
    pixel_shuffle_ratio: float
    projector_input_dim: int
    projector_output_dim: int
    output_dim: int
    rope_theta: float
    norm_eps: float
    max_tiles: int = 16

    @property
    def tokens_per_tile(self) -> int:
        side = self.image_size // self.patch_size
        return int(side * side * self.pixel_shuffle_ratio**2)


class ImageTokens(msgspec.Struct, frozen=True):
    """Special token ids of the image layout (Llama 4)."""

    image_start: int
    image_end: int
    image: int
    patch: int  # replaced by the tower's rows
    tile_x: int
    tile_y: int


class WeightFormat(StrEnum):
    """How the weight of a linear module is stored. `layers/quant/` has a scheme for each."""

    PLAIN = "plain"  # one tensor of floats
    FP8_CHANNEL = "fp8-channel"  # float8_e4m3fn beside one scale per output channel (compressed-tensors)
    FP8_ONLINE = "fp8-online"  # floats, of which FP8_CHANNEL is made while they are read
    INT4_GROUP = "int4-group"  # eight 4-bit integers in an int32, a scale per group of inputs (compressed-tensors)


class QuantConfig(msgspec.Struct, frozen=True):
    """The format of every linear module but for those that `ignore` names or matches (re:...)."""

    format: WeightFormat
    ignore: tuple[str, ...]
    group_size: int = 0  # inputs that share a scale, where the format has groups; 0: all of a module's


class ModelConfig(msgspec.Struct, frozen=True):
    path: str  # checkpoint directory
    architecture: str
    dtype: str  # compute dtype: float32 or bfloat16 (float16 refused on CPU)
    checkpoint_dtype: str
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int  # of the dense MLPs
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    rope_interleaved: bool
    layers: tuple[LayerConfig, ...]
    tie_word_embeddings: bool
    quant: QuantConfig | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    temperature_floor: float = 1.0
    temperature_scale: float = 0.0
    moe: MoEConfig | None = None
    vision: VisionConfig | None = None
    image_tokens: ImageTokens | None = None
    generation_defaults: dict[str, float] = {}  # temperature, top_p, ... of generation_config.json
    kv_dtype: str | None = None  # of the KV cache; None: the compute dtype

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def kv_groups(self) -> tuple[KVGroup, ...]:
        """How the layers share the pages of the KV cache."""
        return group_layers([layer.attention for layer in self.layers])

    def kv_shape(self, tp_size: int) -> KVShape:
        """Keys of one token on a rank: heads are replicated when ranks outnumber them."""
        return KVShape(max(1, self.num_kv_heads // tp_size), self.head_dim, self.kv_dtype or self.dtype)
