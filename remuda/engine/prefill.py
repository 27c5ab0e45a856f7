"""How much of the waiting prompts goes into one micro-batch, so that consecutive micro-batches take equal time."""

from __future__ import annotations

import math

from remuda.config.model import ModelConfig

MIN_CHUNK = 32  # tokens; below this a step is all overhead
SPREAD_ROUNDS = 4  # prompts that wait are spread over this many rounds of the pipeline


class PrefillSizer:
    """Costs are counted in tokens at context 0: a token at context c costs 1 + c / `doubling_context`.

    Without a pipeline a step takes as many tokens as fit. With one, every rise in the length of micro-batches leaves
    bubbles behind it: so the prompt tokens that wait are spread evenly, and chunks shrink as their context grows.
    """

    def __init__(self, model: ModelConfig, stages: int) -> None:
        self._stages = stages
        self._slope = 0.0 if stages == 1 else 1.0 / doubling_context(model)
        self._level = 0.0

    def share(self, waiting_tokens: int, budget: int) -> float:
        """Cost of prefill that the next micro-batch should carry, when `budget` tokens are allowed.

        It rises when more prompts arrive and is held until none waits.
        """
        if self._stages == 1:
            return budget
        self._level = max(self._level, waiting_tokens / (SPREAD_ROUNDS * self._stages), 4 * MIN_CHUNK)
        share = min(budget, self._level)
        if waiting_tokens <= share:
            self._level = 0.0
        return share

    def tokens(self, context: int, share: float) -> int:
        """Largest chunk at `context` that costs at most `share`, but at least MIN_CHUNK."""
        if not self._slope:
            return int(share)
        linear = 1.0 + self._slope * context
        exact = (math.sqrt(linear * linear + 2 * self._slope * share) - linear) / self._slope
        return max(MIN_CHUNK, int(exact))

    def cost(self, context: int, tokens: int) -> float:
        return tokens * (1.0 + self._slope * (context + tokens / 2))


def doubling_context(model: ModelConfig) -> float:
    """Context length at which attention to everything costs a token as much as all its matrix products."""
    q_size, kv_size = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    products = attention = 0
    for layer in model.layers:
        products += 2 * model.hidden_size * (2 * q_size + 2 * kv_size)
        if layer.moe and model.moe is not None:
            moe = model.moe
            products += 6 * model.hidden_size * (moe.top_k * moe.intermediate_size + moe.shared_intermediate_size)
        else:
            products += 6 * model.hidden_size * model.intermediate_size
        if not layer.attention.forgets:
            attention += 4 * q_size
    return products / attention if attention else math.inf
