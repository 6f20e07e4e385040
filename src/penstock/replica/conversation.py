"""A chat request's tools, reasoning and form: how its prompt is made, its answer held to a form and read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penstock.base.errors import InvalidRequestError
from penstock.engine.sampling import Constraint
from penstock.protocol.chat import ChatRequest, Message, Role
from penstock.protocol.response_format import GrammarSpec
from penstock.protocol.tools import Tool, ToolUse
from penstock.replica.model import ServedModel
from penstock.text.detokenizer import Decodes
from penstock.text.fragments import OutputParser
from penstock.text.grammar_source import refuse_inexact
from penstock.text.template import Turn
from penstock.text.thinking import AfterReasoning

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


def encode(model: ServedModel, request: ChatRequest, *, add_generation_prompt: bool = True) -> list[int]:
    """The prompt of a conversation, with the assistant's turn opened or not.

    Raises:
        InvalidRequestError: the model has no template, or that refuses the conversation, tools or variables.
    """
    if model.template is None:
        raise InvalidRequestError(
            f"the model {model.name!r} has no chat template; use /v1/completions", param="messages"
        )
    model.refuse_long_text(sum(len(message.text) for message in request.messages), "messages")
    use = request.tool_use
    return model.template.encode(
        [_turn(message) for message in request.messages],
        () if use is None else use.shown,
        request.chat_template_kwargs,
        add_generation_prompt=add_generation_prompt,
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
        InvalidRequestError: its form cannot be compiled, or tools are asked for in a format not known.
    """
    use = request.tool_use
    answer = model.answers.read(prompt, use)
    form = request.form
    if answer.grammar is not None and use is not None:
        _refuse_inexact(request.tools or (), use)
        form = GrammarSpec("tools", answer.grammar, "tool_choice", trial=answer.spelled_grammar or "")
    new_constraint = await constraint_of(model, form)
    if new_constraint is not None and answer.grammar is None and answer.reasoning is not None:
        new_constraint = AfterReasoning.around(
            new_constraint,
            answer.reasoning,
            model.tokenizer.added_tokens,
            starts_inside=answer.is_inside,
        )
    return Reading(answer.decoding, answer.new_parser, new_constraint)


async def constraint_of(model: ServedModel, form: GrammarSpec | None) -> Callable[[], Constraint] | None:
    """What makes the state of an answer that has this form.

    Raises:
        InvalidRequestError: it cannot be compiled, with the reason.
    """
    return None if form is None else (await model.grammars.compile(form)).new_constraint


def _refuse_inexact(tools: Sequence[Tool], use: ToolUse) -> None:
    for index, tool in enumerate(tools):
        if tool not in use.callable or tool.function.parameters is None:
            continue
        try:
            refuse_inexact(tool.function.parameters)
        except ValueError as error:
            param = f"tools[{index}].function.parameters"
            raise InvalidRequestError(f"{param!r} cannot be compiled: {error}", param=param) from error


def _turn(message: Message) -> Turn:
    return Turn(
        _TEMPLATE_ROLES[message.role],
        message.text,
        tool_calls=message.tool_calls or (),
        tool_call_id=message.tool_call_id,
        reasoning=message.reasoning_content,
    )
