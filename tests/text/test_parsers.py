"""Tool calls as models write them, in whole replies and cut anywhere."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remuda.text.parsers.calls import Reply, ToolCall, ToolCallParser
from remuda.text.parsers.hermes import HermesToolCalls
from remuda.text.parsers.llama import LlamaToolCalls
from remuda.text.parsers.mistral import MistralToolCalls
from remuda.text.parsers.select import TOOL_CALL_PARSERS, tool_call_parser_of

NAMES = frozenset({"f", "g", "get-weather", "class", "srv.tool"})
Calls = list[tuple[str, object]]

# What the model wrote -> the content, and its calls.
LLAMA: list[tuple[str, str, Calls]] = [
    ('[f(a=1, b="x")]', "", [("f", {"a": 1, "b": "x"})]),
    ("f(a=[1, (2, 3)], b={'c': None})", "", [("f", {"a": [1, [2, 3]], "b": {"c": None}})]),
    ("[f(), g(x=-1.5, y=True, z=false,)]", "", [("f", {}), ("g", {"x": -1.5, "y": True, "z": False})]),
    ("<|python_start|>[f(a=True)]<|python_end|>", "", [("f", {"a": True})]),
    ('<|python_tag|>{"name": "f", "parameters": {}}', "", [("f", {})]),
    ('{"name": "f", "parameters": {"a": 1}}', "", [("f", {"a": 1})]),
    (' {"name": "f", "arguments": {}}\n', "", [("f", {})]),
    ("{'name': 'f', 'arguments': {'a': True}}", "", [("f", {"a": True})]),
    ('{"type": "function", "name": "f", "parameters": {"a": null}, "x": [1]}', "", [("f", {"a": None})]),
    ('{"parameters": {"a": 1}, "function": "f"}', "", [("f", {"a": 1})]),
    ('[{"name": "f", "parameters": {"a": 1}}, {"name": "g", "arguments": "{\\"b\\": 2}"}]', "",
     [("f", {"a": 1}), ("g", {"b": 2})]),
    ('f({"a": 1})', "", [("f", {"a": 1})]),
    ("I will look.\n\n[f(a=1)]", "I will look.", [("f", {"a": 1})]),
    ("f(a=1); g(b=2)\nf()", "", [("f", {"a": 1}), ("g", {"b": 2}), ("f", {})]),
    ('[f(a=1)]\n{"name": "g", "parameters": {}}', "", [("f", {"a": 1}), ("g", {})]),
    ("f(a=1)\n\nDone.", "\n\nDone.", [("f", {"a": 1})]),
    ('[f(a="x]), g(\\"", b="y")]', "", [("f", {"a": 'x]), g("', "b": "y"})]),
    ("[f(a='it's\nüber 日本 \\u00e9 \\ud83d\\ude00 \\d \\x41')]", "", [("f", {"a": "it's\nüber 日本 é 😀 \\d A"})]),
    ("f(a='''x'y''', b=\"\", c='\\ud800!')", "", [("f", {"a": "x'y", "b": "", "c": "\ufffd!"})]),
    ("[get-weather(class='a', a-b=0x1F), class(from=1_000), srv.tool(x=.5)]", "",
     [("get-weather", {"class": "a", "a-b": 31}), ("class", {"from": 1000}), ("srv.tool", {"x": 0.5})]),
    ("[f(a=1), g(x)]", ", g(x)]", [("f", {"a": 1})]),
    ("f(a=1)) or so", ") or so", [("f", {"a": 1})]),
    ("[f(a=1)", "", [("f", {"a": 1})]),
]  # fmt: skip
HERMES: list[tuple[str, str, Calls]] = [
    ('<tool_call>\n{"name": "f", "arguments": {"a": "</tool_call>"}}\n</tool_call>\n<tool_call>\n{"name": "g"}\n'
     "</tool_call>", "", [("f", {"a": "</tool_call>"}), ("g", {})]),
    ('Well.\n<tool_call>{"name": "f", "arguments": {"a": 1}}', "Well.", [("f", {"a": 1})]),
]  # fmt: skip
MISTRAL: list[tuple[str, str, Calls]] = [
    ('[TOOL_CALLS] [{"name": "f", "arguments": {"a": [1]}}, {"name": "g", "arguments": {}}]', "",
     [("f", {"a": [1]}), ("g", {})]),
    ('Hm.[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]a1b2[ARGS]{"b": 2}', "Hm.",
     [("f", {"a": 1}), ("g", {"b": 2})]),
]  # fmt: skip
LOOKALIKES = [
    "", "   ", "[", "f", "f(x)", "f(**a)", "[f(a=b)]", "f(a=__import__('os'))", "{}", '{"name": 1}', "[1, 2, 3]", "[]",
    "[Note] Rain [1] is likely.", '{"name": "Bob", "age": 5}', '{"name": "f"}', "I would call f(a=1).", "[h(a=1)]",
    '{"name": "h", "parameters": {}}', "def f(a=1): pass", "<|python_start|>hello<|python_end|>", "a < b <|python_st",
    '{"name": "f", "parameters": [1]}', "[f(a=02139)]", "[TOOL_CALLS]h{}", "[TOOL_CALLS] none",
    "<tool_call>x</tool_call>",
    '<tool_call>{"name": "h", "arguments": {}}</tool_call>', "<tool_call", "[TOOL_", "f(a=nan)", "f\n(a=1)", "(" * 500,
]  # fmt: skip
CUT = [
    ('[f(a="one tw', '{"a": "one tw'),
    ('{"name": "f", "parameters": {"a": [1, 2', '{"a": [1, '),
    ("f(a=1, b=2", '{"a": 1'),
]
TRANSCRIPTS = [
    *[(LlamaToolCalls, text) for text, _, _ in LLAMA],
    *[(HermesToolCalls, text) for text, _, _ in HERMES],
    *[(MistralToolCalls, text) for text, _, _ in MISTRAL],
    *[(kind, text) for kind in (LlamaToolCalls, HermesToolCalls, MistralToolCalls) for text in LOOKALIKES],
    *[(LlamaToolCalls, text) for text, _ in CUT],
]


def parsed(reply: Reply) -> tuple[str, Calls]:
    return reply.content, [(call.name, json.loads(call.arguments)) for call in reply.calls]


def in_pieces(kind: type[ToolCallParser], pieces: list[str]) -> Reply:
    """As a stream's client puts it together."""
    parser = kind(NAMES)
    content, calls = "", []
    for deltas in [*map(parser.feed, pieces), parser.finish()]:
        for delta in deltas:
            if isinstance(delta, str):
                content += delta
            elif delta.name is not None:
                assert delta.index == len(calls)
                calls.append(ToolCall(delta.name, delta.arguments))
            else:
                calls[delta.index] = calls[delta.index]._replace(
                    arguments=calls[delta.index].arguments + delta.arguments
                )
    return Reply(content, calls)


