"""Words in llguidance's variant of Lark."""

from __future__ import annotations

import json
from collections.abc import Mapping


def lark_text(text: str) -> str:
    """A literal, spelled in whatever tokens there are."""
    return json.dumps(text)


def lark_word(text: str, tokens: Mapping[str, int]) -> str:
    """The token that `text` is by `tokens`, or else a literal; see `Tokenizer.added_tokens`."""
    return f"<[{tokens[text]}]>" if text in tokens else lark_text(text)
