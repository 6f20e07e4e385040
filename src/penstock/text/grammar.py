"""Compiles grammars on threads of their own, one at a time, each once, within a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from llguidance import LLMatcher

from penstock.base.errors import (
    EngineError,
    InternalError,
    InvalidRequestError,
    QueueFullError,
    UnsupportedParameterError,
)
from penstock.protocol.response_format import GrammarSpec
from penstock.text.constraint import Grammar, Vocabulary, reason
from penstock.text.grammar_source import has_schema, limits, translate
from penstock.text.grammar_trial import is_bounded
from penstock.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

TIMEOUT_S = 5.0
MAX_ENTRIES = 32
MAX_CACHED_BYTES = 512 * 1024
MAX_PENDING = 16
RENEWED_AFTER = 512
"""Answers after which a grammar is compiled anew: what its lexer has learnt is bounded, so it must forget."""
REHEARSED_TOKENS = 8
"""Masks computed at compilation: most grammars that are too expensive are so from the beginning."""
# llguidance recurses: 64 KiB of rules or of references that lead to each other overflow the usual 8 MiB and
# kill the process. This is address space; pages are taken when they are touched.
STACK_BYTES = 128 * 1024 * 1024

_Key = tuple[str, str]
_T = TypeVar("_T")


@dataclass(slots=True)
class _Refusal:
    """Why something could not be made; each who waits for it raises an error of its own."""

    reason: str
    is_ours: bool = False
    """True if it is no fault of what was asked for; then the log says more."""


@dataclass(slots=True)
class _Job:
    """A compilation on its way."""

    outcome: asyncio.Future[Grammar | _Refusal]
    begun: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True)
class _Entry:
    """A compiled grammar and how often it was asked for."""

    grammar: Grammar
    num_uses: int = 0


class GrammarCompiler:
    """Turns specifications into grammars over one model's vocabulary. For one event loop.

    Each compilation has a thread, and one of at most MAX_PENDING goes on at a time. Who comes when there are
    as many, or waits for the others longer than the time limit, gets a QueueFullError.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        *,
        timeout_s: float = TIMEOUT_S,
        max_entries: int = MAX_ENTRIES,
        max_cached_bytes: int = MAX_CACHED_BYTES,
        compile: Callable[[GrammarSpec, Vocabulary], Grammar] | None = None,
    ) -> None:
        """`vocab_size` is the model's; `max_cached_bytes` bounds the sources of the grammars kept.

        `compile` does the work on the thread; `compile_grammar` unless given.
        """
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._timeout_s = timeout_s
        self._max_entries = max_entries
        self._max_cached_bytes = max_cached_bytes
        self._compile = compile or compile_grammar
        self._cache: OrderedDict[_Key, _Entry] = OrderedDict()
        self._cached_bytes = 0
        self._jobs: dict[_Key, _Job] = {}
        self._turn = threading.Lock()
        self._vocabulary: asyncio.Future[Vocabulary | _Refusal] | None = None

    async def warm_up(self) -> None:
        """Reads the vocabulary, which the first grammar would otherwise wait for.

        For 150,000 tokens it takes half a second, in which it holds the interpreter's lock: call it before
        serving.

        Raises:
            UnsupportedParameterError: the answers of this model cannot be constrained.
        """
        await self._read_vocabulary("response_format")

    async def compile(self, spec: GrammarSpec) -> Grammar:
        """The grammar, from the cache or compiled.

        Raises:
            InvalidRequestError: it cannot be compiled, with llguidance's reason, or not in time.
            UnsupportedParameterError: the answers of this model cannot be constrained.
            QueueFullError: too many others are being compiled.
            InternalError: llguidance, or the process for its trial, failed.
        """
        key = (spec.kind, spec.source)
        if (grammar := self._cached(key)) is not None:
            return grammar
        vocabulary = await self._read_vocabulary(spec.param)
        job = self._jobs.get(key) or self._begin(key, spec, vocabulary)
        try:
            async with asyncio.timeout(self._timeout_s):
                outcome = await asyncio.shield(job.outcome)
        except TimeoutError:
            if not job.begun.is_set():
                raise QueueFullError(
                    "too many grammars are being compiled", param=spec.param, retry_after_s=1
                ) from None
            raise InvalidRequestError(
                f"{spec.param!r} takes longer than {self._timeout_s:g} s to compile: simplify it",
                param=spec.param,
            ) from None
        if not isinstance(outcome, _Refusal):
            return outcome
        message = f"{spec.param!r} cannot be compiled: {outcome.reason}"
        raise (InternalError if outcome.is_ours else InvalidRequestError)(message, param=spec.param)

    def _cached(self, key: _Key) -> Grammar | None:
        entry = self._cache.get(key)
        if entry is None:
            return None
        entry.num_uses += 1
        if entry.grammar.is_broken or entry.num_uses > RENEWED_AFTER:
            self._forget(key)
            return None
        self._cache.move_to_end(key)
        return entry.grammar

    def _keep(self, key: _Key, grammar: Grammar) -> None:
        self._cache[key] = _Entry(grammar)
        self._cached_bytes += len(key[1].encode())
        while len(self._cache) > self._max_entries or self._cached_bytes > self._max_cached_bytes:
            self._forget(next(iter(self._cache)))

    def _forget(self, key: _Key) -> None:
        del self._cache[key]
        self._cached_bytes -= len(key[1].encode())

    async def _read_vocabulary(self, param: str) -> Vocabulary:
        if self._vocabulary is None:
            reading: asyncio.Future[Vocabulary | _Refusal] = asyncio.get_running_loop().create_future()
            self._do(lambda: Vocabulary.of(self._tokenizer, self._vocab_size), reading)
            self._vocabulary = reading
        vocabulary = await asyncio.shield(self._vocabulary)
        if isinstance(vocabulary, _Refusal):
            raise UnsupportedParameterError(
                f"{param!r} is not supported with this model: {vocabulary.reason}", param=param
            )
        return vocabulary

    def _begin(self, key: _Key, spec: GrammarSpec, vocabulary: Vocabulary) -> _Job:
        if len(self._jobs) >= MAX_PENDING:
            raise QueueFullError("too many grammars are being compiled", param=spec.param, retry_after_s=1)
        job = _Job(asyncio.get_running_loop().create_future())

        def work() -> Grammar:
            job.begun.set()
            return self._compile(spec, vocabulary)

        def keep(outcome: asyncio.Future[Grammar | _Refusal]) -> None:
            del self._jobs[key]
            if not outcome.cancelled() and isinstance(grammar := outcome.result(), Grammar):
                self._keep(key, grammar)

        job.outcome.add_done_callback(keep)
        self._do(work, job.outcome)
        self._jobs[key] = job
        return job

    def _do(self, work: Callable[[], _T], outcome: asyncio.Future[_T | _Refusal]) -> None:
        """Has a thread do it and set the outcome on the event loop."""
        loop = outcome.get_loop()

        def settle(result: _T | _Refusal) -> None:
            if not outcome.done():
                outcome.set_result(result)

        def attempt() -> None:
            with self._turn:
                result = _attempt(work)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, result)

        _start(attempt)


