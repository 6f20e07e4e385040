"""Strict reading: honoured or refused by name, never ignored, never a crash."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.errors import (
    ClientError,
    InvalidRequestError,
    UnknownParameterError,
    UnsupportedParameterError,
)
from penstock.protocol.strict import MAX_SHOWN, read_fields, read_request


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A nested object."""

    size: int


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What these tests read."""

    name: str
    items: list[Inner] = []


ORDER = msgspec.json.Decoder(Order)
UNBUILT = {"gift": (False,), "count": (1,), "tags": ([], {"type": "text"}), "never": ()}
DEEP = b"[" * 100_000 + b"]" * 100_000


def read(body: bytes) -> Order:
    """Reads an order."""
    return read_request(body, ORDER, UNBUILT)


def test_known_fields_are_read() -> None:
    """The plain case."""
    assert read(b'{"name": "a", "items": [{"size": 3}]}') == Order("a", [Inner(3)])


@pytest.mark.parametrize(
    "rest", [b'"gift":false', b'"gift":null', b'"count":1', b'"count":1.0', b'"tags":[]', b'"never":null',
             b'"tags":{"type":"text"}', b'"gift":false,"count":1']
)  # fmt: skip
def test_values_that_ask_for_nothing_pass(rest: bytes) -> None:
    """Clients send defaults in full."""
    assert read(b'{"name":"a",' + rest + b"}") == Order("a")


@pytest.mark.parametrize(
    ("field", "value"),
    [("gift", b"true"), ("gift", b"0"), ("count", b"2"), ("count", b"true"), ("never", b"false"),
     ("tags", b'{"type":"json"}'), ("tags", b"[1]"), ("count", b"1e300"), ("count", b"9" * 300)],
)  # fmt: skip
def test_an_unbuilt_field_is_refused_by_name(field: str, value: bytes) -> None:
    """True is not 1, and 0 is not false."""
    with pytest.raises(UnsupportedParameterError, match=f"'{field}'") as caught:
        read(b'{"name":"a","' + field.encode() + b'":' + value + b"}")
    assert caught.value.param == field


def test_the_refusal_says_which_values_pass() -> None:
    """So that a user can mend the request without reading our source."""
    with pytest.raises(UnsupportedParameterError, match=r"null or 1 is accepted"):
        read(b'{"name":"a","count":2}')


def test_an_unknown_field_is_refused_by_name() -> None:
    """A misspelt field must not be dropped."""
    with pytest.raises(UnknownParameterError, match="'nmae'") as caught:
        read(b'{"name":"a","nmae":null}')
    assert caught.value.param == "nmae"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{}", "name"),
        (b'{"name":1}', "name"),
        (b'{"name":"a","items":{}}', "items"),
        (b'{"name":"a","items":[{"size":1},{}]}', "items[1].size"),
        (b'{"name":"a","items":[{"size":"1"}]}', "items[0].size"),
        (b'{"name":"a","items":[{"size":1.5}]}', "items[0].size"),
        (b'{"name":"a","items":[7]}', "items[0]"),
    ],
)
def test_errors_name_the_exact_path(body: bytes, param: str) -> None:
    """Down to the list's index."""
    with pytest.raises(InvalidRequestError) as caught:
        read(body)
    assert caught.value.param == param
    assert param in caught.value.message


def test_an_unknown_field_inside_is_named_with_its_path() -> None:
    """The nested types forbid unknown fields by themselves."""
    with pytest.raises(UnknownParameterError) as caught:
        read(b'{"name":"a","items":[{"size":1,"colour":2}]}')
    assert caught.value.param == "items[0].colour"


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"null", b"[]", b"1", b'"a"', b"{", b'{"name"', b'{"name":"a"', b'{"name":"a"} x', b"\xff",
        b'{"name":"\xff"}', b'{"name":"a","count":"\xff"}', b'{"name":"a","\xff":1}', b'{"name":"a\x00"}',
        b'{"name":"\\ud800"}', b'{"name":"\\udc00x"}', b'{"name":"a","count":"\\ud800"}', b"{'name':'a'}",
        b'{"name":"a","items":[{"size":NaN}]}', b'{"name":"a","count":NaN}',
        b'{"name":"a","count":-Infinity}',
        b'{"name":"a","count":1e999}', b'{"name":"a","items":[{"size":1e999}]}',
        b'{"name":"a","count":01}', b'\xef\xbb\xbf{"name":"a"}', b'{"name":"a",}', DEEP,
        b'{"name":' + DEEP + b"}", b'{"name":"a","tags":' + DEEP + b"}",
        b'{"name":"a","items":' + DEEP + b"}",
        b'{"name":"a","tags":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    ],
)  # fmt: skip
def test_what_is_not_our_json_is_an_invalid_request(body: bytes) -> None:
    """Broken UTF-8 (also in a field that is not built), surrogates, NaN, nesting bombs: always a 400."""
    with pytest.raises(InvalidRequestError):
        read(body)


def test_of_a_field_given_twice_the_last_counts_for_all_checks() -> None:
    """What is checked is what is used; Python's json does the same."""
    assert read(b'{"name":"a","name":"b"}') == Order("b")
    assert read(b'{"name":"a","count":2,"count":1}') == Order("a")
    with pytest.raises(UnsupportedParameterError):
        read(b'{"name":"a","count":1,"count":2}')
    with pytest.raises(InvalidRequestError):
        read(b'{"name":"a","name":1}')


def test_a_long_name_is_cut_in_the_error() -> None:
    """A client must not be able to fill our log with one request."""
    with pytest.raises(UnknownParameterError) as caught:
        read(b'{"name":"a","' + b"x" * 1_000_000 + b'":1}')
    assert caught.value.param is not None
    assert len(caught.value.param) == MAX_SHOWN + 1
    assert len(caught.value.message) < 2 * MAX_SHOWN


def test_reading_fields_leaves_values_unread() -> None:
    """The gateway reads `model` only."""
    assert {name: bytes(raw) for name, raw in read_fields(b'{"a": [1 ], "b":"x"}').items()} == {
        "a": b"[1 ]",
        "b": b'"x"',
    }


@given(st.binary())
def test_any_bytes_give_an_order_or_a_clients_error(body: bytes) -> None:
    """Nothing else may come out."""
    with suppress(ClientError):
        assert isinstance(read(body), Order)


@given(st.binary(max_size=20), st.sampled_from(["name", "count", "items", "other"]))
def test_any_bytes_as_a_value_give_an_order_or_a_clients_error(value: bytes, field: str) -> None:
    """Deeper into the reader than bytes at random get."""
    with suppress(ClientError):
        assert isinstance(read(b'{"name":"a","' + field.encode() + b'":' + value + b"}"), Order)
