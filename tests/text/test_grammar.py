"""Compiling grammars: once, off the event loop, within limits, and never at the cost of the process."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from byte_tokenizer import byte_level, write_tokenizer
from grammar_walk import MODEL_VOCAB_SIZE, chat_tokenizer, walk
from penstock.base.errors import (
    EngineError,
    InternalError,
    InvalidRequestError,
    QueueFullError,
    UnsupportedParameterError,
)
from penstock.protocol.response_format import MAX_SOURCE_BYTES, GrammarSpec, Kind
from penstock.text.constraint import Grammar, Vocabulary
from penstock.text.grammar import MAX_PENDING, RENEWED_AFTER, GrammarCompiler, compile_grammar
from penstock.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Byte-level, with two end tokens."""
    return chat_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def spec(source: str, kind: Kind = "regex") -> GrammarSpec:
    """A specification."""
    return GrammarSpec(kind, source, f"the {kind}")


class Gated:
    """Compiles when it is let through, and knows what it was given."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self.given: list[str] = []

    def __call__(self, spec: GrammarSpec, vocabulary: Vocabulary) -> Grammar:
        """See `compile_grammar`."""
        self.given.append(spec.source)
        self.begun.release()
        self.gate.wait()
        return compile_grammar(spec, vocabulary)


def gated(tokenizer: Tokenizer, timeout_s: float = 60.0) -> tuple[Gated, GrammarCompiler]:
    """A compiler that waits to be let through."""
    gate = Gated()
    return gate, GrammarCompiler(tokenizer, MODEL_VOCAB_SIZE, timeout_s=timeout_s, compile=gate)


async def test_a_grammar_is_compiled_once(tokenizer: Tokenizer) -> None:
    """By any number that ask for it at a time, and after them."""
    gate, compiler = gated(tokenizer)
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(compiler.compile(spec("[0-9]+"))) for _ in range(10)]
        await asyncio.to_thread(gate.begun.acquire)
        gate.gate.set()
    assert len({task.result() for task in asked}) == 1
    assert await compiler.compile(spec("[0-9]+")) is asked[0].result()
    assert gate.given == ["[0-9]+"]
    assert await compiler.compile(spec('["[0-9]+"]', "choice")) is not asked[0].result()


async def test_who_leaves_does_not_stop_the_compilation_for_others(tokenizer: Tokenizer) -> None:
    """Nor for the cache, if everyone leaves."""
    gate, compiler = gated(tokenizer)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(compiler.compile(spec("a+")))
        second = group.create_task(compiler.compile(spec("a+")))
        await asyncio.to_thread(gate.begun.acquire)
        first.cancel()
        gate.gate.set()
    assert isinstance(second.result(), Grammar)


async def test_the_cache_is_bounded_by_entries(tokenizer: Tokenizer) -> None:
    """What was used last stays."""
    compiler = GrammarCompiler(tokenizer, MODEL_VOCAB_SIZE, max_entries=2)
    a, b = await compiler.compile(spec("a")), await compiler.compile(spec("b"))
    assert await compiler.compile(spec("a")) is a
    await compiler.compile(spec("c"))
    assert await compiler.compile(spec("a")) is a
    assert await compiler.compile(spec("b")) is not b


async def test_the_cache_is_bounded_by_bytes(tokenizer: Tokenizer) -> None:
    """Of the sources; one that is larger than all of it is compiled and not kept."""
    compiler = GrammarCompiler(tokenizer, MODEL_VOCAB_SIZE, max_cached_bytes=10)
    large = await compiler.compile(spec("é" * 6))
    assert await compiler.compile(spec("é" * 6)) is not large
    a, b = await compiler.compile(spec("a" * 5)), await compiler.compile(spec("b" * 5))
    assert await compiler.compile(spec("a" * 5)) is a
    assert await compiler.compile(spec("b" * 5)) is b
    await compiler.compile(spec("c"))
    assert await compiler.compile(spec("b" * 5)) is b
    assert await compiler.compile(spec("a" * 5)) is not a


async def test_a_grammar_is_compiled_anew_when_it_is_broken_or_old(tokenizer: Tokenizer) -> None:
    """What a lexer has learnt is never forgotten otherwise, and its limit is shared by all answers."""
    compiler = GrammarCompiler(tokenizer, MODEL_VOCAB_SIZE)
    first = await compiler.compile(spec("a"))
    first.is_broken = True
    second = await compiler.compile(spec("a"))
    assert second is not first
    for _ in range(RENEWED_AFTER):
        assert await compiler.compile(spec("a")) is second
    assert await compiler.compile(spec("a")) is not second


async def test_a_compilation_that_takes_too_long_is_refused(tokenizer: Tokenizer) -> None:
    """The error names the field; what waits behind it is told to come again; later all is well."""
    gate, compiler = gated(tokenizer, timeout_s=0.05)
    await compiler.warm_up()
    with pytest.raises(InvalidRequestError, match=r"'the regex' takes longer than 0.05 s to compile") as slow:
        await compiler.compile(spec("a"))
    assert slow.value.param == "the regex"
    with pytest.raises(QueueFullError, match="too many grammars") as waiting:
        await compiler.compile(spec("b"))
    assert waiting.value.retry_after_s == 1
    gate.gate.set()
    while True:
        with suppress(InvalidRequestError, QueueFullError):  # on a busy machine it takes its time
            assert isinstance(await compiler.compile(spec("a")), Grammar)
            return


async def test_only_so_many_wait(tokenizer: Tokenizer) -> None:
    """The next one is refused at once; those before it are served."""
    gate, compiler = gated(tokenizer)
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(compiler.compile(spec("a" * n))) for n in range(1, MAX_PENDING + 1)]
        await asyncio.to_thread(gate.begun.acquire)
        with pytest.raises(QueueFullError, match="too many grammars"):
            await compiler.compile(spec("b"))
        gate.gate.set()
    assert len({task.result() for task in asked}) == MAX_PENDING
    assert isinstance(await compiler.compile(spec("b")), Grammar)


async def test_a_model_without_an_end_token_is_refused_by_field(tmp_path: Path) -> None:
    """Each time."""
    compiler = GrammarCompiler(Tokenizer(write_tokenizer(byte_level(), tmp_path)), 300)
    for _ in range(2):
        with pytest.raises(UnsupportedParameterError, match="it has no end token") as refused:
            await compiler.compile(spec("a"))
        assert refused.value.param == "the regex"
    with pytest.raises(UnsupportedParameterError, match="it has no end token"):
        await compiler.warm_up()


class PanicError(BaseException):
    """What Python sees of a panic in Rust; it would end a thread in silence."""


async def test_a_fault_that_is_not_the_grammars_is_ours(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says what it was; the next compilation is as if it had not been."""

    def fail(spec: GrammarSpec, vocabulary: Vocabulary) -> Grammar:
        if spec.source == "a":
            raise PanicError("assertion failed")
        return compile_grammar(spec, vocabulary)

    compiler = GrammarCompiler(tokenizer, MODEL_VOCAB_SIZE, compile=fail)
    with pytest.raises(InternalError, match="llguidance failed; see the engine's log"):
        await compiler.compile(spec("a"))
    assert "PanicError: assertion failed" in caplog.text
    assert isinstance(await compiler.compile(spec("b")), Grammar)


