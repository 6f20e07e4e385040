"""Penstock: from a language model's weights to a service with an SLA."""

__version__ = "0.1.0"
