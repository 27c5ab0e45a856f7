"""Model configs of published size, built by hand: no checkpoint is needed to plan."""

from __future__ import annotations

from remuda.config.model import LayerConfig, ModelConfig, MoEConfig, VisionConfig
from remuda.kv.specs import ChunkedLocal, FullAttention


def llama4(num_layers: int = 48, moe_step: int = 2, **changes: object) -> ModelConfig:
    """Maverick (moe_step 2); with other numbers, what a test needs."""
    layers = tuple(
        LayerConfig(
            FullAttention() if (i + 1) % 4 == 0 else ChunkedLocal(8192),
            rope=(i + 1) % 4 != 0,
            qk_norm=False,
            temperature_tuning=(i + 1) % 4 == 0,
            moe=(i + 1) % moe_step == 0,
        )
        for i in range(num_layers)
    )
    values: dict[str, object] = {
        "path": "maverick", "architecture": "Llama4ForConditionalGeneration", "dtype": "bfloat16",
        "checkpoint_dtype": "bfloat16", "hidden_size": 5120, "num_heads": 40, "num_kv_heads": 8, "head_dim": 128,
        "intermediate_size": 16384, "vocab_size": 202048, "max_position_embeddings": 1048576, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "rope_scaling": None, "rope_interleaved": True, "layers": layers,
        "temperature_floor": 8192.0, "temperature_scale": 0.1, "tie_word_embeddings": False,
        "moe": MoEConfig(128, 1, 8192, 8192), "image_tokens": None, "quant": None, "bos_token_id": 200000,
        "eos_token_ids": (200001,),
        "vision": VisionConfig(1408, 5632, 34, 16, 336, 14, 3, 0.5, 4096, 4096, 4096, 10000.0, 1e-5),
    }  # fmt: skip
    return ModelConfig(**(values | changes))  # type: ignore[arg-type]
