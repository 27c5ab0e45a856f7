"""Chat templates render as transformers renders them, and cannot reach out of their sandbox."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from remuda.protocol.errors import ConfigError, InvalidRequest
from remuda.text.chat import ChatTemplate, load_chat_template
from remuda.text.messages import normalise
from tests.text import tiny

MESSAGES = [
    {"role": "system", "content": "Be brief <>&'\"."},
    {"role": "user", "content": "Grüße"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, "é"]}}}]},
    {"role": "tool", "content": '{"x": 1}'},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "é <b>", "parameters": {"type": "object"}}}]
ROLES = {"bos_token": "<s>", "eos_token": "</s>"}
TEMPLATES = [
    tiny.TEMPLATE,
    "{%- for m in messages %}\n  {% if m.role == 'user' %}\n [{{ m.content | trim }}]\n  {% endif %}\n{% endfor %}\n",
    "{% for t in tools %}{{ t | tojson(indent=2) }}{% endfor %}{% for m in messages %}{{ m | tojson }}{% endfor %}",
    "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ eos_token }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ extra }}",
]


@pytest.mark.parametrize("source", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_renders_like_transformers(source: str, add_generation_prompt: bool) -> None:
    theirs, _ = render_jinja_template(
        conversations=[MESSAGES], tools=TOOLS, chat_template=source, add_generation_prompt=add_generation_prompt,
        extra="more", **ROLES,
    )  # fmt: skip
    ours = ChatTemplate(source, ROLES, origin="test").render(
        MESSAGES, tools=TOOLS, add_generation_prompt=add_generation_prompt, kwargs={"extra": "more"}
    )
    assert ours == theirs[0]


def test_the_final_message_can_be_continued() -> None:
    template = ChatTemplate(tiny.TEMPLATE, ROLES, origin="test")
    messages = [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "one, two,"}]
    text = template.render(messages, add_generation_prompt=False, continue_final_message=True)
    assert text.endswith("\n\none, two,")
    with pytest.raises(InvalidRequest, match="add_generation_prompt"):
        template.render(messages, continue_final_message=True)
    with pytest.raises(InvalidRequest, match="ends in text"):
        template.render([{"role": "user", "content": []}], add_generation_prompt=False, continue_final_message=True)


def test_a_template_can_refuse() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {}, origin="test")
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        template.render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% set _ = messages.append(1) %}",
        "{{ messages | length / 0 }}",
        "{{ 'a' * messages }}",
    ],
)
def test_templates_stay_in_their_sandbox(source: str) -> None:
    try:
        text = ChatTemplate(source, {}, origin="test").render(MESSAGES)
    except InvalidRequest:
        return
    assert text == ""


def test_user_arguments_cannot_replace_the_conversation() -> None:
    with pytest.raises(InvalidRequest, match="messages"):
        ChatTemplate(tiny.TEMPLATE, ROLES, origin="test").render(MESSAGES, kwargs={"messages": []})


def test_where_templates_come_from(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    render = lambda template: template.render([{"role": "user", "content": "x"}])  # noqa: E731
    found = load_chat_template(tmp_path, tokenizer)
    assert found is not None and "tokenizer_config" in found.origin
    (tmp_path / "chat_template.jinja").write_text("file {{ bos_token }}")
    assert render(load_chat_template(tmp_path, tokenizer)) == "file <|begin_of_text|>"
    (tmp_path / "other.jinja").write_text("other")
    assert render(load_chat_template(tmp_path, tokenizer, str(tmp_path / "other.jinja"))) == "other"
    assert render(load_chat_template(tmp_path, tokenizer, "inline {{ 1 + 1 }}")) == "inline 2"
    with pytest.raises(ConfigError, match="no such file"):
        load_chat_template(tmp_path, tokenizer, "missing.jinja")
    with pytest.raises(ConfigError, match="not valid Jinja"):
        load_chat_template(tmp_path, tokenizer, "{% for %}")
    (tmp_path / "chat_template.jinja").unlink()
    tokenizer.config["chat_template"] = [{"name": "default", "template": "named"}]
    assert render(load_chat_template(tmp_path, tokenizer)) == "named"
    tokenizer.config["chat_template"] = None
    assert load_chat_template(tmp_path, tokenizer) is None


def test_templates_that_do_not_know_parts_get_joined_text() -> None:
    plain = ChatTemplate("{% for m in messages %}{{ m['content'] | trim }}{% endfor %}", {}, origin="test")
    assert not plain.takes_parts
    assert ChatTemplate(tiny.TEMPLATE, ROLES, origin="test").takes_parts
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert normalise(parts, keep_text_parts=False).messages[0]["content"] == "a\nb"
    assert len(normalise(parts, keep_text_parts=True).messages[0]["content"]) == 2


def test_images_become_placeholders_and_arguments_are_parsed() -> None:
    messages: list[dict[str, Any]] = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "U"}}],
        },
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]},
    ]
    conversation = normalise(messages, keep_text_parts=True)
    assert conversation.image_urls == ["U"]
    assert conversation.messages[0]["content"] == [{"type": "text", "text": "see"}, {"type": "image"}]
    assert conversation.messages[1]["content"] == ""
    assert conversation.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"role": 3, "content": "x"},
        {"role": "user", "content": 7},
        {"role": "user", "content": [7]},
        {"role": "user", "content": [{"type": "video_url", "video_url": "x"}]},
        {"role": "user", "content": [{"type": "text"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": 7}]},
        {"role": "system", "content": [{"type": "image_url", "image_url": {"url": "U"}}]},
        {"role": "assistant", "tool_calls": "x"},
        {"role": "assistant", "tool_calls": [{"function": {}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
    ],
)
def test_malformed_messages_are_named(message: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"messages\[0\]"):
        normalise([message], keep_text_parts=True)
    json.dumps(message)  # every one of them can arrive as JSON
