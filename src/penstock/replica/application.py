"""The endpoints of whatever is served."""

from __future__ import annotations

from penstock.asgi.application import Application
from penstock.asgi.drain import Drain
from penstock.asgi.settings import HttpLimits
from penstock.replica.app import Replica
from penstock.replica.encoder_app import EncoderReplica
from penstock.replica.encoder_model import ServedEncoder
from penstock.replica.model import ServedModel


def build_application(model: ServedModel | ServedEncoder, limits: HttpLimits, drain: Drain) -> Application:
    """The ASGI application of a replica of `model`."""
    if isinstance(model, ServedEncoder):
        return EncoderReplica(model, limits, drain).application()
    return Replica(model, limits, drain).application()
