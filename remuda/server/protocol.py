"""Bodies of the OpenAI API with vLLM's extensions, as msgspec structs.

Fields that this server does not know are ignored, as vLLM does; fields that it knows but does not offer are declared
here and refused by `check_supported` unless they carry a value that asks for nothing.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from remuda.protocol.errors import InvalidRequest

# ------------------------------------------------------------------------------------------------------------ requests


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None  # padding against traffic analysis: false is all that is offered


class GenerationRequest(msgspec.Struct, kw_only=True):
    """What completions and chat have in common. None means: not given."""

    model: str | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    priority: Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)] | None = None
    cache_salt: str | None = None
    request_id: str | None = None

    # Known and not offered.
    truncate_prompt_tokens: Any = None
    use_beam_search: Any = None
    length_penalty: Any = None
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    logits_processors: Any = None
    kv_transfer_params: Any = None
    vllm_xargs: Any = None


class CompletionRequest(GenerationRequest, kw_only=True):
    prompt: str | list[str | int | list[int]] | None = None
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None

    suffix: Any = None
    prompt_embeds: Any = None


class ChatRequest(GenerationRequest, kw_only=True):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None

    echo: Any = None
    best_of: Any = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    modalities: Any = None
    prediction: Any = None
    web_search_options: Any = None
    verbosity: Any = None
    store: Any = None
    documents: Any = None
    chat_template: Any = None
    mm_processor_kwargs: Any = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """Either a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    model: str | None = None
    tokens: list[int]


# Field -> values that ask for nothing (None always is one) and what to tell somebody who asks for more.
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "truncate_prompt_tokens": ((), "send a prompt that fits"),
    "use_beam_search": ((False,), "use n and temperature"),
    "length_penalty": ((1.0,), "it belongs to beam search"),
    "response_format": (({"type": "text"},), "only {'type': 'text'} is offered; ask for JSON in the prompt"),
    "structured_outputs": ((), "constrained decoding is not offered"),
    "guided_json": ((), "constrained decoding is not offered"),
    "guided_regex": ((), "constrained decoding is not offered"),
    "guided_choice": ((), "constrained decoding is not offered"),
    "guided_grammar": ((), "constrained decoding is not offered"),
    "logits_processors": (([],), "use logit_bias, bad_words or allowed_token_ids"),
    "kv_transfer_params": ((), "disaggregated serving is not offered"),
    "vllm_xargs": (({},), "there are no custom arguments"),
    "suffix": (("",), "infilling is not offered"),
    "prompt_embeds": ((), "send text or token ids"),
    "echo": ((False,), "echo belongs to /v1/completions"),
    "best_of": ((), "use n"),
    "functions": (([],), "use tools"),
    "function_call": (("none",), "use tools"),
    "audio": ((), "audio is not offered"),
    "modalities": ((["text"],), "only text is generated"),
    "prediction": ((), "predicted outputs are not offered"),
    "web_search_options": ((), "web search is not offered"),
    "verbosity": ((), "ask for it in the prompt"),
    "store": ((False,), "completions are not stored"),
    "documents": (([],), "put documents into the messages"),
    "chat_template": ((), "the operator sets it with --chat-template"),
    "mm_processor_kwargs": (({},), "image preprocessing is fixed by the model"),
}


def _refused_fields(kind: type[GenerationRequest]) -> tuple[str, ...]:
    offered = {"echo", "best_of"} if kind is CompletionRequest else set()
    return tuple(name for name in kind.__struct_fields__ if name in _REFUSED and name not in offered)


_REFUSED_OF: dict[type[GenerationRequest], tuple[str, ...]] = {
    kind: _refused_fields(kind) for kind in (CompletionRequest, ChatRequest)
}


def check_supported(request: GenerationRequest) -> None:
    """Raise InvalidRequest for the first field that asks for something known but not offered."""
    for name in _REFUSED_OF[type(request)]:
        value = getattr(request, name)
        if value is not None and value not in _REFUSED[name][0]:
            raise InvalidRequest(f"{name} is not supported: {_REFUSED[name][1]}", param=name, code="unsupported")
    if request.stream and request.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs cannot be streamed", param="prompt_logprobs")
    options = request.stream_options
    if options is not None and not request.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    if options is not None and options.include_obfuscation:
        raise InvalidRequest("stream_options.include_obfuscation is not supported", param="stream_options")


# ----------------------------------------------------------------------------------------------------------- responses


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct):
    reasoning_tokens: int


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


class CompletionLogprobs(msgspec.Struct):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class PromptLogprob(msgspec.Struct):
    logprob: float
    rank: int
    decoded_token: str


LogprobByToken = dict[int, PromptLogprob]


class CompletionChoice(msgspec.Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: list[LogprobByToken | None] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionResponse(msgspec.Struct, kw_only=True):
    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType = UNSET


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[ChatLogprob]
    refusal: None = None


class FunctionCall(msgspec.Struct, kw_only=True):
    """Of a message, or a part of one in a stream: then the name comes once, and the arguments grow."""

    name: str | UnsetType = UNSET
    arguments: str


class MessageToolCall(msgspec.Struct, kw_only=True):
    index: int | UnsetType = UNSET  # in streams
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: FunctionCall


class ChatMessage(msgspec.Struct):
    role: str
    content: str | None
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[MessageToolCall] | UnsetType = UNSET


class AnswerDelta(msgspec.Struct):
    """What a chunk adds to a message."""

    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[MessageToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatResponse(msgspec.Struct, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: list[LogprobByToken | None] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
