"""Reasoning is split from the answer, wherever the text is cut."""

from __future__ import annotations

import pytest

from remuda.text.parsers.reasoning import DeepSeekR1Reasoning, Qwen3Reasoning, ReasoningParser, Thought

CASES: list[tuple[type[ReasoningParser], str, str, Thought]] = [
    (Qwen3Reasoning, "", "<think>\nA < b,\n\nso </b> c.\n</think>\n\nIt is c.\n",
     Thought("A < b,\n\nso </b> c.", "It is c.\n")),
    (Qwen3Reasoning, "", " It is <think> c.", Thought("", " It is <think> c.")),
    (Qwen3Reasoning, "<think>\n", "hm</think>yes</think>", Thought("hm", "yes</think>")),
    (Qwen3Reasoning, "<think>\n\n</think>\n\n", "yes", Thought("", "yes")),
    (Qwen3Reasoning, "", "<think>never end", Thought("never end", "")),
    (Qwen3Reasoning, "", "<thin", Thought("", "<thin")),
    (Qwen3Reasoning, "", "", Thought("", "")),
    (DeepSeekR1Reasoning, "", "hm\n</think>\n\nyes", Thought("hm", "yes")),
    (DeepSeekR1Reasoning, "", "<think>hm</think>yes", Thought("hm", "yes")),
    (DeepSeekR1Reasoning, "", "still thinking </thi", Thought("still thinking </thi", "")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "prompt", "text", "expected"), CASES)
def test_reasoning(kind: type[ReasoningParser], prompt: str, text: str, expected: Thought) -> None:
    for cut in range(len(text) + 1):
        for pieces in ([text[:cut], text[cut:]], list(text)):
            parser = kind(prompt)
            thoughts = [*map(parser.feed, pieces), parser.finish()]
            joined = Thought("".join(t.reasoning for t in thoughts), "".join(t.content for t in thoughts))
            assert joined == expected
