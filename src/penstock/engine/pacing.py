"""How much prefill a step may carry so that running streams do not stutter. Pure arithmetic, no clock.

A step with decodes in it may take `slowdown` times as long as the decodes alone. Both costs are learned from
the steps before: decodes by their number, prefill by the token. Of the last few measurements the median
counts, so that one step which was disturbed changes nothing, and what is measured grows old within a few
steps, as it must: attention gets dearer with every chunk of a long prompt.
"""

from __future__ import annotations

from collections import deque
from statistics import median

# Prefill goes on whatever it costs. On a CPU beside a single decode, eight tokens are about what fits.
MIN_CHUNK = 4
# For as long as nothing is known.
FIRST_CHUNK = 16
# Larger chunks are cut to whole tiles of the matrix kernels.
TILE = 8
# The least share of a mixed step that is taken for prefill. The decodes' time may have been measured over
# longer texts; subtracted as it is, it would make prefill look free.
MIN_PREFILL_SHARE = 0.25
WINDOW = 5  # measurements that count


class Pacer:
    """Learns what steps cost and says how much prefill fits into the next one."""

    def __init__(self, slowdown: float) -> None:
        """`slowdown`: the longest a step may take, in times that of its decodes alone; above 1."""
        self._slowdown = slowdown
        self._decode_s: dict[int, deque[float]] = {}  # by number of decodes; bounded as they are
        self._mixed_s: deque[float] = deque(maxlen=WINDOW)  # per prefill token beside decodes
        self._alone_s: deque[float] = deque(maxlen=WINDOW)  # in steps without decodes: a first guess of it

    def prefill_limit(self, num_decodes: int) -> int:
        """Prefill tokens that a step with this many decodes may compute; at least MIN_CHUNK."""
        decode_s = self.decode_s(num_decodes)
        token_s = self._mixed_s or self._alone_s
        if decode_s is None or not token_s:
            return FIRST_CHUNK
        tokens = int((self._slowdown - 1) * decode_s / median(token_s))
        return max(tokens // TILE * TILE or tokens, MIN_CHUNK)

    def observe(self, num_decodes: int, num_prefill_tokens: int, seconds: float) -> None:
        """Learns from a step that was computed."""
        seconds = max(seconds, 1e-9)  # a clock may stand still, a quotient may not
        if not num_prefill_tokens:
            self._decode_s.setdefault(num_decodes, deque(maxlen=WINDOW)).append(seconds)
        elif not num_decodes:
            self._alone_s.append(seconds / num_prefill_tokens)
        elif (decode_s := self.decode_s(num_decodes)) is not None:
            rest = max(seconds - decode_s, MIN_PREFILL_SHARE * seconds)
            self._mixed_s.append(rest / num_prefill_tokens)

    def decode_s(self, num_decodes: int) -> float | None:
        """Seconds that this many decodes take by themselves, rather too few; None if nothing is known.

        Not measured, it is what fewer of them take, else their share of what more of them take.
        """
        fewer = max((number for number in self._decode_s if number <= num_decodes), default=None)
        if fewer is not None:
            return median(self._decode_s[fewer])
        if not self._decode_s:
            return None
        more = min(self._decode_s)
        return median(self._decode_s[more]) * num_decodes / more
