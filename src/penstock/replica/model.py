"""One served model: its name, its text side and its engine."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from penstock.base.errors import CheckpointError, ContextLengthError, InvalidRequestError, ModelNotFoundError
from penstock.engine.adapter import Adapter
from penstock.engine.adapter_store import AdapterStore
from penstock.engine.kv_events import KVEventLog
from penstock.engine.kv_store import KVStore
from penstock.engine.memory import MemoryPlan
from penstock.engine.sampling import SamplingParams
from penstock.engine.service import EngineService
from penstock.protocol.generation import GenerationRequest
from penstock.protocol.models import Model
from penstock.replica.embedding_defaults import EmbeddingDefaults
from penstock.text.answer_format import AnswerFormat
from penstock.text.grammar import GrammarCompiler
from penstock.text.template import ChatTemplate
from penstock.text.tokenizer import Tokenizer, read_json

logger = structlog.get_logger(__name__)
# Sampling fields of generation_config.json that change answers and are not built, with their neutral values.
_UNBUILT = {
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "num_beams": 1,
}
# Far more than a token has in any text that people write; bounds the work on what is no such text.
CHARACTERS_PER_TOKEN = 512


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What applies where a request says nothing: the checkpoint's generation_config.json, else OpenAI's."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0

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
                repetition_penalty=float(given.get("repetition_penalty") or 1.0),
            )
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{directory / 'generation_config.json'}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What is served of any model, whether it generates or not."""

    name: str
    created: int
    """Unix seconds at which serving began."""
    tokenizer: Tokenizer
    max_model_len: int

    def models(self) -> Iterator[Model]:
        """What requests can name."""
        yield Model(id=self.name, created=self.created)

    def check_name(self, name: str) -> None:
        """Raises ModelNotFoundError unless `name` is this model's own."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel(Served):
    """Everything a request to a model that generates needs."""

    template: ChatTemplate | None
    defaults: SamplingDefaults
    service: EngineService
    memory: MemoryPlan
    grammars: GrammarCompiler
    answers: AnswerFormat
    vocab_size: int
    """Of the model, which may have more tokens than its tokenizer."""
    adapters: AdapterStore
    embedding: EmbeddingDefaults | None = None
    """How it embeds texts; None if it does not."""
    kv: KVStore | None = None
    """Where KV is kept beyond its requests or passed on."""
    kv_events: KVEventLog | None = None
    """What enters and leaves the prefix cache, where that is served."""
    serves_kv: bool = False
    """True if KV may be exported and imported by request."""

    def models(self) -> Iterator[Model]:
        """The model and the adapters that are loaded."""
        yield from Served.models(self)
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

    def check_tokens(self, tokens: Iterable[int], param: str) -> None:
        """Raises InvalidRequestError for a token id that the model does not have."""
        if (foreign := next((token for token in tokens if token >= self.vocab_size), None)) is not None:
            raise InvalidRequestError(
                f"{param!r} holds the token id {foreign}; the model's are 0 to {self.vocab_size - 1}",
                param=param,
            )

    def samplings(
        self, request: GenerationRequest, num_prompt_tokens: int, logprobs: int | None
    ) -> list[SamplingParams]:
        """For each answer what the request says, else the defaults; without a limit, as many tokens as the
        context leaves.

        Answers to one prompt have seeds of their own, the request's and those after it.

        Raises:
            ContextLengthError: the prompt, or the prompt with what was asked for, is longer than the context.
            InvalidRequestError: a token id that the model does not have, or `min_tokens` over the limit.
        """
        defaults = self.defaults
        self.check_tokens((token for token, _ in request.biases), "logit_bias")
        self.check_tokens(request.stop_tokens, "stop")
        max_tokens = self._max_tokens(request, num_prompt_tokens)
        if (request.min_tokens or 0) > max_tokens:
            raise InvalidRequestError(
                f"'min_tokens' is {request.min_tokens} and the answer may have {max_tokens} tokens",
                param="min_tokens",
            )
        sampling = SamplingParams(
            max_tokens=max_tokens,
            min_tokens=request.min_tokens or 0,
            temperature=_or(request.temperature, defaults.temperature),
            top_p=_or(request.top_p, defaults.top_p),
            top_k=defaults.top_k if request.top_k is None else max(request.top_k, 0),
            min_p=_or(request.min_p, defaults.min_p),
            seed=secrets.randbits(63) if request.seed is None else request.seed,
            stop_token_ids=request.stop_tokens
            | (frozenset() if request.ignore_eos else self.tokenizer.end_token_ids),
            frequency_penalty=request.frequency_penalty or 0.0,
            presence_penalty=request.presence_penalty or 0.0,
            repetition_penalty=_or(request.repetition_penalty, defaults.repetition_penalty),
            logit_bias=request.biases,
            logprobs=logprobs,
        )
        return [
            dataclasses.replace(sampling, seed=sampling.seed + i) if i else sampling
            for i in range(request.num_choices)
        ]

    def resumed_samplings(
        self, samplings: Iterable[SamplingParams], num_prompt_tokens: int, seed: int, max_tokens: int
    ) -> list[SamplingParams]:
        """The samplings of a request that began in another engine, with the seed and the limit it had there.

        Raises:
            ContextLengthError: it may become longer than this engine's context.
        """
        if num_prompt_tokens + max_tokens > self.max_model_len:
            raise ContextLengthError(
                f"the request may have {num_prompt_tokens} + {max_tokens} tokens; the context here is "
                f"{self.max_model_len}",
                param="max_tokens",
            )
        return [
            dataclasses.replace(sampling, seed=seed + i, max_tokens=max_tokens)
            for i, sampling in enumerate(samplings)
        ]

    def _max_tokens(self, request: GenerationRequest, num_prompt_tokens: int) -> int:
        limit = request.limit
        room = self.max_model_len - num_prompt_tokens
        if limit.asked == 0 and not room:
            return 0
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


def _or(given: float | None, default: float) -> float:
    return default if given is None else given
