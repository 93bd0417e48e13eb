"""Tasks and services that the tests of commands read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.commandline import audit, lines
from tests.conftest import execute, task
from tests.processes import serving

LONG = "x" * 500
DIGITS = "123456789012345678901234567890.120"


@pytest.fixture
def changed(dsn: str) -> str:
    """The id of a task that was recorded and changed twice."""
    one = task(status="pending", error_message=None)
    assert audit("record", "-", given=lines(one), AUDIT_DSN=dsn)[0] == 0
    execute(
        dsn,
        "SELECT sequence_task_events(10)",
        f"UPDATE tasks SET outcome = '{{\"n\": {DIGITS}}}', error_message = '{LONG}'",
        "UPDATE tasks SET status = 'failed', completed_at = '2026-01-01T00:00:00Z'",
    )
    return str(one["task_id"])


@pytest.fixture
def url(dsn: str) -> Iterator[str]:
    """The URL of a service on the database."""
    with serving("--workers", "1", AUDIT_DSN=dsn) as (_, address, _):
        yield address
