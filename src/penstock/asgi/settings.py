"""The HTTP server's keys of the config tree."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class HttpLimits(BaseModel):
    """Bounds on what a client may send and how long it may take."""

    # strict: YAML's true is no number
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_body_bytes: int = Field(32 << 20, ge=1, description="largest request body, bytes; more gets 413")
    body_timeout_s: float = Field(60.0, gt=0, description="time for a request's body to arrive; then 408")
    drain_timeout_s: float = Field(
        30.0, ge=0, description="on shutdown, time for running answers to finish before they are cut off"
    )


class ServerSettings(HttpLimits):
    """Where the gateway listens, with its limits."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=0, le=65_535, description="port to listen on; 0 takes a free one")
