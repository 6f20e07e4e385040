"""A form that holds from the end of the reasoning on: thoughts are free, the answer after them is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.text.reasoning import ReasoningTags

Mask = NDArray[np.int32]
_ALL = np.int32(-1)


class Fills(Protocol):
    """The part of a constraint that is delayed."""

    def fill(self, masks: Mask, generated: Sequence[int], draft: Sequence[int]) -> None:
        """Writes the allowed next tokens after `generated`, then after each token of `draft`."""
        ...


class AfterReasoning:
    """Everything is allowed until the closing tag's token; then what another constraint allows.

    Before the first token the answer may open its reasoning or begin as the form wants.
    """

    def __init__(self, inner: Fills, opening: int | None, closing: int, *, starts_inside: bool) -> None:
        """`opening` and `closing` are the tags' tokens; without the first an answer cannot begin to think."""
        self._inner = inner
        self._opening = opening
        self._closing = closing
        self._starts_inside = starts_inside
        self._begin: int | None = None
        """Where the form begins, as soon as it is known."""

    @staticmethod
    def around(
        new_inner: Callable[[], Fills], tags: ReasoningTags, tokens: Mapping[str, int], *, starts_inside: bool
    ) -> Callable[[], Fills]:
        """Delays what `new_inner` makes, where the tokenizer has a token for the closing tag."""
        closing = tokens.get(tags.closing)
        if closing is None:
            return new_inner
        opening = tokens.get(tags.opening)
        return lambda: AfterReasoning(new_inner(), opening, closing, starts_inside=starts_inside)

    def fill(self, masks: Mask, generated: Sequence[int], draft: Sequence[int]) -> None:
        """See Fills."""
        if not generated and not self._starts_inside:
            self._fill_first(masks, draft)
            return
        if self._begin is None:
            self._begin = self._find(generated)
        if self._begin is None:
            self._think(masks, draft)
        else:
            self._inner.fill(masks, generated[self._begin :], draft)

    def _fill_first(self, masks: Mask, draft: Sequence[int]) -> None:
        """The answer is empty: it begins as the form wants, or with the opening tag."""
        thinks = bool(draft) and draft[0] == self._opening
        self._inner.fill(masks[:1] if thinks else masks, (), () if thinks else draft)
        if thinks:
            self._think(masks[1:], draft[1:])
        if self._opening is not None:
            bits = masks.view(np.uint32)
            bits[0, self._opening // 32] |= np.uint32(1 << self._opening % 32)

    def _think(self, masks: Mask, draft: Sequence[int]) -> None:
        """Everything is allowed up to the closing tag, which the draft may hold."""
        end = list(draft).index(self._closing) if self._closing in draft else len(draft)
        masks[: end + 1] = _ALL
        if end < len(draft):
            self._inner.fill(masks[end + 1 :], (), draft[end + 1 :])

    def _find(self, generated: Sequence[int]) -> int | None:
        """Where the form begins in an answer; None while it thinks."""
        thinks = self._starts_inside or (bool(generated) and generated[0] == self._opening)
        if not thinks:
            return 0
        return generated.index(self._closing) + 1 if self._closing in generated else None
