"""One served encoder: it embeds or scores, and does not generate."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.base.errors import ContextLengthError
from penstock.engine.encoder_service import EncoderService
from penstock.replica.embedding_defaults import EmbeddingDefaults
from penstock.replica.model import CHARACTERS_PER_TOKEN, Served


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedEncoder(Served):
    """Everything a request to an encoder needs."""

    service: EncoderService
    embedding: EmbeddingDefaults | None
    """None for a cross-encoder: it scores pairs and has no embeddings."""

    def refuse_long_text(self, num_characters: int, param: str) -> None:
        """Refuses what no text has, before time is spent on its tokens.

        The number of characters says little: an unknown word is one token and a run of spaces none.

        Raises:
            ContextLengthError: there are more than CHARACTERS_PER_TOKEN for every token that the model takes.
        """
        most = self.max_model_len * CHARACTERS_PER_TOKEN
        if num_characters > most:
            raise ContextLengthError(
                f"{param!r} has {num_characters} characters; the model takes {self.max_model_len} tokens, "
                f"and no text of more than {most} characters. Shorten it, or have it cut",
                param=param,
            )
