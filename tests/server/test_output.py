"""OutputProcessor and Intake: what `LLM` and the server have in common."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remuda.engine.input import InputProcessor
from remuda.engine.output import OutputProcessor
from remuda.protocol.errors import InvalidRequest, QueueFull
from remuda.protocol.request import FinishReason, RequestError, RequestOutput, TokenLogprobs
from remuda.protocol.sampling import SamplingParams
from tests.text import tiny

TOKENIZER = tiny.tokenizer()
EOT = TOKENIZER.encode("<|eot|>", add_special_tokens=False)[0]


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def output(ids: list[int], reason: FinishReason | None = None, **fields: object) -> RequestOutput:
    return RequestOutput("r", ids, reason, **fields)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.text("aé🎉 st", max_size=4), st.booleans()), max_size=10))
def test_what_is_taken_adds_up_to_the_whole(steps: list[tuple[str, bool]]) -> None:
    """However often somebody looks, text, tokens and log-probabilities are handed out exactly once."""
    for stop in ([], ["zz"]):
        processor = OutputProcessor(TOKENIZER, SamplingParams(logprobs=0, stop=stop))
        taken_text, taken_ids, taken_logprobs = "", [], 0
        everything: list[int] = []
        for text, look in steps:
            ids = ids_of(text)
            everything += ids
            assert not processor.push(output(ids, logprobs=[TokenLogprobs([t], [-1.0], 1) for t in ids]))
            if look:
                delta = processor.take()
                taken_text, taken_ids = taken_text + delta.text, taken_ids + delta.token_ids
                taken_logprobs += len(delta.logprobs or [])
        processor.push(output([EOT], FinishReason.STOP, logprobs=[TokenLogprobs([EOT], [-1.0], 1)]))
        delta = processor.take()
        assert taken_text + delta.text == processor.text() == TOKENIZER.decode(everything)
        assert taken_ids + delta.token_ids == processor.token_ids == [*everything, EOT]
        assert taken_logprobs + len(delta.logprobs or []) == len(everything) + 1
        assert processor.take().token_ids == [] and processor.take().text == ""


def test_a_stop_string_ends_the_sequence_once() -> None:
    processor = OutputProcessor(TOKENIZER, SamplingParams(stop=["b"]))
    assert not processor.push(output(ids_of("a")))
    assert processor.push(output(ids_of("b")))  # the engine runs on: abort it
    assert not processor.push(output(ids_of("c"), FinishReason.LENGTH))  # late output changes nothing
    assert (processor.text(), processor.finish_reason, processor.stop_reason) == ("a", FinishReason.STOP, "b")
    ended = OutputProcessor(TOKENIZER, SamplingParams(stop=["b"]))
    assert not ended.push(output(ids_of("b"), FinishReason.LENGTH))  # the engine has stopped by itself
    assert (ended.text(), ended.finish_reason, ended.stop_reason) == ("", FinishReason.STOP, "b")


def test_a_stop_string_in_the_middle_of_several_tokens_cuts_the_rest() -> None:
    tokens = ids_of("a b c d e")
    logprobs = [TokenLogprobs([t], [-1.0], 1) for t in tokens]
    for reason, runs_on in ((None, True), (FinishReason.LENGTH, True)):  # the end that the engine saw came too late
        processor = OutputProcessor(TOKENIZER, SamplingParams(stop=["c"], logprobs=0))
        assert processor.push(output(tokens, reason, logprobs=logprobs)) is runs_on
        assert (processor.text(), processor.finish_reason, processor.stop_reason) == ("a b ", FinishReason.STOP, "c")
        singles = OutputProcessor(TOKENIZER, SamplingParams(stop=["c"], logprobs=0))
        for token, entry in zip(tokens, logprobs, strict=True):
            singles.push(output([token], logprobs=[entry]))
        assert processor.token_ids == singles.token_ids and processor.logprobs == singles.logprobs


def test_held_back_text_comes_with_the_end() -> None:
    processor = OutputProcessor(TOKENIZER, SamplingParams(stop=["abc"]))
    processor.push(output(ids_of("ab")))
    assert processor.take().text == ""
    processor.push(output([EOT], FinishReason.STOP))
    assert processor.take().text == "ab"


def test_without_a_tokenizer_there_are_ids_only() -> None:
    processor = OutputProcessor(None, SamplingParams(detokenize=False, stop=["x"]))
    processor.push(output([5, 6], FinishReason.LENGTH))
    assert (processor.token_ids, processor.text()) == ([5, 6], "")


def test_engine_errors_keep_status_param_and_code() -> None:
    for status, kind in ((400, InvalidRequest), (429, QueueFull)):
        processor = OutputProcessor(TOKENIZER, SamplingParams())
        processor.push(output([], FinishReason.ERROR, error=RequestError("why", status, "n", "some_code")))
        assert isinstance(processor.error, kind) and processor.error.message == "why"
        assert (processor.error.param, processor.error.code) == ("n", "some_code")


def input_processor() -> InputProcessor:
    return InputProcessor(tiny.model_config(Path()), TOKENIZER, 50)


def test_n_requests_share_a_prompt_and_count_seeds() -> None:
    requests = input_processor().requests("r", [1, 2], SamplingParams(n=3, seed=7))
    assert [(r.request_id, r.sampling.seed, r.sampling.n) for r in requests] == [
        ("r-0", 7, 1), ("r-1", 8, 1), ("r-2", 9, 1),
    ]  # fmt: skip
    (alone,) = input_processor().requests("r", [1, 2], SamplingParams(max_tokens=None))
    assert (alone.request_id, alone.sampling.max_tokens) == ("r", 48)
    assert alone.sampling.eos_token_ids == [EOT]


def test_seeds_are_drawn_apart() -> None:
    drawn = {input_processor().requests("r", [1], SamplingParams())[0].sampling.seed for _ in range(50)}
    assert len(drawn) == 50 and all(seed is not None and 0 <= seed < 2**63 for seed in drawn)


@pytest.mark.parametrize(
    ("ids", "sampling"),
    [
        ([], SamplingParams()), ([1] * 50, SamplingParams()), ([1] * 40, SamplingParams(max_tokens=11)),
        ([-1], SamplingParams()), ([10**9], SamplingParams()), ([1], SamplingParams(bad_words=["  "])),
        ([1], SamplingParams(temperature=float("nan"))), ([1], SamplingParams(max_tokens=None, min_tokens=50)),
    ],
)  # fmt: skip
def test_what_the_model_cannot_do_is_refused(ids: list[int], sampling: SamplingParams) -> None:
    with pytest.raises(InvalidRequest):
        input_processor().requests("r", ids, sampling)
