"""Models and replicas as data: the immutable snapshot that a request keeps from beginning to end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from penstock.fleet.settings import ModelSettings, ReplicaSettings

# The path that answers a health check, by kind of server; plain OpenAI-compatible servers have only this one.
_HEALTH_PATHS = {"penstock": "/health", "vllm": "/health", "sglang": "/health", "openai": "/v1/models"}


@dataclass(frozen=True, slots=True)
class Replica:
    """One server of one model."""

    id: str
    """Unique in the snapshot, readable: model name and number."""
    host: str
    port: int
    health_path: str

    @property
    def authority(self) -> str:
        """host:port as the Host header has it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is served, by whom."""

    created: int
    """Unix seconds."""
    replicas: Mapping[str, tuple[Replica, ...]]
    """By model name."""
    parents: Mapping[str, str] = field(default_factory=dict)
    """Model names by the names of the adapters that their replicas serve."""


def build_snapshot(models: Mapping[str, ModelSettings], created: int) -> Snapshot:
    """A snapshot of settings whose engines have been started, so that every replica has a url."""
    return Snapshot(
        created,
        {
            name: tuple(_replica(f"{name}/{index}", entry) for index, entry in enumerate(model.replicas))
            for name, model in models.items()
        },
        {adapter: name for name, model in models.items() for adapter in model.adapter_names},
    )


def _replica(replica_id: str, settings: ReplicaSettings) -> Replica:
    assert settings.url is not None, "an engine has no url before it is started"
    parts = urlsplit(settings.url)
    assert parts.hostname is not None
    host = parts.hostname.encode("idna").decode()  # as it goes into a Host header
    return Replica(replica_id, host, parts.port or 80, _HEALTH_PATHS[settings.kind])
