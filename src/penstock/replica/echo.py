"""The prompt, repeated before its completion, with its tokens' log-probabilities if those were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.engine.prompt_logprobs import PromptLogprobs
from penstock.replica.logprobs import Entry


@dataclass(frozen=True, slots=True)
class Echo:
    """One prompt as its completion repeats it."""

    text: str
    tokens: Sequence[int]
    readout: PromptLogprobs | None = None

    def logprobs(self) -> list[Entry]:
        """The prompt's tokens with what the model said of each; complete from the answer's first token on."""
        assert self.readout is not None
        return list(zip(self.tokens, self.readout.of_tokens, strict=True))
