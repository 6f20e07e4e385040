"""The replica's endpoints: statuses, headers, limits, probes and metrics; every request ends once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from byte_tokenizer import write_json
from penstock.asgi.settings import HttpLimits
from penstock.observe import names
from scripted_replica import END, MODEL, replica, write_replica

HELLO = [*b"Hello", END]
POSTS = ("/v1/chat/completions", "/v1/completions")
GETS = ("/v1/models", "/health", "/livez", "/readyz", "/metrics")


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"model":"\xff"}', b"{}", b'{"model":5}', b"[" * 100_000,
     b'{"model":"scripted","messages":[],"prompt":1}', b'{"model":"scripted","n":"\xff"}'],
)  # fmt: skip
async def test_a_malformed_request_is_a_400(checkpoint: Path, path: str, body: bytes) -> None:
    """Never a 500."""
    async with replica(checkpoint, HELLO) as desk:
        answer = await desk.call("POST", path, pieces=[body]).answer()
        assert answer.status == 400
        assert answer.error["type"] == "invalid_request_error"
        assert answer.error["message"]
        assert b"x-request-id" in answer.headers


async def test_an_unsupported_field_is_named(checkpoint: Path) -> None:
    """In the field, the code and the message."""
    async with replica(checkpoint, HELLO) as desk:
        error = (await desk.chat(verbosity="high").answer()).error
        assert (error["param"], error["code"]) == ("verbosity", "unsupported_parameter")
        error = (await desk.complete(suffix="x").answer()).error
        assert (error["param"], error["code"]) == ("suffix", "unsupported_parameter")


@pytest.mark.parametrize("kind", ["chat", "complete"])
async def test_an_unknown_model_is_a_404(checkpoint: Path, kind: str) -> None:
    """With the field and the model that is here."""
    async with replica(checkpoint, HELLO) as desk:
        answer = await getattr(desk, kind)(model="other").answer()
        assert (answer.status, answer.error["param"], answer.error["code"]) == (
            404,
            "model",
            "model_not_found",
        )
        assert "'other'" in answer.error["message"]
        assert f"'{MODEL}'" in answer.error["message"]


@pytest.mark.parametrize(
    ("kind", "length", "fields", "param", "mentioned"),
    [
        ("complete", 60, {}, "prompt", ["60", "60"]),
        ("complete", 100, {"max_tokens": 1}, "prompt", ["100", "60"]),
        ("complete", 50, {"max_tokens": 11}, "max_tokens", ["50", "60", "11"]),
        ("complete", 100, {"stream": True}, "prompt", ["100", "60"]),
        ("chat", 60, {}, "messages", ["79", "60"]),
        ("chat", 60, {"max_tokens": 5, "stream": True}, "messages", ["79", "60"]),
        ("chat", 20, {"max_tokens": 22}, "max_tokens", ["39", "60", "22"]),
        ("chat", 20, {"max_completion_tokens": 22}, "max_completion_tokens", ["39", "60", "22"]),
        ("chat", 10_000, {}, "messages", ["10000", "60"]),
    ],
)
async def test_an_over_long_request_is_a_400_with_both_lengths(
    checkpoint: Path, kind: str, length: int, fields: dict[str, Any], param: str, mentioned: list[str]
) -> None:
    """The field is one that the client sent; one token less fits."""
    async with replica(checkpoint, [], max_model_len=60) as desk:
        answer = await getattr(desk, kind)("x" * length, **fields).answer()
        assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
        assert answer.error["param"] == param
        words = answer.error["message"].replace(";", " ").split()
        assert all(number in words for number in mentioned)
        if param.startswith("max"):
            fits = fields | {param: fields[param] - 1}
            assert (await getattr(desk, kind)("x" * length, **fits).answer()).status == 200


async def test_an_empty_prompt_is_a_400(checkpoint: Path) -> None:
    """There is no token to begin with."""
    async with replica(checkpoint, HELLO) as desk:
        answer = await desk.complete("").answer()
        assert (answer.status, answer.error["param"]) == (400, "prompt")


async def test_a_model_without_template_completes_but_does_not_chat(tmp_path: Path) -> None:
    """And says where to go instead."""
    async with replica(write_replica(tmp_path, template=None), HELLO) as desk:
        answer = await desk.chat().answer()
        assert (answer.status, answer.error["param"]) == (400, "messages")
        assert "/v1/completions" in answer.error["message"]
        assert (await desk.complete().answer()).status == 200


async def test_what_the_template_refuses_is_a_400(tmp_path: Path) -> None:
    """With its words."""
    directory = write_replica(tmp_path, template="{{ raise_exception('no system role') }}")
    async with replica(directory, HELLO) as desk:
        answer = await desk.chat().answer()
        assert (answer.status, answer.error["param"]) == (400, "messages")
        assert "no system role" in answer.error["message"]


@pytest.mark.parametrize(("role", "shown"), [("system", "system"), ("developer", "system"), ("user", "user")])
async def test_templates_see_roles_that_they_know(checkpoint: Path, role: str, shown: str) -> None:
    """A developer's message is a system message to them."""
    seen: list[str] = []

    def script(prompt: str) -> list[int]:
        seen.append(prompt)
        return HELLO

    async with replica(checkpoint, script) as desk:
        await desk.chat(messages=[{"role": role, "content": "x"}]).answer()
    assert seen[0] == f"{shown}\nx\nassistant\n"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_full_queue_is_a_429_that_says_when_to_come_back(checkpoint: Path, stream: bool) -> None:
    """Then the place is free again."""
    async with replica(checkpoint, [], max_requests=1) as desk:
        desk.forward.hold()
        running = desk.chat(max_tokens=2)
        await desk.forward.begun()
        answer = await desk.chat(stream=stream, max_tokens=2).answer()
        assert (answer.status, answer.error["code"]) == (429, "queue_full")
        assert answer.error["type"] == "rate_limit_error"
        assert int(answer.headers[b"retry-after"]) > 0
        desk.forward.let()
        assert (await running.answer()).status == 200
        assert (await desk.chat(max_tokens=2).answer()).status == 200


