"""/v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM names them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from penstock.asgi.application import Endpoint
from penstock.asgi.exchange import Exchange
from penstock.asgi.settings import HttpLimits
from penstock.base.errors import UnsupportedParameterError
from penstock.engine.adapter_store import AdapterStore
from penstock.protocol.generation import Name
from penstock.protocol.strict import Unbuilt, read_request

MAX_PATH_LENGTH = 4096  # Linux's
TEXT = b"text/plain; charset=utf-8"
_UNBUILT_IN_LOAD: Unbuilt = {"base_model_name": (), "is_3d_lora_weight": (False,)}
_UNBUILT_IN_UNLOAD: Unbuilt = {"lora_int_id": ()}


class LoadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which adapter to load, under which name."""

    lora_name: Name
    lora_path: Annotated[str, Meta(max_length=MAX_PATH_LENGTH)]
    """A folder on this machine that peft wrote."""
    load_inplace: bool = False
    """Take the place of the adapter that has the name now, if there is one."""


class UnloadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which adapter's name to take away."""

    lora_name: Name


_LOAD = msgspec.json.Decoder(LoadRequest)
_UNLOAD = msgspec.json.Decoder(UnloadRequest)


class AdapterEndpoints:
    """Loads and unloads while serving, where `runtime_lora` allows it."""

    def __init__(self, adapters: AdapterStore, limits: HttpLimits) -> None:
        self._adapters = adapters
        self._limits = limits

    def table(self) -> dict[tuple[str, str], Endpoint]:
        """The endpoints, for an application's table."""
        return {
            ("POST", "/v1/load_lora_adapter"): Endpoint(self._load),
            ("POST", "/v1/unload_lora_adapter"): Endpoint(self._unload),
        }

    async def _load(self, exchange: Exchange) -> None:
        request = read_request(await self._body(exchange), _LOAD, _UNBUILT_IN_LOAD)
        # Goes on if the client leaves: half a loading is of no use, and reading files cannot be interrupted.
        await self._adapters.load(request.lora_name, request.lora_path, is_replacing=request.load_inplace)
        await self._confirm(exchange, f"LoRA adapter '{request.lora_name}' added")

    async def _unload(self, exchange: Exchange) -> None:
        request = read_request(await self._body(exchange), _UNLOAD, _UNBUILT_IN_UNLOAD)
        self._adapters.unload(request.lora_name)
        await self._confirm(exchange, f"LoRA adapter '{request.lora_name}' removed")

    async def _body(self, exchange: Exchange) -> bytes:
        body = await exchange.read_body(self._limits.max_body_bytes, self._limits.body_timeout_s)
        if not self._adapters.is_open:
            raise UnsupportedParameterError(
                "adapters cannot be loaded and unloaded while serving: it lets clients read this machine's "
                "folders; where all of them are trusted, switch it on with runtime_lora"
            )
        return body

    @staticmethod
    async def _confirm(exchange: Exchange, what: str) -> None:
        await exchange.respond(200, f"Success: {what} successfully.".encode(), TEXT)
