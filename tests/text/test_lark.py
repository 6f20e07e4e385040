"""Words in grammars, read by llguidance itself."""

from __future__ import annotations

from functools import cache

from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from byte_tokenizer import IM_END, byte_level
from penstock.text.lark import lark_text, lark_word


@cache
def guide() -> LLTokenizer:
    """Of single bytes."""
    tokenizer = byte_level()
    return LLTokenizer(tokenizer.to_str(), eos_token=tokenizer.token_to_id(IM_END))


def admits(grammar: str, ids: list[int]) -> bool:
    """True if these tokens are a whole answer."""
    matcher = LLMatcher(guide(), grammar)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@given(
    st.text(
        st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\/\n{}<>[]'), min_size=1, max_size=8
    )
)
def test_a_literal_is_its_text_and_no_other(text: str) -> None:
    """Quotes, backslashes, line ends, characters beyond the first plane."""
    grammar = f"start: {lark_text(text)}"
    assert admits(grammar, list(text.encode()))
    assert not admits(grammar, list(f"{text}x".encode()))
    assert not admits(grammar, [])


def test_a_word_is_its_token_or_its_letters() -> None:
    """Never both."""
    end = byte_level().token_to_id(IM_END)
    start = byte_level().token_to_id("<|im_start|>")
    assert lark_word("<|im_start|>", {"<|im_start|>": start, IM_END: end}) == f"<[{start}]>"
    grammar = f"start: {lark_word('<|im_start|>', {'<|im_start|>': start})}"
    assert admits(grammar, [start])
    assert not admits(grammar, list(b"<|im_start|>"))
    assert admits(f"start: {lark_word('<x>', {})}", list(b"<x>"))
