"""The header by which a client limits the time of its request."""

from __future__ import annotations

import math
from collections.abc import Mapping

from penstock.base.errors import InvalidRequestError
from penstock.protocol.strict import shown

HEADER = "x-request-timeout"


def read_request_timeout(headers: Mapping[bytes, bytes]) -> float:
    """Seconds that the request may take from its arrival on; inf if it does not say.

    Raises:
        InvalidRequestError: not a positive number.
    """
    given = headers.get(HEADER.encode())
    if given is None:
        return math.inf
    text = given.decode("latin-1").strip()
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequestError(
            f"{HEADER} must be a positive number of seconds, not {shown(text)!r}", param=HEADER
        )
    return seconds
