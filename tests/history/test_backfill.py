"""Tasks that were recorded before the event log began get one event each."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Iterator
from contextlib import aclosing, contextmanager

import psycopg
import pytest

from audit import AuditService
from audit.history import backfill
from audit.history.backfill import Imported
from audit.postgres import migrate
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.conftest import ago, execute, task
from tests.waiting import until

EVENTS = "SELECT task_id, kind FROM task_history ORDER BY task_id, event_id"


@contextmanager
def before_the_log(dsn: str) -> Iterator[None]:
    """Whatever the block records or changes has no events."""
    triggers = ("queue_recorded", "queue_changed")
    execute(dsn, *(f"ALTER TABLE tasks DISABLE TRIGGER {name}" for name in triggers))
    try:
        yield
    finally:
        execute(dsn, *(f"ALTER TABLE tasks ENABLE ALWAYS TRIGGER {name}" for name in triggers))


async def record_before_the_log(
    service: AuditService, dsn: str, number: int, status: str = "completed"
) -> list[uuid.UUID]:
    """Record tasks without events, one an hour; return their ids, the oldest first."""
    with before_the_log(dsn):
        sent = [task(status=status, created_at=ago(hours=number - n)) for n in range(number)]
        return (await service.record(sent)).task_ids


async def run(service: AuditService) -> Imported:
    sums = [Imported(0, 0, 0), *[done async for done in service.backfill.run()]]
    return sums[-1]


def kinds(dsn: str) -> dict[uuid.UUID, list[str]]:
    found: dict[uuid.UUID, list[str]] = {}
    for task_id, kind in execute(dsn, EVENTS):
        found.setdefault(task_id, []).append(kind)
    return found


async def test_each_task_without_events_gets_one(service: AuditService, dsn: str) -> None:
    old = await record_before_the_log(service, dsn, 7)
    new = (await service.record([task(), task(status="pending")])).task_ids

    first, again = await run(service), await run(service)

    assert (Imported(9, 7, 0), Imported(9, 0, 0)) == (first, again)
    assert {one: ["imported"] for one in old} | {one: ["recorded"] for one in new} == kinds(dsn)


async def test_an_empty_history_needs_no_import(service: AuditService) -> None:
    assert Imported(0, 0, 0) == await run(service)


async def test_an_imported_event_shows_the_task_and_the_role_that_imported(
    service: AuditService, dsn: str
) -> None:
    (task_id,) = await record_before_the_log(service, dsn, 1, status="approved")
    document = await service.get_task(task_id)

    await run(service)

    ((event,),) = [[one async for one in service.iterate_history(task_id)]]
    digest = hashlib.sha256(f"{event.salt}\n{document.json}".encode()).hexdigest()
    assert ("imported", "approved", digest) == (event.kind, event.status, event.content)
    assert (None, None, "audit", {}) == (event.actor, event.request_id, event.role, event.changed)


async def test_a_task_that_was_changed_since_the_log_began_is_not_imported(
    service: AuditService, dsn: str
) -> None:
    """Its events lead back to what it was before."""
    (task_id,) = await record_before_the_log(service, dsn, 1, status="pending")
    await service.update(task_id, {"status": "failed"})

    done = await run(service)

    assert Imported(1, 0, 0) == done
    assert {task_id: ["changed"]} == kinds(dsn)


async def test_a_change_after_the_import_has_a_later_position(
    service: AuditService, dsn: str
) -> None:
    (task_id,) = await record_before_the_log(service, dsn, 1, status="pending")
    await run(service)
    await service.update(task_id, {"status": "failed"})
    execute(dsn, "SELECT sequence_task_events(10)")

    events = [one async for one in service.iterate_history(task_id)]

    assert ["imported", "changed"] == [event.kind for event in events]
    assert [0, 1] == [event.position for event in events]
    assert [True, True] == [one.matches_digest async for one in service.iterate_versions(task_id)]


async def test_positions_of_imported_tasks_are_in_the_order_of_their_creation(
    service: AuditService, dsn: str
) -> None:
    old = await record_before_the_log(service, dsn, 30)

    await run(service)

    rows = execute(dsn, "SELECT task_id FROM task_events ORDER BY position")
    assert [(one,) for one in old] == rows


async def test_it_can_be_stopped_and_goes_on(
    service: AuditService, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "_MOST", 10)
    old = await record_before_the_log(service, dsn, 35)
    async with aclosing(service.backfill.run()) as running:
        async for done in running:
            if done.imported == 20:
                break
    assert len(kinds(dsn)) == 20

    done = await run(service)

    assert Imported(35, 15, 0) == done
    assert {one: ["imported"] for one in old} == kinds(dsn)


async def test_a_task_in_a_running_change_is_imported_if_the_change_is_undone(
    service: AuditService, dsn: str
) -> None:
    kept, undone = await record_before_the_log(service, dsn, 2, status="pending")
    with psycopg.connect(dsn) as committing, psycopg.connect(dsn) as undoing:
        update = "UPDATE tasks SET error_message = 'late' WHERE task_id = %s"
        committing.execute(update, [kept])
        undoing.execute(update, [undone])
        async with aclosing(service.backfill.run()) as running:
            assert Imported(2, 0, 2) == await anext(running)
            committing.commit()
            undoing.rollback()
            assert Imported(2, 1, 0) == await anext(running)

    assert {kept: ["changed"], undone: ["imported"]} == kinds(dsn)


async def test_several_backfills_and_writers_at_once_import_each_task_once(
    service: AuditService, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "_MOST", 40)
    monkeypatch.setattr(backfill, "_RETRY_SECONDS", 0.01)
    old = await record_before_the_log(service, dsn, 400, status="pending")
    documents = {one: (await service.get_task(one)).json for one in old[::40]}

    async def change() -> None:
        for task_id in old[::3]:
            await service.update(task_id, {"error_message": "late"})

    async def record() -> None:
        for _ in range(40):
            await service.record([task(created_at=ago(hours=n)) for n in (300, 100, 1)])

    async def undo() -> None:
        async with service.database.connection() as connection:
            for task_id in old[1::5]:
                transaction = connection.transaction()
                await transaction.start()
                await connection.execute(
                    "UPDATE tasks SET error_message = 'undone' WHERE task_id = $1", task_id
                )
                await transaction.rollback()

    first, second, *_ = await asyncio.gather(run(service), run(service), change(), record(), undo())

    found = kinds(dsn)
    expected = [["imported"], ["changed"], ["imported", "changed"]]
    assert [] == [one for one in old if found[one] not in expected]
    assert first.imported + second.imported == sum(found[one][0] == "imported" for one in old)
    assert [["recorded"]] * 120 == [some for one, some in found.items() if one not in old]
    for one, document in documents.items():
        if found[one][0] == "imported":
            assert document == (await anext(service.iterate_versions(one))).json
    await until(lambda: not execute(dsn, "SELECT FROM pg_locks WHERE locktype = 'advisory'"))


PARTITIONS = "SELECT make_task_partitions(ARRAY[now(), now() - interval '40 days'], 'month')"
#: Of one moment, so that the bucket is split down to the second.
MANY = (
    "INSERT INTO tasks (task_id, request_text, services_touched)"
    " SELECT gen_random_uuid(), 'Deploy payments', '{payments}' FROM generate_series(1, 600)"
)
ONE = (
    "INSERT INTO tasks (task_id, request_text, created_at)"
    " VALUES (gen_random_uuid(), 'Deploy payments', now() - interval '40 days')"
)


async def test_tasks_that_are_older_than_the_log_are_counted_and_imported(empty_dsn: str) -> None:
    migrate.apply(empty_dsn, "0003_guards")
    execute(empty_dsn, PARTITIONS, MANY, ONE)
    migrate.apply(empty_dsn)

    async with open_pool(Settings(pool_size=2), empty_dsn) as pool:
        service = AuditService(pool)
        assert {} == kinds(empty_dsn)
        assert [] == await service.upkeep.check_counts()
        assert (await service.audit_query(service="payments")).total == 600

        assert Imported(601, 601, 0) == await run(service)
        await service.upkeep.sequence_events()
        await service.upkeep.fold_counts()

        assert (await service.audit_query(service="payments")).total == 600
        assert await service.get_task_count() == 601
        assert [] == await service.upkeep.check_counts()


async def test_events_that_are_older_than_the_counts_are_counted_once(empty_dsn: str) -> None:
    """The migration counts what a task was before its first event, and folds count its events."""
    migrate.apply(empty_dsn, "0003_guards")
    execute(empty_dsn, PARTITIONS, MANY, ONE)
    migrate.apply(empty_dsn, "0004_event_log")
    execute(empty_dsn, MANY, "UPDATE tasks SET status = 'approved'")
    execute(empty_dsn, "SELECT sequence_task_events(700)")

    for tasks in (1201, 1203):
        migrate.apply(empty_dsn)
        async with open_pool(Settings(pool_size=2), empty_dsn) as pool:
            service = AuditService(pool)
            for _ in range(2):
                assert await service.get_task_count() == tasks
                assert await service.get_task_count(status="approved") == 1201
                assert (await service.audit_query(service="payments")).total == 1200
                assert [] == await service.upkeep.check_counts()
                await service.upkeep.sequence_events()
                await service.upkeep.fold_counts()
            await service.record([task(services_touched=[]), task(services_touched=[])])
        migrate.roll_back(empty_dsn, "0004_event_log")
