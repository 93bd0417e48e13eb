"""How PostgreSQL runs the very statements that answer a query."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from asyncpg.connection import LoggedQuery

from audit.history.query import TaskQuery
from audit.history.service import AuditService
from audit.postgres import statements
from audit.postgres.statements import Statement

Node = dict[str, Any]


#: The statements that answer a page request, by their text.
ANSWERING = {
    one.text: one
    for one in (
        statements.LOCATE_PAGE,
        statements.LOCATE_PORTION,
        statements.READ_TALLY,
        statements.TALLY_DAYS,
        statements.TALLY_CHANGES,
        statements.SAVE_TALLY,
        statements.LIST_TASKS,
    )
}


@asynccontextmanager
async def watched_statements(service: AuditService) -> AsyncIterator[list[tuple[Statement, Any]]]:
    """The statements that page requests run meanwhile, with their values."""
    ran: list[tuple[Statement, Any]] = []

    def note(sent: LoggedQuery) -> None:
        if sent.query in ANSWERING:
            ran.append((ANSWERING[sent.query], sent.args))

    pool = service.database.pool
    async with AsyncExitStack() as released:
        connections = [
            await released.enter_async_context(pool.acquire()) for _ in range(pool.get_max_size())
        ]
        for connection in connections:
            connection.add_query_logger(note)
    yield ran
    await asyncio.sleep(0)  # asyncpg calls a logger soon after its statement has ended
    async with AsyncExitStack() as released:
        for _ in range(pool.get_max_size()):
            connection = await released.enter_async_context(pool.acquire())
            connection.remove_query_logger(note)


async def statements_of(service: AuditService, query: TaskQuery) -> list[tuple[Statement, Any]]:
    """The statements that answer a query, with their values."""
    async with watched_statements(service) as ran:
        await service.reading.list_tasks(query)
    return ran


async def names_of(service: AuditService, query: TaskQuery) -> list[str]:
    """The names of the statements that answer a query."""
    return [statement.name for statement, _ in await statements_of(service, query)]


async def plan_of(service: AuditService, query: TaskQuery) -> list[Node]:
    """The nodes of the plan of the page and its total, with what it read."""
    (*_, (statement, values)) = await statements_of(service, query)
    assert statement == statements.LIST_TASKS
    return await explained(service, statement, values)


async def explained(service: AuditService, statement: Statement, values: Any) -> list[Node]:
    """The nodes of the plan of a statement, with what it read."""
    text = await service.database.pool.fetchval(
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statement, *values
    )
    nodes: list[Node] = []

    def walk(node: Node) -> None:
        nodes.append(node)
        for child in node.get("Plans", []):
            walk(child)

    walk(json.loads(text)[0]["Plan"])
    return nodes


def rows_read(plan: list[Node]) -> int:
    """The rows that scans of tables looked at, those that they passed over included."""
    return sum(
        int(node["Actual Loops"])
        * int(
            node["Actual Rows"]
            + node.get("Rows Removed by Filter", 0)
            + node.get("Rows Removed by Index Recheck", 0)
        )
        for node in plan
        if node["Node Type"] in ("Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan")
    )


def buffers_read(plan: list[Node]) -> int:
    """The blocks of 8 KiB that the statement touched; those of functions that it calls too."""
    return int(plan[0]["Shared Hit Blocks"]) + int(plan[0]["Shared Read Blocks"])
