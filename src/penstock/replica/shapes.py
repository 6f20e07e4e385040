"""The wire shapes of an answer: one contract, and its two implementations, chat and text completions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType

from penstock.engine.sampling import TokenLogprobs
from penstock.protocol.chat import AnswerMessage, ChatChunk, ChatCompletion, Choice, ChunkChoice, Delta
from penstock.protocol.completions import Completion, CompletionChoice, CompletionLogprobs
from penstock.protocol.stream import Event
from penstock.protocol.tools import AnswerFunction, AnswerToolCall, ToolCallDelta
from penstock.protocol.usage import Usage
from penstock.replica.echo import Echo
from penstock.replica.generation import Piece
from penstock.replica.logprobs import CompletionLogprobsBuilder, chat_logprobs
from penstock.text.fragments import CallArguments, CallStart, Content, Fragment, Reasoning
from penstock.text.tokenizer import Tokenizer

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Collected:
    """One answer, put together from its pieces."""

    index: int
    fragments: list[Fragment] = field(default_factory=list)
    logprobs: list[tuple[int, TokenLogprobs]] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, piece: Piece) -> None:
        """Takes the next piece."""
        self.fragments += piece.fragments
        if piece.logprobs is not None:
            self.logprobs.append(piece.logprobs)

    def text_of(self, kind: type[Content] | type[Reasoning]) -> str:
        """The text of one kind, joined."""
        return "".join(fragment.text for fragment in self.fragments if isinstance(fragment, kind))


class Shape(Protocol):
    """Encodes answers, whole or in pieces, `choice` being an answer's index; JSON without line ends."""

    def opening(self, choice: int) -> Iterator[tuple[Event, bytes]]:
        """The events before an answer's first text."""
        ...

    def piece(self, choice: int, piece: Piece) -> Iterator[bytes]:
        """The events of a piece; none if it shows nothing."""
        ...

    def finish(self, choice: int, reason: str) -> bytes:
        """The end of an answer."""
        ...

    def usage(self, usage: Usage) -> bytes:
        """The tokens used, sent where the client asked for them."""
        ...

    def whole(self, answers: Sequence[Collected], usage: Usage) -> bytes:
        """Answers that are not streamed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What of a request shows in its answer."""

    model: str
    tokenizer: Tokenizer
    id: str
    created: int
    """Unix seconds."""
    include_usage: bool = False
    logprobs: int | None = None
    """Alternatives with log-probabilities; None: no log-probabilities."""
    service_tier: str | None = None