@pytest.mark.parametrize(("text", "content", "calls"), LLAMA)
def test_llama(text: str, content: str, calls: Calls) -> None:
    assert parsed(LlamaToolCalls.parse(text, NAMES)) == (content, calls)


@pytest.mark.parametrize(("text", "content", "calls"), HERMES)
def test_hermes(text: str, content: str, calls: Calls) -> None:
    assert parsed(HermesToolCalls.parse(text, NAMES)) == (content, calls)


@pytest.mark.parametrize(("text", "content", "calls"), MISTRAL)
def test_mistral(text: str, content: str, calls: Calls) -> None:
    assert parsed(MistralToolCalls.parse(text, NAMES)) == (content, calls)


@pytest.mark.parametrize("kind", [LlamaToolCalls, HermesToolCalls, MistralToolCalls])
@pytest.mark.parametrize("text", LOOKALIKES)
def test_what_only_looks_like_a_call_is_text(kind: type[ToolCallParser], text: str) -> None:
    assert kind.parse(text, NAMES) == Reply(text, [])


@pytest.mark.parametrize(("text", "arguments"), CUT)
def test_a_call_that_is_cut_keeps_its_beginning(text: str, arguments: str) -> None:
    assert LlamaToolCalls.parse(text, NAMES) == Reply("", [ToolCall("f", arguments)])


