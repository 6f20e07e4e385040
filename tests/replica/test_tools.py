"""Tools, reasoning and forms through the replica: prompts, answers whole and streamed, what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor

from asgi_call import Answer
from byte_tokenizer import CHATML
from penstock.engine.plan import StepPlan
from scripted_replica import END, Desk, replica, write_replica

TEMPLATE = (
    "{% for tool in tools or [] %}<tools>{{ tool | tojson }}</tools>\n{% endfor %}"
    + CHATML.replace(
        "{{ message.content }}",
        "{{ message.content }}{% for call in message.tool_calls or [] %}<tool_call>\n"
        "{{ call.function | tojson }}\n</tool_call>{% endfor %}",
    )
    + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Now.", "parameters": SCHEMA},
}
TIME = {"type": "function", "function": {"name": "get_time"}}
UNKNOWN = '<tool_call>\n{"name": "get_news", "arguments": {}}\n</tool_call>'
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call>'


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose template knows tools and thoughts."""
    return write_replica(tmp_path_factory.mktemp("tools"), TEMPLATE)


def say(text: str) -> Sequence[int]:
    """A script that writes this and ends."""
    return [*text.encode(), END]


def streamed(answer: Answer) -> tuple[dict[str, Any], str]:
    """A message put together from a stream as OpenAI's client does, and its finish reason."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    reason = ""
    for data in answer.events:
        if data == b"[DONE]":
            continue
        (choice,) = json.loads(data)["choices"]
        for name in ("content", "reasoning_content"):
            message[name] += choice["delta"].get(name, "")
        for call in choice["delta"].get("tool_calls", ()):
            if call["index"] == len(message["tool_calls"]):
                message["tool_calls"].append(
                    {"id": call["id"], "type": call["type"], "function": {"arguments": ""}}
                )
                message["tool_calls"][-1]["function"]["name"] = call["function"]["name"]
            message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        reason = choice["finish_reason"] or reason
    return message, reason


CASES: dict[str, tuple[str, dict[str, Any], str | None, str | None, list[tuple[str, str]], str]] = {
    "a call": (CALL, {}, None, None, [("get_weather", '{"city": "Oslo", "days": 2}')], "tool_calls"),
    "text, then a call": ("Well. " + CALL, {}, "Well. ", None,
                          [("get_weather", '{"city": "Oslo", "days": 2}')], "tool_calls"),
    "two calls": (CALL + "\n" + CALL, {}, None, None,
                  [("get_weather", '{"city": "Oslo", "days": 2}')] * 2, "tool_calls"),
    "one of two": (CALL + "\n" + CALL, {"parallel_tool_calls": False}, None, None,
                   [("get_weather", '{"city": "Oslo", "days": 2}')], "tool_calls"),
    "no call": ("<tool_call>nonsense", {}, "<tool_call>nonsense", None, [], "stop"),
    "an unknown tool": (UNKNOWN, {}, UNKNOWN, None, [], "stop"),
    "thoughts": ("<think>\nHm.\n</think>\n\nYes.", {}, "Yes.", "Hm.", [], "stop"),
    "thoughts, then a call": ("<think>Hm.</think>" + CALL, {}, None, "Hm.",
                              [("get_weather", '{"city": "Oslo", "days": 2}')], "tool_calls"),
    "cut in a call": (CALL, {"max_tokens": 60}, None, None,
                      [("get_weather", CALL[49:60])], "length"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("script", "fields", "content", "thoughts", "calls", "reason"), CASES.values(), ids=CASES
)
async def test_answers_are_read(
    tools: Path,
    script: str,
    fields: dict[str, Any],
    content: str | None,
    thoughts: str | None,
    calls: list[tuple[str, str]],
    reason: str,
) -> None:
    """The same message, whole and streamed; nothing is lost."""
    async with replica(tools, say(script), max_model_len=2000, num_blocks=1000) as desk:
        asked = {"tools": [WEATHER, TIME], "max_tokens": 300, **fields}
        whole = (await desk.chat(**asked).answer()).json["choices"][0]
        message = whole["message"]
        assert message["content"] == content
        assert message.get("reasoning_content") == thoughts
        made = [
            (call["function"]["name"], call["function"]["arguments"])
            for call in message.get("tool_calls", ())
        ]
        assert made == calls
        assert whole["finish_reason"] == reason
        again, its_reason = streamed(await desk.chat(**asked, stream=True).answer())
        assert again["content"] == (content or "")
        assert again["reasoning_content"] == (thoughts or "")
        assert [
            (call["function"]["name"], call["function"]["arguments"]) for call in again["tool_calls"]
        ] == calls
        assert its_reason == reason


async def test_a_conversation_with_calls_goes_round(tools: Path) -> None:
    """Definitions, calls and results are in the prompt; control tokens in them are text."""
    prompts: list[str] = []

    def script(prompt: str) -> Sequence[int]:
        prompts.append(prompt)
        return say("4 degrees")

    async with replica(tools, script, max_model_len=2000, num_blocks=1000) as desk:
        messages = [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "a", "type": "function",
                 "function": {"name": "get_weather", "arguments": '{"city": "<|im_end|>"}'}}]},
            {"role": "tool", "tool_call_id": "a", "content": "4 degrees <|im_end|>"},
        ]  # fmt: skip
        body = {"model": "scripted", "messages": messages, "tools": [WEATHER], "max_tokens": 100}
        answer = await desk.call("POST", "/v1/chat/completions", body).answer()
        assert answer.json["choices"][0]["message"]["content"] == "4 degrees"
        assert '"get_weather"' in prompts[0]
        assert '{"name": "get_weather", "arguments": {"city": "<|im_end|>"}}' in prompts[0]
        assert "4 degrees <|im_end|>" in prompts[0]  # special tokens do not show in decoded prompts


class Random:
    """A forward pass whose logits are random: what a grammar does not forbid may come."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._generator = torch.Generator().manual_seed(3)
        self.ran: list[list[int]] = []

    def run(self, plan: StepPlan) -> Tensor:
        """See ForwardPass."""
        rows = sum(chunk.num_draws for chunk in plan.chunks)
        return torch.randn(rows, self._vocab_size, generator=self._generator)


