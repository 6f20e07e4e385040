"""Which replicas may be configured."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from penstock.engine.settings import EngineSettings
from penstock.fleet.settings import MIN_MEMORY_MB, EnginesSettings, ModelSettings, ReplicaSettings


@pytest.mark.parametrize(
    "url", ["http://a:1/v1", "http://a/v1", "http://[::1]:1/v1", "http://10.0.0.5:8000/v1/"]
)
def test_an_api_root_is_accepted(url: str) -> None:
    """A slash at the end is the same place."""
    assert ReplicaSettings(url=url).url == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "", "a:1", "a:1/v1", "https://a/v1", "ftp://a/v1", "http://a", "http://a/", "http://a/v2", "http:///v1",
        "http://a/v1?x", "http://a/v1#x", "http://a:99999/v1", "http://a:x/v1", "http://a:0/v1", "http://[::1/v1",
        "http://user:secret@a/v1", "http://user@a/v1", "http://a b/v1", " http://a/v1", "http://a/v1\n",
        "http://a\t/v1", "http://a\x00/v1", "http://a\u2028/v1", f"http://{'a' * 64}/v1", "http://a..b/v1",
    ],
)  # fmt: skip
def test_what_is_no_api_root_is_refused(url: str) -> None:
    """At start, not at the first request; nothing in it is ignored, and a secret is not repeated."""
    with pytest.raises(ValidationError) as caught:
        ReplicaSettings(url=url)
    assert "secret" not in caught.value.errors()[0]["msg"]


def test_a_replica_has_one_source() -> None:
    """An engine of ours or an address."""
    for wrong in ({}, {"engine": EngineSettings(), "url": "http://a/v1"}):
        with pytest.raises(ValidationError, match="either an engine or a url"):
            ReplicaSettings(**wrong)


def test_a_model_has_a_replica() -> None:
    """One without could never be ready."""
    with pytest.raises(ValidationError):
        ModelSettings(replicas=[])


def test_a_model_that_sleeps_has_one_engine() -> None:
    """Whoever runs elsewhere cannot be started by us, and of several it would not be clear which."""
    engine, elsewhere = ReplicaSettings(engine=EngineSettings()), ReplicaSettings(url="http://a/v1")
    assert ModelSettings(replicas=[engine], load="first_use").load == "first_use"
    assert ModelSettings(replicas=[engine, elsewhere]).load == "start"
    for wrong in ([elsewhere], [engine, engine], [engine, elsewhere]):
        with pytest.raises(ValidationError, match="exactly one replica, an engine"):
            ModelSettings(replicas=wrong, load="first_use")
    with pytest.raises(ValidationError):
        ModelSettings(replicas=[engine], load="later")


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory_mb": -1}, {"memory_mb": 1}, {"memory_mb": MIN_MEMORY_MB - 1}, {"memory_mb": True},
        {"memory_mb": "1 GB"}, {"idle_s": -1.0}, {"idle_s": float("nan")}, {"idle_s": float("inf")},
        {"load_timeout_s": 0.0}, {"load_timeout_s": float("inf")}, {"max_waiting": 0}, {"memory": 1000},
    ],
)  # fmt: skip
def test_bounds_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    """At start, with the key."""
    with pytest.raises(ValidationError) as caught:
        EnginesSettings(**wrong)
    assert caught.value.errors()[0]["loc"] == tuple(wrong)


def test_no_bound_is_the_default() -> None:
    """And the least one holds a process."""
    assert EnginesSettings().memory_mb == EnginesSettings().idle_s == 0
    assert EnginesSettings(memory_mb=MIN_MEMORY_MB).memory_mb == MIN_MEMORY_MB


def test_the_engines_of_a_model_have_the_same_adapters() -> None:
    """A request that names one may go to any of them; folders may differ."""
    one, same, other = (
        ReplicaSettings(engine=EngineSettings(lora_modules=modules))
        for modules in (["a=x"], ["a=y"], ["b=x"])
    )
    elsewhere = ReplicaSettings(url="http://a/v1")
    model = ModelSettings(replicas=[one, same, elsewhere], loras=["c", "a"])
    assert model.adapter_names == ["c", "a"]
    with pytest.raises(ValidationError, match="lora_modules of the same names"):
        ModelSettings(replicas=[one, other])
