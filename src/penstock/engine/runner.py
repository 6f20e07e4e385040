"""Device memory and the forward pass: on the native kernels where they are chosen, else on PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from penstock.engine.attention.reference import ReferenceAttention
from penstock.engine.batch import Batch, build_batch
from penstock.engine.decoder import Decoder, unadapted
from penstock.engine.formats import head_format
from penstock.engine.kv_pages import TorchPages
from penstock.engine.linear import METHODS
from penstock.engine.lora import Adaptation, LoraWeights, LowRank
from penstock.engine.memory import MemoryPlan
from penstock.engine.native.runner import NativeRunner
from penstock.engine.plan import StepPlan
from penstock.engine.spec import DecoderSpec
from penstock.engine.weights import Progress, read_config, read_tensors


class TorchRunner:
    """A decoder with its KV cache on one device; used by one thread. The oracle for every faster one."""

    def __init__(self, decoder: Decoder, memory: MemoryPlan) -> None:
        self.decoder = decoder
        self.memory = memory
        self.attention = ReferenceAttention(
            decoder.spec, memory.num_blocks, memory.block_size, memory.compute.kv_dtype, memory.compute.device
        )
        self.pages = TorchPages(self.attention.keys, self.attention.values, memory.block_size)
        self._states = torch.empty(0, decoder.spec.hidden_size)  # of the last step

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> Tensor:
        """Computes the plan into the KV cache; float32 logits (num_sampled, vocab_size) in its order."""
        return self.compute(build_batch(plan, self.memory.block_size))

    @torch.inference_mode()
    def compute(self, batch: Batch) -> Tensor:
        """float32 logits (len(batch.logit_rows), vocab_size)."""
        device = self.memory.compute.device
        tokens, positions, rows = (
            torch.from_numpy(array).to(device=device, dtype=torch.int64)
            for array in (batch.tokens, batch.positions, batch.logit_rows)
        )
        adapt = Adaptation(batch, device) if any(batch.adapters) else unadapted
        self._states = self.decoder(tokens, positions, self.attention.bind(batch), adapt)
        return self.decoder.logits(self._states[rows])

    def adapt(self, weights: LoraWeights) -> LoraWeights:
        """An adapter's weights as this runner computes with them; may be called from any thread."""
        device = self.memory.compute.device
        return {product: LowRank(one.a.to(device), one.b.to(device)) for product, one in weights.items()}

    @torch.inference_mode()
    def logits(self, start: int, end: int) -> Tensor:
        """See StepView."""
        return self.decoder.logits(self._states[start:end])

    def states(self, start: int, end: int) -> Tensor:
        """See StepView."""
        return self._states[start:end].float()


def load_runner(
    directory: Path, memory: MemoryPlan, threads: int, progress: Progress | None = None
) -> TorchRunner | NativeRunner:
    """Reads a checkpoint into what `memory` has planned, quantising as it reads.

    Raises:
        CheckpointError: unsupported config, missing or unexpected tensors, wrong shapes, broken files.
    """
    spec = DecoderSpec.from_config(read_config(directory))
    tensors = read_tensors(directory, spec, progress)
    if memory.compute.kernels is not None:
        return NativeRunner(spec, tensors, memory, threads)
    return TorchRunner(build_decoder(spec, tensors, memory), memory)


def build_decoder(spec: DecoderSpec, tensors: Iterable[tuple[str, Tensor]], memory: MemoryPlan) -> Decoder:
    """The decoder from its parameters, its linear layers in the planned format."""
    compute = memory.compute
    with torch.device("meta"):
        decoder = Decoder(spec)
    decoder.rotary.inverse_frequencies = spec.rope.inverse_frequencies().to(compute.device)
    for name, tensor in tensors:
        owner_name, _, kind = name.rpartition(".")
        parent_name, _, attribute = owner_name.rpartition(".")
        parent = decoder.get_submodule(parent_name)
        module = getattr(parent, attribute)
        method = METHODS.get(_format_of(attribute, compute.weight_format))
        if method is not None and kind == "weight":
            packed = method(tensor)
            packed.bias = module.bias
            setattr(parent, attribute, packed)
            continue
        value = nn.Parameter(tensor.to(compute.device, compute.dtype, copy=True), requires_grad=False)
        if method is not None:
            module.bias = value
        else:
            module.register_parameter(kind, value)
    if spec.tied_head:
        weight = decoder.embedding.weight
        head_method = METHODS.get(head_format(compute.weight_format))
        if head_method is None:
            decoder.head.weight = weight
        else:
            decoder.register_module("head", head_method(weight))
    return decoder.eval()


def _format_of(module: str, weight_format: str) -> str:
    if module.endswith("_proj"):
        return weight_format
    return head_format(weight_format) if module == "head" else ""
