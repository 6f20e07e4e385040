"""From engine settings to a model ready to serve. Imports torch."""

from __future__ import annotations

import time
from pathlib import Path

import structlog

from penstock.base.errors import CheckpointError, ConfigurationError
from penstock.engine.adapter_store import AdapterStore
from penstock.engine.checkpoint import resolve
from penstock.engine.compute import choose_compute
from penstock.engine.core import EngineCore, ForwardPass
from penstock.engine.encoder_spec import EncoderSpec
from penstock.engine.kv_events import KVEventLog
from penstock.engine.kv_fingerprint import fingerprint_of
from penstock.engine.kv_snapshot import is_usable, restore_snapshot
from penstock.engine.kv_store import KVStore
from penstock.engine.lora import read_lora
from penstock.engine.memory import MemoryPlan, plan_memory
from penstock.engine.native.build import load_kernels
from penstock.engine.native.runner import NativeRunner
from penstock.engine.native.sampler import NativeSampler
from penstock.engine.plan import Limits
from penstock.engine.pooling import Pooling
from penstock.engine.runner import TorchRunner, load_runner
from penstock.engine.sampler import sample
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import Sequence
from penstock.engine.service import EngineService
from penstock.engine.settings import EngineSettings
from penstock.engine.spec import DecoderSpec
from penstock.engine.weights import read_config
from penstock.replica.embedding_defaults import EmbeddingDefaults
from penstock.replica.encoder_loading import load_encoder_model
from penstock.replica.encoder_model import ServedEncoder
from penstock.replica.model import SamplingDefaults, ServedModel
from penstock.replica.threads import choose_threads
from penstock.text.answer_format import AnswerFormat
from penstock.text.grammar import GrammarCompiler
from penstock.text.template import ChatTemplate
from penstock.text.tokenizer import Tokenizer

logger = structlog.get_logger(__name__)
PROGRESS_EVERY_S = 2.0


def load_served(settings: EngineSettings, name: str) -> ServedModel | ServedEncoder:
    """Reads a checkpoint of any kind and builds its engine, started later by its service's `start`.

    Raises:
        ConfigurationError: the model or a setting is refused.
    """
    directory = resolve(settings.model)
    if EncoderSpec.is_for(read_config(directory)):
        return load_encoder_model(directory, settings, name, _Progress(name))
    return load_model(settings, name)


def load_model(settings: EngineSettings, name: str) -> ServedModel:
    """Reads the checkpoint of a model that generates and builds its engine; see :func:`load_served`.

    Raises:
        ConfigurationError: the model or a setting is refused.
    """
    started = time.perf_counter()
    _check_kv(settings)
    directory = resolve(settings.model)
    spec = DecoderSpec.from_config(read_config(directory))
    threads = choose_threads(settings, spec.num_parameters)
    compute = choose_compute(spec, settings, lambda: load_kernels(Path(settings.kernel_cache)))
    memory = plan_memory(spec, settings, compute)
    tokenizer = Tokenizer(directory)
    template = ChatTemplate.of_checkpoint(directory, tokenizer)
    defaults = SamplingDefaults.of_checkpoint(directory)
    embedding = EmbeddingDefaults.of_checkpoint(directory, spec.hidden_size, Pooling.LAST)
    if tokenizer.vocab_size > spec.vocab_size:
        raise CheckpointError(
            f"the tokenizer of {settings.model} has {tokenizer.vocab_size} tokens, the model "
            f"{spec.vocab_size}: they do not belong together"
        )
    runner = _load_runner(settings, directory, memory, threads, name)
    core = _build_core(settings, memory, runner, spec.vocab_size, threads)
    _warm_up(core)
    kv_events, kv = _event_log(settings, core), _open_store(settings, directory, spec, core, runner)
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
        memory=memory,
        grammars=GrammarCompiler(tokenizer, spec.vocab_size),
        answers=AnswerFormat(
            tokenizer,
            None if template is None else template.tool_source,
            settings.tool_format,
            splits_reasoning=settings.reasoning == "auto",
        ),
        vocab_size=spec.vocab_size,
        kv=kv,
        serves_kv=settings.kv_transfer,
        kv_events=kv_events,
        embedding=embedding,
        adapters=adapters,
    )


def _event_log(settings: EngineSettings, core: EngineCore) -> KVEventLog | None:
    core.scheduler.tables.forget()  # what the warm-up has left
    return KVEventLog(core.scheduler.tables.cache) if settings.kv_events else None


def _load_runner(
    settings: EngineSettings, directory: Path, memory: MemoryPlan, threads: int, name: str
) -> TorchRunner | NativeRunner:
    try:
        return load_runner(directory, memory, threads, _Progress(name))
    except (RuntimeError, MemoryError) as error:  # what torch raises when an allocation fails
        raise ConfigurationError(
            f"{settings.model} cannot be loaded ({memory.describe()}): {error}"
        ) from error


def _build_core(
    settings: EngineSettings, memory: MemoryPlan, runner: ForwardPass, vocab_size: int, threads: int
) -> EngineCore:
    kernels = memory.compute.kernels
    native = None if kernels is None else NativeSampler(kernels, threads)
    limits = Limits(
        settings.max_sequences, settings.max_batch_tokens, memory.max_model_len, settings.draft_rows
    )
    return EngineCore(
        runner,
        limits,
        memory.num_blocks,
        memory.block_size,
        vocab_size=vocab_size,
        prefix_cache=settings.prefix_cache,
        decode_slowdown=settings.decode_slowdown,
        sampler=native or sample,
    )


def snapshot_path(settings: EngineSettings) -> Path:
    """Where the prefix cache is kept; meaningful if `kv_snapshot` is set."""
    return Path(settings.kv_snapshot).expanduser()


def _check_kv(settings: EngineSettings) -> None:
    for name, value in (("kv_snapshot", settings.kv_snapshot), ("kv_transfer", settings.kv_transfer)):
        if value and not settings.prefix_cache:
            raise ConfigurationError(
                f"{name} needs prefix_cache, which is switched off: there is nothing to keep", param=name
            )
    if settings.kv_snapshot and not is_usable(snapshot_path(settings)):
        raise ConfigurationError(f"kv_snapshot {settings.kv_snapshot!r} is no file", param="kv_snapshot")


def _open_store(
    settings: EngineSettings,
    directory: Path,
    spec: DecoderSpec,
    core: EngineCore,
    runner: TorchRunner | NativeRunner,
) -> KVStore | None:
    """The engine's door for KV where a setting asks for one, the snapshot restored."""
    if not (settings.kv_snapshot or settings.kv_transfer):
        return None
    fingerprint = fingerprint_of(directory, spec, runner.memory, runner.pages.layout)
    store = KVStore(core.scheduler.tables, runner.pages, fingerprint)
    if settings.kv_snapshot:
        restore_snapshot(store, snapshot_path(settings))
    return store


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
