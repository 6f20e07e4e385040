"""Training: it learns, it repeats bit by bit, and it writes a checkpoint that loads."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from penstock.engine.decoder import Decoder
from penstock.engine.weights import load_checkpoint
from penstock.lab.batches import ChatEncoder, micro_batches
from penstock.lab.optimizer import orthogonalise
from penstock.lab.pretrain import (
    CONSOLIDATION,
    FINISHING,
    ModelSettings,
    TrainSettings,
    build_decoder,
    learning_rate,
    train_tiny,
)
from penstock.lab.stepper import answer_losses
from penstock.lab.tasks.registry import LATE_FAMILIES
from penstock.lab.vocabulary import train_tokenizer

MICRO = TrainSettings(
    model=ModelSettings(
        vocabulary_size=400, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2,
        num_kv_heads=1, head_dim=16, max_positions=512,
    ),
    steps=16,
    copying_steps=0,
    conversations_per_step=16,
    warmup_steps=4,
    decay_from=16,
    decay_to=22,
    later=(dataclasses.replace(FINISHING, steps=4),),
    tokenizer_conversations=300,
    score_every=20,
    score_per_family=1,
)  # fmt: skip


def run(directory: Path, settings: TrainSettings = MICRO) -> tuple[bytes, list[dict[str, object]]]:
    train_tiny(settings, directory, Console(file=io.StringIO()))
    log = json.loads((directory / "train_log.json").read_text("utf-8"))
    return (directory / "model.safetensors").read_bytes(), log["rows"]


def test_twenty_steps_reduce_the_loss_and_repeat_bit_by_bit(tmp_path: Path) -> None:
    first, rows = run(tmp_path / "a")
    second, _ = run(tmp_path / "b")
    assert first == second
    start = build_decoder(MICRO.model, MICRO.seed)
    assert float(str(rows[-1]["loss"])) < untrained_loss(start) - 0.5
    other, _ = run(tmp_path / "c", dataclasses.replace(MICRO, seed=1, steps=2, later=()))
    assert other != first


def untrained_loss(decoder: Decoder) -> float:
    tokenizer = train_tokenizer(MICRO.seed, MICRO.model.vocabulary_size, MICRO.tokenizer_conversations)
    encoder = ChatEncoder(tokenizer)
    chats = [({"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "5"})]
    batch = next(micro_batches(encoder.encode(chats), 512))
    with torch.no_grad():
        return float(answer_losses(decoder, batch)[0].mean())


class InterruptedTerminal(io.StringIO):
    """A terminal whose user presses Ctrl-C when the score of step 2 appears, once."""

    was_interrupted = False

    def write(self, text: str) -> int:
        if "step 2 loss" in text and not self.was_interrupted:
            self.was_interrupted = True
            raise KeyboardInterrupt
        return super().write(text)


def test_an_interrupted_run_leaves_a_checkpoint(tmp_path: Path) -> None:
    terminal = InterruptedTerminal()
    log = train_tiny(dataclasses.replace(MICRO, score_every=2), tmp_path, Console(file=terminal, width=200))
    assert terminal.was_interrupted
    assert log.steps == 2
    assert load_checkpoint(tmp_path).spec.num_layers == MICRO.model.num_layers


def test_loss_falls_on_answer_tokens_only() -> None:
    tokenizer = train_tokenizer(0, 400, 300)
    encoder = ChatEncoder(tokenizer)
    chat = (
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": "5"},
        {"role": "user", "content": "And 1 more?"},
        {"role": "assistant", "content": "6"},
    )
    batch = next(micro_batches(encoder.encode([chat]), 512))
    pieces = [tokenizer.id_to_token(int(token)) for token in batch.targets]
    assert pieces == ["5", "<|im_end|>", "6", "<|im_end|>"]
    last = next(micro_batches(encoder.encode([chat], last_only=True), 512))
    assert [tokenizer.id_to_token(int(token)) for token in last.targets] == ["6", "<|im_end|>"]


def test_padding_does_not_change_the_losses() -> None:
    tokenizer = train_tokenizer(0, 400, 300)
    encoder = ChatEncoder(tokenizer)
    short, long = (
        ({"role": "user", "content": text}, {"role": "assistant", "content": "5"})
        for text in ("1+4", "What is one and four in words, please, or in digits?")
    )
    decoder = build_decoder(MICRO.model, 0)
    alone = next(micro_batches(encoder.encode([short]), 512))
    padded = next(micro_batches(encoder.encode([short, long]), 512))
    assert padded.tokens.shape[1] > alone.tokens.shape[1]
    with torch.no_grad():
        losses = answer_losses(decoder, padded)[0][padded.owners == 0]
        torch.testing.assert_close(answer_losses(decoder, alone)[0], losses, rtol=1e-5, atol=1e-5)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 16, 48, generator=torch.Generator().manual_seed(0))
    for matrix in (orthogonalise(matrices), orthogonalise(matrices.mT)):
        values = torch.linalg.svdvals(matrix)
        assert float(values.min()) > 0.5
        assert float(values.max()) < 1.5


def test_the_learning_rate_of_every_phase() -> None:
    later = (
        dataclasses.replace(CONSOLIDATION, steps=200, rate=0.1),
        dataclasses.replace(FINISHING, steps=100, rate=0.2),
    )
    settings = TrainSettings(
        steps=90, warmup_steps=10, decay_from=50, decay_to=100, learning_rate=1.0, later=later
    )
    assert learning_rate(settings, 0) == pytest.approx(0.1)
    assert learning_rate(settings, 30) == 1.0
    assert learning_rate(settings, 75) == pytest.approx(0.5)
    assert learning_rate(settings, 90) == pytest.approx(0.1 / 50)
    assert learning_rate(settings, 190) == pytest.approx(0.05)
    assert learning_rate(settings, 289) == pytest.approx(0.0005)
    assert learning_rate(settings, 290) == pytest.approx(0.2 / 50)
    assert learning_rate(settings, 340) == pytest.approx(0.1)


def test_late_families_join_only_the_phase_that_names_them() -> None:
    late = {family.name for family in LATE_FAMILIES}
    assert late
    assert not late & {family.name for family in CONSOLIDATION.families()}
    assert late <= {family.name for family in FINISHING.families()}
    for phase in TrainSettings().later:
        assert set(phase.weights) <= {family.name for family in phase.families()}


def test_a_scaled_run_has_the_asked_number_of_steps() -> None:
    for steps in (1, 10, 900, 20_000):
        assert TrainSettings().scaled_to(steps).total_steps == steps