async def test_draining_refuses_new_work_and_finishes_the_old(checkpoint: Path) -> None:
    """503 with a time to come back; probes still answer, readiness says no."""
    async with replica(checkpoint, []) as desk:
        desk.forward.hold()
        running = desk.chat(stream=True, max_tokens=3)
        await desk.forward.begun()
        desk.drain.begin()
        for path in POSTS:
            answer = await desk.call("POST", path, {}).answer()
            assert (answer.status, answer.error["code"]) == (503, "draining")
            assert int(answer.headers[b"retry-after"]) > 0
        assert [(await desk.get(path)).status for path in GETS] == [503, 503, 200, 503, 200]
        desk.forward.let()
        assert (await running.answer()).body.endswith(b"data: [DONE]\n\n")
        assert await desk.drain.wait_idle(30)


async def test_paths_and_methods_that_do_not_exist_say_so(checkpoint: Path) -> None:
    """404, and 405 with what is allowed; in metrics they share one name."""
    async with replica(checkpoint, HELLO) as desk:
        for path in ("/", "/v2", "/nonesuch/" + "x" * 100, "/console"):
            answer = await desk.get(path)
            assert (answer.status, answer.error["code"]) == (404, "route_not_found")
        for path in POSTS:
            for method in ("GET", "PUT", "HEAD", "BREW"):
                answer = await desk.call(method, path).answer()
                assert (answer.status, answer.headers[b"allow"]) == (405, b"POST")
        for path in GETS:
            answer = await desk.call("POST", path, {}).answer()
            assert (answer.status, answer.headers[b"allow"]) == (405, b"GET")
        assert (await desk.samples())["other", "404", "route_not_found"] == 4


@pytest.mark.parametrize("path", GETS)
async def test_head_is_get_without_the_body(checkpoint: Path, path: str) -> None:
    """Same status, same headers, no body."""
    async with replica(checkpoint, HELLO) as desk:
        get = await desk.get(path)
        head = await desk.call("HEAD", path).answer()
        assert get.status == head.status == 200
        assert head.body == b""
        assert set(head.headers) == set(get.headers)
        if path != "/metrics":
            assert head.headers[b"content-length"] == get.headers[b"content-length"]


async def test_a_usable_request_id_comes_back_and_others_are_replaced(checkpoint: Path) -> None:
    """On answers, errors and streams; a client cannot write into headers or logs with it."""
    async with replica(checkpoint, HELLO) as desk:

        async def echoed(given: bytes | None, **fields: Any) -> bytes:
            headers = [] if given is None else [(b"x-request-id", given)]
            body = {"model": MODEL, "prompt": "x", **fields}
            call = desk.call("POST", "/v1/completions", body, headers=headers)
            return (await call.answer()).headers[b"x-request-id"]

        assert await echoed(b"abc-123") == b"abc-123"
        assert await echoed(b"abc-123", stream=True) == b"abc-123"
        assert await echoed(b"abc-123", n=5) == b"abc-123"
        for bad in (None, b"", b"a b", b"x" * 129, b"a\nb", "é".encode()):
            assert (await echoed(bad)).startswith(b"req-")


async def test_a_body_over_the_limit_is_a_413(checkpoint: Path) -> None:
    """Declared or sent; the rest is not read."""
    async with replica(checkpoint, HELLO, limits=HttpLimits(max_body_bytes=100)) as desk:
        for path in POSTS:
            declared = desk.call("POST", path, pieces=None, headers=[(b"content-length", b"101")])
            sent = desk.call("POST", path, pieces=[b" " * 60, b" " * 41, b" " * 1000])
            for call in (declared, sent):
                answer = await call.answer()
                assert (answer.status, answer.error["code"]) == (413, "body_too_large")
                assert "100" in answer.error["message"]


async def test_a_body_that_does_not_come_is_a_408(checkpoint: Path) -> None:
    """The client sent its head and then nothing."""
    async with replica(checkpoint, HELLO, limits=HttpLimits(body_timeout_s=0.001)) as desk:
        answer = await desk.call("POST", "/v1/chat/completions", pieces=None).answer()
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")


