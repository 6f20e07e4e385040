"""One served model: its name, its text side and its engine."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from penstock.base.errors import ContextLengthError, ModelNotFoundError
from penstock.engine.sequence import SamplingParams
from penstock.engine.service import EngineService
from penstock.protocol.generation import GenerationRequest
from penstock.text.template import ChatTemplate
from penstock.text.tokenizer import Tokenizer, read_json


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What applies where a request says nothing: the checkpoint's generation_config.json, else OpenAI's."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0

    @staticmethod
    def of_checkpoint(directory: Path) -> SamplingDefaults:
        """Reads generation_config.json; `do_sample: false` means greedy."""
        given = read_json(directory / "generation_config.json")
        temperature = given.get("temperature")
        if given.get("do_sample") is False:
            temperature = 0.0
        return SamplingDefaults(
            temperature=1.0 if temperature is None else float(temperature),
            top_p=float(given.get("top_p") or 1.0),
            top_k=int(given["top_k"]) if given.get("top_k") else None,
            min_p=float(given.get("min_p") or 0.0),
        )


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Everything a request to this replica needs."""

    name: str
    created: int
    """Unix seconds at which serving began."""
    tokenizer: Tokenizer
    template: ChatTemplate | None
    defaults: SamplingDefaults
    service: EngineService
    max_model_len: int

    def check_name(self, name: str) -> None:
        """Raises ModelNotFoundError unless `name` is this model's."""
        if name != self.name:
            raise ModelNotFoundError(
                f"there is no model {name!r} here; this replica serves {self.name!r}", param="model"
            )

    def sampling(
        self, request: GenerationRequest, max_tokens: int | None, num_prompt_tokens: int
    ) -> SamplingParams:
        """What the request says, else the defaults; without `max_tokens`, what the context leaves.

        Raises:
            ContextLengthError: the prompt, or the prompt with `max_tokens`, is longer than the context.
        """
        room = self.max_model_len - num_prompt_tokens
        if room < 1 or (max_tokens is not None and max_tokens > room):
            asked = "" if max_tokens is None else f" and max_tokens is {max_tokens}"
            raise ContextLengthError(
                f"the model's context is {self.max_model_len} tokens; the prompt has {num_prompt_tokens} "
                f"tokens{asked}. Shorten the prompt" + (" or lower max_tokens" if asked else ""),
                param="max_tokens" if room >= 1 else "prompt",
            )
        defaults = self.defaults
        return SamplingParams(
            max_tokens=room if max_tokens is None else max_tokens,
            temperature=defaults.temperature if request.temperature is None else request.temperature,
            top_p=defaults.top_p if request.top_p is None else request.top_p,
            top_k=defaults.top_k if request.top_k is None else request.top_k,
            min_p=defaults.min_p if request.min_p is None else request.min_p,
            seed=secrets.randbits(63) if request.seed is None else request.seed,
            stop_token_ids=self.tokenizer.end_token_ids,
        )
