"""The adapters of an engine by name: loaded and unloaded while it serves. No torch here.

An adapter's weights do not change once they are loaded, and a sequence carries the adapter that it is
computed with. So nothing has to be agreed with the engine's thread: loading gives a name an adapter,
unloading takes the name away, and the weights go when the last sequence that uses them has ended.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakSet

from penstock.base.errors import (
    CapacityError,
    CheckpointError,
    ClientError,
    InvalidRequestError,
    ModelNotFoundError,
)
from penstock.engine.adapter import Adapter
from penstock.protocol.generation import MAX_NAME_LENGTH
from penstock.protocol.strict import shown

logger = logging.getLogger(__name__)
# When to ask again for a place that is about to become free.
RETRY_AFTER_S = 1


class AdapterStore:
    """Owns the names; used on one event loop, but for the reading of files."""

    def __init__(
        self, model: str, read: Callable[[Path], Any], max_loras: int, *, is_open: bool = False
    ) -> None:
        """`read` gives the weights of a folder's adapter, in the runner's form, or raises CheckpointError.

        `model` is the base model's name, which no adapter may have. `is_open`: clients may load and unload.
        """
        self.model = model
        self.max_loras = max_loras
        self.is_open = is_open
        self._read = read
        self._named: dict[str, Adapter] = {}
        self._alive: WeakSet[Adapter] = WeakSet()
        self._loading: set[str] = set()
        self._numbers = itertools.count(1)
        # One at a time: each takes memory for its files too, and a thread that requests wait for as well.
        self._turn = asyncio.Lock()

    @property
    def loaded(self) -> tuple[Adapter, ...]:
        """What has a name, in the order of loading."""
        return tuple(self._named.values())

    @property
    def num_leaving(self) -> int:
        """Adapters that were unloaded or replaced and whose last requests have not ended."""
        return len(self._alive) - len(self._named)

    def get(self, name: str) -> Adapter | None:
        """The adapter that has this name now."""
        return self._named.get(name)

    def preload(self, folders: Mapping[str, str]) -> None:
        """Loads adapters by name before anything is served.

        Raises:
            CheckpointError: one of them cannot be loaded, or they are more than `max_loras`.
        """
        for name, folder in folders.items():
            try:
                self._refuse(name, is_replacing=False)
                self._keep(name, folder, self._read(_folder(folder)))
            except (ClientError, CheckpointError) as error:
                where = f"lora_modules {shown(name)!r}"
                raise CheckpointError(f"{where}: {error.message}", param="lora_modules") from error

    async def load(self, name: str, folder: str, *, is_replacing: bool = False) -> Adapter:
        """Reads the adapter in a folder and gives it a name; `is_replacing` allows one that is taken.

        Raises:
            InvalidRequestError: the name or the files are no good, or `max_loras` adapters are loaded.
            CapacityError: there is no memory for it, or no place until others are loaded or have left.
        """
        self._refuse(name, is_replacing=is_replacing)
        self._loading.add(name)
        started = time.perf_counter()
        try:
            async with self._turn:
                weights = await asyncio.to_thread(lambda: self._read(_folder(folder)))
            adapter = self._keep(name, folder, weights)
        except CheckpointError as error:
            raise InvalidRequestError(error.message, param="lora_path") from error
        except (RuntimeError, MemoryError) as error:  # what torch raises when an allocation fails
            raise CapacityError(f"there is no memory for the adapter {name!r}: {error}") from error
        finally:
            self._loading.discard(name)
        logger.info(
            "adapter loaded",
            extra={"adapter": name, "path": folder, "seconds": round(time.perf_counter() - started, 2)},
        )
        return adapter

    def unload(self, name: str) -> None:
        """Takes the name away; requests that use the adapter finish with it.

        Raises:
            ModelNotFoundError: no adapter has this name.
        """
        if name not in self._named:
            raise ModelNotFoundError(f"no adapter {shown(name)!r} is loaded", param="lora_name")
        del self._named[name]
        logger.info("adapter unloaded", extra={"adapter": name})

    def _keep(self, name: str, folder: str, weights: Any) -> Adapter:
        adapter = Adapter(next(self._numbers), name, folder, int(time.time()), weights)
        self._named[name] = adapter
        self._alive.add(adapter)
        return adapter

    def _refuse(self, name: str, *, is_replacing: bool) -> None:
        if not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
            raise InvalidRequestError(
                f"an adapter's name has 1 to {MAX_NAME_LENGTH} printable characters, not {shown(name)!r}",
                param="lora_name",
            )
        if name == self.model:
            raise InvalidRequestError(f"{name!r} is the base model's name", param="lora_name")
        if name in self._loading:
            raise InvalidRequestError(f"an adapter {name!r} is being loaded", param="lora_name")
        if name in self._named and not is_replacing:
            raise InvalidRequestError(
                f"an adapter {name!r} is loaded already; unload it first or set load_inplace",
                param="lora_name",
            )
        # What replaces another needs its place only while the other's requests end.
        if not self.max_loras:
            raise InvalidRequestError("this engine takes no adapters: max_loras is 0", param="lora_name")
        limit = self.max_loras + (name in self._named)
        if len(self._named) >= limit:
            raise InvalidRequestError(
                f"{len(self._named)} adapters are loaded and max_loras is {self.max_loras}; unload one first",
                param="lora_name",
            )
        if len(self._alive) + len(self._loading) >= limit:
            raise CapacityError(
                f"max_loras is {self.max_loras}; beside the {len(self._named)} adapters loaded, "
                f"{len(self._loading)} are being loaded and {self.num_leaving} wait for their last requests "
                "to end; try again later",
                param="lora_name",
                retry_after_s=RETRY_AFTER_S,
            )


def _folder(path: str) -> Path:
    try:
        folder = Path(path).expanduser()
        if path and folder.is_dir():  # an empty one would be the current folder
            return folder
    except (OSError, RuntimeError, ValueError):  # too long; ~nobody; a null character
        pass
    raise CheckpointError(f"there is no folder {shown(path)!r}")
