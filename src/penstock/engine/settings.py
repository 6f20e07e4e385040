"""The engine's keys of the config tree."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class EngineSettings(BaseModel):
    """One engine process. Sizes of 0 mean: choose from the model and the machine."""

    # strict: YAML's true is no number
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: str = Field("builtin:tiny", description="builtin:tiny, a folder, or a Hugging Face id")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="weights and KV cache; auto: the checkpoint's on a GPU, on a CPU float32 below 100 M "
        "parameters and bfloat16 above",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the first GPU if there is one")
    threads: int = Field(
        0, ge=0, le=1024, description="CPU threads; 0: one per core, one in all below 20 M parameters"
    )
    max_model_len: int = Field(
        0, ge=0, description="longest prompt plus answer, tokens; 0: the model's own, capped by the KV pool"
    )
    max_sequences: int = Field(64, ge=1, le=4096, description="sequences in one step")
    max_waiting: int = Field(256, ge=0, le=100_000, description="requests queued before new ones get 429")
    max_batch_tokens: int = Field(
        512,
        ge=1,
        le=1 << 20,
        description="tokens computed in one step, decode rows and prefill chunks together",
    )
    block_size: int = Field(16, ge=1, le=1024, description="tokens per KV block")
    kv_cache_mb: int = Field(
        0,
        ge=0,
        description="KV pool, MiB; 0: room for all sequences at full length, within a quarter of free memory",
    )

    @model_validator(mode="after")
    def _every_sequence_has_a_row(self) -> Self:
        if self.max_batch_tokens < self.max_sequences:
            raise ValueError(
                f"max_batch_tokens ({self.max_batch_tokens}) must be at least max_sequences "
                f"({self.max_sequences}): every decoding sequence needs a row in each step"
            )
        return self
