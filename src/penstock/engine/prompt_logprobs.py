"""Log-probabilities of a prompt's own tokens: a readout that slices the head, to keep memory bounded."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import torch

from penstock.engine.readout import StepView
from penstock.engine.sampling import TokenLogprobs

# Positions whose logits exist at a time: 20 MB of them with a vocabulary of 152,000.
SLICE = 32


class PromptLogprobs:
    """What the model says of each prompt token, given those before it. A Readout."""

    def __init__(self, tokens: SequenceOf[int], top: int) -> None:
        """`tokens`: the prompt; `top`: how many likeliest alternatives to keep."""
        self._tokens = tokens
        self._top = top
        self.of_tokens: list[TokenLogprobs | None] = [None]
        """By position; the first token has none, since nothing comes before it."""

    @property
    def num_read(self) -> int:
        """See Readout."""
        return len(self.of_tokens) - 1

    @property
    def num_wanted(self) -> int:
        """See Readout: the last token's successor is not of the prompt."""
        return len(self._tokens) - 1

    def read(self, view: StepView, row: int, start: int, count: int) -> None:
        """See Readout."""
        skipped = self.num_read - start
        for begin in range(skipped, count, SLICE):
            end = min(begin + SLICE, count)
            raw = view.logits(row + begin, row + end).log_softmax(-1)
            following = torch.tensor(self._tokens[start + begin + 1 : start + end + 1], device=raw.device)
            own = raw.gather(-1, following[:, None]).squeeze(-1).tolist()
            best, order = (part.tolist() for part in raw.topk(min(self._top, raw.shape[-1])))
            self.of_tokens += [
                TokenLogprobs(own[i], tuple(zip(order[i], best[i], strict=True))) for i in range(end - begin)
            ]
