"""Every file in `sql/` matches the migrated schema and its own header."""

from __future__ import annotations

import re
from itertools import takewhile

import pytest

from audit.history.service import AuditService
from audit.history.task import Task, TaskSummary
from audit.postgres import statements
from audit.postgres.statements import Statement
from audit.resources import folder
from tests.conftest import execute, task

FILES = sorted(
    (file.name.removesuffix(".sql"), file.read_text())
    for part in folder("sql").iterdir()
    if part.name != "spool"  # which is for SQLite
    for file in part.iterdir()
)
#: How headers write the types that PostgreSQL calls otherwise.
SHORT = {"int4": "int", "int8": "bigint", "bool": "boolean"}


#: Parts of statements, which are no statements.
FRAGMENTS = {"exported", "filter", "position", "server", "snapshot", "tables"}
MAX_PARAMETERS = 16
MAX_HEADER_LINES = 12


@pytest.mark.parametrize("statement", statements.ALL, ids=statements.NAMES)
async def test_statement_is_prepared_with_the_types_of_its_header(
    service: AuditService, statement: Statement
) -> None:
    async with service.database.pool.acquire() as connection:
        prepared = await connection.prepare(statement.text)
        types = [SHORT.get(one.name, one.name) for one in prepared.get_parameters()]

    # A parameter with a name has a type where it is used.
    if not statement.parameters:
        declared = re.findall(r"^-- +\$(\d+) +\w+ +(\S+)", statement, re.MULTILINE)
        assert declared == [(str(number), name) for number, name in enumerate(types, 1)]
    assert len(types) <= MAX_PARAMETERS


@pytest.mark.parametrize(("name", "text"), FILES)
def test_statement_begins_with_its_name_and_what_it_returns(name: str, text: str) -> None:
    first = text.splitlines()[0]

    assert first.startswith(f"-- {name}: ")
    assert len(first) <= 100
    header = list(takewhile(lambda line: line.startswith("--"), text.splitlines()))
    assert len(header) <= MAX_HEADER_LINES


def test_every_file_is_read_and_every_statement_used() -> None:
    assert {name for name, _ in FILES} == {*statements.NAMES, *FRAGMENTS}


async def test_lists_show_exactly_the_fields_of_the_model(service: AuditService) -> None:
    await service.record([task()])

    page = await service.audit_query()

    (one,) = page.tasks
    assert set(TaskSummary.model_fields) == one.model_fields_set


async def test_a_task_shows_exactly_the_columns_and_the_fields_of_the_model(
    service: AuditService, dsn: str
) -> None:
    recorded = await service.record([task()])
    columns = execute(
        dsn,
        "SELECT column_name FROM information_schema.columns "
        "WHERE table_name = 'tasks' AND is_generated = 'NEVER'",
    )

    document = await service.get_task(recorded.task_ids[0])

    assert set(Task.model_fields) == document.task.model_fields_set
    assert set(Task.model_fields) == {name for (name,) in columns}


async def test_sessions_are_set_up_and_stay_so_after_a_release(service: AuditService) -> None:
    expected = {
        "plan_cache_mode": "force_custom_plan",
        "jit": "off",
        "TimeZone": "UTC",
        "synchronous_commit": "on",
        "statement_timeout": "10s",
        "application_name": "task-audit",
    }

    for _ in range(3):
        async with service.database.pool.acquire() as connection:
            found = {name: await connection.fetchval(f"SHOW {name}") for name in expected}

        assert expected == found
