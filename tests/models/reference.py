"""transformers' own model on a checkpoint of ours; quantized weights are widened and experts fused for it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]  # one built for another torch breaks the import below
import transformers  # noqa: E402


def load_reference(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A transformers model in eval mode, eager attention."""
    config = json.loads((path / "config.json").read_text())
    model_class = getattr(transformers, config["architectures"][0])
    if config.pop("quantization_config", None) is None:
        return model_class.from_pretrained(path, dtype=dtype, attn_implementation="eager").eval()
    model = model_class._from_config(
        model_class.config_class.from_dict(config), dtype=dtype, attn_implementation="eager"
    )
    transposed = "Llama4" in config["architectures"][0]  # its fused experts are applied as x @ W
    model.load_state_dict(_fused(_dequantized(path), transposed))
    return model.eval()


def _dequantized(path: Path) -> dict[str, torch.Tensor]:
    stored = {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    result = {}
    for name, tensor in stored.items():
        if name.endswith("_packed"):
            module, scale = name.removesuffix("_packed"), stored[name.replace("_packed", "_scale")].float()
            values = torch.stack([(tensor >> 4 * i & 15) - 8 for i in range(8)], dim=-1).flatten(1)
            result[module] = values * scale.repeat_interleave(values.shape[1] // scale.shape[1], dim=1)
        elif not name.endswith(("_scale", "_shape")):
            scale = stored.get(f"{name}_scale")
            result[name] = tensor.float() if scale is None else tensor.float() * scale.float()
    return result


def _fused(state: dict[str, torch.Tensor], transposed: bool) -> dict[str, torch.Tensor]:
    """experts.{i}.{gate,up,down}_proj.weight [out, in] -> experts.gate_up_proj, experts.down_proj [E, out, in]."""
    plain, experts = {}, {}
    for name, tensor in state.items():
        found = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)_proj\.weight", name)
        if found:
            experts.setdefault(found[1], {})[int(found[2]), found[3]] = tensor
        else:
            plain[name] = tensor
    for prefix, parts in experts.items():
        count = 1 + max(expert for expert, _ in parts)
        gate_up = torch.stack([torch.cat((parts[e, "gate"], parts[e, "up"])) for e in range(count)])
        down = torch.stack([parts[e, "down"] for e in range(count)])
        plain[f"{prefix}.gate_up_proj"] = gate_up.mT if transposed else gate_up
        plain[f"{prefix}.down_proj"] = down.mT if transposed else down
    return plain


@torch.no_grad()
def reference_logits(model: Any, ids: list[int], pixels: torch.Tensor | None = None) -> torch.Tensor:
    """float32 logits of every position, from one forward without a cache."""
    images = {} if pixels is None else {"pixel_values": pixels.to(model.dtype)}
    return model(input_ids=torch.tensor([ids]), use_cache=False, **images).logits[0].float()
