"""One checkpoint's answers, from tokens to fragments, with what its template says of them."""

from __future__ import annotations

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken

from byte_tokenizer import CHATML, IM_END, MERGES, byte_level, write_tokenizer
from penstock.base.errors import InvalidRequestError
from penstock.protocol.tools import ToolUse
from penstock.text.answer_format import AnswerFormat, AnswerReading
from penstock.text.detokenizer import Detokenizer
from penstock.text.fragments import Content, Fragment, OutputParser, PlainText, Reasoning
from penstock.text.template import ChatTemplate, Turn
from penstock.text.tokenizer import Tokenizer
from tool_answers import TOOLS, call, parse

MARKS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
QWEN = """{% if tools %}{{ tools | tojson }}<tool_call>{"name": ...}</tool_call>{% endif %}
{%- for message in messages %}<|im_start|>{{ message.content.split('</think>')[-1] }}<|im_end|>{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined %}<think>
{% if not enable_thinking %}
</think>

{% endif %}{% endif %}{% endif %}"""
CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
THOUGHT = "hm\n</think>\n\n"


@pytest.fixture(scope="module", params=["special", "added", "spelled"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The marks as special tokens, as tokens that are not special, as letters."""
    rust = byte_level(MERGES)
    if request.param != "spelled":
        rust.add_tokens([AddedToken(mark, special=request.param == "special") for mark in MARKS])
    return Tokenizer(write_tokenizer(rust, tmp_path_factory.mktemp("tokenizer")))


def use(*, is_forced: bool = False, is_parallel: bool = True) -> ToolUse:
    """Of all tools."""
    return ToolUse(TOOLS, TOOLS, is_forced=is_forced, is_parallel=is_parallel)


def reading(tokenizer: Tokenizer, use: ToolUse | None, **variables: bool) -> AnswerReading:
    """For a prompt that the template has made."""
    template = ChatTemplate(QWEN, tokenizer)
    prompt = template.encode([Turn("user", "x</think><think>")], use.shown if use else (), variables)
    return AnswerFormat(tokenizer, template.tool_source).read(prompt, use)


def parser_of(found: AnswerReading) -> OutputParser:
    """A new one."""
    return PlainText() if found.new_parser is None else found.new_parser()


def read(
    tokenizer: Tokenizer, found: AnswerReading, answer: str, parser: OutputParser | None = None
) -> list[Fragment]:
    """Token by token."""
    detokenizer = Detokenizer(found.decoding)
    ids = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.special_tokens[IM_END]]
    return parse(parser or parser_of(found), *(detokenizer.push(token) for token in ids), detokenizer.flush())


def test_reasoning_and_calls_are_read_from_tokens(tokenizer: Tokenizer) -> None:
    """Whether or not decoding would hide the marks, with the tag opened by the model or by the prompt."""
    expected = [Reasoning("hm"), *call(0, "f", "{}")]
    assert read(tokenizer, reading(tokenizer, use()), f"<think>\n{THOUGHT}{CALL}") == expected
    inside = reading(tokenizer, use(), enable_thinking=True)
    assert read(tokenizer, inside, THOUGHT + CALL) == expected
    closed = reading(tokenizer, use(), enable_thinking=False)
    assert read(tokenizer, closed, f"ok{CALL}") == [Content("ok"), *call(0, "f", "{}")]


def test_without_tools_calls_are_text(tokenizer: Tokenizer) -> None:
    """And nothing is forced."""
    found = reading(tokenizer, None, enable_thinking=True)
    assert found.grammar is None
    seen = CALL if "<tool_call>" not in tokenizer.special_tokens else CALL[11:-12]
    assert read(tokenizer, found, f"{THOUGHT}{CALL}") == [Reasoning("hm"), Content(seen.lstrip("\n"))]


def test_a_forced_call_comes_with_its_grammar(tokenizer: Tokenizer) -> None:
    """Behind the reasoning; not in parallel, the answer is complete after one."""
    assert reading(tokenizer, use()).grammar is None
    inside = reading(tokenizer, use(is_forced=True, is_parallel=False), enable_thinking=True)
    assert inside.grammar is not None
    rust = byte_level(MERGES)
    if "<think>" in tokenizer.added_tokens:
        rust.add_tokens([AddedToken(mark, special="<think>" in tokenizer.special_tokens) for mark in MARKS])
    guide = LLTokenizer(rust.to_str(), eos_token=tokenizer.special_tokens[IM_END])
    for answer, is_whole in ((THOUGHT + CALL, True), (CALL, False), (f"{THOUGHT}{CALL}\n{CALL}", False)):
        ids = tokenizer.encode(answer, add_special_tokens=False)
        matcher = LLMatcher(guide, inside.grammar)
        assert (matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()) == is_whole
    assert inside.spelled_grammar is not None
    matcher = LLMatcher(LLTokenizer("byte"), inside.spelled_grammar)
    assert matcher.try_consume_tokens(list((THOUGHT + CALL).encode())) == len(THOUGHT + CALL)
    assert matcher.is_accepting()
    parser = parser_of(inside)
    assert read(tokenizer, inside, THOUGHT + CALL, parser) == [Reasoning("hm"), *call(0, "f", "{}")]
    assert parser.is_complete


def test_answers_of_a_plain_model_are_content(tokenizer: Tokenizer) -> None:
    """Its tokenizer decodes them as ever; tools are refused, and a format can be named."""
    plain = AnswerFormat(tokenizer, CHATML)
    found = plain.read([1, 2, 3], None)
    assert found.decoding is tokenizer
    seen = "a" if "<think>" in tokenizer.special_tokens else "<think>a"
    assert read(tokenizer, found, "<think>a") == [Content(seen)]
    for format_ in (plain, AnswerFormat(tokenizer, None), AnswerFormat(tokenizer, QWEN, "none")):
        with pytest.raises(InvalidRequestError, match="calls is not known") as caught:
            format_.read([1, 2, 3], use())
        assert caught.value.param == "tools"
    named = AnswerFormat(tokenizer, CHATML, "hermes").read([1, 2, 3], use())
    assert read(tokenizer, named, CALL) == call(0, "f", "{}")