class ChatShape:
    """chat.completion and chat.completion.chunk."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._no_usage: UnsetType | None = None if asked.include_usage else UNSET
        self._tier = asked.service_tier or UNSET

    def opening(self, choice: int) -> Iterator[tuple[Event, bytes]]:
        """The chunk that names the role."""
        yield Event.ROLE, self._chunk(ChunkChoice(index=choice, delta=Delta(role="assistant", content="")))

    def piece(self, choice: int, piece: Piece) -> Iterator[bytes]:
        """See Shape."""
        logprobs = None if piece.logprobs is None else chat_logprobs([piece.logprobs], self._asked.tokenizer)
        deltas = [_delta(fragment) for fragment in piece.fragments]
        if logprobs is not None and not deltas:
            deltas = [Delta(content="")]  # clients look for log-probabilities beside content
        for delta in deltas:
            yield self._chunk(ChunkChoice(index=choice, delta=delta, logprobs=logprobs))
            logprobs = None

    def finish(self, choice: int, reason: str) -> bytes:
        """See Shape."""
        return self._chunk(ChunkChoice(index=choice, delta=Delta(), finish_reason=reason))

    def usage(self, usage: Usage) -> bytes:
        """See Shape."""
        return self._chunks([], usage)

    def whole(self, answers: Sequence[Collected], usage: Usage) -> bytes:
        """See Shape."""
        choices = [
            Choice(
                index=answer.index,
                message=_message(answer),
                finish_reason=answer.finish_reason or "",
                logprobs=None
                if self._asked.logprobs is None
                else chat_logprobs(answer.logprobs, self._asked.tokenizer),
            )
            for answer in answers
        ]
        return _encode(
            ChatCompletion(
                id=self._asked.id,
                created=self._asked.created,
                model=self._asked.model,
                choices=choices,
                usage=usage,
                service_tier=self._tier,
            )
        )

    def _chunk(self, choice: ChunkChoice) -> bytes:
        return self._chunks([choice], self._no_usage)

    def _chunks(self, choices: list[ChunkChoice], usage: Usage | UnsetType | None) -> bytes:
        return _encode(
            ChatChunk(
                id=self._asked.id,
                created=self._asked.created,
                model=self._asked.model,
                choices=choices,
                usage=usage,
                service_tier=self._tier,
            )
        )


def _delta(fragment: Fragment) -> Delta:
    match fragment:
        case Content(text):
            return Delta(content=text)
        case Reasoning(text):
            return Delta(reasoning_content=text)
        case CallStart(index, call_id, name):
            return Delta(tool_calls=[ToolCallDelta.opening(index, call_id, name)])
        case CallArguments(index, text):
            return Delta(tool_calls=[ToolCallDelta.more(index, text)])


def _message(answer: Collected) -> AnswerMessage:
    calls = _calls(answer.fragments)
    content = answer.text_of(Content)
    return AnswerMessage(
        content=content if content or not calls else None,
        reasoning_content=answer.text_of(Reasoning) or UNSET,
        tool_calls=calls or UNSET,
    )


def _calls(fragments: Iterable[Fragment]) -> list[AnswerToolCall]:
    starts = [fragment for fragment in fragments if isinstance(fragment, CallStart)]
    arguments: dict[int, list[str]] = {start.index: [] for start in starts}
    for fragment in fragments:
        if isinstance(fragment, CallArguments):
            arguments[fragment.index].append(fragment.text)
    return [
        AnswerToolCall(
            id=start.id,
            function=AnswerFunction(name=start.name, arguments="".join(arguments[start.index])),
        )
        for start in starts
    ]


class CompletionShape:
    """text_completion, whole and streamed."""

    def __init__(self, asked: Asked, echoes: Sequence[Echo | None], num_choices: int) -> None:
        """`echoes`: by prompt, what is repeated of it; each prompt has `num_choices` answers."""
        self._asked = asked
        self._echoes = echoes
        self._num_choices = num_choices
        self._no_usage: UnsetType | None = None if asked.include_usage else UNSET
        self._tier = asked.service_tier or UNSET
        self._builders: dict[int, CompletionLogprobsBuilder] = {}

    def opening(self, choice: int) -> Iterator[tuple[Event, bytes]]:
        """A text completion opens with its text, which may be the prompt's."""
        echo = self._echo(choice)
        if echo is not None:
            logprobs = None if self._asked.logprobs is None else self._builder(choice).build(echo.logprobs())
            yield (
                Event.CONTENT,
                self._event(CompletionChoice(index=choice, text=echo.text, logprobs=logprobs)),
            )

    def piece(self, choice: int, piece: Piece) -> Iterator[bytes]:
        """See Shape."""
        text = "".join(fragment.text for fragment in piece.fragments if isinstance(fragment, Content))
        if text or piece.logprobs is not None:
            logprobs = None if piece.logprobs is None else self._builder(choice).build([piece.logprobs])
            yield self._event(CompletionChoice(index=choice, text=text, logprobs=logprobs))

    def finish(self, choice: int, reason: str) -> bytes:
        """See Shape."""
        return self._event(CompletionChoice(index=choice, text="", finish_reason=reason))

    def usage(self, usage: Usage) -> bytes:
        """See Shape."""
        return self._completion([], usage)

    def whole(self, answers: Sequence[Collected], usage: Usage) -> bytes:
        """See Shape."""
        return self._completion([self._answer(answer) for answer in answers], usage)

    def _answer(self, answer: Collected) -> CompletionChoice:
        echo, text = self._echo(answer.index), answer.text_of(Content)
        logprobs: CompletionLogprobs | None = None
        if self._asked.logprobs is not None:
            before = () if echo is None else echo.logprobs()
            logprobs = self._builder(answer.index).build((*before, *answer.logprobs))
        return CompletionChoice(
            index=answer.index,
            text=text if echo is None else echo.text + text,
            finish_reason=answer.finish_reason,
            logprobs=logprobs,
        )

    def _echo(self, choice: int) -> Echo | None:
        return self._echoes[choice // self._num_choices]

    def _builder(self, choice: int) -> CompletionLogprobsBuilder:
        if choice not in self._builders:
            with_top = bool(self._asked.logprobs)
            self._builders[choice] = CompletionLogprobsBuilder(self._asked.tokenizer, with_top=with_top)
        return self._builders[choice]

    def _event(self, choice: CompletionChoice) -> bytes:
        return self._completion([choice], self._no_usage)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> bytes:
        return _encode(
            Completion(
                id=self._asked.id,
                created=self._asked.created,
                model=self._asked.model,
                choices=choices,
                usage=usage,
                service_tier=self._tier,
            )
        )
