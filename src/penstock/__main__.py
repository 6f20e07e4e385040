"""`python -m penstock` is `penstock`. The imports are inside, so that Ctrl-C during them is no traceback."""

from __future__ import annotations

import sys

EXIT_INTERRUPTED = 130


def main() -> None:
    """Runs the command line."""
    try:
        from penstock.app.streams import hold_standard_streams

        hold_standard_streams()
        from penstock.app.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
