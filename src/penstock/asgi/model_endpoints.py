"""/v1/models and /v1/models/{id}, the same at gateway and replica."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from penstock.asgi.application import Endpoint
from penstock.asgi.exchange import Exchange
from penstock.base.errors import ModelNotFoundError
from penstock.protocol.models import Model, ModelList
from penstock.protocol.strict import shown

MODELS = "/v1/models"
# A model's name may hold slashes.
MODEL_PREFIX = "/v1/models/"


class ModelEndpoints:
    """Answers what is served."""

    def __init__(
        self, names: Iterable[str], created: int, describe: Callable[[Model], Model] = lambda model: model
    ) -> None:
        """`created` is the Unix second at which serving began; `describe` adds what is true at the moment."""
        self._models = {name: Model(id=name, created=created) for name in sorted(names)}
        self._describe = describe

    def table(self) -> dict[tuple[str, str], Endpoint]:
        """The endpoints, for an application's table."""
        return {("GET", MODELS): Endpoint(self._list), ("GET", MODEL_PREFIX): Endpoint(self._retrieve)}

    async def _list(self, exchange: Exchange) -> None:
        await exchange.respond(
            200,
            msgspec.json.encode(ModelList(data=[self._describe(model) for model in self._models.values()])),
        )

    async def _retrieve(self, exchange: Exchange) -> None:
        name = exchange.path.removeprefix(MODEL_PREFIX)
        if name not in self._models:
            raise ModelNotFoundError(
                f"there is no model {shown(name)!r} here; there is: {', '.join(self._models)}", param="model"
            )
        await exchange.respond(200, msgspec.json.encode(self._describe(self._models[name])))
