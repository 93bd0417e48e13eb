"""How PostgreSQL runs the very statements that answer a query."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from audit.history import counts, paging, tallies
from audit.history.query import TaskQuery
from audit.history.service import AuditService
from audit.postgres import statements
from audit.postgres.pool import fetch_row

Node = dict[str, Any]


@contextmanager
def watched_statements() -> Iterator[list[tuple[str, Any]]]:
    """The statements that page requests run meanwhile, with their values."""
    ran: list[tuple[str, Any]] = []

    async def watched(connection: Any, statement: str, *values: object) -> Any:
        ran.append((statement, values))
        return await fetch_row(connection, statement, *values)

    with ExitStack() as patches:
        for module in (counts, paging, tallies):
            patches.enter_context(patch.object(module, "fetch_row", watched))
        yield ran


async def statements_of(service: AuditService, query: TaskQuery) -> list[tuple[str, Any]]:
    """The statements that answer a query, with their values."""
    with watched_statements() as ran:
        await service.reading.list_tasks(query)
    return ran


async def names_of(service: AuditService, query: TaskQuery) -> list[str | None]:
    """The names of the statements that answer a query."""
    return [statements.name_of(text) for text, _ in await statements_of(service, query)]


async def plan_of(service: AuditService, query: TaskQuery) -> list[Node]:
    """The nodes of the plan of the page and its total, with what it read."""
    (*_, (statement, values)) = await statements_of(service, query)
    assert statement == statements.LIST_TASKS
    return await explained(service, statement, values)


async def explained(service: AuditService, statement: str, values: Any) -> list[Node]:
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
