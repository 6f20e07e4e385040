"""Training of the built-in model: the engine's own decoder on generated conversations."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from penstock.engine.decoder import Decoder
from penstock.engine.spec import DecoderSpec
from penstock.engine.weights import load_checkpoint, save_checkpoint
from penstock.lab.batches import ChatEncoder, micro_batches, training_batches
from penstock.lab.corpus import copying_stream, held_out_suite, training_stream
from penstock.lab.optimizer import build_optimizers
from penstock.lab.stepper import Stepper, answer_losses
from penstock.lab.tasks.registry import FAMILIES, LATE_FAMILIES
from penstock.lab.tasks.task import Example, Family, Message
from penstock.lab.vocabulary import save_tokenizer, train_tokenizer


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Shape of the decoder to train; sizes in elements, `max_positions` in tokens."""

    vocabulary_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 512
    num_layers: int = 5
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    max_positions: int = 2048
    rope_theta: float = 10_000.0


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase after the main one: it goes on from the written weights with a new optimizer.

    The rate warms up shortly and falls to zero. `weights` are shares of families in the stream, by name;
    the others keep theirs. With `joined_by_late` the late families take part.
    """

    steps: int
    rate: float
    seed: int
    weights: Mapping[str, float]
    joined_by_late: bool = False

    def families(self) -> tuple[Family, ...]:
        """The families of the phase's stream, with their shares."""
        taking_part = (*FAMILIES, *LATE_FAMILIES) if self.joined_by_late else FAMILIES
        return tuple(
            replace(family, weight=self.weights.get(family.name, family.weight)) for family in taking_part
        )


PHASE_WARMUP = 50
# A yes or no teaches one bit, so those families learn too slowly at their usual share.
CONSOLIDATION = Phase(
    steps=2000,
    rate=3e-3,
    seed=1,
    weights={
        "fact_check": 7.0,
        "membership": 6.0,
        "fact_lookup": 3.0,
        "email_to_json": 2.5,
        "small_talk": 1.5,
    },
)
# What was weakest after consolidation, and the late families; practice steps back.
FINISHING = Phase(
    steps=1300,
    rate=2e-3,
    seed=2,
    weights={
        "fact_check": 0.2,
        "membership": 0.2,
        "email_to_json": 4.0,
        "small_talk": 2.5,
        "yes_no_facts": 3.0,
        "fact_lookup": 2.0,
        "system_prompt": 2.5,
    },
    joined_by_late=True,
)


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """One training run. Two runs with equal settings on the same machine and thread count give equal bits."""

    model: ModelSettings = field(default_factory=ModelSettings)
    seed: int = 0
    steps: int = 7000
    copying_steps: int = 350
    conversations_per_step: int = 24
    token_budget: int = 2048
    max_length: int = 512
    learning_rate: float = 6e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    decay_from: int = 4250
    decay_to: int = 8500
    later: tuple[Phase, ...] = (CONSOLIDATION, FINISHING)
    threads: int = 2
    tokenizer_conversations: int = 60_000
    score_every: int = 500
    score_per_family: int = 12

    @property
    def total_steps(self) -> int:
        """Steps of all phases."""
        return self.steps + sum(phase.steps for phase in self.later)

    def scaled_to(self, total_steps: int) -> TrainSettings:
        """The same run with fewer or more steps: every phase and ramp shrinks or grows in proportion."""
        ratio = total_steps / self.total_steps
        later = tuple(replace(phase, steps=round(phase.steps * ratio)) for phase in self.later)
        return replace(
            self,
            steps=max(1, total_steps - sum(phase.steps for phase in later)),
            copying_steps=round(self.copying_steps * ratio),
            warmup_steps=max(1, round(self.warmup_steps * ratio)),
            decay_from=round(self.decay_from * ratio),
            decay_to=max(1, round(self.decay_to * ratio)),
            later=later,
        )


