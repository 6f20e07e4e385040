"""A compiled grammar and its state in one answer, as masks over the vocabulary, by llguidance.

Rules for end tokens: all of them are allowed where the grammar is complete, only they where nothing else can
follow, and none elsewhere, even if the grammar names one or an end token is text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from penstock.base.errors import EngineError
from penstock.text.tokenizer import Tokenizer

Mask = NDArray[np.int32]
MAX_REASON_LENGTH = 400
_SHOWN_LINES = re.compile(r"\n<|\n\s*\d+ \| ")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a model as llguidance wants them."""

    tokens: LLTokenizer
    end_tokens: tuple[int, ...]
    """Those that the tokenizer has."""
    num_words: int
    """Words of a mask that hold tokens of the tokenizer's; a model may have more, which are never allowed."""
    num_mask_words: int
    """Words of a mask over the model's vocabulary."""

    @staticmethod
    def of(tokenizer: Tokenizer, vocab_size: int) -> Vocabulary:
        """Takes half a second and the interpreter's lock for a vocabulary of 150,000.

        Raises:
            ValueError: no answer of this tokenizer could be constrained, with the reason.
        """
        num_tokens = tokenizer.vocab_size
        ends = tuple(sorted(token for token in tokenizer.end_token_ids if 0 <= token < num_tokens))
        if not ends:
            raise ValueError("it has no end token, so no answer could end where its form is complete")
        tokens = LLTokenizer(tokenizer.to_json(), n_vocab=num_tokens, eos_token=list(ends))
        return Vocabulary(tokens, ends, words(num_tokens), words(vocab_size))

    def end_row(self) -> Mask:
        """The mask (num_words,) of the end tokens alone."""
        row = np.zeros(self.num_words, dtype=np.uint32)
        for token in self.end_tokens:
            row[token // 32] |= np.uint32(1 << token % 32)
        return row.view(np.int32)


def words(num_tokens: int) -> int:
    """Words of a mask over so many tokens."""
    return -(-num_tokens // 32)


def is_allowed(row: Mask, token: int) -> bool:
    """True if the token's bit in the mask (words,) is set."""
    return 0 <= token < 32 * len(row) and bool(int(row[token // 32]) >> token % 32 & 1)


def reason(message: str) -> str:
    """llguidance's words in one line of bounded length, without the lines of the grammar that it shows."""
    text = message.rpartition("failed to compile JSON schema: ")[2]
    text = " ".join(_SHOWN_LINES.split(text, maxsplit=1)[0].split())
    return text if len(text) <= MAX_REASON_LENGTH else f"{text[:MAX_REASON_LENGTH]}…"


class Grammar:
    """A grammar, compiled for one vocabulary. Its answers share one lexer, which learns as they go on."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        """`matcher` is at the beginning and stays there."""
        self._matcher = matcher
        self._vocabulary = vocabulary
        self.end_row = vocabulary.end_row()
        self.is_broken = False
        """True once a limit was reached; other answers, which share the lexer, may then fail too."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the masks."""
        return self._vocabulary

    def new_constraint(self) -> GrammarConstraint:
        """The state of an answer that begins; takes some tens of microseconds. From any thread."""
        return GrammarConstraint(self)

    def begin(self) -> _Place:
        """The place before the first token."""
        return _Place(self, self._matcher.deep_copy())


class _Place:
    """A place in a grammar; it can go on from here, and be copied, but not go back."""

    __slots__ = ("_grammar", "_is_over", "_matcher")

    def __init__(self, grammar: Grammar, matcher: LLMatcher, is_over: bool = False) -> None:
        self._grammar = grammar
        self._matcher = matcher
        self._is_over = is_over

    def copy(self) -> _Place:
        """Another that goes its own way."""
        return _Place(self._grammar, self._matcher.deep_copy(), self._is_over)

    def go_on(self, token: int) -> None:
        """Consumes a token; after an end token any is as good as another.

        Raises:
            EngineError: the grammar does not admit it here.
        """
        if self._is_over:
            return
        if not self._matcher.consume_token(token):
            self._fail(f"token {token} is not admitted by the grammar")
        if token in self._grammar.vocabulary.end_tokens:
            self._is_over = self._matcher.is_stopped() or self._matcher.is_accepting()

    def write(self, row: Mask, address: int) -> None:
        """Writes what may follow into the mask `row` (words,), which lies at `address`.

        Raises:
            EngineError: a limit is reached, or no token can follow.
        """
        num_words = self._grammar.vocabulary.num_words
        row[num_words:] = 0
        if self._is_over:
            row[:num_words] = self._grammar.end_row
            return
        self._matcher.unsafe_compute_mask_ptr(address, 4 * num_words)
        if self._matcher.is_error():  # the mask is then that of the end tokens
            self._fail("the grammar cannot be followed any further")
        ends = [token for token in self._grammar.vocabulary.end_tokens if is_allowed(row, token)]
        if ends and not (self._matcher.is_stopped() or self._matcher.is_accepting()):
            self._forbid_early(row, ends)

    def _forbid_early(self, row: Mask, ends: Sequence[int]) -> None:
        """Takes out end tokens that the grammar wants as its symbols, but for one that completes it."""
        for token in ends:
            after = self._matcher.deep_copy()
            if not (after.consume_token(token) and (after.is_stopped() or after.is_accepting())):
                row.view(np.uint32)[token // 32] &= np.uint32(~(1 << token % 32) & 0xFFFFFFFF)
        if not row.any():
            self._fail("the grammar goes on after an end token of the model, where no answer can")

    def _fail(self, what: str) -> None:
        self._grammar.is_broken = True
        detail = reason(self._matcher.get_error()).replace("NoExtensionBias", "no token can follow")
        raise EngineError(f"{what}: {detail}" if detail else what)


class GrammarConstraint:
    """One answer's grammar: the engine's `Constraint`. For one thread."""

    def __init__(self, grammar: Grammar) -> None:
        """The answer is empty."""
        self._grammar = grammar
        self._place = grammar.begin()
        self._consumed: list[int] = []

    def fill(self, masks: Mask, generated: Sequence[int], draft: Sequence[int]) -> None:
        """Writes the allowed next tokens after `generated`, then after each token of `draft` too.

        Tens of microseconds on average; 3 more for each thousand tokens of the answer.

        Args:
            masks: int32 (1 + len(draft), words of the model's vocabulary), in C order; rows behind a draft
                token that is not allowed are left as they are.
            generated: the answer so far. If it does not begin with the last call's, it is consumed anew.
            draft: a guess at what follows.

        Raises:
            EngineError: `generated` is not of the grammar, or a limit is reached.
        """
        # llguidance writes to an address and checks no bounds.
        expected = (1 + len(draft), self._grammar.vocabulary.num_mask_words)
        if masks.shape != expected or masks.dtype != np.int32 or not masks.flags.c_contiguous:
            raise EngineError(f"masks are {masks.dtype} {masks.shape}, not int32 {expected} in C order")
        self._catch_up(generated)
        address = masks.ctypes.data
        self._place.write(masks[0], address)
        scout = self._place.copy() if draft else self._place
        for i, token in enumerate(draft):
            if not is_allowed(masks[i], token):
                return
            scout.go_on(token)
            scout.write(masks[i + 1], address + (i + 1) * masks.strides[0])

    def _catch_up(self, generated: Sequence[int]) -> None:
        done = len(self._consumed)
        if self._consumed != list(generated[:done]):
            self._place, self._consumed, done = self._grammar.begin(), [], 0
        for token in generated[done:]:
            self._consumed.append(token)  # before it can fail: the place is of no use then
            self._place.go_on(token)
