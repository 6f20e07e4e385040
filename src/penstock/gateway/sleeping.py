"""/sleep, /wake_up and /is_sleeping, as vLLM has them, for the models whose engines run on this machine."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import parse_qsl

import msgspec

from penstock.asgi.application import Endpoint
from penstock.asgi.exchange import Exchange, unless_gone
from penstock.asgi.settings import HttpLimits
from penstock.base.errors import InvalidRequestError, ModelNotFoundError, UnknownParameterError
from penstock.gateway.local_models import LocalModels
from penstock.protocol.strict import NOT_JSON, read_fields, shown

MAX_FIELDS = 8
# vLLM's levels differ in what the process keeps; ours ends, so it keeps nothing at either.
_LEVELS = ("1", "2")


class SleepEndpoints:
    """What a model is told by hand."""

    def __init__(self, models: LocalModels, limits: HttpLimits) -> None:
        self._models = models
        self._limits = limits

    def table(self) -> dict[tuple[str, str], Endpoint]:
        """The endpoints, for an application's table."""
        return {
            ("POST", "/sleep"): Endpoint(self._sleep),
            ("POST", "/wake_up"): Endpoint(self._wake),
            ("GET", "/is_sleeping"): Endpoint(self._tell, is_work=False),
        }

    async def _sleep(self, exchange: Exchange) -> None:
        """Answers when the model's memory is given back.

        Raises:
            ClientError: the model cannot be told to sleep.
            CapacityError: requests still run.
        """
        fields = await self._read(exchange, ("model", "level"))
        if (level := fields.get("level", "1")) not in _LEVELS:
            raise InvalidRequestError(f"level must be 1 or 2, not {shown(level)!r}", param="level")
        model = self._model(fields)

        async def work() -> None:
            await self._models.sleep(model)
            await self._answer(exchange, model)

        await unless_gone(exchange, work())

    async def _wake(self, exchange: Exchange) -> None:
        """Answers when the model is ready.

        Raises:
            ClientError: there is no such model.
            CapacityError: it could not be loaded.
        """
        model = self._model(await self._read(exchange, ("model",)))

        async def work() -> None:
            await self._models.wake(model)
            await self._answer(exchange, model)

        await unless_gone(exchange, work())

    async def _tell(self, exchange: Exchange) -> None:
        await self._answer(exchange, self._model(_read_query(exchange, ("model",))))

    async def _answer(self, exchange: Exchange, model: str) -> None:
        phase = self._models.phase(model)
        body = {"is_sleeping": phase not in ("ready", "loading"), "model": model, "state": phase}
        await exchange.respond(200, msgspec.json.encode(body))

    async def _read(self, exchange: Exchange, known: Collection[str]) -> dict[str, str]:
        """The fields of the query and of the body, which may be a JSON object or nothing."""
        body = await exchange.read_body(self._limits.max_body_bytes, self._limits.body_timeout_s)
        return _read_query(exchange, known) | _read_body(body, known)

    def _model(self, fields: dict[str, str]) -> str:
        names = self._models.names()
        if (model := fields.get("model")) is None:
            if len(names) != 1:
                raise InvalidRequestError(
                    f"say which model, as ?model=NAME; these can sleep: {', '.join(names) or 'none'}",
                    param="model",
                )
            return names[0]
        if model not in self._models:
            raise ModelNotFoundError(
                f"no model {shown(model)!r} can sleep here; a model with an engine here as its one replica "
                f"can: {', '.join(names) or 'none'}",
                param="model",
            )
        return model


def _read_query(exchange: Exchange, known: Collection[str]) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            exchange.query.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    except ValueError as error:  # bytes that are no UTF-8, too many fields
        raise InvalidRequestError(f"the query cannot be read: {error}") from error
    _refuse_unknown([name for name, _ in pairs], known)
    if len(dict(pairs)) < len(pairs):
        raise InvalidRequestError("the query has a field twice")
    return dict(pairs)


def _read_body(body: bytes, known: Collection[str]) -> dict[str, str]:
    if not body.strip():
        return {}
    fields = read_fields(body)
    _refuse_unknown(fields, known)
    read: dict[str, str] = {}
    for name, raw in fields.items():
        try:
            value = msgspec.json.decode(raw, type=str | int if name == "level" else str)
        except NOT_JSON as error:
            raise InvalidRequestError(f"{name} must be a string", param=name) from error
        read[name] = str(value)
    return read


def _refuse_unknown(names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise UnknownParameterError(
                f"unknown field {shown(name)!r}; known here: {', '.join(known)}", param=shown(name)
            )