def model_config(settings: ModelSettings) -> dict[str, object]:
    """The Hugging Face config.json of a Qwen3-shaped decoder."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": settings.vocabulary_size,
        "hidden_size": settings.hidden_size,
        "intermediate_size": settings.intermediate_size,
        "num_hidden_layers": settings.num_layers,
        "num_attention_heads": settings.num_heads,
        "num_key_value_heads": settings.num_kv_heads,
        "head_dim": settings.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": settings.rope_theta,
        "max_position_embeddings": settings.max_positions,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    }


def build_decoder(settings: ModelSettings, seed: int) -> Decoder:
    """A freshly initialised decoder, all matrices at unit gain; residual projections start at zero.

    So every layer starts as the identity, and the embeddings are not drowned by random layer outputs. The
    embeddings share a small offset: through it queries and keys, which have no biases, can depend on the
    position alone. The tied head adds the same number to all logits for it, which changes nothing.
    """
    torch.manual_seed(seed)
    decoder = Decoder(DecoderSpec.from_config(model_config(settings)))
    for name, parameter in decoder.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(parameter)
        elif parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    with torch.no_grad():
        decoder.embedding.weight[:, :16] += 0.12
    return decoder


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The rate of a step, counted from 0.

    Main phase: linear warm-up, plateau, then on the line that falls to zero at `decay_to` (the phase ends
    before). Later phases: short warm-up, then linear to zero.
    """
    if step < settings.steps:
        warm = (step + 1) / settings.warmup_steps
        left = (settings.decay_to - step) / max(1, settings.decay_to - settings.decay_from)
        return settings.learning_rate * min(warm, left, 1.0)
    step -= settings.steps
    for phase in settings.later:
        if step < phase.steps:
            return phase.rate * min((step + 1) / PHASE_WARMUP, (phase.steps - step) / phase.steps, 1.0)
        step -= phase.steps
    return 0.0


def forced_score(
    decoder: Decoder, encoder: ChatEncoder, examples: Sequence[Example]
) -> dict[str, list[float]]:
    """Per family [share answered exactly by greedy decoding, mean probability of the exact answer].

    One forward pass over prompt and answer: greedy decoding writes the answer exactly if each of its
    tokens, end mark included, is the likeliest one after the right prefix.
    """
    sums: dict[str, list[float]] = {}
    by_family: dict[str, list[Example]] = {}
    for example in examples:
        by_family.setdefault(example.family, []).append(example)
    for family, members in by_family.items():
        chats = [(*m.messages, {"role": "assistant", "content": m.answer}) for m in members]
        exact = likelihood = 0.0
        for batch in micro_batches(encoder.encode(chats, last_only=True), 8192):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                losses, hits = answer_losses(decoder, batch)
            rows = len(batch.tokens)
            misses = torch.zeros(rows).index_add_(0, batch.owners, (~hits).float())
            nats = torch.zeros(rows).index_add_(0, batch.owners, losses.float())
            exact += float((misses == 0).sum())
            likelihood += float((-nats).exp().sum())
        sums[family] = [round(exact / len(members), 4), round(likelihood / len(members), 4)]
    return sums


def overall(scores: dict[str, list[float]]) -> list[float]:
    """The mean over families of the columns of :func:`forced_score`."""
    return [sum(column) / len(scores) for column in zip(*scores.values(), strict=True)]


@dataclass(slots=True)
class TrainLog:
    """The record of a run: settings, and one row per scored step. Written as train_log.json."""

    settings: dict[str, object]
    rows: list[dict[str, object]] = field(default_factory=list)
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    tokens: int = 0
    steps: int = 0


def train_tiny(settings: TrainSettings, out_dir: Path, console: Console) -> TrainLog:
    """Trains tokenizer and decoder and writes a Hugging Face checkpoint and train_log.json to `out_dir`.

    Two phases: the second starts from the checkpoint that the first has written, with fresh optimisers.
    Ctrl-C ends the training early: the weights reached are written, and the log says after how many
    steps. Progress goes to `console`.
    """
    tokenizer = train_tokenizer(
        settings.seed, settings.model.vocabulary_size, settings.tokenizer_conversations
    )
    save_tokenizer(tokenizer, out_dir, settings.model.max_positions)
    encoder = ChatEncoder(tokenizer)
    decoder = build_decoder(settings.model, settings.seed)
    console.print(
        f"{decoder.spec.num_parameters:,} parameters, {settings.total_steps:,} steps", highlight=False
    )
    log = TrainLog(asdict(settings))
    try:
        _train(decoder, _chats(settings), range(settings.steps), encoder, settings, log, out_dir, console)
        start = settings.steps
        for phase in settings.later:
            write_checkpoint(decoder, settings, out_dir)
            decoder = load_checkpoint(out_dir, torch.float32).train().requires_grad_(True)
            steps = range(start, start + phase.steps)
            _train(decoder, _phase_chats(phase), steps, encoder, settings, log, out_dir, console)
            start = steps.stop
    except KeyboardInterrupt:
        console.print(f"stopped after {log.steps} of {settings.total_steps} steps")
    write_checkpoint(decoder, settings, out_dir)
    (out_dir / "train_log.json").write_text(json.dumps(asdict(log)) + "\n", encoding="utf-8")
    return log