@pytest.mark.parametrize(
    ("kind", "source", "why"),
    [
        ("regex", "(a", "unclosed group"),
        ("regex", r"(a)\1", "backreferences are not supported"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", "[a&&b]", "no token can follow"),
        ("lark", 'strat: "a"', "start"),
        ("lark", 'start: "a', "lexer error"),
        ("lark", "start: b", "b"),
        ("lark", "start: start", "no token can follow"),
        ("json_schema", '{"type": "strnig"}', "strnig"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("json_schema", '{"not": {"type": "null"}}', "not"),
        ("json_schema", '{"oneOf": [{"minimum": 1}, {"maximum": 2}]}', "oneOf"),
        ("json_schema", '{"if": {}, "then": {"type": "null"}}', "if"),
        ("json_schema", '{"type": "string", "format": "nonsense"}', "nonsense"),
        ("json_schema", '{"$ref": "https://example.com/schema"}', "example.com"),
        ("json_schema", '{"$ref": "#/$defs/none"}', "none"),
        ("json_schema", '{"type": "string", "pattern": "(?=a)"}', "look-around"),
        ("json_schema", '{"minimum": 2, "maximum": 1, "type": "integer"}', "Unsatisfiable"),
        ("json_schema", '{"type": "object", "minProperties": 2}', "'minProperties' above 1"),
        ("json_schema", '{"anyOf": [{"required": ["a"], "minProperties": 3}]}', "'minProperties' above 2"),
        ("json_schema", '{"exclusiveMinimum": 0, "maximum": 0.5}', "'exclusiveMinimum' 0 cannot be enforced"),
        ("json_schema", '{"minimum": 3, "exclusiveMinimum": true, "maximum": 3.5}', "'exclusiveMinimum' 3"),
        ("json_schema", '{"minimum": -3.5, "exclusiveMaximum": -3.0}', "'exclusiveMaximum' -3.0 cannot be"),
        ("json_schema", '{"x-guidance": {"lenient": true}}', "x-guidance"),
        ("json_schema", '{"pattern": "(a", "type": "string"}', "unclosed group"),
        ("lark", '{"grammars": [{"json_schema": {}}]}', "expecting rule"),
    ],
)
async def test_what_cannot_be_enforced_is_refused_with_the_reason(
    tokenizer: Tokenizer, kind: Kind, source: str, why: str
) -> None:
    """A keyword that is not enforced would make answers that are not valid."""
    compiler = GrammarCompiler(tokenizer, MODEL_VOCAB_SIZE)
    with pytest.raises(InvalidRequestError, match=why) as refused:
        await compiler.compile(spec(source, kind))
    assert refused.value.param == f"the {kind}"
    assert len(refused.value.message) < 500
    assert "\n" not in refused.value.message


def chain(first: str, link: str, last: str, *, names: str = "abcdefghijklmnopqrstuvwxyz") -> str:
    """Definitions that lead one to the next, as many as a request may have."""

    def name(index: int) -> str:
        return names[index % 26] if index < 26 else name(index // 26 - 1) + names[index % 26]

    parts, size = [first.format(b="x" + name(0))], 200
    for index in count():
        part = link.format(a="x" + name(index), b="x" + name(index + 1))
        size += len(part)
        if size > MAX_SOURCE_BYTES:
            return "".join(parts) + last.format(a="x" + name(index))
        parts.append(part)
    raise AssertionError


def numbered(count: int, part: str, joint: str = ",") -> str:
    """Parts that differ in a number."""
    return joint.join(part.replace("#", str(number)) for number in range(count))


def schemas(link: str) -> str:
    """A chain of definitions in a schema."""
    return chain('{{"$ref":"#/$defs/{b}","$defs":{{', f'"{{a}}":{link},', '"{a}":{{"type":"null"}}}}}}')


OPTIONS = '{"anyOf":[' + numbered(4, '{"properties":{"p#":{"type":"integer"}}}') + "]}"
DOUBLED = "".join(f"a{number}: a{number + 1} a{number + 1}\n" for number in range(30))
HOSTILE: dict[str, tuple[Kind, str]] = {
    "rules in a chain": ("lark", chain("start:{b}\n", "{a}:{b}\n", '{a}:"x"\n')),
    "terminals in a chain": ("lark", "start" + chain(":{b}\n", "{a}:{b}\n", '{a}:"x"\n').upper()),
    "rules that double": ("lark", "start: a0\n" + DOUBLED + 'a30: "x"\n'),
    "ambiguity": ("lark", 'start: s\ns: s s s s | "a" | "b" | ""\n'),
    "optional symbols": ("lark", "start: " + "A? " * 20_000 + '\nA: "a"\n'),
    "some optional symbols": ("lark", "start: " + "A? " * 1000 + '\nA: "a"\n'),
    "nested repetitions": ("lark", 'start: ((("a"{1,1000}){1,1000}){1,1000}){1,1000}\n'),
    "nested brackets": ("lark", "start: " + "(" * 30_000 + '"a"' + ")" * 30_000),
    "intersections": ("lark", "start: A\nA: " + numbered(20, "/(.*#.{20}.*)/", " & ") + "\n"),
    "no end": ("lark", 'start: "a" start\n'),
    "options in a chain": ("json_schema", schemas('{{"anyOf":[{{"$ref":"#/$defs/{b}"}}]}}')),
    "arrays in a chain": ("json_schema", schemas('{{"items":{{"$ref":"#/$defs/{b}"}}}}')),
    "a schema that is itself": ("json_schema", '{"$ref": "#"}'),
    "nested schemas": ("json_schema", '{"items":' * 500 + "{}" + "}" * 500),
    "a product of options": ("json_schema", '{"allOf":[' + ",".join([OPTIONS] * 12) + "]}"),
    "many intersections": (
        "json_schema",
        '{"allOf":[' + numbered(32, '{"pattern":"(a|b)#.*[c-f]{3,9}"}') + "]}",
    ),
    "many multiples": (
        "json_schema",
        '{"allOf":[' + numbered(12, '{"type":"integer","multipleOf":9#7}') + "]}",
    ),
    "schemas in a grammar": (
        "lark",
        'start: %json {"allOf":[' + numbered(32, '{"pattern":"(a|b)#.*"}') + "]}",
    ),
    "a great multiple": ("json_schema", '{"type":"integer","multipleOf":99991,"maximum":1000000000000000}'),
    "great bounds": ("json_schema", '{"type":"integer","minimum":-1e300,"maximum":1e300}'),
    "many items": ("json_schema", '{"type":"array","items":{"type":"integer"},"minItems":1000000000}'),
    "many characters": ("json_schema", '{"type":"string","minLength":1000000000}'),
    "many options": ("json_schema", '{"enum":[' + numbered(6000, '"v#"') + "]}"),
    "many properties": ("json_schema", '{"properties":{' + numbered(2000, '"p#":{}') + "}}"),
    "many patterns": ("json_schema", '{"patternProperties":{' + numbered(300, '"^p#x":{}') + "}}"),
    "many states": ("regex", "(a|b)*a(a|b){60}"),
    "repeated repetitions": ("regex", "((a{1000}){1000}){1000}"),
    "nested groups": ("regex", "(" * 30_000 + "a" + ")" * 30_000),
    "optional letters": ("regex", "a?" * 3000 + "a" * 3000),
    "stars of stars": ("regex", "(a*)*" * 2000),
    "unicode": ("regex", r"(\p{L}{1,1000}\p{N}{1,1000}){1,1000}"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_grammars_end_in_time(tokenizer: Tokenizer, name: str) -> None:
    """Refused or compiled, never a crash; what compiles is followed to its end or to a limit."""
    kind, source = HOSTILE[name]
    compiler = GrammarCompiler(tokenizer, MODEL_VOCAB_SIZE, timeout_s=60.0)
    with suppress(InvalidRequestError):  # here the time is not what it ends by
        grammar = await compiler.compile(spec(source, kind))
        with suppress(EngineError):  # a limit is reached
            answer, is_finished = walk(grammar, 0, patience=20, limit=200)
            assert is_finished or len(answer) == 200
    harmless = await compiler.compile(spec("[ab]"))
    assert walk(harmless, 0)[1]
