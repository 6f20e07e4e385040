"""A sequence: one prompt on its way to an answer, and what the engine says about it. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from penstock.base.errors import PenstockError
from penstock.engine.adapter import Adapter
from penstock.engine.penalties import PenaltyState
from penstock.engine.prefix_cache import LOCAL_SALT, Node
from penstock.engine.prompt_lookup import Lookup
from penstock.engine.readout import Readout
from penstock.engine.sampling import Constraint, SamplingParams, TokenLogprobs


class FinishReason(Enum):
    """Why a sequence ended; every sequence ends with exactly one of these."""

    STOP = "stop"
    """The model produced one of its end tokens."""
    LENGTH = "length"
    """`max_tokens` or the context is used up."""
    CANCELLED = "cancelled"
    """The caller does not want the rest."""
    MOVED = "moved"
    """It goes on in another engine."""
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

    HELD = "held"
    """Another sequence computes the prompt that they share; then it is in the cache."""
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.HELD: frozenset({Status.WAITING, Status.FINISHED}),
    Status.WAITING: frozenset({Status.RUNNING, Status.FINISHED}),  # admitted; cancelled in the queue
    Status.RUNNING: frozenset({Status.WAITING, Status.FINISHED}),  # preempted; ended
    Status.FINISHED: frozenset(),
}


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
    """Sequences share cached blocks only with those of the same salt and the same adapter."""
    adapter: Adapter | None = None
    """What it is computed with beside the model."""
    path: list[Node] = field(default_factory=list)
    num_cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache when it was first admitted; None until then."""
    num_resumed: int = 0
    """The last of `tokens` that another engine has generated: part of the answer, not of the prompt."""
    constraint: Constraint | None = None
    """The grammar that its answer follows."""
    readout: Readout | None = None
    """What is read from its prompt's positions."""
    admitted: float | None = None
    """When it was first admitted; None until then."""
    num_preemptions: int = 0
    penalties: PenaltyState | None = None
    lookup: Lookup | None = None

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.tokens) - self.num_resumed

    @property
    def cache_root(self) -> str:
        """Under which the prefix cache keeps its blocks: what one adapter computed is wrong for others.

        Adapters have their numbers in this process only. No salt of a client's begins as theirs.
        """
        if self.adapter is None:
            return self.cache_salt
        return f"{LOCAL_SALT}{self.adapter.number}:{self.cache_salt}"

    @property
    def due(self) -> float:
        """When it should have begun at the latest: its place in the queue."""
        return min(self.arrival + PATIENCE_S[self.priority], self.deadline)

    @property
    def num_generated(self) -> int:
        """Tokens sampled so far, an end token included."""
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def answer(self) -> list[int]:
        """The tokens sampled so far."""
        return self.tokens[self.num_prompt_tokens :]

    @property
    def num_shareable(self) -> int:
        """Its first positions that may be taken from the prefix cache: all that no readout waits for."""
        if self.readout is None or self.readout.num_read >= self.readout.num_wanted:
            return len(self.tokens)
        return self.readout.num_read

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
    logprobs: TokenLogprobs | None = None
    """Of `token`, where they were asked for."""
