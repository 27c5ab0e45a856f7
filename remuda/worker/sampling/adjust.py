"""Changes to the logits of single rows, in the order of vLLM: allowed ids, bad words, min_tokens, bias, penalties."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from remuda.protocol.sampling import SamplingParams
from remuda.worker.sampling.rules import Adjustments, TokenCounts

_BANNED = float("-inf")


def adjust_(logits_V: torch.Tensor, rule: Adjustments, output: npt.NDArray[np.integer]) -> None:
    """Apply `rule` in place. `output` holds the tokens generated so far."""
    if rule.allowed is not None:
        keep = _index(rule.allowed, logits_V)
        allowed = logits_V[keep]
        logits_V.fill_(_BANNED)
        logits_V[keep] = allowed
    banned = banned_tokens(rule.banned_words, output)
    if len(output) < rule.params.min_tokens:
        banned.update(rule.ending.tolist())
    if banned:
        ids = np.array([token for token in banned if token < len(logits_V)], np.int64)
        logits_V[_index(ids, logits_V)] = _BANNED
    if rule.bias_ids is not None and rule.bias is not None:
        logits_V[_index(rule.bias_ids, logits_V)] += torch.from_numpy(rule.bias).to(logits_V.device)
    if rule.counts is not None:
        rule.counts.follow(output)
        _penalize_(logits_V, rule.counts, rule.params)


def banned_tokens(words: list[list[int]], output: npt.NDArray[np.integer]) -> set[int]:
    """Last tokens of those words whose other tokens the output ends with."""
    banned = set()
    for word in words:
        prefix = len(word) - 1
        if prefix == 0 or (prefix <= len(output) and output[-prefix:].tolist() == word[:-1]):
            banned.add(word[-1])
    return banned


def _penalize_(logits_V: torch.Tensor, counts: TokenCounts, params: SamplingParams) -> None:
    known = counts.tokens < len(logits_V)
    ids = _index(counts.tokens[known], logits_V)
    generated = torch.from_numpy(counts.generated[known]).to(logits_V)
    logits = logits_V[ids]
    repetition = params.repetition_penalty
    logits = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits -= params.frequency_penalty * generated
    logits -= params.presence_penalty * (generated > 0)
    logits_V[ids] = logits


def _index(ids: npt.NDArray[np.int64], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(ids).to(like.device)
