"""A tiny byte-level BPE with Llama 4's special tokens, and a model config to go with it. No torch, no downloads."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from remuda.config.model import ImageTokens, LayerConfig, ModelConfig, VisionConfig
from remuda.kv.specs import FullAttention
from remuda.text.tokenizer import Tokenizer

SPECIAL = (
    "<|begin_of_text|>", "<|eot|>", "<|header_start|>", "<|header_end|>", "<|image_start|>", "<|image_end|>",
    "<|image|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>", "<|python_start|>", "<|python_end|>",
)  # fmt: skip
CORPUS = [
    "The quick brown fox jumps over the lazy dog. Hello world! How are you today?",
    "naïve café Ünïcödé — 日本語のテキスト、 привет мир 🎉👩‍👩‍👧 stop STOP the end",
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|header_start|>' + m['role'] + '<|header_end|>\n\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{{ '<|image|>' if p['type'] == 'image' else p['text'] }}{% endfor %}{% endif %}{{ '<|eot|>' }}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}{{ '<|header_start|>assistant<|header_end|>\n\n' }}{% endif %}"
)
IMAGE_SIZE, PATCH_SIZE = 28, 7


@cache
def backend_json() -> str:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    return tokenizer.to_str()


def tokenizer() -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(backend_json()), config())


def config() -> dict[str, object]:
    return {"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|eot|>"}, "chat_template": TEMPLATE}


def write(folder: Path) -> Path:
    (folder / "tokenizer.json").write_text(backend_json())
    (folder / "tokenizer_config.json").write_text(json.dumps(config()))
    return folder


def vision() -> VisionConfig:
    return VisionConfig(
        hidden_size=8, intermediate_size=32, num_layers=1, num_heads=1, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE,
        num_channels=3, pixel_shuffle_ratio=0.5, projector_input_dim=8, projector_output_dim=8, output_dim=8,
        rope_theta=1e4, norm_eps=1e-5,
    )  # fmt: skip


def model_config(path: Path) -> ModelConfig:
    id_of = tokenizers.Tokenizer.from_str(backend_json()).token_to_id
    layer = LayerConfig(attention=FullAttention(), rope=True, qk_norm=False, temperature_tuning=False, moe=False)
    images = ImageTokens(
        image_start=id_of("<|image_start|>"), image_end=id_of("<|image_end|>"), image=id_of("<|image|>"),
        patch=id_of("<|patch|>"), tile_x=id_of("<|tile_x_separator|>"), tile_y=id_of("<|tile_y_separator|>"),
    )  # fmt: skip
    return ModelConfig(
        path=str(path), architecture="Llama4ForConditionalGeneration", dtype="float32", checkpoint_dtype="float32",
        hidden_size=8, num_heads=1, num_kv_heads=1, head_dim=8, intermediate_size=8, vocab_size=tokenizer().vocab_size,
        max_position_embeddings=4096, rms_norm_eps=1e-5, rope_theta=1e4, rope_scaling=None, rope_interleaved=True,
        layers=(layer,), temperature_floor=1.0, temperature_scale=0.0, tie_word_embeddings=False,
        moe=None, vision=vision(), image_tokens=images, quant=None, bos_token_id=id_of("<|begin_of_text|>"),
        eos_token_ids=(id_of("<|eot|>"),), generation_defaults={"temperature": 0.6, "top_p": 0.9},
    )  # fmt: skip
