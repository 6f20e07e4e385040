"""From engine settings to a model ready to serve. Imports torch."""

from __future__ import annotations

import os
import time
from pathlib import Path

import structlog
import torch

from penstock.base.errors import CheckpointError, ConfigurationError
from penstock.engine.adapter_store import AdapterStore
from penstock.engine.checkpoint import resolve
from penstock.engine.compute import choose_compute
from penstock.engine.core import EngineCore
from penstock.engine.lora import read_lora
from penstock.engine.memory import plan_memory
from penstock.engine.native.build import load_kernels
from penstock.engine.native.runner import NativeRunner
from penstock.engine.native.sampler import NativeSampler
from penstock.engine.plan import Limits
from penstock.engine.runner import TorchRunner, load_runner
from penstock.engine.sampler import sample
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import Sequence
from penstock.engine.service import EngineService
from penstock.engine.settings import EngineSettings
from penstock.engine.spec import DecoderSpec
from penstock.engine.weights import read_config
from penstock.replica.model import SamplingDefaults, ServedModel
from penstock.text.template import ChatTemplate
from penstock.text.tokenizer import Tokenizer

logger = structlog.get_logger(__name__)
PROGRESS_EVERY_S = 2.0
# Parameters below which a product is too small to share: two threads then wait for each other longer than
# they compute, and much longer where other processes use the cores.
ONE_THREAD_BELOW = 20_000_000


def load_model(settings: EngineSettings, name: str) -> ServedModel:
    """Reads a checkpoint and builds its engine, started later by its service's `start`.

    Raises:
        ConfigurationError: the model or a setting is refused.
    """
    started = time.perf_counter()
    directory = resolve(settings.model)
    spec = DecoderSpec.from_config(read_config(directory))
    threads = settings.threads or (1 if spec.num_parameters < ONE_THREAD_BELOW else _num_cores())
    torch.set_num_threads(threads)
    compute = choose_compute(spec, settings, lambda: load_kernels(Path(settings.kernel_cache)))
    memory = plan_memory(spec, settings, compute)
    tokenizer = Tokenizer(directory)
    template = ChatTemplate.of_checkpoint(directory, tokenizer)
    defaults = SamplingDefaults.of_checkpoint(directory)
    if tokenizer.vocab_size > spec.vocab_size:
        raise CheckpointError(
            f"the tokenizer of {settings.model} has {tokenizer.vocab_size} tokens, the model "
            f"{spec.vocab_size}: they do not belong together"
        )
    try:
        runner = load_runner(directory, memory, threads, _Progress(name))
    except (RuntimeError, MemoryError) as error:  # what torch raises when an allocation fails
        raise ConfigurationError(
            f"{settings.model} cannot be loaded ({memory.describe()}): {error}"
        ) from error
    limits = Limits(settings.max_sequences, settings.max_batch_tokens, memory.max_model_len)
    core = EngineCore(
        runner,
        limits,
        memory.num_blocks,
        memory.block_size,
        prefix_cache=settings.prefix_cache,
        decode_slowdown=settings.decode_slowdown,
        sampler=sample if compute.kernels is None else NativeSampler(compute.kernels, threads),
    )
    _warm_up(core)
    adapters = _load_adapters(settings, name, spec, runner)
    logger.info(
        "model loaded",
        model=name,
        seconds=round(time.perf_counter() - started, 2),
        memory=memory.describe(),
        compute=compute.describe(),
        device=str(compute.device),
        threads=threads,
        adapters=len(adapters.loaded),
    )
    return ServedModel(
        name=name,
        created=int(time.time()),
        tokenizer=tokenizer,
        template=template,
        defaults=defaults,
        service=EngineService(core, settings.max_sequences + settings.max_waiting),
        max_model_len=memory.max_model_len,
        adapters=adapters,
    )


def _load_adapters(
    settings: EngineSettings, name: str, spec: DecoderSpec, runner: TorchRunner | NativeRunner
) -> AdapterStore:
    """The store of adapters for a model called `name`, with those that are to be there from the start."""
    store = AdapterStore(
        name,
        lambda folder: runner.adapt(read_lora(folder, spec, settings.max_lora_rank)),
        settings.max_loras,
        is_open=settings.runtime_lora,
    )
    store.preload(settings.lora_folders)
    return store


def _warm_up(core: EngineCore) -> None:
    """Two tokens through the engine, so that the first user does not wait for lazy initialisation."""
    core.add(Sequence(0, [0], SamplingParams(max_tokens=2, temperature=0.0)))
    while core.has_work:
        for output in core.step():
            if output.error is not None:
                raise CheckpointError(f"the model cannot compute: {output.error.message}")


class _Progress:
    """Logs the loading of a large checkpoint now and then."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if now - self._last >= PROGRESS_EVERY_S:
            self._last = now
            logger.info("loading", model=self._name, tensors=f"{done}/{total}")


def _num_cores() -> int:
    """The cores this process may use; macOS cannot say, so all of them there."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
