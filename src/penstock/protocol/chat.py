"""OpenAI's chat completions: request, answer, stream chunk."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from penstock.base.errors import InvalidRequestError, UnsupportedParameterError
from penstock.protocol.generation import GenerationRequest, MaxTokens, TokenLimit, TopLogprobs
from penstock.protocol.strict import NOT_JSON, Unbuilt, read_request, refuse_unbuilt, shown
from penstock.protocol.tools import (
    AnswerToolCall,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    Tools,
    ToolUse,
    check_history,
    resolve_tool_use,
)
from penstock.protocol.usage import Usage

Role = Literal["system", "developer", "user", "assistant", "tool"]

UNBUILT: Unbuilt = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),  # not even "none": a model that thinks by its template thinks
    "safety_identifier": (),
    "store": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}

# Clients send an assistant's message back as they got it, with its empty fields.
UNBUILT_IN_MESSAGE: Unbuilt = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
}


# No value of these is neutral.
UNBUILT_IN_PART = frozenset({"prompt_cache_breakpoint"})


class ContentPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One part of a message's content; only text is built."""

    type: Literal["text"]
    text: str


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: Role
    content: str | list[ContentPart] | None = None
    reasoning_content: str | None = None
    """What the assistant thought, as it was answered with (DeepSeek's and vLLM's name)."""
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The content as one string, parts joined."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


_BUILT_IN_MESSAGE = frozenset(field.encode_name for field in msgspec.structs.fields(Message))


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    """The fields of a chat request that are built; see UNBUILT for the others."""

    prompt_field: ClassVar[str] = "messages"
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """vLLM's name: variables of the chat template."""

    @property
    def tool_use(self) -> ToolUse | None:
        """The tools that the model may or must call; None for none.

        Raises:
            InvalidRequestError: the fields do not fit together; `param` names one.
        """
        return resolve_tool_use(self.tools, self.tool_choice, self.parallel_tool_calls)

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives whose log-probabilities are asked for with each token's own; None: none at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def limit(self) -> TokenLimit:
        """Either of the two fields that say it; `read_chat_request` refuses both together."""
        if self.max_completion_tokens is None:
            return TokenLimit("max_tokens", self.max_tokens)
        return TokenLimit("max_completion_tokens", self.max_completion_tokens)


_REQUEST = msgspec.json.Decoder(ChatRequest)


class _RawContent(msgspec.Struct, frozen=True):
    messages: list[dict[str, msgspec.Raw]] = []


_RAW = msgspec.json.Decoder(_RawContent)


def read_chat_request(body: bytes) -> ChatRequest:
    """Decodes and checks a chat request.

    Raises:
        InvalidRequestError, UnsupportedParameterError, UnknownParameterError: `param` names the field.
    """
    _refuse_parts(body)
    request = read_request(body, _REQUEST, UNBUILT)
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise InvalidRequestError(
            "'max_tokens' and 'max_completion_tokens' exclude each other", param="max_completion_tokens"
        )
    for index, message in enumerate(request.messages):
        if message.content is None and message.role != "assistant":
            raise InvalidRequestError("content is missing", param=f"messages[{index}].content")
        if message.reasoning_content is not None and message.role != "assistant":
            param = f"messages[{index}].reasoning_content"
            raise InvalidRequestError(f"only an assistant has {param!r}", param=param)
    check_history(request.messages)
    use = request.tool_use
    if use is not None and use.is_forced:
        request.refuse_free_ends("tool_choice")
    if use is not None and request.form is not None:
        raise InvalidRequestError(
            f"{request.form.param!r} leaves no room for calls: leave out 'tools', or 'tool_choice': 'none'",
            param=request.form.param,
        )
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequestError("'top_logprobs' needs 'logprobs': true", param="top_logprobs")
    request.check()
    return request


def _refuse_parts(body: bytes) -> None:
    """Names what is unbuilt inside the messages: roles, content parts, fields."""
    try:
        messages = _RAW.decode(body).messages
    except NOT_JSON:
        return  # the typed reading that follows says what is wrong, with the path
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if bytes(message.get("role", b"")) == b'"function"':
            raise UnsupportedParameterError(
                f"{where}.role is 'function', which was replaced by 'tool'", param=f"{where}.role"
            )
        rest = {name: raw for name, raw in message.items() if name not in _BUILT_IN_MESSAGE}
        refuse_unbuilt(rest, UNBUILT_IN_MESSAGE, f"{where}.")
        if bytes(message.get("content", b"")).lstrip()[:1] == b"[":
            _refuse_content(message["content"], f"{where}.content")


def _refuse_content(content: msgspec.Raw, where: str) -> None:
    try:
        parts = msgspec.json.decode(content, type=list[dict[str, msgspec.Raw]])
    except NOT_JSON:
        return
    for index, part in enumerate(parts):
        kind = bytes(part.get("type", b'"text"'))
        if kind.startswith(b'"') and kind != b'"text"':
            raise UnsupportedParameterError(
                f"only text is supported: {where}[{index}].type is {shown(kind.decode(errors='replace'))}",
                param=f"{where}[{index}].type",
            )
        for name in UNBUILT_IN_PART & part.keys():
            param = f"{where}[{index}].{name}"
            raise UnsupportedParameterError(f"{param!r} is not supported; leave it out", param=param)


class TopLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A token that might have come, with the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]
    """The token's UTF-8; one that holds a part of a character shows as U+FFFD in `token`."""


class TokenLogprob(TopLogprob, frozen=True, kw_only=True):
    """The token that came."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """The log-probabilities of an answer's tokens, or of a chunk's."""

    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The assistant's turn in an answer."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    """What the model thought, where its checkpoint marks that (DeepSeek's and vLLM's name)."""
    tool_calls: list[AnswerToolCall] | UnsetType = UNSET


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One answer."""

    message: AnswerMessage
    finish_reason: str
    index: int = 0
    logprobs: ChatLogprobs | None = None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    service_tier: str | UnsetType = UNSET


class Delta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a chunk adds."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One answer's part of a chunk."""

    delta: Delta
    finish_reason: str | None = None
    index: int = 0
    logprobs: ChatLogprobs | None = None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream. With `include_usage` every chunk has `usage`, null but in the last."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    service_tier: str | UnsetType = UNSET
