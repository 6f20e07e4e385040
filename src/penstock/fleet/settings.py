"""The fleet's keys of the config tree: which models are served, and by which replicas."""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from penstock.engine.settings import EngineSettings


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