def compile_grammar(spec: GrammarSpec, vocabulary: Vocabulary) -> Grammar:
    """Tries, compiles and rehearses a grammar; blocks. On a thread with a stack of STACK_BYTES.

    Raises:
        ValueError: it cannot be compiled or followed within the limits, with the reason.
    """
    source = translate(spec)
    trial = translate(replace(spec, source=spec.trial)) if spec.trial else source
    if has_schema(spec) and not is_bounded(trial, STACK_BYTES):
        raise ValueError("it takes too much time or memory: simplify it, above all 'allOf' and 'multipleOf'")
    return build_grammar(spec, source, vocabulary)


def build_grammar(spec: GrammarSpec, source: str, vocabulary: Vocabulary) -> Grammar:
    """Compiles what `translate` made of a specification, without a trial before.

    Raises:
        ValueError: see `compile_grammar`.
    """
    matcher = LLMatcher(vocabulary.tokens, source, log_level=0, limits=limits(spec))
    if matcher.is_error():
        raise ValueError(reason(matcher.get_error()))
    grammar = Grammar(matcher, vocabulary)
    try:
        _rehearse(grammar)
    except EngineError as error:
        raise ValueError(error.message) from error
    return grammar


def _rehearse(grammar: Grammar) -> None:
    """Follows the grammar for a few tokens drawn at random, the same ones each time."""
    vocabulary, constraint = grammar.vocabulary, grammar.new_constraint()
    masks = np.zeros((1, vocabulary.num_mask_words), dtype=np.int32)
    draw = np.random.default_rng(0)
    answer: list[int] = []
    for _ in range(REHEARSED_TOKENS):
        constraint.fill(masks, answer, ())
        (allowed,) = np.nonzero(np.unpackbits(masks[0].view(np.uint8), bitorder="little"))
        token = int(draw.choice(allowed))
        if token in vocabulary.end_tokens:
            return
        answer.append(token)


def _attempt(work: Callable[[], _T]) -> _T | _Refusal:
    try:
        return work()
    except ValueError as error:
        return _Refusal(reason(str(error)))
    except BaseException:  # a panic of llguidance is not an Exception
        logger.exception("work on a grammar failed")
        return _Refusal("llguidance failed; see the engine's log", is_ours=True)


def _start(work: Callable[[], None]) -> None:
    """Starts a thread with a deep stack. A daemon: one that hangs must not keep the process from ending."""
    usual = threading.stack_size(STACK_BYTES)
    try:
        threading.Thread(target=work, name="grammar", daemon=True).start()
    finally:
        threading.stack_size(usual)
