"""Token batches for training: conversations of a step, sorted by length and cut into micro-batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from penstock.lab.tasks.task import Message
from penstock.lab.vocabulary import END_OF_TEXT_ID, MESSAGE_END_ID, MESSAGE_START, MESSAGE_START_ID, render


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Right-padded rows of equal length; causal attention keeps padding out of what counts.

    `tokens` is (rows, length) int64. `predictors` are flat indices (n,) of the tokens after which an
    answer token comes, `targets` (n,) those answer tokens, `owners` (n,) the rows they belong to, and
    `weights` (n,) float32 their shares in the loss: an answer of k tokens weighs sqrt(k) in all, so that
    long set phrases do not drown the short answers.
    """

    tokens: Tensor
    predictors: Tensor
    targets: Tensor
    owners: Tensor
    weights: Tensor


Encoded = tuple[list[int], list[tuple[int, float]]]
"""Token ids of a chat; and of each answer token in it the position and the weight."""


class ChatEncoder:
    """Encodes chats and finds the tokens that the assistant says, end mark included."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._header = tokenizer.encode(f"{MESSAGE_START}assistant\n", add_special_tokens=False).ids

    def encode(self, chats: Sequence[Sequence[Message]], last_only: bool = False) -> list[Encoded]:
        """The chats, rendered and encoded; with `last_only`, only the last answer's tokens count."""
        texts = [render(chat) for chat in chats]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [(encoding.ids, self._answers(encoding.ids, last_only)) for encoding in encodings]

    def _answers(self, ids: list[int], last_only: bool) -> list[tuple[int, float]]:
        size, spans = len(self._header), []
        index = 0
        while index < len(ids):
            if ids[index] == MESSAGE_START_ID and ids[index : index + size] == self._header:
                end = ids.index(MESSAGE_END_ID, index)
                spans.append(range(index + size, end + 1))
                index = end
            index += 1
        chosen = spans[-1:] if last_only else spans
        return [(position, len(span) ** -0.5) for span in chosen for position in span]


def micro_batches(encoded: Sequence[Encoded], token_budget: int) -> Iterator[MicroBatch]:
    """Cuts encoded chats, shortest first, into batches of at most `token_budget` tokens with padding."""
    ordered = sorted(encoded, key=lambda item: len(item[0]))
    rows: list[Encoded] = []
    for item in ordered:
        if rows and (len(rows) + 1) * len(item[0]) > token_budget:
            yield _pad(rows)
            rows = []
        rows.append(item)
    if rows:
        yield _pad(rows)


def _pad(rows: Sequence[Encoded]) -> MicroBatch:
    length = max(len(ids) for ids, _ in rows)
    tokens = torch.tensor([ids + [END_OF_TEXT_ID] * (length - len(ids)) for ids, _ in rows])
    answers = [(row, *answer) for row, (_, members) in enumerate(rows) for answer in members]
    flat = torch.tensor([row * length + position for row, position, _ in answers])
    owners = torch.tensor([row for row, _, _ in answers])
    weights = torch.tensor([weight for _, _, weight in answers])
    return MicroBatch(tokens, flat - 1, tokens.view(-1)[flat], owners, weights)


def training_batches(
    conversations: Iterator[Sequence[Message]],
    encoder: ChatEncoder,
    per_step: int,
    token_budget: int,
    max_length: int,
) -> Iterator[list[MicroBatch]]:
    """Endless steps of `per_step` conversations each; those longer than `max_length` tokens are left out."""
    while True:
        encoded = encoder.encode(list(itertools.islice(conversations, per_step)))
        kept = [item for item in encoded if len(item[0]) <= max_length]
        yield list(micro_batches(kept, token_budget))
