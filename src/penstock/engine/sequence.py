"""A sequence: one prompt on its way to an answer, and what the engine says about it. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from penstock.base.errors import PenstockError
from penstock.engine.prefix_cache import Node


class FinishReason(Enum):
    """Why a sequence ended; every sequence ends with exactly one of these."""

    STOP = "stop"
    """The model produced one of its end tokens."""
    LENGTH = "length"
    """`max_tokens` or the context is used up."""
    CANCELLED = "cancelled"
    """The caller does not want the rest."""
    ERROR = "error"
    """The engine failed on it; the output carries the error."""


class Priority(IntEnum):
    """How urgent a sequence is; lower runs first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


# Seconds that a sequence may wait before it is due. Queues are served by due time: of sequences that arrive
# together the more urgent goes first, and one that has waited long goes before any that came later.
PATIENCE_S = {Priority.HIGH: 0.0, Priority.NORMAL: 10.0, Priority.LOW: 60.0}


class Status(Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.WAITING: frozenset({Status.RUNNING, Status.FINISHED}),  # admitted; cancelled in the queue
    Status.RUNNING: frozenset({Status.WAITING, Status.FINISHED}),  # preempted; ended
    Status.FINISHED: frozenset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is drawn and when to end.

    Order of the filters: temperature, top-k, top-p over what top-k left, min-p. Ranges are checked where
    requests enter; here they are taken as given.
    """

    max_tokens: int
    temperature: float = 1.0
    """0 takes the most likely token."""
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    """Keep tokens at least this share as likely as the likeliest (Nguyen et al. 2024)."""
    seed: int = 0
    """With the position it determines the draw: same seed, same tokens, whatever else runs."""
    stop_token_ids: frozenset[int] = frozenset()

    @property
    def is_greedy(self) -> bool:
        """True if the most likely token is taken; below 1e-5 the quotient leaves float range."""
        return self.temperature < 1e-5

    @property
    def has_filters(self) -> bool:
        """True if top-k, top-p or min-p may exclude a token."""
        return bool(self.top_k) or self.top_p < 1.0 or self.min_p > 0.0


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt and generated tokens with their place in the KV cache; owned by the scheduler.

    ``block_table[i]`` is the block that holds positions ``i * block_size ...``; the first `num_computed`
    positions have their keys and values there. The first ``len(path)`` blocks are the prefix cache's,
    locked by this sequence, the others its own.
    """

    id: int
    tokens: list[int]
    sampling: SamplingParams
    num_prompt_tokens: int = field(init=False)
    num_computed: int = 0
    block_table: list[int] = field(default_factory=list)
    status: Status = Status.WAITING
    priority: Priority = Priority.NORMAL
    arrival: float = 0.0
    """Seconds on the engine's clock, as all times here."""
    deadline: float = math.inf
    """When it ends with an error, finished or not."""
    cache_salt: str = ""
    """Sequences share cached blocks only with those of the same salt."""
    path: list[Node] = field(default_factory=list)
    num_cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache when it was first admitted; None until then."""

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.tokens)

    @property
    def due(self) -> float:
        """When it should have begun at the latest: its place in the queue."""
        return min(self.arrival + PATIENCE_S[self.priority], self.deadline)

    @property
    def num_generated(self) -> int:
        """Tokens sampled so far, an end token included."""
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def num_pending(self) -> int:
        """Tokens known but not yet computed: 1 while decoding, more while prefilling."""
        return len(self.tokens) - self.num_computed

    def move_to(self, status: Status) -> None:
        """Changes the status along the table of transitions."""
        assert status in TRANSITIONS[self.status], f"sequence {self.id}: {self.status} -> {status}"
        self.status = status


@dataclass(frozen=True, slots=True)
class Output:
    """What one step says about one sequence: a new token, the end, or both."""

    sequence_id: int
    token: int | None = None
    finish: FinishReason | None = None
    error: PenstockError | None = None
