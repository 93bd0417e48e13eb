"""The OpenAPI document takes nothing away from clients of the last release."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audit.web.openapi import document
from tests.contract import losses

#: The document of each release, as `audit openapi` printed it. A release adds its own.
RELEASED = Path(__file__).with_name("openapi")
QUERY = "/api/v1/audit/query"
Change = Callable[[dict[str, Any]], object]


def latest() -> Path | None:
    def version(path: Path) -> list[int]:
        return [int(part) for part in path.stem.split(".")]

    return max(RELEASED.glob("*.json"), key=version, default=None)


def test_document_takes_nothing_from_the_last_release() -> None:
    released = latest()
    # Before the first release, the document may change in any way.
    old = json.loads(released.read_text()) if released else document()

    assert [] == losses(old, document())


def parameter(api: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (one for one in api["paths"][QUERY]["get"]["parameters"] if one["name"] == name)
    schema: dict[str, Any] = found["schema"]
    return schema


REMOVALS: dict[str, tuple[Change, str]] = {
    "route": (lambda api: api["paths"].pop(QUERY), f"GET {QUERY} is removed"),
    "parameter": (
        lambda api: api["paths"][QUERY]["get"]["parameters"].clear(),
        "query parameter service is removed",
    ),
    "bound": (lambda api: parameter(api, "limit").update(maximum=10), "limit: maximum is stricter"),
    "status": (
        lambda api: api["paths"][QUERY]["get"]["responses"].pop("200"),
        "response 200 is removed",
    ),
    "member": (
        lambda api: api["components"]["schemas"]["TaskSummary"]["properties"].pop("outcome"),
        "outcome is removed",
    ),
    "requirement": (
        lambda api: api["components"]["schemas"]["NewTask"]["required"].append("project_id"),
        "project_id is now required",
    ),
    "value": (
        lambda api: api["components"]["schemas"]["State"]["enum"].remove("rejected"),
        "a value is removed",
    ),
}


@pytest.mark.parametrize("name", sorted(REMOVALS))
def test_removal_is_found(name: str) -> None:
    change, expected = REMOVALS[name]
    old = document()
    new = copy.deepcopy(old)
    change(new)

    assert expected in "\n".join(losses(old, new))


@pytest.mark.parametrize("name", sorted(REMOVALS))
def test_the_same_as_an_addition_is_allowed(name: str) -> None:
    change, _ = REMOVALS[name]
    new = document()
    old = copy.deepcopy(new)
    change(old)

    assert [] == losses(old, new)