def test_without_names_every_name_counts() -> None:
    assert parsed(LlamaToolCalls.parse("[anything(a=1)]")) == ("", [("anything", {"a": 1})])


@pytest.mark.parametrize(("kind", "text"), TRANSCRIPTS)
def test_every_cut_in_two_and_into_characters(kind: type[ToolCallParser], text: str) -> None:
    whole = kind.parse(text, NAMES)
    assert in_pieces(kind, list(text)) == whole
    assert all(in_pieces(kind, [text[:cut], text[cut:]]) == whole for cut in range(len(text) + 1))


FRAGMENTS = st.sampled_from([
    "f(", "[", "]", "{", "}", ")", "(", '"', "'", "\\", "\n", " ", ",", ";", "=", ":", "a=1", "a", "g", '{"name": "f"',
    '"parameters": {', '{"name": "f", "parameters": {"a": 1}}', "[f(a=1)]", "<tool_call>", "</tool_call>",
    "[TOOL_CALLS]", "[ARGS]", "1.5", "<|python_start|>", "<", "prose ", "é", "\\u00", "\\ud83d", "True", "'''", "f({",
])  # fmt: skip


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from([LlamaToolCalls, HermesToolCalls, MistralToolCalls]), st.lists(FRAGMENTS, max_size=25), st.data()
)
def test_every_split_of_anything_gives_the_same(
    kind: type[ToolCallParser], fragments: list[str], data: st.DataObject
) -> None:
    text = "".join(fragments)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=12)) if text else []
    bounds = sorted([0, *cuts, len(text)])
    whole = kind.parse(text, NAMES)
    assert in_pieces(kind, [text[a:b] for a, b in pairwise(bounds)]) == whole
    assert whole.calls or whole.content == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), JSON, max_size=4))
def test_whatever_the_arguments_hold_comes_through(arguments: dict[str, object]) -> None:
    pythonic = f"[f({', '.join(f'{key}={value!r}' for key, value in arguments.items())})]"
    as_json = json.dumps({"name": "f", "parameters": arguments})
    for text in (pythonic, as_json):
        assert parsed(LlamaToolCalls.parse(text, NAMES)) == ("", [("f", arguments)])


def test_arguments_grow_while_they_come() -> None:
    parser = LlamaToolCalls(NAMES)
    parser.feed('[f(a="')
    grown = [piece.arguments for word in ("one ", "two ", "three") for piece in parser.feed(word)]  # type: ignore[union-attr]
    assert grown == ["one ", "two ", "three"]


@pytest.mark.parametrize(
    "unit",
    ["(", "[", '{"a":', '{"parameters":', "f(", " ", "f\n", "[f(a=[", '"', "<|python_", "[TOOL_CALLS]", "f(a=1);"],
)  # fmt: skip
@pytest.mark.parametrize("kind", [LlamaToolCalls, MistralToolCalls])
def test_hostile_text_takes_linear_time(kind: type[ToolCallParser], unit: str) -> None:
    def cpu_s(count: int) -> float:
        pieces = [unit] * count
        began = time.process_time()
        in_pieces(kind, pieces)
        return time.process_time() - began

    small, large = min(cpu_s(1000) for _ in range(3)), cpu_s(16_000)
    assert large < 16 * 6 * small + 0.1


def test_the_template_decides_before_the_architecture() -> None:
    assert tool_call_parser_of("... <tool_call> ...", "llama3_json") is HermesToolCalls
    assert tool_call_parser_of("... [TOOL_CALLS] ...", "llama3_json") is MistralToolCalls
    assert tool_call_parser_of("", "llama4_pythonic") is TOOL_CALL_PARSERS["llama4_json"] is LlamaToolCalls


def test_mistrals_ids_are_what_its_templates_want() -> None:
    assert len(MistralToolCalls.new_id()) == 9 and MistralToolCalls.new_id().isalnum()
