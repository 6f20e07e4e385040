"""A chat request's tools, reasoning and form: how its prompt is made, its answer held to a form and read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from penstock.base.errors import InvalidRequestError
from penstock.engine.sampling import Constraint
from penstock.protocol.chat import ChatRequest, Message, Role
from penstock.protocol.response_format import GrammarSpec
from penstock.protocol.tools import ToolUse
from penstock.replica.model import ServedModel
from penstock.text.detokenizer import Decodes
from penstock.text.fragments import OutputParser, PlainText
from penstock.text.reasoning import ReasoningParser
from penstock.text.template import Turn
from penstock.text.thinking import AfterReasoning
from penstock.text.tools.tool_format import ToolFormat

# Tokens of a prompt's end among which an opened tag of reasoning is looked for.
TAIL = 16
# The template's word for each role: templates know no developer, which is OpenAI's newer word for system.
_TEMPLATE_ROLES: dict[Role, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """How an answer is read."""

    decodes: Decodes
    new_parser: Callable[[], OutputParser] | None = None
    new_constraint: Callable[[], Constraint] | None = None


def encode(model: ServedModel, request: ChatRequest) -> list[int]:
    """The prompt of a conversation.

    Raises:
        InvalidRequestError: the model has no template, or that refuses the conversation, tools or variables.
    """
    if model.template is None:
        raise InvalidRequestError(
            f"the model {model.name!r} has no chat template; use /v1/completions", param="messages"
        )
    model.refuse_long_text(sum(len(message.text) for message in request.messages), "messages")
    use = request.tool_use
    if use is not None:
        _format(model)
    return model.template.encode(
        [_turn(message) for message in request.messages],
        () if use is None else use.shown,
        request.chat_template_kwargs,
    )


def encode_prompt(model: ServedModel, prompt: str | list[int]) -> list[int]:
    """The tokens of a text completion's prompt.

    Raises:
        InvalidRequestError: it is empty, or holds a token that the model does not have.
    """
    if isinstance(prompt, str):
        model.refuse_long_text(len(prompt), "prompt")
        tokens = model.tokenizer.encode(prompt, add_special_tokens=True)
    else:
        tokens = prompt
        model.check_tokens(tokens, "prompt")
    if not tokens:
        raise InvalidRequestError("the prompt is empty", param="prompt")
    return tokens


async def reading(model: ServedModel, request: ChatRequest, prompt: list[int]) -> Reading:
    """How the answer to `prompt`, the conversation's, is held to its form and read.

    Raises:
        InvalidRequestError: its form cannot be compiled.
    """
    use, tags = request.tool_use, model.reasoning
    starts_inside = False
    visible: frozenset[str] = frozenset()
    if tags is not None:
        visible |= tags.visible_tokens
        starts_inside = tags.is_open(model.tokenizer.showing(visible).decode(prompt[-TAIL:]))
    if use is not None:
        visible |= _format(model).visible_tokens
    if use is None and tags is None:
        return Reading(model.tokenizer, None, await constraint_of(model, request.form))

    def new_parser() -> OutputParser:
        answer: OutputParser = PlainText()
        if use is not None:
            answer = _format(model).parser(use.callable, parallel=use.is_parallel)
        return answer if tags is None else ReasoningParser(tags, answer, starts_inside=starts_inside)

    new_constraint = await constraint_of(model, _forced(model, use, starts_inside) or request.form)
    if tags is not None and request.form is not None and new_constraint is not None:
        new_constraint = AfterReasoning.around(
            new_constraint, tags, model.tokenizer.added_tokens, starts_inside=starts_inside
        )
    return Reading(model.tokenizer.showing(visible), new_parser, new_constraint)


async def constraint_of(model: ServedModel, form: GrammarSpec | None) -> Callable[[], Constraint] | None:
    """What makes the state of an answer that has this form.

    Raises:
        InvalidRequestError: it cannot be compiled, with the reason.
    """
    return None if form is None else (await model.grammars.compile(form)).new_constraint


def _forced(model: ServedModel, use: ToolUse | None, starts_inside: bool) -> GrammarSpec | None:
    """The grammar of answers that are calls, where a call is forced; thoughts may come before it."""
    if use is None or not use.is_forced:
        return None
    tags = model.reasoning
    opening = None if tags is None else tags.lark(model.tokenizer.added_tokens, starts_inside=starts_inside)
    source = _format(model).grammar(use.callable, parallel=use.is_parallel, opening=opening)
    return GrammarSpec("lark", source, "tool_choice")


def _format(model: ServedModel) -> ToolFormat:
    if model.tool_format is None:
        raise InvalidRequestError(
            f"the chat template of {model.name!r} has no format of tool calls that is known here; choose one "
            "with the engine's tool_format",
            param="tools",
        )
    return model.tool_format


def _turn(message: Message) -> Turn:
    return Turn(
        _TEMPLATE_ROLES[message.role],
        message.text,
        tool_calls=message.tool_calls or (),
        tool_call_id=message.tool_call_id,
        reasoning=message.reasoning_content,
    )
