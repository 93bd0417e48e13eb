"""A page is limited in bytes, and has one task at least."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID

import psycopg
import pytest
from pydantic import ValidationError

from audit.errors import Invalid
from audit.history.service import AuditService
from audit.history.task import TaskPage
from audit.postgres.pool import open_pool
from audit.settings import Settings
from audit.web.app import create_app
from tests.conftest import Client, ago, execute, task

API = "/api/v1/audit"
KIB = 1024
#: Of 30 MiB each, they are longer than what PostgreSQL writes into one text.
HUGE_TASKS = 35


def short(n: int, kib: int) -> dict[str, object]:
    """A task that was created `n` seconds ago, and is a little shorter than `kib` KiB."""
    return task(created_at=ago(seconds=n), error_message="x" * (kib * KIB - 400))


@pytest.fixture
async def small(dsn: str) -> AsyncIterator[AuditService]:
    """A service whose pages have 10 KiB."""
    settings = Settings(pool_size=2, max_page_bytes=10 * KIB)
    async with open_pool(settings, dsn) as pool:
        yield AuditService(pool, settings)


async def crawl(service: AuditService, /, **asked: object) -> list[TaskPage]:
    pages = [await service.audit_query(**asked)]  # type: ignore[arg-type]
    while pages[-1].next_cursor:
        cursor = pages[-1].next_cursor
        pages.append(await service.audit_query(**asked, cursor=cursor))  # type: ignore[arg-type]
    return pages


async def test_page_ends_before_the_task_that_would_make_it_too_long(small: AuditService) -> None:
    sizes = [4, 4, 4, 1, 1, 9, 2]
    recorded = await small.record([short(n, kib) for n, kib in enumerate(sizes)])

    pages = await crawl(small)

    assert [2, 3, 1, 1] == [page.rows for page in pages]
    assert [len(page.tasks) for page in pages] == [page.rows for page in pages]
    assert recorded.task_ids == [one.task_id for page in pages for one in page.tasks]
    assert {7} == {page.total for page in pages}
    assert all(len(page.tasks_json) < 10 * KIB for page in pages)


async def test_task_longer_than_a_page_is_a_page_of_its_own(small: AuditService) -> None:
    sizes = [1, 50, 60, 1, 70]
    recorded = await small.record([short(n, kib) for n, kib in enumerate(sizes)])

    pages = await crawl(small)

    assert [1, 1, 1, 1, 1] == [page.rows for page in pages]
    assert recorded.task_ids == [one.task_id for page in pages for one in page.tasks]


@pytest.mark.parametrize("exactly", [10 * KIB - 1, 10 * KIB, 10 * KIB + 1])
async def test_last_task_of_about_the_limit_has_no_next_page(
    small: AuditService, exactly: int
) -> None:
    await small.record([task(error_message="")])
    empty = len((await small.audit_query()).tasks_json) - 2
    await small.record([task(created_at=ago(hours=2), error_message="x" * (exactly - empty))])

    first, second = await crawl(small)

    assert (1, 1) == (first.rows, second.rows)
    assert exactly == len(second.tasks_json) - 2


async def test_offset_pages_are_cut_too(small: AuditService) -> None:
    recorded = await small.record([short(n, 4) for n in range(6)])
    found: list[UUID] = []

    while len(found) < 6:
        page = await small.audit_query(offset=len(found))
        assert (6, len(found)) == (page.total, page.offset)
        found += [one.task_id for one in page.tasks]

    assert recorded.task_ids == found


@pytest.mark.parametrize("asked", [{"created_by": "ada"}, {"service": ["a", "b"]}])
async def test_pages_of_filters_that_are_not_counted_are_cut_too(
    small: AuditService, asked: dict[str, object]
) -> None:
    await small.record(
        [{**short(n, 4), "created_by": "ada", "services_touched": ["a", "b"]} for n in range(6)]
    )

    pages = await crawl(small, **asked)

    assert [(2, 6)] * 3 == [(page.rows, page.total) for page in pages]


async def test_page_cut_in_the_middle_of_the_history_is_found_at_once(small: AuditService) -> None:
    await small.record([short(n * 86_400, 4) for n in range(1, 40)])
    while await small.upkeep.fold_counts():
        pass

    pages = await crawl(small, limit=5)

    assert [2] * 19 + [1] == [page.rows for page in pages]
    page = await small.audit_query(offset=30, limit=5)
    assert (2, 39) == (page.rows, page.total)


async def test_count_reads_no_documents(small: AuditService) -> None:
    await small.record([short(n, 50) for n in range(3)])

    assert 3 == await small.get_task_count()


async def test_ordinary_page_is_not_cut(service: AuditService, client: Client) -> None:
    await service.record([short(n, 20) for n in range(100)])

    page = await (await client.get(f"{API}/query")).json()

    assert 100 == len(page["tasks"])
    assert page["next_cursor"] is None


async def test_tasks_of_more_than_a_gigabyte_are_listed_page_by_page(
    dsn: str, aiohttp_client: Callable[..., Awaitable[Client]]
) -> None:
    execute(
        dsn,
        "INSERT INTO tasks (task_id, request_text, outcome) SELECT gen_random_uuid(), 'x',"
        " jsonb_build_object('n', array_fill('1e131071'::numeric, ARRAY[240]))"
        f" FROM generate_series(1, {HUGE_TASKS})",
    )
    settings = Settings(pool_size=2, statement_timeout_seconds=60, request_timeout_seconds=60)
    client = await aiohttp_client(create_app(settings, dsn), timeout=None)

    answer = await client.get(f"{API}/query?limit=1000")
    body = await answer.read()

    assert answer.status == 200
    assert 30 * KIB**2 <= len(body) < 32 * KIB**2
    assert f'"total":{HUGE_TASKS}'.encode() in body[-300:]
    assert b'"next_cursor":"' in body[-300:]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("error_message", "repeat(chr(1), 45 * 1024 * 1024)"),
        ("outcome", "jsonb_build_object('n', array_fill('1e131071'::numeric, ARRAY[4200]))"),
    ],
    ids=["control characters", "numbers"],
)
def test_task_that_postgresql_could_not_write_is_not_recorded(
    dsn: str, column: str, value: str
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="tasks_length"):
        execute(
            dsn,
            f"INSERT INTO tasks (task_id, request_text, {column})"
            f" SELECT gen_random_uuid(), 'x', {value}",
        )


async def test_json_that_postgresql_cannot_store_is_invalid(service: AuditService) -> None:
    with pytest.raises(Invalid, match="256 MiB"):
        async with service.database.connection() as connection:
            await connection.fetchval("SELECT to_jsonb(repeat('a', 256 * 1024 * 1024))")


def test_the_limit_of_a_task_cannot_be_set_higher_than_what_postgresql_stores() -> None:
    with pytest.raises(ValidationError, match="max_task_bytes"):
        Settings(max_task_bytes=256 * 1024 * 1024 + 1)


async def test_numbers_that_grow_when_written_out_are_listed_task_by_task(
    dsn: str, small: AuditService
) -> None:
    execute(
        dsn,
        "INSERT INTO tasks (task_id, request_text, outcome) SELECT gen_random_uuid(), 'x',"
        " jsonb_build_object('n', (SELECT jsonb_agg('1e131071'::numeric)"
        " FROM generate_series(1, 30))) FROM generate_series(1, 200)",
    )

    page = await small.audit_query()

    # All of them are 800 MB.
    assert (1, 200) == (page.rows, page.total)
    assert page.next_cursor is not None
