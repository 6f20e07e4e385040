"""The environment of templates; what they render is in test_template.py and test_template_tools.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.base.errors import CheckpointError, InvalidRequestError
from penstock.text.sandbox import SandboxedTemplate


@pytest.mark.parametrize(
    ("source", "variables"),
    [
        ("plain", set()),
        ("{{ a }}{% if b is defined %}{{ c.d }}{% endif %}", {"a", "b", "c"}),
        ("{% set a = 1 %}{{ a }}{% for b in c %}{{ b }}{{ loop.index }}{% endfor %}", {"c"}),
        ("{% if a is not defined %}{% set a = 1 %}{% endif %}{{ a }}", {"a"}),
        ("{% macro m(x) %}{{ x }}{{ y }}{% endmacro %}{{ m(1) }}", {"y"}),
        (
            "{{ raise_exception('x') }}{{ strftime_now('%Y') }}{% set n = namespace(x=range(3)) %}{{ n.x }}",
            set(),
        ),
        ("{% generation %}{{ a }}{% endgeneration %}", {"a"}),
    ],
)
def test_a_template_tells_what_it_reads(source: str, variables: set[str]) -> None:
    """Not what it sets, nor what the environment brings."""
    assert SandboxedTemplate(source).variables == variables


@pytest.mark.parametrize(
    ("written", "options"),
    [
        ("", {}),
        ("indent=2", {"indent": 2}),
        ("ensure_ascii=true", {"ensure_ascii": True}),
        ("sort_keys=true", {"sort_keys": True}),
        ("separators=(',', ':')", {"separators": (",", ":")}),
    ],
)
def test_tojson_is_pythons(written: str, options: dict[str, Any]) -> None:
    """With non-ASCII text as it is, unless asked otherwise; `<` and quotes are not escaped for HTML."""
    value = {"b": ["é<&'\"", 1.5, None], "a": {}}
    found = SandboxedTemplate(f"{{{{ x | tojson({written}) }}}}").render({"x": value})
    assert found == json.dumps(value, **({"ensure_ascii": False} | options))


def test_faults_are_told_by_whose_they_are() -> None:
    """The checkpoint's at start, the conversation's when it is rendered."""
    with pytest.raises(CheckpointError, match="does not compile"):
        SandboxedTemplate("{% if %}")
    template = SandboxedTemplate("{{ raise_exception('no ' ~ x) }}")
    with pytest.raises(InvalidRequestError, match="refuses these messages: no tea") as caught:
        template.render({"x": "tea"})
    assert caught.value.param == "messages"
