"""The options of `penstock engine`: one for each of the engine's settings, of the same name."""

from __future__ import annotations

from typing import Annotated

import typer

Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Quantize = Annotated[str, typer.Option(help="Weights: auto, none, int8 or int4.")]
KvDtype = Annotated[str, typer.Option(help="KV cache: auto, float32, bfloat16 or int8.")]
Kernels = Annotated[str, typer.Option(help="CPU kernels: auto, native or torch.")]
Deterministic = Annotated[bool, typer.Option(help="Refuse kernels whose results depend on what else runs.")]
KernelCache = Annotated[str, typer.Option(help="Folder of the kernels compiled for this machine.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0: chosen from model and cores.")]
ToolFormat = Annotated[str, typer.Option(help="Of tool calls: auto, none, hermes, llama3_json or mistral.")]
Reasoning = Annotated[str, typer.Option(help="Split <think> off the answer: auto or none.")]
MaxModelLen = Annotated[int, typer.Option(help="Longest prompt plus answer; 0: the model's own.")]
MaxSequences = Annotated[int, typer.Option(help="Sequences in one step.")]
MaxWaiting = Annotated[int, typer.Option(help="Requests queued before new ones get 429.")]
MaxBatchTokens = Annotated[int, typer.Option(help="Tokens computed in one step.")]
BlockSize = Annotated[int, typer.Option(help="Tokens per KV block.")]
PrefixCache = Annotated[bool, typer.Option(help="Compute prompts that begin alike once.")]
DecodeSlowdown = Annotated[
    float, typer.Option(help="Longest step with prompts in it, in times its decodes alone; 0: any.")
]
DraftRows = Annotated[
    int, typer.Option(help="Rows of a step that only decodes, guessed tokens included; 0: no guesses.")
]
KvCacheMb = Annotated[int, typer.Option(help="KV pool, MiB; 0: chosen from model and memory.")]
KvSnapshot = Annotated[str, typer.Option(help="File that keeps the prefix cache from one run to the next.")]
KvSnapshotMb = Annotated[int, typer.Option(help="Largest size of that file, MiB.")]
KvTransfer = Annotated[bool, typer.Option(help="Serve /v1/kv/export and /v1/kv/import.")]
StepTimeoutS = Annotated[
    float, typer.Option(help="A step that takes longer is stuck and ends the process; 0: never.")
]
LoraModules = Annotated[
    list[str], typer.Option(help="A LoRA adapter to load, name=folder; may be given several times.")
]
MaxLoras = Annotated[int, typer.Option(help="LoRA adapters in memory at a time.")]
MaxLoraRank = Annotated[int, typer.Option(help="Largest rank of a LoRA adapter.")]
RuntimeLora = Annotated[bool, typer.Option(help="Let clients load and unload LoRA adapters.")]
KvEvents = Annotated[bool, typer.Option(help="Serve what enters and leaves the prefix cache.")]
