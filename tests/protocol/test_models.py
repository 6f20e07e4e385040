"""The model list parses with OpenAI's types."""

from __future__ import annotations

import msgspec
from openai.pagination import SyncPage
from openai.types import Model as OpenAIModel

from penstock.protocol.models import Model, ModelList


def test_a_list_parses_strictly_and_has_nothing_else() -> None:
    """Every field that OpenAI requires, none that it does not know."""
    body = msgspec.json.encode(ModelList(data=[Model(id="tiny", created=5)]))
    page = SyncPage[OpenAIModel].model_validate_json(body, strict=True)
    assert page.object == "list"
    assert [(model.id, model.created, model.model_extra) for model in page.data] == [("tiny", 5, {})]
