"""One training step, spread over the cores by micro-batch.

Each worker thread runs whole micro-batches with single-threaded kernels, and their gradients are added in
a fixed order. Splitting every kernel over the cores instead would meet at a barrier hundreds of times a
step, and crawls as soon as another process wants a core.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.engine.decoder import Decoder
from penstock.lab.attention import ShortRowAttention
from penstock.lab.batches import MicroBatch


def answer_losses(decoder: Decoder, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Per answer token its negative log-likelihood in nats (n,), and whether it was the likeliest (n,)."""
    rows, length = batch.tokens.shape
    positions = torch.arange(length).repeat(rows)
    states = decoder(batch.tokens.view(-1), positions, ShortRowAttention(rows, length))
    logits = decoder.logits(states[batch.predictors])
    losses = F.cross_entropy(logits, batch.targets, reduction="none")
    return losses, logits.detach().argmax(-1) == batch.targets


class Stepper:
    """Updates a decoder from micro-batches. Repeatable bit by bit for equal `workers` on equal machines."""

    def __init__(self, decoder: Decoder, optimizers: Sequence[torch.optim.Optimizer], workers: int) -> None:
        self._decoder = decoder
        self._optimizers = optimizers
        self._parameters = list(decoder.parameters())
        self._workers = workers
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(1)
        self._pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))

    def step(self, batches: Sequence[MicroBatch], rate: float) -> float:
        """One update at learning rate `rate` from the weighted mean loss; returns that loss in nats."""
        total = float(sum(batch.weights.sum() for batch in batches))
        shares = self._shares(batches)
        results = list(self._pool.map(lambda share: self._gradients(share, total), shares))
        for index, parameter in enumerate(self._parameters):
            parameter.grad = sum((result[1][index] for result in results[1:]), start=results[0][1][index])
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        list(self._pool.map(lambda optimizer: optimizer.step(), self._optimizers))
        return sum(loss for loss, _ in results)

    def close(self) -> None:
        """Waits for what is under way, ends the workers and gives torch its threads back."""
        self._pool.shutdown()
        torch.set_num_threads(self._threads_before)

    def _shares(self, batches: Sequence[MicroBatch]) -> list[list[MicroBatch]]:
        """The batches dealt out, largest first, each to the worker with the fewest tokens so far."""
        shares: list[list[MicroBatch]] = [[] for _ in range(min(self._workers, len(batches)))]
        loads = [0] * len(shares)
        for batch in sorted(batches, key=lambda batch: -batch.tokens.numel()):
            lightest = loads.index(min(loads))
            shares[lightest].append(batch)
            loads[lightest] += batch.tokens.numel()
        return shares

    def _gradients(self, share: Sequence[MicroBatch], total: float) -> tuple[float, list[Tensor]]:
        """The share's part of the loss and its gradients, one per parameter."""
        loss_sum, sums = 0.0, [torch.zeros_like(parameter) for parameter in self._parameters]
        for batch in share:
            with torch.autocast("cpu", torch.bfloat16):
                losses, _ = answer_losses(self._decoder, batch)
            loss = (losses * batch.weights).sum() / total
            torch._foreach_add_(sums, torch.autograd.grad(loss, self._parameters))
            loss_sum += float(loss.detach())
        return loss_sum, sums
