"""Changes to the logits of single rows as `worker/sampling/adjust.py` makes them, without a look at the tokens.

The host knows how many tokens a row has, the device which ones. V vocabulary, L tokens of the row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from remuda.protocol.sampling import SamplingParams
from remuda.worker.cuda.device import Device
from remuda.worker.sampling.rules import always_adjusts, has_penalties


@dataclass(frozen=True)
class Adjustment:
    """What one sequence asks for, on the device. None and empty where it asks for nothing."""

    params: SamplingParams
    ending: torch.Tensor | None  # suppressed until min_tokens are out
    forbidden_V: torch.Tensor | None  # what allowed_token_ids leaves out
    banned_words: tuple[torch.Tensor, ...]
    bias_ids: torch.Tensor | None
    bias: torch.Tensor | None

    @classmethod
    def of(cls, params: SamplingParams, vocab_size: int, device: Device) -> Adjustment | None:
        """None if no step of the sequence needs it."""
        if not always_adjusts(params) and not params.min_tokens:
            return None

        def ids(tokens: list[int]) -> torch.Tensor | None:
            known = sorted({token for token in tokens if 0 <= token < vocab_size})
            return device.send(np.array(known, np.int64)) if known else None

        forbidden_V = None
        if params.allowed_token_ids is not None:
            mask = np.ones(vocab_size, np.bool_)
            mask[params.allowed_token_ids] = False
            forbidden_V = device.send(mask)
        bias = {token: value for token, value in (params.logit_bias or {}).items() if token < vocab_size}
        return cls(
            params=params,
            ending=ids(list(params.ending_token_ids)) if params.min_tokens else None,
            forbidden_V=forbidden_V,
            banned_words=tuple(
                device.send(np.array(word, np.int64)) for word in params.bad_words_token_ids if word[-1:] < [vocab_size]
            ),
            bias_ids=device.send(np.array(list(bias), np.int64)) if bias else None,
            bias=device.send(np.array(list(bias.values()), np.float32)) if bias else None,
        )

    def apply_(self, logits_V: torch.Tensor, tokens_L: torch.Tensor, prompt_len: int) -> None:
        """In place; `tokens_L` are the prompt and all that was generated."""
        output = tokens_L[prompt_len:]
        if self.forbidden_V is not None:
            logits_V.masked_fill_(self.forbidden_V, float("-inf"))
        for word in self.banned_words:
            _ban_(logits_V, word, output)
        if self.ending is not None and len(output) < self.params.min_tokens:
            logits_V[self.ending] = float("-inf")
        if self.bias_ids is not None and self.bias is not None:
            logits_V.index_add_(0, self.bias_ids, self.bias)
        if has_penalties(self.params):
            self._penalize_(logits_V, tokens_L, output)

    def _penalize_(self, logits_V: torch.Tensor, tokens_L: torch.Tensor, output: torch.Tensor) -> None:
        params = self.params
        seen_V = torch.zeros_like(logits_V, dtype=torch.bool).index_fill_(0, tokens_L, True)
        generated_V = torch.zeros_like(logits_V).index_add_(0, output, torch.ones_like(output, dtype=logits_V.dtype))
        repetition = params.repetition_penalty
        repeated_V = torch.where(logits_V > 0, logits_V / repetition, logits_V * repetition)
        logits_V.copy_(torch.where(seen_V, repeated_V, logits_V))
        logits_V.sub_(params.frequency_penalty * generated_V)
        logits_V.sub_(params.presence_penalty * (generated_V > 0))


def _ban_(logits_V: torch.Tensor, word: torch.Tensor, output: torch.Tensor) -> None:
    """The last token of a word is impossible where the output ends with all of its others."""
    prefix, last = word[:-1], word[-1:]
    if len(prefix) > len(output):
        return
    complete = (output[len(output) - len(prefix) :] == prefix).all()
    logits_V[last] = torch.where(complete, float("-inf"), logits_V[last])
