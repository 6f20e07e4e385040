"""Who answers an evaluation: an engine in this process, or any OpenAI-compatible server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from urllib.parse import urlsplit

import msgspec

from penstock.base.errors import ConfigurationError, UpstreamProtocolError
from penstock.engine.sampling import SamplingParams
from penstock.engine.sequence import FinishReason
from penstock.engine.sequence import Sequence as TokenSequence
from penstock.engine.settings import EngineSettings
from penstock.gateway.settings import UpstreamSettings
from penstock.gateway.upstream.pool import Call, Pool
from penstock.lab.tasks.task import Message
from penstock.protocol.chat import ChatCompletion
from penstock.protocol.models import ModelList
from penstock.replica.loading import load_model
from penstock.text.template import Turn

# Longer than any right answer of the built-in tasks; a longer one is wrong anyway.
MAX_ANSWER_TOKENS = 96
# Requests in flight at a server: enough to fill a batch.
CONCURRENCY = 16

Conversation = Sequence[Message]


class EngineAnswerer:
    """Answers greedily with an engine of its own in this process. Deterministic."""

    def __init__(self, settings: EngineSettings) -> None:
        """Loads the model.

        Raises:
            ConfigurationError: as `load_model` does, or there is no chat template.
        """
        # Nobody waits for a stream here, and pacing would make the answers depend on time.
        self._model = load_model(settings.model_copy(update={"decode_slowdown": 0.0}), settings.model)
        if self._model.template is None:
            raise ConfigurationError(f"{settings.model} has no chat template, so it cannot be asked")

    def __call__(self, conversations: Sequence[Conversation]) -> list[str]:
        """One answer per conversation, in order; all of them run as one continuous batch."""
        core, template = self._model.service.core, self._model.template
        assert template is not None
        for index, conversation in enumerate(conversations):
            prompt = template.encode([Turn(turn["role"], turn["content"]) for turn in conversation])
            room = self._model.max_model_len - len(prompt)
            sampling = SamplingParams(
                max_tokens=max(min(MAX_ANSWER_TOKENS, room), 1),
                temperature=0.0,
                stop_token_ids=self._model.tokenizer.end_token_ids,
            )
            core.add(TokenSequence(index, prompt, sampling))
        tokens: list[list[int]] = [[] for _ in conversations]
        while core.has_work:
            for output in core.step():
                if output.error is not None:
                    raise output.error
                if output.token is not None and output.finish is not FinishReason.STOP:
                    tokens[output.sequence_id].append(output.token)
        return [self._model.tokenizer.decode(ids) for ids in tokens]


class UrlAnswerer:
    """Answers through a server's /v1/chat/completions, at temperature 0."""

    def __init__(self, url: str, model: str | None) -> None:
        """`url` is the API's root, with or without /v1; without `model` the server's first is asked.

        Raises:
            ConfigurationError: not an http URL.
        """
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme != "http" or not parts.hostname:
            raise ConfigurationError(f"{url!r} is not a URL such as http://127.0.0.1:8080", param="url")
        self._host, self._port = parts.hostname, parts.port or 80
        self._model = model

    def __call__(self, conversations: Sequence[Conversation]) -> list[str]:
        """One answer per conversation, in order.

        Raises:
            UpstreamError: the server cannot be reached or broke off.
            UpstreamProtocolError: it answered with an error, which the message quotes.
        """
        return asyncio.run(self._ask_all(conversations))

    async def _ask_all(self, conversations: Sequence[Conversation]) -> list[str]:
        authority = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        pool = Pool(self._host, self._port, authority, UpstreamSettings())
        places = asyncio.Semaphore(CONCURRENCY)
        answers: list[str] = [""] * len(conversations)
        try:
            if self._model is None:
                models = msgspec.json.decode(await _fetch(pool, Call("GET", "/v1/models")), type=ModelList)
                self._model = models.data[0].id

            async def ask(index: int) -> None:
                async with places:
                    answers[index] = await self._ask(pool, conversations[index])

            await asyncio.gather(*map(ask, range(len(conversations))))
        finally:
            pool.close()
        return answers

    async def _ask(self, pool: Pool, conversation: Conversation) -> str:
        request = {
            "model": self._model,
            "messages": list(conversation),
            "temperature": 0,
            "max_tokens": MAX_ANSWER_TOKENS,
        }
        body = msgspec.json.encode(request)
        headers = [(b"content-type", b"application/json")]
        data = await _fetch(pool, Call("POST", "/v1/chat/completions", headers, body))
        return msgspec.json.decode(data, type=ChatCompletion).choices[0].message.content or ""


async def _fetch(pool: Pool, call: Call) -> bytes:
    async with pool.request(call) as answer:
        body = b""
        while (chunk := await answer.read()) is not None:
            body += chunk
    if answer.status != 200:
        text = body[:500].decode(errors="replace")
        raise UpstreamProtocolError(f"{call.path} answered {answer.status}: {text}")
    return body