async def test_a_client_that_leaves_while_sending_is_counted_and_not_answered(checkpoint: Path) -> None:
    """No handler is left waiting for the rest."""
    async with replica(checkpoint, HELLO) as desk:
        call = desk.call("POST", "/v1/completions", pieces=None)
        call.leave()
        await call.ended()
        assert call.sent == []
        assert (await desk.samples())["/v1/completions", "499", "client_gone"] == 1


async def test_the_models_endpoint_lists_the_model(checkpoint: Path) -> None:
    """With the time at which serving began."""
    async with replica(checkpoint, HELLO) as desk:
        (model,) = (await desk.get("/v1/models")).json["data"]
        assert (model["id"], model["object"], model["created"]) == (MODEL, "model", 1_700_000_000)


async def test_probes_tell_life_and_readiness_apart(checkpoint: Path) -> None:
    """All well at first."""
    async with replica(checkpoint, HELLO) as desk:
        for path in ("/health", "/livez", "/readyz"):
            answer = await desk.get(path)
            assert answer.status == 200
            assert set(answer.json) == {"status"}


async def test_metrics_parse_and_are_true(checkpoint: Path) -> None:
    """Every family is in the table of names; the engine's numbers are the engine's."""
    async with replica(checkpoint, HELLO) as desk:
        await asyncio.gather(*(desk.chat(stream=True).answer() for _ in range(3)))
        answer = await desk.get("/metrics")
        assert answer.headers[b"content-type"].startswith(b"text/plain; version=0.0.4")
        families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
        known = {
            metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name: metric
            for metric in names.ALL
        }
        for name, family in families.items():
            if name.endswith("_created"):  # the client library's own, one for each counter
                continue
            assert family.documentation == known[name].help, name
            assert family.type == known[name].kind
        values = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in families.values()
            for sample in family.samples
        }
        own = ("0", "scripted")
        assert values["vllm:generation_tokens_total", *own] == 3 * len(HELLO)
        hits = values["vllm:prefix_cache_hits_total", *own]
        assert values["penstock_engine_prompt_tokens_total",] == 3 * 21 - hits
        assert values["vllm:prefix_cache_queries_total", *own] == 3 * 21
        assert values["vllm:request_success_total", *own, "stop"] == 3
        assert values["vllm:request_generation_tokens_sum", *own] == 3 * len(HELLO)
        gaps = 3 * (len(HELLO) - 1)
        assert values["vllm:inter_token_latency_seconds_count", *own] == gaps
        assert values["penstock_engine_inter_token_seconds_count",] == gaps
        for name in ("request_queue_time", "request_prefill_time", "e2e_request_latency"):
            assert values[f"vllm:{name}_seconds_count", *own] == 3
        assert values["vllm:num_requests_running", *own] == 0
        assert values["vllm:kv_cache_usage_perc", *own] == 0
        assert values["penstock_engine_prefix_evictions_total",] == 0
        assert values["vllm:time_to_first_token_seconds_count", *own] == 3
        kv_blocks = {state: values["penstock_engine_kv_blocks", state] for state in ("free", "cached")}
        assert sum(kv_blocks.values()) == 128
        assert kv_blocks["cached"] > 0
        assert values["penstock_engine_kv_blocks", "held"] == 0
        assert values["penstock_requests_running", "engine"] == 0
        assert values["penstock_engine_failed_steps_total",] == 0


async def test_the_checkpoints_sampling_applies_where_the_request_is_silent(tmp_path: Path) -> None:
    """`do_sample: false` means greedy, which a request may overrule."""
    directory = write_replica(tmp_path)
    write_json(directory / "generation_config.json", {"do_sample": False, "temperature": 0.7, "top_k": 20})
    async with replica(directory, HELLO) as desk:
        await desk.chat().answer()
        await desk.chat(temperature=0.5, top_k=0, seed=7).answer()
        silent, said = desk.forward.sampling[1], desk.forward.sampling[2]
    assert silent.is_greedy
    assert silent.top_k == 20
    assert (said.temperature, said.seed, said.has_filters) == (0.5, 7, False)
    assert END in said.stop_token_ids


async def test_a_stream_is_not_compressed_into_one_piece(checkpoint: Path) -> None:
    """Each token's event is sent by itself, when it comes: nothing is gathered."""
    async with replica(checkpoint, HELLO) as desk:
        desk.forward.hold()
        call = desk.chat(stream=True)
        await desk.forward.begun()
        assert call.sent == []  # the head waits for the first token, so that a failure has a status
        desk.forward.let()
        answer = await call.answer()
        bodies = [message["body"] for message in call.sent[1:]]
        assert all(body.startswith(b"data: ") and body.count(b"\n\n") == 1 for body in bodies)
        assert b"".join(bodies) == answer.body
        assert json.loads(answer.events[1])["choices"][0]["delta"] == {"content": "H"}
