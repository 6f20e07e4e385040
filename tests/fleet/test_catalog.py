"""Snapshots of settings."""

from __future__ import annotations

import dataclasses

import pytest

from penstock.fleet.catalog import Replica, build_snapshot
from penstock.fleet.settings import ModelSettings, ReplicaSettings


def test_a_snapshot_names_every_replica() -> None:
    """By model and number, with the address to connect to and the path of its kind's health check."""
    entries = [
        ReplicaSettings(url="http://a:1/v1", kind="vllm"),
        ReplicaSettings(url="http://b/v1"),
        ReplicaSettings(url="http://[::1]:2/v1", kind="penstock"),
        ReplicaSettings(url="http://bücher.example/v1"),
    ]
    snapshot = build_snapshot({"m": ModelSettings(replicas=entries)}, 5)
    assert snapshot.created == 5
    assert snapshot.replicas["m"] == (
        Replica("m/0", "a", 1, "/health"),
        Replica("m/1", "b", 80, "/v1/models"),
        Replica("m/2", "::1", 2, "/health"),
        Replica("m/3", "xn--bcher-kva.example", 80, "/v1/models"),
    )
    assert [replica.authority for replica in snapshot.replicas["m"]] == [
        "a:1", "b:80", "[::1]:2", "xn--bcher-kva.example:80",
    ]  # fmt: skip


def test_a_snapshot_does_not_change() -> None:
    """A request keeps the one it began with."""
    snapshot = build_snapshot({}, 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshot.created = 1  # type: ignore[misc]


def test_a_snapshot_knows_whose_adapters_are_whose() -> None:
    """As a snapshot of settings whose engines have been started names them."""
    replicas = [ReplicaSettings(url="http://a/v1")]
    models = {
        "m": ModelSettings(replicas=replicas, loras=["b"]),
        "n": ModelSettings(replicas=replicas, loras=["c", "d"]),
    }
    assert build_snapshot(models, 0).parents == {"b": "m", "c": "n", "d": "n"}
