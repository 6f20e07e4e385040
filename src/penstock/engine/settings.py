"""The engine's keys of the config tree."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Quantize = Literal["auto", "none", "int8", "int4"]


class EngineSettings(BaseModel):
    """One engine process. Sizes of 0 mean: choose from the model and the machine."""

    # strict: YAML's true is no number
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: str = Field("builtin:tiny", description="builtin:tiny, a folder, or a Hugging Face id")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="of what is not quantised; auto: the checkpoint's on a GPU, on a CPU float32 below 100 M "
        "parameters and bfloat16 above",
    )
    quantize: Quantize = Field(
        "auto",
        description="weights; auto: int8 on a CPU with native kernels if dtype is auto too, else none",
    )
    kv_dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto", description="KV cache; auto: as dtype. int8 needs the native kernels"
    )
    kernels: Literal["auto", "native", "torch"] = Field(
        "auto", description="what computes on a CPU; auto: native where it has AVX-512 VNNI, else PyTorch"
    )
    deterministic: bool = Field(
        False,
        description="refuse to start unless the same seeded request gives the same answer under any load, "
        "bit by bit: with the native kernels",
    )
    kernel_cache: str = Field(
        "~/.cache/penstock/kernels", description="folder of the kernels compiled for this machine"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the first GPU if there is one")
    threads: int = Field(
        0, ge=0, le=1024, description="CPU threads; 0: one per core, one in all below 20 M parameters"
    )
    tool_format: Literal["auto", "none", "hermes", "llama3_json", "mistral"] = Field(
        "auto", description="how the model writes tool calls; auto: as its chat template does"
    )
    reasoning: Literal["auto", "none"] = Field(
        "auto",
        description="auto: what a chat template's <think> tags hold is reasoning; none: all is content",
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
    prefix_cache: bool = Field(
        True, description="keep computed KV blocks and use them again for prompts that begin alike"
    )
    decode_slowdown: float = Field(
        2.5,
        ge=0,
        le=1000,
        allow_inf_nan=False,
        description="how many times as long as its decodes alone a step may take when it computes "
        "prompts too; 0: no such bound",
    )
    draft_rows: int = Field(
        12,
        ge=0,
        le=256,
        description="speculation by prompt lookup while a step decodes only: rows up to which it carries "
        "decodes and guesses; 0: off",
    )
    kv_cache_mb: int = Field(
        0,
        ge=0,
        description="KV pool, MiB; 0: room for all sequences at full length, within a quarter of free memory",
    )
    kv_snapshot: str = Field(
        "", description="file that keeps the prefix cache from one run to the next; empty: none does"
    )
    kv_snapshot_mb: int = Field(1024, ge=1, le=1 << 24, description="largest size of that file, MiB")
    kv_transfer: bool = Field(
        False,
        description="serve /v1/kv/export and /v1/kv/import; whoever reaches the replica can then change what "
        "is cached",
    )

    lora_modules: list[str] = Field(
        [],
        description="LoRA adapters loaded at start, each as name=folder; requests name them as their model",
    )
    max_loras: int = Field(8, ge=0, le=1024, description="LoRA adapters in memory at a time")
    max_lora_rank: int = Field(64, ge=1, le=4096, description="largest rank of a LoRA adapter")
    runtime_lora: bool = Field(
        False,
        description="clients may load adapters from this machine's folders and unload them; only where all "
        "who reach the API are trusted",
    )

    kv_events: bool = Field(
        False, description="serve /v1/kv/events: what enters and leaves the prefix cache, for routers"
    )
    step_timeout_s: float = Field(
        300.0,
        ge=0,
        le=86_400,
        allow_inf_nan=False,
        description="a step that takes longer is stuck: its requests fail, the engine is restarted; 0: off",
    )

    @field_validator("decode_slowdown")
    @classmethod
    def _leaves_room_for_prefill(cls, value: float) -> float:
        if 0 < value <= 1:
            raise ValueError("must be more than 1, which leaves no time for prompts, or 0 for no bound")
        return value

    @property
    def lora_folders(self) -> dict[str, str]:
        """Folders of the adapters that are loaded at start, by name."""
        return {name: folder for name, _, folder in (one.partition("=") for one in self.lora_modules)}

    @field_validator("lora_modules")
    @classmethod
    def _name_folders(cls, modules: list[str]) -> list[str]:
        seen = set()
        for module in modules:
            name, _, folder = module.partition("=")
            if not name or not folder:
                raise ValueError(f"{module!r} is not of the form name=folder")
            if name in seen:
                raise ValueError(f"the adapter's name {name!r} is there twice")
            seen.add(name)
        return modules

    @model_validator(mode="after")
    def _every_adapter_has_a_place(self) -> Self:
        if len(self.lora_modules) > self.max_loras:
            raise ValueError(
                f"lora_modules has {len(self.lora_modules)} adapters and max_loras is {self.max_loras}"
            )
        return self

    @model_validator(mode="after")
    def _every_sequence_has_a_row(self) -> Self:
        if self.max_batch_tokens < self.max_sequences:
            raise ValueError(
                f"max_batch_tokens ({self.max_batch_tokens}) must be at least max_sequences "
                f"({self.max_sequences}): every decoding sequence needs a row in each step"
            )
        return self
