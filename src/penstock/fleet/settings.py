"""The fleet's keys of the config tree: which models are served, and by which replicas."""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from penstock.engine.settings import EngineSettings

# An engine's process without a model: Python, PyTorch and their libraries.
MIN_MEMORY_MB = 512


class ReplicaSettings(BaseModel):
    """One replica: an engine of ours on this machine, or the address of an OpenAI-compatible server."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: EngineSettings | None = Field(None, description="started and watched by `penstock up`")
    url: str | None = Field(None, description="base URL up to and with /v1, e.g. http://10.0.0.5:8000/v1")
    kind: Literal["penstock", "openai", "vllm", "sglang"] = Field(
        "openai", description="what runs behind `url`; it decides which path answers health checks"
    )

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        if url is None:
            return None
        # Checked before it is taken apart, which drops some of these in silence.
        if any(character.isspace() or not character.isprintable() for character in url):
            raise ValueError(f"{url!r} holds a space or a control character")
        parts = urlsplit(url)
        if parts.port == 0:  # reading it also raises ValueError if it is no number or too large
            raise ValueError(f"{url!r} has port 0, where nothing can listen")
        if parts.username is not None or parts.password is not None:
            raise ValueError("a replica's url may not hold a user or password: they would not be sent")
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(
                f"{url!r} is not a URL such as http://host:8000/v1 (TLS upstreams are not built yet)"
            )
        try:
            parts.hostname.encode("idna")
        except UnicodeError as error:
            raise ValueError(f"{parts.hostname!r} is not a host's name: {error}") from error
        if parts.path.rstrip("/") != "/v1" or parts.query or parts.fragment:
            raise ValueError(f"{url!r} must end with /v1, the API's root")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.engine is None) == (self.url is None):
            raise ValueError("a replica has either an engine or a url")
        return self


class ModelSettings(BaseModel):
    """A model as clients name it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: list[ReplicaSettings] = Field(min_length=1, description="who serves it")
    load: Literal["start", "first_use"] = Field(
        "start",
        description="start: its engines are loaded at start and kept; first_use: its one engine is loaded "
        "when a request comes, and may be unloaded",
    )

    loras: list[str] = Field(
        [], description="names of LoRA adapters that its replicas serve, beside their engines' lora_modules"
    )

    @property
    def adapter_names(self) -> list[str]:
        """All names of adapters under which its replicas can be asked, each once."""
        engines = (replica.engine for replica in self.replicas if replica.engine is not None)
        return list(
            dict.fromkeys([*self.loras, *(name for engine in engines for name in engine.lora_folders)])
        )

    @model_validator(mode="after")
    def _every_engine_has_the_same_adapters(self) -> Self:
        engines = [replica.engine for replica in self.replicas if replica.engine is not None]
        if len({frozenset(engine.lora_folders) for engine in engines}) > 1:
            raise ValueError("the engines of a model must have lora_modules of the same names")
        return self

    @model_validator(mode="after")
    def _can_be_loaded_on_use(self) -> Self:
        if self.load == "first_use" and (len(self.replicas) != 1 or self.replicas[0].engine is None):
            raise ValueError("load: first_use is for models with exactly one replica, an engine")
        return self


class EnginesSettings(BaseModel):
    """All engines of this machine together. Times are in seconds."""

    # strict: YAML's true is no number
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    memory_mb: int = Field(
        0, ge=0, description="memory of all engines together, MiB; 0: no bound, nothing is unloaded for room"
    )
    idle_s: float = Field(
        0.0,
        ge=0,
        le=31_536_000,
        allow_inf_nan=False,
        description="a model with load: first_use is unloaded after this long without a request; 0: never",
    )
    load_timeout_s: float = Field(
        600.0,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="longest time a request waits for its model, and a load for room",
    )
    max_waiting: int = Field(
        256, ge=1, le=100_000, description="requests that wait for one model to be loaded; more get 429"
    )

    @field_validator("memory_mb")
    @classmethod
    def _holds_an_engine(cls, value: int) -> int:
        if 0 < value < MIN_MEMORY_MB:
            raise ValueError(
                f"must be at least {MIN_MEMORY_MB}, about what one engine takes before its model, or 0"
            )
        return value
