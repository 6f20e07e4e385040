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

    def __init__(self, models: Callable[[], Iterable[Model]]) -> None:
        """`models` gives what is served now."""
        self._models = models

    def table(self) -> dict[tuple[str, str], Endpoint]:
        """The endpoints, for an application's table."""
        return {("GET", MODELS): Endpoint(self._list), ("GET", MODEL_PREFIX): Endpoint(self._retrieve)}

    async def _list(self, exchange: Exchange) -> None:
        models = sorted(self._models(), key=lambda model: model.id)
        await exchange.respond(200, msgspec.json.encode(ModelList(data=models)))

    async def _retrieve(self, exchange: Exchange) -> None:
        name = exchange.path.removeprefix(MODEL_PREFIX)
        models = {model.id: model for model in self._models()}
        if name not in models:
            raise ModelNotFoundError(
                f"there is no model {shown(name)!r} here; there is: {', '.join(sorted(models))}",
                param="model",
            )
        await exchange.respond(200, msgspec.json.encode(models[name]))