def randomize(desk: Desk) -> None:
    """The model says anything from now on."""
    desk.core.runner = Random(desk.model.vocab_size)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}], ids=str
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_forced_call_is_a_call_whose_arguments_validate(
    tools: Path, choice: Any, stream: bool
) -> None:
    """Whatever the model would rather say; thoughts may come before it."""
    async with replica(tools, [], max_model_len=2000, num_blocks=1000) as desk:
        randomize(desk)
        for seed in range(6):
            asked = {"tools": [WEATHER], "tool_choice": choice, "max_tokens": 1500, "seed": seed,
                     "stream": stream,
                     "parallel_tool_calls": False,
                     "logit_bias": {str(ord("<")): 8, str(ord("t")): 1, str(ord("{")): 4}}  # fmt: skip
            answer = await desk.chat(**asked).answer()
            if stream:
                message, reason = streamed(answer)
            else:
                (whole,) = answer.json["choices"]
                message, reason = whole["message"], whole["finish_reason"]
            if reason == "length":  # it was still thinking, or writing
                continue
            assert reason == "tool_calls"
            (call,) = message["tool_calls"]
            assert call["function"]["name"] == "get_weather"
            jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)


FORMS: list[tuple[dict[str, Any], Any]] = [
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA}}}, SCHEMA),
    ({"structured_outputs": {"json": SCHEMA}}, SCHEMA),
    ({"regex": "[a-c]{2,4}"}, None),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, None),
    ({"grammar": 'start: ("ab" | "c")+ "."'}, None),
]


@pytest.mark.parametrize(("form", "schema"), FORMS, ids=str)
@pytest.mark.parametrize("kind", ["chat", "complete"])
async def test_answers_have_the_form_that_was_asked_for(
    checkpoint: Path, kind: str, form: dict[str, Any], schema: Any
) -> None:
    """At every temperature, several at once; one that is cut says so."""
    async with replica(checkpoint, [], max_model_len=2000, num_blocks=1000) as desk:
        randomize(desk)
        ask = desk.chat if kind == "chat" else desk.complete
        answer = await ask(**form, n=6, seed=5, max_tokens=300, temperature=1.5).answer()
        finished = [choice for choice in answer.json["choices"] if choice["finish_reason"] == "stop"]
        assert finished
        for choice in finished:
            text = choice["text"] if kind == "complete" else choice["message"]["content"]
            if schema is not None:
                jsonschema.validate(json.loads(text), schema)
        cut = (await ask(**form, max_tokens=1).answer()).json["choices"][0]
        assert cut["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema",
                              "json_schema": {"name": "w", "schema": {"type": "wrong"}}}},
         "response_format.json_schema.schema"),
        ({"regex": "(("}, "regex"),
        ({"grammar": "start: missing"}, "grammar"),
        ({"tools": [WEATHER], "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"tools": [WEATHER], "chat_template_kwargs": {"surprise": 1}}, "chat_template_kwargs.surprise"),
    ],
    ids=str,
)  # fmt: skip
async def test_what_cannot_be_honoured_is_refused_by_name(
    tools: Path, fields: dict[str, Any], param: str
) -> None:
    """With the reason; the engine has not seen it."""
    async with replica(tools, []) as desk:
        answer = await desk.chat(**fields).answer()
        assert (answer.status, answer.error["param"]) == (400, param)
        assert desk.forward.ran == []


async def test_tools_are_refused_where_the_model_has_none(checkpoint: Path) -> None:
    """Its template would not show them."""
    async with replica(checkpoint, []) as desk:
        answer = await desk.chat(tools=[WEATHER]).answer()
        assert (answer.status, answer.error["param"]) == (400, "tools")


async def test_a_form_waits_for_the_end_of_the_thoughts(tools: Path) -> None:
    """They are free; the answer behind them is not. Here the tags are letters, and the form holds from the
    beginning.
    """
    async with replica(tools, [], max_model_len=500, num_blocks=300) as desk:
        randomize(desk)
        answer = await desk.chat(regex="[xy]{3}", max_tokens=50).answer()
        assert set(answer.json["choices"][0]["message"]["content"]) <= {"x", "y"}
