"""A cursor that someone made up is refused, also if its checksum is right."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from audit.errors import Invalid
from audit.history.cursor import Cursor
from audit.history.query import AuditQuery, FailuresQuery, TaskQuery, parse_arguments
from audit.history.service import AuditService
from tests.conftest import Client

NOW = datetime.now(UTC).replace(microsecond=0)
LAST = UUID("00000000-0000-4000-8000-000000000001")

SINCE = FailuresQuery.model_validate({"since": "2026-01-01T00:00:00Z"})
FORGED: list[tuple[str, TaskQuery, dict[str, Any], datetime | None]] = [
    ("query", AuditQuery(days=7), {"days": "7"}, None),
    ("failures", FailuresQuery(), {}, None),
    ("query", AuditQuery(), {}, NOW),
    ("failures", SINCE, {"since": "2026-01-01T00:00:00Z"}, NOW),
]  # fmt: skip


@pytest.mark.parametrize(("route", "query", "filters", "clock"), FORGED)
async def test_a_cursor_has_a_clock_only_if_its_filters_use_days(
    client: Client,
    service: AuditService,
    route: str,
    query: TaskQuery,
    filters: dict[str, Any],
    clock: datetime | None,
) -> None:
    right = NOW if clock is None else None
    forged, honest = (Cursor(at, NOW, LAST, 1).encode(query.fingerprint) for at in (clock, right))

    answered = await client.get(f"/api/v1/audit/{route}", params={**filters, "cursor": honest})
    assert answered.status == 200
    refused = await client.get(f"/api/v1/audit/{route}", params={**filters, "cursor": forged})
    assert refused.status == 422
    assert (await refused.json())["errors"][0]["field"] == "cursor"
    with pytest.raises(Invalid):
        parse_arguments(type(query), {**filters, "cursor": forged})
