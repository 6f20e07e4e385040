"""From engine settings to an encoder ready to serve. Imports torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import structlog

from penstock.base.errors import CheckpointError, ConfigurationError
from penstock.engine.compute import choose_device, choose_dtype
from penstock.engine.encoder import EncoderInput
from penstock.engine.encoder_core import EncoderCore, EncoderLimits, Texts
from penstock.engine.encoder_queue import Job
from penstock.engine.encoder_service import EncoderService
from penstock.engine.encoder_spec import EncoderSpec
from penstock.engine.encoder_weights import load_encoder
from penstock.engine.pooling import Pooling
from penstock.engine.settings import EngineSettings
from penstock.engine.weights import read_config
from penstock.replica.embedding_defaults import EmbeddingDefaults, read_longest_text
from penstock.replica.encoder_model import ServedEncoder
from penstock.replica.threads import choose_threads
from penstock.text.tokenizer import Tokenizer

logger = structlog.get_logger(__name__)
# Settings that mean nothing to an encoder, with the values that ask for nothing beside their defaults.
_WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    "quantize": ("none",),
    "kernels": ("torch",),
    "kv_dtype": (),
    "kv_cache_mb": (),
    "block_size": (),
    "prefix_cache": (False,),
    "decode_slowdown": (0.0,),
    "draft_rows": (0,),
    "deterministic": (),
    "tool_format": ("none",),
    "reasoning": ("none",),
    "kv_snapshot": (),
    "kv_snapshot_mb": (),
    "kv_transfer": (),
    "kv_events": (),
}


def load_encoder_model(
    directory: Path, settings: EngineSettings, name: str, progress: Callable[[int, int], None]
) -> ServedEncoder:
    """Reads an encoder's checkpoint and builds its service, started later by `start`.

    Raises:
        ConfigurationError: the model or a setting is refused.
    """
    started = time.perf_counter()
    _refuse_without_effect(settings)
    spec = EncoderSpec.from_config(read_config(directory))
    threads = choose_threads(settings, spec.num_parameters)
    device = choose_device(settings)
    dtype = choose_dtype(spec, settings, device)
    tokenizer = Tokenizer(directory)
    if tokenizer.vocab_size > spec.vocab_size:
        raise CheckpointError(
            f"the tokenizer of {settings.model} has {tokenizer.vocab_size} tokens, the model "
            f"{spec.vocab_size}: they do not belong together"
        )
    defaults = (
        None if spec.scores else EmbeddingDefaults.of_checkpoint(directory, spec.hidden_size, Pooling.MEAN)
    )
    length = _max_text_tokens(spec, settings, read_longest_text(directory))
    try:
        encoder = load_encoder(directory, spec, dtype, device, progress)
    except (RuntimeError, MemoryError) as error:  # what torch raises when an allocation fails
        raise ConfigurationError(f"{settings.model} cannot be loaded: {error}") from error
    max_requests = settings.max_sequences + settings.max_waiting
    limits = EncoderLimits(settings.max_sequences, settings.max_batch_tokens, length, max_requests)
    core = EncoderCore(encoder, limits)
    _warm_up(core)
    logger.info(
        "model loaded",
        model=name,
        seconds=round(time.perf_counter() - started, 2),
        kind="cross-encoder" if spec.scores else "encoder",
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        threads=threads,
        longest_text=length,
    )
    return ServedEncoder(
        name=name,
        created=int(time.time()),
        tokenizer=tokenizer,
        max_model_len=length,
        service=EncoderService(core),
        embedding=defaults,
    )


def _refuse_without_effect(settings: EngineSettings) -> None:
    for key, neutral in _WITHOUT_EFFECT.items():
        if (value := getattr(settings, key)) not in (EngineSettings.model_fields[key].default, *neutral):
            raise ConfigurationError(
                f"{key} {value} is for models that generate; {settings.model} is an encoder", param=key
            )


def _max_text_tokens(spec: EncoderSpec, settings: EngineSettings, made_for: int | None) -> int:
    """What is set, else what the checkpoint says it was made for, else all its positions."""
    if settings.max_model_len > spec.max_positions:
        raise ConfigurationError(
            f"max_model_len {settings.max_model_len} is more than the model's {spec.max_positions} positions",
            param="max_model_len",
        )
    return settings.max_model_len or min(made_for or spec.max_positions, spec.max_positions)


def _warm_up(core: EncoderCore) -> None:
    """A text through the encoder, so that the first user does not wait for lazy initialisation."""
    pooling = None if core.encoder.spec.scores else Pooling.MEAN
    core.add(Job([1], Texts([EncoderInput([0])], pooling, core.clock())))
    for output in core.step():
        if output.error is not None:
            raise CheckpointError(f"the model cannot compute: {output.error.message}")
