"""Chat messages to prompt text with the model's own Jinja template, sandboxed, as transformers renders it."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta
from jinja2.ext import Extension
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from remuda.protocol.errors import ConfigError, InvalidRequest
from remuda.text.tokenizer import Tokenizer, read_json

RESERVED_KWARGS = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template"})
_PROBE = "\x02probe\x03"


class ChatTemplate:
    """Renders conversations. The template writes BOS itself: encode the text without adding special tokens.

    `takes_parts` says whether it understands content that is a list of parts; where it does not, text parts are joined
    before it sees them. `variables` are the names that it reads.
    """

    def __init__(self, source: str, roles: dict[str, str], *, origin: str) -> None:
        self.origin = origin
        self.source = source
        self._roles = roles  # bos_token and its like, which templates refer to by name
        try:
            environment = _environment()
            self._template = environment.from_string(source)
            self.variables = frozenset(meta.find_undeclared_variables(environment.parse(source)))
        except jinja2.TemplateError as error:
            raise ConfigError(f"chat template {origin} is not valid Jinja: {error}") from error
        self.takes_parts = self._probe_parts()

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: dict[str, Any] | None = None,
    ) -> str:
        """Prompt text of a conversation in transformers' message form (`content` a string or a list of parts).

        Raises InvalidRequest where the template refuses the conversation.
        """
        if forbidden := RESERVED_KWARGS & (kwargs or {}).keys():
            raise InvalidRequest(f"chat_template_kwargs must not set {sorted(forbidden)}", param="chat_template_kwargs")
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message needs add_generation_prompt: false", param="continue_final_message"
            )
        if continue_final_message:
            messages = [*messages[:-1], _ending_with_probe(messages)]
        arguments = {"documents": None} | self._roles | (kwargs or {})
        try:
            text = self._template.render(
                messages=messages, tools=tools, add_generation_prompt=add_generation_prompt, **arguments
            )
        except jinja2.TemplateError as error:
            raise InvalidRequest(f"the chat template refuses these messages: {error}", param="messages") from error
        except Exception as error:  # a template is foreign code: it can stumble over its input in any way
            raise InvalidRequest(f"these messages cannot be rendered: {error}", param="messages") from error
        return text[: text.rindex(_PROBE)] if continue_final_message and _PROBE in text else text

    def _probe_parts(self) -> bool:
        """Whether a list of parts renders like the same text as a string."""

        def rendered(content: Any) -> str:
            return self.render([{"role": "user", "content": content}])

        try:
            return rendered(_PROBE) == rendered([{"type": "text", "text": _PROBE}])
        except InvalidRequest:
            return False


def load_chat_template(model_dir: str | Path, tokenizer: Tokenizer, override: str | None = None) -> ChatTemplate | None:
    """The template of --chat-template (a file, or the template itself), else of the model; None if there is none."""
    if override is not None:
        source, origin = _override_source(override)
        return ChatTemplate(source, tokenizer.roles, origin=origin)
    file = Path(model_dir) / "chat_template.jinja"
    if file.is_file():
        return ChatTemplate(file.read_text(encoding="utf-8"), tokenizer.roles, origin=str(file))
    legacy = Path(model_dir) / "chat_template.json"
    stored = tokenizer.config.get("chat_template") or read_json(legacy).get("chat_template")
    if isinstance(stored, list):  # several named templates
        named = {entry.get("name"): entry.get("template") for entry in stored if isinstance(entry, dict)}
        stored = named.get("default")
    if stored is None:
        return None
    return ChatTemplate(str(stored), tokenizer.roles, origin="of tokenizer_config.json")


def _override_source(override: str) -> tuple[str, str]:
    path = Path(override)
    try:
        if path.is_file():
            return path.read_text(encoding="utf-8"), override
    except (OSError, UnicodeDecodeError) as error:
        if "{" not in override:
            raise ConfigError(f"--chat-template {override} cannot be read: {error}") from error
    if "{" not in override:
        raise ConfigError(f"--chat-template {override}: no such file, and it is not a template itself")
    return override, "of --chat-template"


def _ending_with_probe(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The last message with a marker after its text, so that all that the template writes behind it can be cut."""
    last = messages[-1] if messages else {}
    content = last.get("content")
    if isinstance(content, list) and content and content[-1].get("type") == "text":
        return last | {"content": [*content[:-1], content[-1] | {"text": content[-1]["text"] + _PROBE}]}
    if isinstance(content, str):
        return last | {"content": content + _PROBE}
    raise InvalidRequest("continue_final_message needs a last message that ends in text", param="messages")


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training; when serving, its body is simply rendered."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return str(caller())


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter would escape HTML characters."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
