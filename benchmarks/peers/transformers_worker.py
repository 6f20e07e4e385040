"""Worker: transformers' `generate`, bf16, the whole batch at once."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel, StoppingCriteria

from peers.measuring import handlers
from peers.protocol import memory, serve


class _Stamps(StoppingCriteria):
    """Notes when each position of the batch was sampled; stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class Generate:
    """See Timed."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def decode(self, prompts: list[list[int]], tokens: int) -> tuple[int, float]:
        """See Timed."""
        times, _ = self._generate(prompts, tokens + 1)
        return len(prompts) * tokens, times[-1] - times[0]

    def first_token(self, prompt: list[int]) -> tuple[float, int]:
        """See Timed."""
        started = time.perf_counter()
        [time_of_first], made = self._generate([prompt], 1)
        return time_of_first - started, int(made[0, -1])

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], tokens: int) -> tuple[list[float], torch.Tensor]:
        """When each token of the batch was there, and prompts with answers. Prompts have the same length."""
        given = torch.tensor(prompts)
        stamps = _Stamps()
        made = self._model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=[stamps],
        )
        assert made.shape[1] == given.shape[1] + tokens == given.shape[1] + len(stamps.times), made.shape
        return stamps.times, made


def load(model: str, threads: int) -> dict[str, Any]:
    """Loads the checkpoint and adds the measuring handlers."""
    assert os.environ["OMP_NUM_THREADS"] == str(threads)
    torch.set_num_threads(threads)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    HANDLERS.update(handlers(Generate(loaded)))
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    return {"versions": versions, "memory": memory()}


HANDLERS: dict[str, Any] = {"load": load}

if __name__ == "__main__":
    serve(HANDLERS)
