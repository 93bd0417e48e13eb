"""This version keeps what the last release promised: its API and its migrations."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audit.web.openapi import document
from tests.contract import edits, losses

ROOT = Path(__file__).parents[2]
#: What `make freeze` stored when the last version was released.
RELEASED = ROOT / "tests/released"
QUERY = "/api/v1/audit/query"
Change = Callable[[dict[str, Any]], object]


def released_document() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((RELEASED / "openapi.json").read_text())
    return stored


def released_migrations() -> dict[str, str]:
    lines = (RELEASED / "migrations.sha256").read_text().splitlines()
    return {Path(name).name: digest for digest, name in map(str.split, lines)}


def test_document_takes_nothing_from_the_last_release() -> None:
    assert [] == losses(released_document(), document())


def test_released_migrations_are_unchanged_and_new_ones_follow_them() -> None:
    migrations = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (ROOT / "migrations").iterdir()
    }

    assert [] == edits(released_migrations(), migrations)


def test_changelog_begins_with_the_released_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (\d+\.\d+\.\d+) - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert versions[0] == project["version"] == released_document()["info"]["version"]


EDITS: dict[str, tuple[dict[str, str], list[str]]] = {
    "addition": ({"0001_a.sql": "1", "0003_c.sql": "3", "0004_d.sql": "4"}, []),
    "change": ({"0001_a.sql": "9", "0003_c.sql": "3"}, ["0001_a.sql is changed"]),
    "removal": ({"0003_c.sql": "3"}, ["0001_a.sql is removed"]),
    "number": (
        {"0001_a.sql": "1", "0002_b.sql": "2", "0003_c.sql": "3"},
        ["0002_b.sql must have a number above 0003"],
    ),
}


@pytest.mark.parametrize("name", sorted(EDITS))
def test_only_later_migrations_may_be_added(name: str) -> None:
    migrations, expected = EDITS[name]

    assert expected == edits({"0001_a.sql": "1", "0003_c.sql": "3"}, migrations)


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
