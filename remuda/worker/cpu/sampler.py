"""From the last hidden states of a step to its tokens, on the ranks of the last stage.

Rows that are plainly greedy exchange one (maximum, index) pair per TP rank; the others gather their logits on TP
rank 0, which alone adjusts, filters and draws. Which rows are which follows from plans only, so all TP ranks agree,
and can work it out (`foresee`) while the layers are still computed.
A row of the step that carries drafts has a token to choose behind each; every one is chosen as if it were alone, and
finds the drafts before it in the runner's buffer.
N slots, L tokens of a sequence, T tokens, H hidden size, S tokens to choose, V vocabulary (local: this rank's shard).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from remuda.models.interfaces import Model
from remuda.parallel.collectives import Communicator
from remuda.protocol.request import TokenLogprobs
from remuda.protocol.step import PromptLogprobs, StepPlan, StepResult
from remuda.worker.drafts import Drafts
from remuda.worker.sampling.adjust import adjust_
from remuda.worker.sampling.draw import draw
from remuda.worker.sampling.logprobs import token_logprobs
from remuda.worker.sampling.rules import SamplingRules
from remuda.worker.sampling.uniform import uniform
from remuda.worker.state import Ints, Rows

Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]

_PROMPT_LOGITS_BYTES = 64 << 20  # prompt log-probabilities are computed in pieces of so many bytes of logits


@dataclass(frozen=True, slots=True)
class PromptPart:
    """Hidden states of a step whose logits tell the log-probabilities of prompt positions first, first+1, ..."""

    slot: int
    first: int
    hidden: slice  # of the step's tokens
    top: int  # alternatives wanted


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a step will ask of the sampler, known from its plan."""

    slots_S: Ints
    outputs_S: Ints  # tokens generated before the step
    plain_S: npt.NDArray[np.bool_]  # the argmax of the raw logits, and nothing else
    all_plain: bool
    last_S: torch.Tensor | None  # of the step's tokens, those behind which one is chosen; None: every one
    prompts: list[PromptPart]


@dataclass(slots=True)
class Sampled:
    """The chosen tokens, in row order; only the driver's are complete when a row is not plainly greedy."""

    tokens_S: Ints
    everywhere: bool  # every TP rank has all tokens
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)

    def as_result(self, step: int, drafts: Drafts | None) -> StepResult:
        """The driver's answer: of tokens behind drafts, those behind right ones."""
        tokens = self.tokens_S.tolist()
        if drafts is None:
            return StepResult(step, tokens, self.logprobs, self.prompt_logprobs)
        places, runs = drafts.verify(self.tokens_S)
        logprobs = [self.logprobs[place] for place in places] if self.logprobs else []
        return StepResult(step, [tokens[place] for place in places], logprobs, self.prompt_logprobs, runs)


