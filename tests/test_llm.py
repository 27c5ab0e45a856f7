"""The Python API as a script uses it."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from remuda import LLM, SamplingParams
from remuda.protocol.errors import ConfigError, InvalidRequest, ReplicaDied

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_maverick: Path) -> Iterator[LLM]:
    with LLM(str(tiny_maverick), dtype="float32", max_model_len=512, max_waiting=4, native_kernels="off") as made:
        yield made


def test_results_come_in_the_prompts_order_through_a_small_queue(llm: LLM) -> None:
    prompts = [f"number {i}" for i in range(12)]
    together = llm.generate(prompts, GREEDY, use_tqdm=False)
    alone = [llm.generate(prompt, GREEDY, use_tqdm=False)[0] for prompt in prompts]
    assert [r.prompt for r in together] == prompts
    assert [r.outputs[0].token_ids for r in together] == [r.outputs[0].token_ids for r in alone]
    assert llm.stats().kv_pages_used == 0


def test_every_form_of_a_prompt_is_the_same_prompt(llm: LLM) -> None:
    ids = llm.tokenizer.encode("Hello there")
    forms = ["Hello there", {"prompt": "Hello there"}, ids, {"prompt_token_ids": ids}]
    results = llm.generate(forms, GREEDY, use_tqdm=False)
    assert {tuple(r.prompt_token_ids) for r in results} == {tuple(ids)}
    assert len({tuple(r.outputs[0].token_ids) for r in results}) == 1
    assert llm.generate(ids, GREEDY, use_tqdm=False)[0].prompt_token_ids == ids


def test_prompts_without_a_seed_follow_the_seed_of_the_model(tiny_maverick: Path) -> None:
    def answers(seed: int) -> list[list[int]]:
        with LLM(str(tiny_maverick), max_model_len=64, seed=seed, native_kernels="off") as made:
            params = SamplingParams(temperature=2.0, max_tokens=6, ignore_eos=True)
            return [r.outputs[0].token_ids for r in made.generate(["same", "same"], params, use_tqdm=False)]

    first = answers(1)
    assert first == answers(1)
    assert first[0] != first[1]
    assert answers(2)[0] == first[1]


def test_several_answers_with_logprobs(llm: LLM) -> None:
    params = SamplingParams(n=3, temperature=1.0, seed=7, max_tokens=5, ignore_eos=True, logprobs=2, prompt_logprobs=1)
    (result,) = llm.generate("Some words of a prompt", params, use_tqdm=False)
    assert [completion.index for completion in result.outputs] == [0, 1, 2]
    assert len({tuple(completion.token_ids) for completion in result.outputs}) > 1
    for completion in result.outputs:
        assert completion.logprobs is not None
        chosen = [position[token] for position, token in zip(completion.logprobs, completion.token_ids, strict=True)]
        assert sum(entry.logprob for entry in chosen) == pytest.approx(completion.cumulative_logprob)
        for position, entry in zip(completion.logprobs, chosen, strict=True):
            better = sum(other.logprob > entry.logprob for other in position.values())
            assert entry.rank > better
            assert all(llm.tokenizer.token_text(token) == e.decoded_token for token, e in position.items())
    assert result.prompt_logprobs is not None
    assert result.prompt_logprobs[0] is None
    assert len(result.prompt_logprobs) == len(result.prompt_token_ids)


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    (free,) = llm.generate("Stop me", SamplingParams(temperature=0, max_tokens=24, ignore_eos=True), use_tqdm=False)
    text = free.outputs[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    (stopped,) = llm.generate(
        "Stop me", SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop=[stop]), use_tqdm=False
    )
    assert stopped.outputs[0].text == text[: text.index(stop)]
    assert (stopped.outputs[0].finish_reason, stopped.outputs[0].stop_reason) == ("stop", stop)


def test_images_change_the_answer_to_a_chat(llm: LLM) -> None:
    def message(colour: str) -> list[dict[str, object]]:
        buffer = io.BytesIO()
        Image.new("RGB", (90, 60), colour).save(buffer, "PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Which colour?"}]
        return [{"role": "user", "content": parts}]

    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, logprobs=1)
    red, blue, again = llm.chat([message("red"), message("blue"), message("red")], params, use_tqdm=False)
    assert len(red.prompt_token_ids) == len(blue.prompt_token_ids) > 20
    first = [result.outputs[0].cumulative_logprob for result in (red, blue, again)]
    assert first[0] == pytest.approx(first[2], abs=1e-4)
    assert first[0] != pytest.approx(first[1], abs=1e-4)


@pytest.mark.parametrize(
    ("prompt", "params"),
    [
        ([], GREEDY),
        ([[1 << 30]], GREEDY),
        ([[5] * 600], GREEDY),
        (None, GREEDY),
        ([{"text": "no such key"}], GREEDY),
        ([{"prompt_token_ids": []}], GREEDY),
        ([["5"]], GREEDY),
        ("Hello", {"temperature": 0}),
        ("Hello", SamplingParams(max_tokens=2.5)),  # type: ignore[arg-type]
        ("Hello", SamplingParams(temperature="hot")),  # type: ignore[arg-type]
        ("Hello", SamplingParams(temperature=-1)),
        ("Hello", SamplingParams(max_tokens=600)),
        ("Hello", [GREEDY, GREEDY]),
    ],
)
def test_bad_requests_are_refused_and_leave_nothing(llm: LLM, prompt: object, params: object) -> None:
    if prompt == []:
        assert llm.generate([], GREEDY, use_tqdm=False) == []
        return
    with pytest.raises(InvalidRequest):
        llm.generate(prompt, params, use_tqdm=False)  # type: ignore[arg-type]
    assert (llm.stats().running, llm.stats().waiting) == (0, 0)


def test_one_stop_text_is_not_taken_letter_by_letter() -> None:
    assert SamplingParams(stop="END").stop == ["END"]  # type: ignore[arg-type]
    assert SamplingParams(stop=None, bad_words=("a", "b")).bad_words == ["a", "b"]  # type: ignore[arg-type]


def test_after_an_interrupted_step_and_after_close_it_says_so_instead_of_waiting(
    tiny_maverick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LLM(str(tiny_maverick), max_model_len=64, native_kernels="off") as llm:
        with monkeypatch.context() as patch:
            patch.setattr("remuda.worker.worker.Worker.launch", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                llm.generate("Hello", GREEDY, use_tqdm=False)
        for _ in range(2):
            with pytest.raises(ReplicaDied, match="cut off"):
                llm.generate("Hello", GREEDY, use_tqdm=False)
        llm.close()
        with pytest.raises(ReplicaDied, match="closed"):
            llm.chat([{"role": "user", "content": "Hello"}], GREEDY, use_tqdm=False)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_unknown_option_is_refused_with_the_nearest(tiny_maverick: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean max_num_seqs"):
        LLM(str(tiny_maverick), max_num_sequences=3)


def test_a_plain_script_needs_no_main_guard(tmp_path: Path, tiny_maverick: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from remuda import LLM, SamplingParams\n"
        f"llm = LLM({str(tiny_maverick)!r}, tensor_parallel_size=2, max_model_len=128, native_kernels='off')\n"
        "print(len(llm.generate('Hi', SamplingParams(max_tokens=3, ignore_eos=True))[0].outputs[0].token_ids))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


def test_without_a_tokenizer_token_ids_go_in_and_come_out(tiny_maverick: Path, llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=1)
    (expected,) = llm.generate([[5, 6, 7]], params, use_tqdm=False)
    with LLM(str(tiny_maverick), skip_tokenizer_init=True, max_model_len=64, native_kernels="off") as bare:
        (result,) = bare.generate([[5, 6, 7]], params, use_tqdm=False)
        assert result.outputs[0].token_ids == expected.outputs[0].token_ids
        assert result.outputs[0].text == ""
        for refused in (
            lambda: bare.generate("a text", params),
            lambda: bare.chat([{"role": "user", "content": "a text"}], params),
            lambda: bare.generate([[5]], SamplingParams(max_tokens=4, stop=["end"])),
        ):
            with pytest.raises(InvalidRequest, match="tokenizer"):
                refused()
