"""The gateway's keys of the config tree."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class UpstreamSettings(BaseModel):
    """How the gateway talks to replicas. Times are in seconds."""

    # strict: YAML's true is no number
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    connect_timeout_s: float = Field(5.0, gt=0, description="time to open a connection")
    first_byte_timeout_s: float = Field(
        600.0, gt=0, description="time to the first byte of an answer; a whole answer is computed before it"
    )
    gap_timeout_s: float = Field(120.0, gt=0, description="longest silence between two reads of an answer")
    max_connections: int = Field(
        1024, ge=1, description="open connections per replica; more requests get 503"
    )
    idle_expiry_s: float = Field(60.0, gt=0, description="an idle connection is closed after this")
    health_interval_s: float = Field(2.0, gt=0, description="pause between two health checks of a replica")
    health_timeout_s: float = Field(5.0, gt=0, description="a health check without an answer has failed")
