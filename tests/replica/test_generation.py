"""From the engine's outputs to text and a reason, also where a scripted model cannot bring them about."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from byte_tokenizer import byte_level, write_tokenizer
from penstock.base.errors import ClientGoneError, EngineError, InternalError, KVCapacityError
from penstock.engine.sequence import FinishReason, Output
from penstock.replica.generation import Generation, Piece
from penstock.text.tokenizer import Tokenizer


class Outputs:
    """A token stream that gives these outputs."""

    def __init__(self, *outputs: Output) -> None:
        self._outputs = outputs

    async def __aiter__(self) -> AsyncIterator[Output]:
        for output in self._outputs:
            yield output


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A token per byte."""
    return Tokenizer(write_tokenizer(byte_level(), tmp_path_factory.mktemp("tokenizer")))


class Run(Generation):
    """A generation over given outputs."""

    outputs: Outputs

    async def pieces(self) -> AsyncIterator[Piece]:  # type: ignore[override]
        """Its pieces."""
        async for piece in super().pieces(self.outputs):  # type: ignore[arg-type]
            yield piece


def generation(tokenizer: Tokenizer, *outputs: Output, stops: tuple[str, ...] = ()) -> Run:
    """A generation over these outputs."""
    run = Run(tokenizer, stops)
    run.outputs = Outputs(*outputs)
    return run


async def collect(generation: Generation, into: list[str]) -> None:
    """All its pieces, those before an error too."""
    async for piece in generation.pieces():
        into.append("".join(fragment.text for fragment in piece.fragments))


async def test_every_token_gives_a_piece_even_if_it_shows_nothing(tokenizer: Tokenizer) -> None:
    """The first piece marks the first token, whether or not a character is complete."""
    first, second = "é".encode()
    pieces: list[str] = []
    run = generation(tokenizer, Output(1, first), Output(1, second, FinishReason.LENGTH))
    await collect(run, pieces)
    assert pieces == ["", "é"]
    assert (run.finish_reason, run.num_tokens) == ("length", 2)


@pytest.mark.parametrize("error", [EngineError("broken"), KVCapacityError("too long")])
async def test_an_error_before_any_token_gives_no_piece(tokenizer: Tokenizer, error: EngineError) -> None:
    """A piece would begin the answer, and the error would have no status any more."""
    pieces: list[str] = []
    run = generation(tokenizer, Output(1, finish=FinishReason.ERROR, error=error))
    with pytest.raises(type(error)):
        await collect(run, pieces)
    assert pieces == []
    assert run.finish_reason is None


async def test_an_error_in_the_middle_counts_the_tokens_so_far(tokenizer: Tokenizer) -> None:
    """For the log line and the bill."""
    pieces: list[str] = []
    end = Output(1, finish=FinishReason.ERROR, error=EngineError("broken"))
    run = generation(tokenizer, Output(1, ord("a")), Output(1, ord("b")), end)
    with pytest.raises(EngineError):
        await collect(run, pieces)
    assert pieces == ["a", "b"]
    assert run.num_tokens == 2


async def test_a_cancelled_request_is_the_clients_leaving(tokenizer: Tokenizer) -> None:
    """Not a good end and not a failure of ours."""
    with pytest.raises(ClientGoneError):
        await collect(generation(tokenizer, Output(1, finish=FinishReason.CANCELLED)), [])


async def test_a_stream_without_an_end_is_a_defect(tokenizer: Tokenizer) -> None:
    """It must not look like a good answer."""
    with pytest.raises(InternalError):
        await collect(generation(tokenizer, Output(1, ord("a"))), [])


async def test_tokens_after_a_stop_string_are_not_read(tokenizer: Tokenizer) -> None:
    """They cost the client nothing."""
    pieces: list[str] = []
    outputs = [Output(1, token) for token in b"abcd"]
    run = generation(tokenizer, *outputs, stops=("bc",))
    await collect(run, pieces)
    assert "".join(pieces) == "a"
    assert (run.finish_reason, run.num_tokens) == ("stop", 3)