def write_checkpoint(decoder: Decoder, settings: TrainSettings, out_dir: Path) -> None:
    """config.json, generation_config.json and model.safetensors in bfloat16, beside the tokenizer."""
    out_dir.mkdir(parents=True, exist_ok=True)
    generation = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0, "do_sample": False}
    for name, value in (
        ("config.json", model_config(settings.model)),
        ("generation_config.json", generation),
    ):
        (out_dir / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    save_checkpoint(decoder, out_dir, torch.bfloat16)


def _chats(settings: TrainSettings) -> Iterator[tuple[Message, ...]]:
    first = settings.copying_steps * settings.conversations_per_step
    stream = itertools.chain(
        itertools.islice(copying_stream(settings.seed), first), training_stream(settings.seed)
    )
    return (conversation.messages for conversation in stream)


def _phase_chats(phase: Phase) -> Iterator[tuple[Message, ...]]:
    return (conversation.messages for conversation in training_stream(phase.seed, phase.families()))


def _train(
    decoder: Decoder,
    chats: Iterator[tuple[Message, ...]],
    steps: range,
    encoder: ChatEncoder,
    settings: TrainSettings,
    log: TrainLog,
    out_dir: Path,
    console: Console,
) -> None:
    optimizers = build_optimizers(decoder, settings.learning_rate, settings.weight_decay)
    suite = held_out_suite(settings.seed, settings.score_per_family)
    stream = training_batches(
        chats, encoder, settings.conversations_per_step, settings.token_budget, settings.max_length
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    wall, cpu = time.monotonic() - log.wall_seconds, time.process_time() - log.cpu_seconds
    with (
        contextlib.closing(Stepper(decoder, optimizers, settings.threads)) as stepper,
        Progress(*columns, console=console) as progress,
    ):
        task = progress.add_task("training", total=len(steps))
        for step, batches in zip(steps, stream, strict=False):
            loss = stepper.step(batches, learning_rate(settings, step))
            log.steps = step + 1
            log.tokens += sum(batch.tokens.numel() for batch in batches)
            log.wall_seconds, log.cpu_seconds = time.monotonic() - wall, time.process_time() - cpu
            speed = log.tokens / log.wall_seconds
            progress.update(
                task, advance=1, description=f"step {log.steps} loss {loss:.4f} {speed:,.0f} tokens/s"
            )
            if log.steps % settings.score_every == 0 or log.steps == steps.stop:
                row = _score(decoder, encoder, suite, log, loss)
                progress.console.print(row)
                write_checkpoint(decoder, settings, out_dir)


def _score(
    decoder: Decoder, encoder: ChatEncoder, suite: Sequence[Example], log: TrainLog, loss: float
) -> str:
    """Adds a row to the log and describes it in a line."""
    scores = forced_score(decoder, encoder, suite)
    exact, likelihood = overall(scores)
    log.rows.append(
        {
            "step": log.steps,
            "loss": loss,
            "exact": exact,
            "probability": likelihood,
            "families": scores,
            "wall_seconds": log.wall_seconds,
        }
    )
    weakest = sorted(scores, key=lambda family: scores[family][0])[:8]
    text = " ".join(f"{family} {scores[family][0]:.2f}" for family in weakest)
    return (
        f"step {log.steps} loss {loss:.4f} held-out {exact:.3f} probability {likelihood:.3f}; weakest: {text}"
    )
