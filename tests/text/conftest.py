"""Loads the profile under which Hypothesis gives the same examples each run."""

import steady_hypothesis  # noqa: F401
