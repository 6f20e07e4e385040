"""One served model: its name, its text side and its engine."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from penstock.base.errors import CheckpointError, ContextLengthError, ModelNotFoundError
from penstock.engine.adapter import Adapter
from penstock.engine.adapter_store import AdapterStore
from penstock.engine.sampling import SamplingParams
from penstock.engine.service import EngineService
from penstock.protocol.generation import GenerationRequest
from penstock.protocol.models import Model
from penstock.text.template import ChatTemplate
from penstock.text.tokenizer import Tokenizer, read_json

logger = structlog.get_logger(__name__)
# Sampling fields of generation_config.json that change answers and are not built, with their neutral values.
_UNBUILT = {
    "repetition_penalty": 1.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "num_beams": 1,
}


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What applies where a request says nothing: the checkpoint's generation_config.json, else OpenAI's."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0

    @staticmethod
    def of_checkpoint(directory: Path) -> SamplingDefaults:
        """Reads generation_config.json; `do_sample: false` means greedy.

        Raises:
            CheckpointError: it is there and cannot be read.
        """
        given = read_json(directory / "generation_config.json")
        if unbuilt := sorted(
            name for name, neutral in _UNBUILT.items() if given.get(name, neutral) != neutral
        ):
            logger.warning("generation_config.json asks for sampling that is not built", ignored=unbuilt)
        temperature = given.get("temperature")
        if given.get("do_sample") is False:
            temperature = 0.0
        try:
            return SamplingDefaults(
                temperature=1.0 if temperature is None else float(temperature),
                top_p=float(given.get("top_p") or 1.0),
                top_k=max(int(given["top_k"]), 0) if given.get("top_k") else None,
                min_p=float(given.get("min_p") or 0.0),
            )
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{directory / 'generation_config.json'}: {error}") from error


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
    adapters: AdapterStore

    def models(self) -> Iterator[Model]:
        """What requests can name: the model and the adapters that are loaded."""
        yield Model(id=self.name, created=self.created)
        for adapter in self.adapters.loaded:
            yield Model(id=adapter.name, created=adapter.created, parent=self.name)

    def find(self, name: str) -> Adapter | None:
        """The adapter of that name; None for the model itself.

        Raises:
            ModelNotFoundError: `name` is neither this model's nor an adapter's.
        """
        if name == self.name:
            return None
        if (adapter := self.adapters.get(name)) is None:
            served = ", ".join(repr(model.id) for model in self.models())
            raise ModelNotFoundError(
                f"there is no model {name!r} here; this replica serves {served}", param="model"
            )
        return adapter

    def check_name(self, name: str) -> None:
        """Raises ModelNotFoundError unless `name` is this model's."""
        if name != self.name:
            raise ModelNotFoundError(
                f"there is no model {name!r} here; this replica serves {self.name!r}", param="model"
            )

    def refuse_long_text(self, num_characters: int, param: str) -> None:
        """Refuses what is too long whatever its tokens are, before time is spent on finding them.

        Raises:
            ContextLengthError: even tokens of the greatest length would not fit into the context.
        """
        least = -(-num_characters // self.tokenizer.longest_token)
        if least > self.max_model_len:
            raise ContextLengthError(
                f"the model's context is {self.max_model_len} tokens; the prompt has {num_characters} "
                f"characters, which are at least {least} tokens. Shorten the prompt",
                param=param,
            )

    def sampling(self, request: GenerationRequest, num_prompt_tokens: int) -> SamplingParams:
        """What the request says, else the defaults; without a limit, as many tokens as the context leaves.

        Raises:
            ContextLengthError: the prompt, or the prompt with what was asked for, is longer than the context.
        """
        defaults = self.defaults
        return SamplingParams(
            max_tokens=self._max_tokens(request, num_prompt_tokens),
            temperature=defaults.temperature if request.temperature is None else request.temperature,
            top_p=defaults.top_p if request.top_p is None else request.top_p,
            top_k=defaults.top_k if request.top_k is None else max(request.top_k, 0),
            min_p=defaults.min_p if request.min_p is None else request.min_p,
            seed=secrets.randbits(63) if request.seed is None else request.seed,
            stop_token_ids=self.tokenizer.end_token_ids,
        )

    def _max_tokens(self, request: GenerationRequest, num_prompt_tokens: int) -> int:
        limit = request.limit
        room = self.max_model_len - num_prompt_tokens
        lengths = f"the context is {self.max_model_len} tokens and the prompt has {num_prompt_tokens} tokens"
        if room < 1:
            raise ContextLengthError(
                f"{lengths}; shorten it to leave room for an answer", param=request.prompt_field
            )
        if limit.asked is None:
            return room if limit.default is None else min(limit.default, room)
        if limit.asked > room:
            raise ContextLengthError(
                f"{lengths}, but {limit.field} is {limit.asked}; lower it or shorten the prompt",
                param=limit.field,
            )
        return limit.asked
