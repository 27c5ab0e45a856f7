"""From the model's text to an assistant message: reasoning, content and tool calls."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET

from remuda.protocol.request import FinishReason
from remuda.server.config import ServerConfig
from remuda.server.protocol import AnswerDelta, ChatMessage, ChatRequest, FunctionCall, MessageToolCall
from remuda.server.tools import function_names
from remuda.text.parsers.calls import CallDelta, ToolCallParser
from remuda.text.parsers.reasoning import CLOSE, ReasoningParser
from remuda.text.parsers.select import REASONING_PARSERS, TOOL_CALL_PARSERS, tool_call_parser_of
from remuda.text.tokenizer import Tokenizer


class AnswerFormat:
    """How this server's model writes what is more than text."""

    def __init__(self, config: ServerConfig, tokenizer: Tokenizer, template: str) -> None:
        self._tokenizer = tokenizer
        self.reasoning = REASONING_PARSERS[config.reasoning_parser] if config.reasoning_parser else None
        self._tool_calls: type[ToolCallParser] | None = None
        if config.auto_tool_choice and config.tool_call_parser:
            self._tool_calls = TOOL_CALL_PARSERS[config.tool_call_parser]
        elif config.auto_tool_choice:
            self._tool_calls = tool_call_parser_of(template, config.usual_tool_call_parser)

    def readers(self, request: ChatRequest, prompt: str, count: int) -> list[AnswerReader] | None:
        """One for each of `count` answers to a prompt, or None if they can be nothing but text."""
        with_calls = self._tool_calls is not None and bool(request.tools) and request.tool_choice != "none"
        if not with_calls and self.reasoning is None:
            return None
        names = function_names(request.tools or ()) if with_calls else frozenset[str]()
        return [
            AnswerReader(
                self.reasoning(prompt) if self.reasoning else None,
                self._tool_calls(names) if self._tool_calls and with_calls else None,
                most_calls=1 if request.parallel_tool_calls is False else None,
                tokenizer=self._tokenizer,
            )
            for _ in range(count)
        ]


class AnswerReader:
    """Reads one answer as it comes. Calls beyond `most_calls` are left out."""

    def __init__(
        self,
        reasoning: ReasoningParser | None,
        tool_calls: ToolCallParser | None,
        most_calls: int | None,
        tokenizer: Tokenizer,
    ) -> None:
        self._reasoning = reasoning
        self._tool_calls = tool_calls
        self._most_calls = most_calls
        self._tokenizer = tokenizer
        self._reasoning_tokens: int | None = None
        self._called = False

    @property
    def needs_special_tokens(self) -> bool:
        return self._tool_calls is not None and self._tool_calls.needs_special_tokens

    def read(self, text: str, *, final: bool) -> AnswerDelta | None:
        """What this piece of the model's text adds to the message; None: nothing yet."""
        delta = AnswerDelta()
        if self._reasoning is not None:
            thought = self._reasoning.feed(text)
            text = thought.content
            if final:
                rest = self._reasoning.finish()
                text += rest.content
                thought = rest._replace(reasoning=thought.reasoning + rest.reasoning)
            if thought.reasoning:
                delta.reasoning_content = thought.reasoning
        if self._tool_calls is not None:
            pieces = self._tool_calls.feed(text) + (self._tool_calls.finish() if final else [])
            text = "".join([piece for piece in pieces if isinstance(piece, str)])
            calls = self._calls([piece for piece in pieces if isinstance(piece, CallDelta)])
            if calls:
                delta.tool_calls = calls
        if text:
            delta.content = text
        return delta if text or delta.tool_calls or delta.reasoning_content else None

    def message(self, text: str) -> ChatMessage:
        """The whole answer."""
        delta = self.read(text, final=True) or AnswerDelta()
        if delta.tool_calls:
            for call in delta.tool_calls:
                call.index = UNSET
        content = delta.content or (None if delta.tool_calls or delta.reasoning_content else "")
        return ChatMessage("assistant", content, reasoning_content=delta.reasoning_content, tool_calls=delta.tool_calls)

    def finish_reason(self, reason: FinishReason | None) -> str | None:
        """An answer that ended by itself and called something ended for its calls."""
        return "tool_calls" if self._called and reason is FinishReason.STOP else reason

    def reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """How many of the answer's tokens so far are reasoning, its marks included."""
        if self._reasoning is None or not self._reasoning.opened:
            return 0
        if not self._reasoning.closed:
            return len(token_ids)
        if self._reasoning_tokens is None:
            self._reasoning_tokens = _position(self._tokenizer, token_ids)
        return self._reasoning_tokens

    def _calls(self, deltas: Sequence[CallDelta]) -> list[MessageToolCall]:
        """What `deltas` add, at most one entry a call."""
        entries: dict[int, MessageToolCall] = {}
        for delta in deltas:
            if self._most_calls is not None and delta.index >= self._most_calls:
                continue
            entry = entries.get(delta.index)
            if entry is not None:
                entry.function.arguments += delta.arguments
            else:
                entries[delta.index] = self._entry(delta)
        return list(entries.values())

    def _entry(self, delta: CallDelta) -> MessageToolCall:
        function = FunctionCall(arguments=delta.arguments)
        if delta.name is None:
            return MessageToolCall(index=delta.index, function=function)
        self._called = True
        assert self._tool_calls is not None
        function.name = delta.name
        return MessageToolCall(index=delta.index, id=self._tool_calls.new_id(), type="function", function=function)


def _position(tokenizer: Tokenizer, token_ids: Sequence[int]) -> int:
    """Tokens up to the end of the reasoning, the closing mark included. Where it is no token of its own, the text is
    searched for it.
    """
    mark = tokenizer.backend.token_to_id(CLOSE)
    if mark is not None and mark in token_ids:
        return token_ids.index(mark) + 1
    low, high = 0, len(token_ids)
    while low < high:
        middle = (low + high) // 2
        if CLOSE in tokenizer.decode(token_ids[:middle]):
            high = middle
        else:
            low = middle + 1
    return low
