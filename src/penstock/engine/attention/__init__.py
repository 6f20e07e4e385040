"""Attention: the contract and its implementations."""
