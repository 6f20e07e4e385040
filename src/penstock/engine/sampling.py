"""What a request asks of the engine's draws, and what the engine says of each. No torch here."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.int32]
"""Allowed tokens as bits: token t is bit t % 32 of word t // 32."""


@dataclass(frozen=True, slots=True)
class Masks:
    """What the grammars of one step allow."""

    rows: NDArray[np.int32]
    """(m,): the rows of its logits that have a grammar."""
    allowed: Mask
    """(m, words)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is drawn and when to end.

    Logits are edited in this order: repetition, frequency and presence penalty, bias, what a grammar forbids.
    Then come the filters: temperature, top-k, top-p over what top-k left, min-p. Ranges are checked where
    requests enter; here they are taken as given.
    """

    max_tokens: int
    """0 computes the prompt and ends."""
    min_tokens: int = 0
    """Tokens before one of `stop_token_ids` may come."""
    temperature: float = 1.0
    """0 takes the most likely token."""
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    """Keep tokens at least this share as likely as the likeliest (Nguyen et al. 2024)."""
    seed: int = 0
    """With the position it determines the draw: same seed, same tokens, whatever else runs."""
    stop_token_ids: frozenset[int] = frozenset()
    frequency_penalty: float = 0.0
    """Taken from a logit once for every time its token was generated (OpenAI)."""
    presence_penalty: float = 0.0
    """Taken from a logit if its token was generated (OpenAI)."""
    repetition_penalty: float = 1.0
    """Divides positive logits of tokens in prompt and answer, multiplies negative ones (Keskar 2019)."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to these tokens' logits."""
    logprobs: int | None = None
    """Log-probabilities of each token and of this many likeliest alternatives; None: none."""

    @property
    def is_greedy(self) -> bool:
        """True if the most likely token is taken; below 1e-5 the quotient leaves float range."""
        return self.temperature < 1e-5

    @property
    def has_filters(self) -> bool:
        """True if top-k, top-p or min-p may exclude a token."""
        return bool(self.top_k) or self.top_p < 1.0 or self.min_p > 0.0

    @property
    def has_penalties(self) -> bool:
        """True if a logit depends on the tokens before it in other ways than by the model."""
        return (self.frequency_penalty, self.presence_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)

    @property
    def has_edits(self) -> bool:
        """True if logits may have to be changed before the draw."""
        return self.has_penalties or bool(self.logit_bias) or self.min_tokens > 0


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities by the model alone: before penalties, bias and temperature."""

    token: float
    """Of the token itself."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with theirs, likeliest first."""


class Constraint(Protocol):
    """Which tokens a grammar lets an answer go on with. A function of the answer so far."""

    def fill(self, masks: Mask, generated: SequenceOf[int], draft: SequenceOf[int]) -> None:
        """Writes the allowed next tokens after `generated`, then after each token of `draft` too.

        Args:
            masks: (1 + len(draft), words); rows behind a draft token that is not allowed are left alone.
            generated: the answer so far; each call's begins with the one's before it.
            draft: a guess at what follows; the next call may be about something else.

        Raises:
            EngineError: `generated` is not of the grammar.
        """
        ...
