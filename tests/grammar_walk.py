"""Answers drawn at random under a grammar, as a model without any sense would draw them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from byte_tokenizer import END_OF_TEXT, IM_END, MERGES, byte_level, write_json, write_tokenizer
from penstock.text.constraint import Grammar, Mask
from penstock.text.tokenizer import Tokenizer

MODEL_VOCAB_SIZE = 320
"""More than the tokenizer has, by more than a word of a mask."""
QUOTE = ord('"')
# Among these is what brings an answer to its end.
CLOSING = frozenset(b"}]0123456789a x")


def chat_tokenizer(directory: Path) -> Tokenizer:
    """Byte-level, with two end tokens, of which the tokenizer names one."""
    write_tokenizer(byte_level(MERGES), directory, eos_token=IM_END)
    write_json(directory / "config.json", {"eos_token_id": byte_level(MERGES).token_to_id(END_OF_TEXT)})
    return Tokenizer(directory)


def new_masks(rows: int = 1, vocab_size: int = MODEL_VOCAB_SIZE) -> Mask:
    """Masks as the engine makes them."""
    return np.zeros((rows, -(-vocab_size // 32)), dtype=np.int32)


def tokens_in(row: Mask) -> list[int]:
    """The tokens that a mask allows."""
    return np.nonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))[0].tolist()


def walk(grammar: Grammar, seed: int, *, patience: int = 40, limit: int = 4000) -> tuple[list[int], bool]:
    """A random answer without its end token, and whether it ended; hurried to its end after `patience`."""
    rng = random.Random(seed)
    constraint = grammar.new_constraint()
    answer: list[int] = []
    while len(answer) < limit:
        masks = new_masks(vocab_size=grammar.vocabulary.num_mask_words * 32)
        constraint.fill(masks, answer, ())
        allowed = tokens_in(masks[0])
        if len(answer) >= patience:
            ends = [token for token in (*grammar.vocabulary.end_tokens, QUOTE) if token in allowed]
            allowed = ends[:1] or [token for token in allowed if token in CLOSING] or allowed
        token = rng.choice(allowed)
        if token in grammar.vocabulary.end_tokens:
            return answer, True
        answer.append(token)
    return answer, False
