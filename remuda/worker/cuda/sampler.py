"""From logits to tokens on the device, on the TP ranks of the last stage; the host reads them when a step is finished.

All TP ranks choose the same tokens: plainly greedy rows exchange one (maximum, id) pair per rank, for others every rank
gathers the logits. S sampling rows, V vocabulary (of the logits: this rank's shard), N slots, K alternatives.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from remuda.kernels.table import KernelTable
from remuda.models.interfaces import Model
from remuda.parallel.collectives import Communicator
from remuda.protocol.request import TokenLogprobs
from remuda.protocol.step import PromptLogprobs, StepPlan, StepResult
from remuda.worker.cuda.adjust import Adjustment
from remuda.worker.cuda.device import Device
from remuda.worker.cuda.resident import ResidentBatch
from remuda.worker.drafts import Drafts
from remuda.worker.sampling.device import draw, uniform
from remuda.worker.sampling.rules import SamplingRules
from remuda.worker.state import Ints, Rows

_PROMPT_LOGITS_BYTES = 64 << 20  # prompt log-probabilities are computed in pieces of so many bytes of logits


@dataclass(frozen=True)
class Entries:
    """Log-probabilities on their way to the host: the chosen token first, then the K most likely."""

    ids: torch.Tensor  # [rows, 1 + K]
    logprobs: torch.Tensor
    rank: torch.Tensor
    top: list[int]

    def read(self) -> list[TokenLogprobs]:
        rows = zip(self.ids.tolist(), self.logprobs.tolist(), self.rank.tolist(), self.top, strict=True)
        return [TokenLogprobs(ids[: 1 + top], logprobs[: 1 + top], rank) for ids, logprobs, rank, top in rows]


@dataclass
class Wanted:
    """What a step asks of the sampler, known from its plan. `slots_S`, `positions_S`: where chosen tokens go."""

    slots_S: Ints
    positions_S: Ints
    outputs_S: Ints  # tokens generated before
    all_plain: bool  # every row: the argmax of the raw logits, and nothing else
    prompts: list[tuple[int, int, slice, int]]  # (slot, first position, of the step's tokens, alternatives)


@dataclass
class Answer:
    """Copies on the host, readable when the step's work is done."""

    tokens_S: torch.Tensor
    logprob_rows: list[int] = field(default_factory=list)
    logprobs: Entries | None = None
    prompts: list[tuple[int, int, list[Entries]]] = field(default_factory=list)

    def as_result(self, step: int, drafts: Drafts | None) -> StepResult:
        """The driver's answer: of tokens behind drafts, those behind right ones."""
        tokens, logprobs, prompts = self.tokens_S.tolist(), self._read_logprobs(), self._read_prompts()
        if drafts is None:
            return StepResult(step, tokens, logprobs, prompts)
        places, runs = drafts.verify(self.tokens_S.numpy())
        logprobs = [logprobs[place] for place in places] if logprobs else []
        return StepResult(step, [tokens[place] for place in places], logprobs, prompts, runs)

    def _read_logprobs(self) -> list[TokenLogprobs | None]:
        if self.logprobs is None:
            return []
        entries: list[TokenLogprobs | None] = [None] * len(self.tokens_S)
        for row, entry in zip(self.logprob_rows, self.logprobs.read(), strict=True):
            entries[row] = entry
        return entries

    def _read_prompts(self) -> list[PromptLogprobs]:
        return [
            PromptLogprobs(slot, first, [entry for entries in pieces for entry in entries.read()])
            for slot, first, pieces in self.prompts
        ]


