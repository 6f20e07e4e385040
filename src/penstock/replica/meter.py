"""What the metrics hear of each request: its tokens as they come, and its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from penstock.engine.sequence import Sequence
from penstock.observe import engine_names as names
from penstock.observe.buckets import Buckets, one_two_five
from penstock.observe.metric import Metric
from penstock.observe.metrics import Reading

_TIMES = (
    names.TTFT, names.INTER_TOKEN, names.FINE_INTER_TOKEN, names.TPOT, names.E2E, names.QUEUE_TIME,
    names.PREFILL_TIME, names.DECODE_TIME, names.INFERENCE_TIME,
)  # fmt: skip
_SIZES = (
    names.REQUEST_PROMPT_TOKENS, names.REQUEST_GENERATION_TOKENS, names.REQUEST_MOST_TOKENS, names.REQUEST_N,
    names.REQUEST_MAX_TOKENS, names.REQUEST_PREEMPTIONS, names.REQUEST_COMPUTED,
)  # fmt: skip
REASONS = ("stop", "length", "abort", "error")


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """How one answer ended."""

    reason: str
    """One of REASONS."""
    sequence: Sequence


class RequestMeters:
    """The histograms of one replica's requests; fed by its event loop."""

    def __init__(self, model: str, max_model_len: int, now: Callable[[], float]) -> None:
        """`now` tells the time in seconds on the engine's clock."""
        self.labels = (model, "0")
        self.now = now
        sizes = one_two_five(max_model_len)
        self.buckets = {metric: Buckets(metric.buckets or sizes) for metric in (*_TIMES, *_SIZES)}
        self.ends = dict.fromkeys(REASONS, 0)

    def begin(self, arrival: float) -> RequestMeter:
        """The meter of a request that came at `arrival`."""
        return RequestMeter(self, arrival)

    def readings(self) -> Iterator[Reading]:
        """All of it, for an exposition."""
        for metric, buckets in self.buckets.items():
            yield metric, self.labels if metric.labels else (), buckets
        for reason, count in self.ends.items():
            yield names.REQUEST_SUCCESS, (*self.labels, reason), count


class RequestMeter:
    """Hears of one request."""

    def __init__(self, meters: RequestMeters, arrival: float) -> None:
        self._meters = meters
        self._arrival = arrival
        self._first: dict[int, float] = {}
        self._last: dict[int, float] = {}

    def token(self, choice: int) -> None:
        """An answer has got a token."""
        now = self._meters.now()
        if choice in self._last:
            gap = now - self._last[choice]
            self._observe(names.INTER_TOKEN, gap)
            self._observe(names.FINE_INTER_TOKEN, gap)
        else:
            if not self._first:
                self._observe(names.TTFT, now - self._arrival)
            self._first[choice] = now
        self._last[choice] = now

    def end(self, answers: dict[int, AnswerEnd]) -> None:
        """The request has ended, with these answers by their indices."""
        for choice, end in answers.items():
            self._meters.ends[end.reason] += 1
            self._end_of_answer(choice, end.sequence)
        if answers:
            first = answers[0].sequence if 0 in answers else next(iter(answers.values())).sequence
            self._observe(names.REQUEST_PROMPT_TOKENS, first.num_prompt_tokens)
            self._observe(names.REQUEST_N, len(answers))
            self._observe(names.REQUEST_MAX_TOKENS, first.sampling.max_tokens)
            longest = max(end.sequence.num_generated for end in answers.values())
            self._observe(names.REQUEST_MOST_TOKENS, longest)

    def _end_of_answer(self, choice: int, sequence: Sequence) -> None:
        self._observe(names.REQUEST_GENERATION_TOKENS, sequence.num_generated)
        self._observe(names.REQUEST_PREEMPTIONS, sequence.num_preemptions)
        self._observe(names.E2E, self._meters.now() - self._arrival)
        if sequence.admitted is None:
            return
        cached = sequence.num_cached_tokens or 0
        self._observe(names.REQUEST_COMPUTED, max(sequence.num_prompt_tokens - cached, 0))
        self._observe(names.QUEUE_TIME, sequence.admitted - sequence.arrival)
        if choice in self._first:
            first, last = self._first[choice], self._last[choice]
            self._observe(names.PREFILL_TIME, first - sequence.admitted)
            self._observe(names.DECODE_TIME, last - first)
            self._observe(names.INFERENCE_TIME, last - sequence.admitted)
            if sequence.num_generated > 1:
                self._observe(names.TPOT, (last - first) / (sequence.num_generated - 1))

    def _observe(self, metric: Metric, value: float) -> None:
        self._meters.buckets[metric].observe(value)
