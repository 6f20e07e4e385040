"""The standard streams of the process, which whoever starts it may have closed."""

from __future__ import annotations

import os
import sys


def hold_standard_streams() -> None:
    """Opens /dev/null in the place of closed standard streams; call it before anything else is opened.

    Otherwise the first socket would get a closed stream's number, and log lines would go to a client.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number, which is this one
            os.set_inheritable(descriptor, True)
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r"))


def drop_standard_output() -> None:
    """Sends what is still to be written to standard output nowhere; its reader is gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