class Sampler:
    """Reads tokens of earlier steps in the runner's `tokens_NL`."""

    def __init__(self, head: Model, tp: Communicator, tokens_NL: Tokens, vocab_size: int) -> None:
        self._head = head
        self._tp = tp
        self._tokens_NL = tokens_NL
        self._prompt_N = np.zeros(len(tokens_NL), np.int64)
        self._vocab_size = vocab_size
        self._driver = tp.rank == 0
        self._rules = SamplingRules(len(tokens_NL), vocab_size, driver=self._driver)

    def admit(self, plan: StepPlan) -> None:
        """Follow new sequences, once their tokens are in the buffer."""
        for sequence in plan.new:
            self._prompt_N[sequence.slot] = sequence.prompt_len
            prompt = self._tokens_NL[sequence.slot, : sequence.prompt_len]
            self._rules.admit(sequence.slot, sequence.sampling, prompt)

    def foresee(self, rows: Rows) -> Foreseen:
        """Call once the step's new sequences are admitted, and before a later step reuses one of its slots."""
        slots = rows.chosen_slots_C
        outputs_S = rows.chosen_positions_C - self._prompt_N[slots]
        plain_S = self._rules.plain_greedy(slots, outputs_S)
        last_S: torch.Tensor | None = None
        if len(slots) != rows.total_tokens:
            last_S = torch.from_numpy(rows.chosen_at_C())
        return Foreseen(slots, outputs_S, plain_S, bool(plain_S.all()), last_S, self._prompt_parts(rows))

    def run(self, hidden_TH: torch.Tensor, step: Foreseen) -> Sampled:
        """Choose the step's tokens; its slots have not been reused yet."""
        of_prompts = [self._of_prompt(hidden_TH[part.hidden], part) for part in step.prompts]
        prompt_logprobs = of_prompts if self._driver else []
        slots, plain_S = step.slots_S, step.plain_S
        if not len(slots):
            return Sampled(slots, True, [], prompt_logprobs)
        logits_SV = self._head.logits(hidden_TH if step.last_S is None else hidden_TH[step.last_S])
        if step.all_plain:
            return Sampled(self._argmax(logits_SV), True, [], prompt_logprobs)
        tokens_S = np.zeros(len(slots), np.int64)
        if plain_S.any():
            tokens_S[plain_S] = self._argmax(logits_SV[_mask(plain_S)])
            logits_SV = logits_SV[_mask(~plain_S)]
        gathered_SV = self._gather(logits_SV)
        logprobs: list[TokenLogprobs | None] = []
        if gathered_SV is not None:
            tokens_S[~plain_S], entries = self._choose(gathered_SV, slots[~plain_S], step.outputs_S[~plain_S])
            if any(entry is not None for entry in entries):
                remaining = iter(entries)
                logprobs = [None if plain else next(remaining) for plain in plain_S]
        return Sampled(tokens_S, self._tp.size == 1, logprobs, prompt_logprobs)

    # ------------------------------------------------------------------------------------------------ plainly greedy

    def _argmax(self, logits_SV: torch.Tensor) -> Ints:
        """Index of the largest logit over all shards (the lowest one among equals), -1 where it is not finite."""
        values_S, indices_S = _largest(logits_SV)
        if self._tp.size == 1:
            largest_S, tokens_S = values_S.numpy(), indices_S.numpy()
        else:
            largest_S, tokens_S = self._largest_of_shards(values_S, indices_S + self._head.vocab_shard[0])
        finite_S = np.isfinite(largest_S)
        return tokens_S if finite_S.all() else np.where(finite_S, tokens_S, -1)

    def _largest_of_shards(self, values_S: torch.Tensor, ids_S: torch.Tensor) -> tuple[Floats, Ints]:
        mine_2S = torch.stack([values_S.float().view(torch.int32), ids_S.int()])
        pairs_R2S = self._tp.all_gather(mine_2S).numpy()
        values_RS = pairs_R2S[:, 0].view(np.float32)
        shard_S = values_RS.argmax(axis=0)  # NaN wins
        at = np.arange(len(shard_S))
        return values_RS[shard_S, at], pairs_R2S[shard_S, 1, at].astype(np.int64)

    # ------------------------------------------------------------------------------------------------ general rows

    def _gather(self, logits_SV: torch.Tensor) -> torch.Tensor | None:
        """The logits over the whole vocabulary, without padding, on the driver; None elsewhere."""
        gathered_RSV = self._tp.gather(logits_SV)
        if gathered_RSV is None:
            return None
        ranks, rows, shard = gathered_RSV.shape
        whole_SV = gathered_RSV.squeeze(0) if ranks == 1 else gathered_RSV.permute(1, 0, 2).reshape(rows, ranks * shard)
        return whole_SV[:, : self._vocab_size]

    def _choose(self, raw_SV: torch.Tensor, slots: Ints, outputs_S: Ints) -> tuple[Ints, list[TokenLogprobs | None]]:
        rules = self._rules
        finite_S = np.isfinite(raw_SV.amax(dim=1).numpy())
        logits_SV = self._adjusted(raw_SV, slots, outputs_S)
        greedy_S = rules.temperature_N[slots] == 0.0
        tokens = torch.empty(len(slots), dtype=torch.int64)
        if greedy_S.any():
            mask = _mask(greedy_S)
            tokens[mask] = logits_SV[mask].argmax(dim=1)
        if not greedy_S.all():
            mask = _mask(~greedy_S)
            drawn = logits_SV if not greedy_S.any() else logits_SV[mask]
            tokens[mask] = self._draw(drawn, slots[~greedy_S], outputs_S[~greedy_S])
        chosen_is_possible = torch.isfinite(logits_SV.gather(1, tokens.unsqueeze(1)).squeeze(1)).numpy()
        tokens_S = np.where(finite_S & chosen_is_possible, tokens.numpy(), -1)
        return tokens_S, self._logprobs(raw_SV, tokens, slots)

    def _adjusted(self, raw_SV: torch.Tensor, slots: Ints, outputs_S: Ints) -> torch.Tensor:
        rules = self._rules
        due = rules.adjusts_N[slots] | (outputs_S < rules.min_tokens_N[slots])
        if not due.any():
            return raw_SV
        logits_SV = raw_SV.clone()
        for row in np.flatnonzero(due).tolist():
            slot = int(slots[row])
            start = int(self._prompt_N[slot])
            output = self._tokens_NL[slot, start : start + int(outputs_S[row])]
            adjust_(logits_SV[row], rules.adjustments[slot], output)
        return logits_SV

    def _draw(self, logits_SV: torch.Tensor, slots: Ints, outputs_S: Ints) -> torch.Tensor:
        rules = self._rules
        uniform_S = uniform(rules.seed_N[slots], self._prompt_N[slots] + outputs_S)
        parameters = (rules.temperature_N, rules.top_k_N, rules.top_p_N, rules.min_p_N)
        arrays = [parameter[slots] for parameter in parameters] + [uniform_S]
        temperature, top_k, top_p, min_p, uniforms = map(torch.from_numpy, arrays)
        return draw(logits_SV, temperature, top_k, top_p, min_p, uniforms)

    # ------------------------------------------------------------------------------------------------ log-probabilities

    def _logprobs(self, raw_SV: torch.Tensor, tokens: torch.Tensor, slots: Ints) -> list[TokenLogprobs | None]:
        wanted_S = self._rules.logprobs_N[slots]
        rows = np.flatnonzero(wanted_S >= 0)
        entries: list[TokenLogprobs | None] = [None] * len(slots)
        if len(rows):
            at = torch.from_numpy(rows)
            found = token_logprobs(raw_SV[at], tokens[at], wanted_S[rows].tolist())
            for row, entry in zip(rows.tolist(), found, strict=True):
                entries[row] = entry
        return entries

    def _prompt_parts(self, rows: Rows) -> list[PromptPart]:
        """Of every row that asks for its prompt: positions start+1 ..., as far as this step computes."""
        wanted_S = self._rules.prompt_logprobs_N[rows.slots_S]
        parts: list[PromptPart] = []
        for row in np.flatnonzero(wanted_S >= 0).tolist():
            slot, start = int(rows.slots_S[row]), int(rows.starts_S[row])
            count = min(int(rows.counts_S[row]), int(self._prompt_N[slot]) - 1 - start)
            if count > 0:
                first = int(rows.query_start_S1[row])
                parts.append(PromptPart(slot, start + 1, slice(first, first + count), int(wanted_S[row])))
        return parts

    def _of_prompt(self, hidden_TH: torch.Tensor, part: PromptPart) -> PromptLogprobs:
        """Collective; only the driver's result has entries."""
        entries: list[TokenLogprobs] = []
        piece = max(1, _PROMPT_LOGITS_BYTES // (4 * self._vocab_size))
        for begin in range(0, len(hidden_TH), piece):
            hidden = hidden_TH[begin : begin + piece]
            raw = self._gather(self._head.logits(hidden))
            if raw is not None:
                positions = slice(part.first + begin, part.first + begin + len(hidden))
                chosen = torch.from_numpy(self._tokens_NL[part.slot, positions].astype(np.int64))
                entries += token_logprobs(raw, chosen, [part.top] * len(hidden))
        return PromptLogprobs(part.slot, part.first, entries)


def _largest(logits_SV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(value, index) of each row's largest logit, the first among equals; a row with NaN gives NaN."""
    logits = logits_SV.numpy()  # numpy's search is vectorized, torch's is not: a tenth of the time
    indices = logits.argmax(axis=1)
    return torch.from_numpy(logits[np.arange(len(indices)), indices]), torch.from_numpy(indices)


def _mask(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.flatnonzero(rows))