class DeviceSampler:
    def __init__(
        self,
        device: Device,
        kernels: KernelTable,
        head: Model,
        tp: Communicator,
        resident: ResidentBatch,
        slots: int,
        vocab_size: int,
    ) -> None:
        self._device = device
        self._kernels = kernels
        self._head = head
        self._tp = tp
        self._resident = resident
        self._vocab_size = vocab_size
        self._rules = SamplingRules(slots, vocab_size, driver=False)
        self._prompt_N = np.zeros(slots, np.int64)
        self._adjustments: dict[int, Adjustment] = {}

    def admit(self, plan: StepPlan) -> None:
        nothing = np.empty(0, np.int64)
        for sequence in plan.new:
            slot, params = sequence.slot, sequence.sampling
            self._prompt_N[slot] = sequence.prompt_len
            self._rules.admit(slot, params, nothing)
            self._adjustments.pop(slot, None)
            if (adjustment := Adjustment.of(params, self._vocab_size, self._device)) is not None:
                self._adjustments[slot] = adjustment

    def foresee(self, rows: Rows) -> Wanted:
        """Call once the step's new sequences are admitted, and before a later step reuses one of its slots."""
        slots_S, positions_S = rows.chosen_slots_C, rows.chosen_positions_C
        outputs_S = positions_S - self._prompt_N[slots_S]
        plain_S = self._rules.plain_greedy(slots_S, outputs_S)
        return Wanted(slots_S, positions_S, outputs_S, bool(plain_S.all()), self._prompt_parts(rows))

    def _prompt_parts(self, rows: Rows) -> list[tuple[int, int, slice, int]]:
        """Of every row that asks for its prompt: positions start+1 ..., as far as this step computes."""
        wanted_S = self._rules.prompt_logprobs_N[rows.slots_S]
        parts = []
        for row in np.flatnonzero(wanted_S >= 0).tolist():
            slot, start = int(rows.slots_S[row]), int(rows.starts_S[row])
            count = min(int(rows.counts_S[row]), int(self._prompt_N[slot]) - 1 - start)
            if count > 0:
                first = int(rows.query_start_S1[row])
                parts.append((slot, start + 1, slice(first, first + count), int(wanted_S[row])))
        return parts

    # ------------------------------------------------------------------------------------------------ tokens

    def greedy(self, hidden_SH: torch.Tensor, slots_S: torch.Tensor, positions_S: torch.Tensor) -> torch.Tensor:
        """Ids of the largest logits over all shards (the lowest among equals), int64 [S]; -1 where not finite.

        They are kept behind `positions_S`. A graph can hold it.
        """
        key_S = self._head.greedy_keys(hidden_SH)
        if self._tp.size > 1:
            key_S = self._tp.greatest_keys_(key_S)
        return self._kernels.keep_tokens(key_S, self._resident.tokens_NL, slots_S, positions_S)

    def choose(self, logits_SV: torch.Tensor, wanted: Wanted) -> tuple[torch.Tensor, Answer]:
        """Tokens of rows that are not all plainly greedy, on the device and (with log-probabilities) for the host."""
        raw_SV = self._gather(logits_SV)
        slots_S = wanted.slots_S
        largest_S = raw_SV.amax(dim=1)
        adjusted_SV = self._adjusted(raw_SV, wanted)
        drawn_S = self._rules.temperature_N[slots_S] > 0.0
        token_S = adjusted_SV.argmax(dim=1)
        if drawn_S.any():
            token_S = torch.where(self._device.send(drawn_S), self._draw(adjusted_SV, wanted), token_S)
        possible_S = adjusted_SV.gather(1, token_S.unsqueeze(1)).squeeze(1).isfinite() & largest_S.isfinite()
        answered_S = torch.where(possible_S, token_S, -1)
        answer = Answer(self._device.fetch(answered_S))
        top = self._rules.logprobs_N[slots_S]
        answer.logprob_rows = np.flatnonzero(top >= 0).tolist()
        if answer.logprob_rows:
            at = self._device.send(np.array(answer.logprob_rows))
            answer.logprobs = self._entries(raw_SV[at], token_S[at], top[answer.logprob_rows].tolist())
        return answered_S, answer

    def _gather(self, logits_SV: torch.Tensor) -> torch.Tensor:
        """The logits over the whole vocabulary, without padding."""
        if self._tp.size == 1:
            return logits_SV[:, : self._vocab_size]
        return self._tp.all_gather(logits_SV).transpose(0, 1).flatten(1)[:, : self._vocab_size]

    def _adjusted(self, raw_SV: torch.Tensor, wanted: Wanted) -> torch.Tensor:
        rules, slots_S = self._rules, wanted.slots_S
        due = rules.adjusts_N[slots_S] | (wanted.outputs_S < rules.min_tokens_N[slots_S])
        if not due.any():
            return raw_SV
        logits_SV = raw_SV.clone()
        for row in np.flatnonzero(due).tolist():
            slot = int(slots_S[row])
            tokens_L = self._resident.tokens_NL[slot, : int(wanted.positions_S[row])]
            self._adjustments[slot].apply_(logits_SV[row], tokens_L, int(self._prompt_N[slot]))
        return logits_SV

    def _draw(self, logits_SV: torch.Tensor, wanted: Wanted) -> torch.Tensor:
        rules, slots_S = self._rules, wanted.slots_S
        temperature_S = np.where(rules.temperature_N[slots_S] > 0.0, rules.temperature_N[slots_S], 1.0)  # greedy: any
        floats = self._device.send(np.stack([temperature_S, rules.top_p_N[slots_S], rules.min_p_N[slots_S]]))
        ints = self._device.send(np.stack([rules.top_k_N[slots_S], rules.seed_N[slots_S], wanted.positions_S]))
        return draw(logits_SV, floats[0], ints[0], floats[1], floats[2], uniform(ints[1], ints[2]))

    # ------------------------------------------------------------------------------------------------ log-probabilities

    def prompt_logprobs(self, hidden_TH: torch.Tensor, wanted: Wanted) -> list[tuple[int, int, list[Entries]]]:
        """Of the prompts in the step. Collective."""
        piece = max(1, _PROMPT_LOGITS_BYTES // (4 * self._vocab_size))
        found = []
        for slot, first, tokens, top in wanted.prompts:
            pieces = []
            for begin in range(tokens.start, tokens.stop, piece):
                end = min(begin + piece, tokens.stop)
                raw_SV = self._gather(self._head.logits(hidden_TH[begin:end]))
                at = first + begin - tokens.start
                chosen_S = self._resident.tokens_NL[slot, at : at + end - begin]
                pieces.append(self._entries(raw_SV, chosen_S, [top] * (end - begin)))
            found.append((slot, first, pieces))
        return found

    def _entries(self, raw_SV: torch.Tensor, chosen_S: torch.Tensor, top: list[int]) -> Entries:
        normalizer_S1 = raw_SV.logsumexp(dim=1, keepdim=True)
        chosen_S1 = chosen_S.clamp(min=0).unsqueeze(1)
        chosen_logit_S1 = raw_SV.gather(1, chosen_S1)
        rank_S = (raw_SV > chosen_logit_S1).sum(dim=1) + 1
        value_SK, id_SK = raw_SV.topk(min(max(top), raw_SV.shape[1]), dim=1)
        ids = torch.cat([chosen_S1, id_SK], dim=1)
        logprobs = torch.cat([chosen_logit_S1, value_SK], dim=1) - normalizer_S1
        fetch = self._device.fetch
        return Entries(fetch(ids), fetch(logprobs), fetch(rank_S), top)
