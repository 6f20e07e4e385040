"""One served encoder: it embeds or scores, and does not generate."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.engine.encoder_service import EncoderService
from penstock.replica.embedding_defaults import EmbeddingDefaults
from penstock.replica.model import Served


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedEncoder(Served):
    """Everything a request to an encoder needs."""

    service: EncoderService
    embedding: EmbeddingDefaults | None
    """None for a cross-encoder: it scores pairs and has no embeddings."""

    def refuse_long_text(self, num_characters: int, param: str) -> None:
        """Refuses nothing before it is tokenised: an unknown word is one token, and a run of spaces none,
        however long they are.
        """
