"""From a request's fields to SamplingParams: the client's value, else the model's default, else the API's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remuda.protocol.errors import InvalidRequest
from remuda.protocol.sampling import SamplingParams
from remuda.server.protocol import GenerationRequest

_PLAIN = (
    "n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "logit_bias", "seed", "stop_token_ids", "bad_words", "allowed_token_ids", "min_tokens", "ignore_eos",
    "prompt_logprobs", "skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output",
)  # fmt: skip
MAX_TEMPERATURE = 2  # of OpenAI's API
DEFAULTED_BY_MODEL = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def model_defaults(generation_defaults: Mapping[str, float], generation_config: str) -> dict[str, Any]:
    """Sampling defaults of generation_config.json (``--generation-config auto``), or none (``vllm``)."""
    if generation_config == "vllm":
        return {}
    found: dict[str, Any] = {
        name: generation_defaults[name] for name in DEFAULTED_BY_MODEL if name in generation_defaults
    }
    if "top_k" in found:
        found["top_k"] = int(found["top_k"])
    return found


def sampling_params(
    request: GenerationRequest, defaults: Mapping[str, Any], *, max_tokens: int | None, logprobs: int | None
) -> SamplingParams:
    """Not yet checked against the model: the engine's input processor does that."""
    values: dict[str, Any] = dict(defaults)
    for name in _PLAIN:
        value = getattr(request, name)
        if value is not None:
            values[name] = value
    if request.stop is not None:
        values["stop"] = [request.stop] if isinstance(request.stop, str) else request.stop
    if request.temperature is not None and request.temperature > MAX_TEMPERATURE:
        raise InvalidRequest(
            f"temperature must be 0 to {MAX_TEMPERATURE}, not {request.temperature}", param="temperature"
        )
    if max_tokens is not None and max_tokens < 1:
        raise InvalidRequest(f"max_tokens must be at least 1, not {max_tokens}", param="max_tokens")
    return SamplingParams(**values, max_tokens=max_tokens, logprobs=logprobs)
