"""The work of one step: which positions of which sequences, within which limits. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.engine.sequence import Output, Sequence


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a step and of a sequence, in tokens and sequences."""

    max_sequences: int
    max_batch_tokens: int
    max_model_len: int
    max_draft_rows: int = 0
    """Rows of a step, decodes and drafts together, up to which it may carry drafts; 0: none."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Positions [start, start + count) of a sequence, computed in this step."""

    sequence: Sequence
    start: int
    count: int
    draft: tuple[int, ...] = ()
    """Tokens computed behind them that are only a guess."""

    @property
    def end(self) -> int:
        """The position behind all that is computed, the draft included."""
        return self.start + self.count + len(self.draft)

    @property
    def is_decode(self) -> bool:
        """True if it computes the last known token and no other."""
        return self.count == 1 and self.samples

    @property
    def num_draws(self) -> int:
        """Rows whose logits give a token: the last known one and those of the draft."""
        return 1 + len(self.draft) if self.samples else 0

    @property
    def samples(self) -> bool:
        """True if the chunk reaches the last known token, so that its logits give the next one."""
        return self.start + self.count == len(self.sequence.tokens)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The work of one step. Every chunk's sequence holds the blocks that the chunk writes to."""

    chunks: tuple[Chunk, ...] = ()
    failed: tuple[Output, ...] = ()
    """Sequences that ended while planning: past their deadline, or more than the pool can ever hold."""

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step."""
        return sum(chunk.end - chunk.start for chunk in self.chunks)

    @property
    def num_drafted(self) -> int:
        """Those of them that are guesses."""
        return sum(len(chunk.draft) for chunk in self.chunks)

    @property
    def num_decodes(self) -> int:
        """Chunks of one token, which is what a decode costs."""
        return sum(chunk.count == 1 for chunk in self.chunks)

    @property
    def sampling_chunks(self) -> list[Chunk]:
        """Chunks whose last position gives a new token, in batch order."""
        return [chunk for chunk in self.chunks if chunk.samples]
