"""Hypothesis as `make test` wants it: the same examples each run, and no clock."""

from hypothesis import settings

settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")
