"""Positions have no gaps, and no event is lost or repeated, whatever happens to the sequencer."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import psycopg
import pytest

from audit.history.service import AuditService
from audit.postgres import migrate
from tests.conftest import SERVING, as_role, execute, task
from tests.waiting import until

SEQUENCE = "SELECT sequenced, is_last FROM sequence_task_events(%s)"
POSITIONS = (
    "SELECT count(*), count(DISTINCT position), min(position), max(position) FROM task_events"
)
QUEUED = "SELECT count(*) FROM task_event_queue"
#: Tasks whose events are not in their order, or are not one chain from state to state.
OUT_OF_ORDER = """
SELECT count(*)
FROM (
    SELECT
        before_status,
        event_id,
        lag(status) OVER by_position AS status_before,
        lag(event_id) OVER by_position AS event_before
    FROM task_events
    WINDOW by_position AS (PARTITION BY task_id ORDER BY position)
) AS events
WHERE before_status IS DISTINCT FROM status_before OR event_id < event_before
"""


def record_and_change(dsn: str, seed: int, transactions: int) -> tuple[int, int]:
    """Write in transactions that end in a random order; return the events that were committed."""
    choose = random.Random(seed)
    committed = 0
    changed = 0
    with psycopg.connect(dsn) as connection:
        for _ in range(transactions):
            events = 0
            for _ in range(choose.randint(1, 5)):
                made = str(uuid.uuid4())
                connection.execute(
                    "INSERT INTO tasks (task_id, request_text) VALUES (%s, 'x')", [made]
                )
                events += 1
                for status in choose.choice(([], ["approved"], ["approved", "failed"])):
                    connection.execute(
                        "UPDATE tasks SET status = %s WHERE task_id = %s", [status, made]
                    )
                    events += 1
                    changed += 1
            connection.execute("SELECT pg_sleep(%s)", [choose.choice((0, 0, 0.001, 0.02))])
            if choose.random() < 0.2:
                connection.rollback()
            else:
                connection.commit()
                committed += events
    return committed, changed


@contextmanager
def sequencing(dsn: str, sequencers: int) -> Iterator[None]:
    """Sequence in several sessions, and end one of the sessions every 20 ms."""
    ended = threading.Event()

    def sequence() -> None:
        while not ended.is_set():
            with (
                suppress(psycopg.OperationalError),
                psycopg.connect(dsn, autocommit=True, application_name="sequencer") as connection,
            ):
                while not ended.is_set():
                    connection.execute(SEQUENCE, [7])

    def end_sessions() -> None:
        while not ended.wait(0.02):
            execute(
                dsn,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'sequencer' AND datname = current_database()"
                " ORDER BY random() LIMIT 1",
            )

    with ThreadPoolExecutor(sequencers + 1) as threads:
        running = [threads.submit(sequence) for _ in range(sequencers)]
        running.append(threads.submit(end_sessions))
        try:
            yield
        finally:
            ended.set()
        for one in running:
            one.result()


def test_no_event_is_lost_or_repeated_while_sequencers_are_killed(dsn: str) -> None:
    writers = 6
    with sequencing(dsn, 2), ThreadPoolExecutor(writers) as threads:
        written = list(threads.map(record_and_change, [dsn] * writers, range(writers), [60] * 6))
    # The call that ends a backlog may find nothing to move, and leave what was committed meanwhile.
    while execute(dsn, IS_LAST.format(1000)) != [(True,)]:
        pass

    events = sum(committed for committed, _ in written)
    assert [(events, events, 0, events - 1)] == execute(dsn, POSITIONS)
    assert [(0,)] == execute(dsn, QUEUED)
    assert [(0,)] == execute(dsn, OUT_OF_ORDER)
    assert execute(dsn, "SELECT count(*) FROM tasks") == execute(
        dsn, "SELECT count(DISTINCT task_id) FROM task_events"
    )


def test_an_event_that_commits_late_gets_a_later_position(dsn: str) -> None:
    insert = "INSERT INTO tasks (task_id, request_text) VALUES (gen_random_uuid(), %s)"
    with psycopg.connect(dsn) as late:
        late.execute(insert, ["late"])
        with psycopg.connect(dsn) as early:
            early.execute(insert, ["early"])
        assert [(1, True)] == execute(dsn, "SELECT * FROM sequence_task_events(10)")
    assert [(1, True)] == execute(dsn, "SELECT * FROM sequence_task_events(10)")

    assert [(0, "early"), (1, "late")] == execute(
        dsn,
        "SELECT position, request_text FROM task_events JOIN tasks USING (task_id)"
        " ORDER BY position",
    )


INSERT = "INSERT INTO tasks (task_id, request_text) VALUES (%s, %s)"
CHANGE = "UPDATE tasks SET error_message = %s WHERE task_id = %s"
LOOK = "SELECT task_event_count() - task_log_size()"
IS_LAST = "SELECT is_last FROM sequence_task_events({})"


def end(connection: psycopg.Connection, how: str) -> bool:
    """End the transaction of a connection; return whether it was committed."""
    if how == "two phases":
        connection.execute("PREPARE TRANSACTION 'late'")
        connection.rollback()
        connection.autocommit = True
        connection.execute("COMMIT PREPARED 'late'")
    elif how == "commit":
        connection.commit()
    else:
        connection.rollback()
    return how != "rollback"


@pytest.mark.parametrize(
    ("how", "late_events", "portion"),
    [
        ("commit", 0, 1000),
        ("commit", 3, 7),
        ("commit", 60, 7),
        ("commit", 60, 1000),
        ("rollback", 3, 1000),
        ("rollback", 60, 7),
        ("two phases", 60, 7),
    ],
)
def test_a_transaction_that_is_open_for_long_loses_and_repeats_no_event(
    dsn: str, how: str, late_events: int, portion: int
) -> None:
    ids = [str(uuid.uuid4()) for _ in range(60)]
    with psycopg.connect(dsn, autocommit=True) as writer:

        def sequence(most: int) -> bool:
            return writer.execute(IS_LAST.format(most)).fetchall() == [(True,)]

        for task_id in ids:
            writer.execute(INSERT, [task_id, "before"])
        while not sequence(portion):
            pass
        with psycopg.connect(dsn) as late:
            late.execute("SELECT pg_current_xact_id()")
            for n in range(60):
                if n < late_events:
                    with late.transaction():  # a savepoint
                        late.execute(CHANGE, [f"late {n}", ids[n]])
                writer.execute(INSERT, [str(uuid.uuid4()), "beside"])
                if n % 5 == 0:
                    sequence(portion)
            waiting = int(execute(dsn, LOOK)[0][0])
            is_committed = end(late, how)
        seen = late_events if is_committed else 0
        assert [(waiting + seen,)] == execute(dsn, LOOK)
        # What comes while a backlog is moved waits for it, also if it changes the same tasks.
        sequence(portion)
        for task_id in ids:
            writer.execute(CHANGE, ["after", task_id])
            sequence(1)
        while not sequence(portion):
            pass

    events = 60 + 60 + seen + 60
    assert [(events, events, 0, events - 1)] == execute(dsn, POSITIONS)
    assert [(0,)] == execute(dsn, QUEUED) == execute(dsn, LOOK) == execute(dsn, OUT_OF_ORDER)


def test_events_in_the_queue_survive_a_downgrade_and_an_upgrade(fresh: str) -> None:
    with psycopg.connect(fresh) as late, psycopg.connect(fresh, autocommit=True) as writer:
        for step in (migrate.roll_back, migrate.apply):
            late.execute("SELECT pg_current_xact_id()")
            for n in range(20):
                writer.execute(INSERT, [str(uuid.uuid4()), "x"])
                if n % 4 == 0:
                    execute(fresh, SEQUENCE % 3)
            late.execute(INSERT, [str(uuid.uuid4()), "late"])
            late.commit()
            queued = execute(fresh, LOOK)
            step(fresh, "0012_exports" if step is migrate.roll_back else None)

            assert queued == execute(fresh, LOOK) > [(0,)]
    while execute(fresh, IS_LAST.format(3)) != [(True,)]:
        pass
    assert [(42, 42, 0, 41)] == execute(fresh, POSITIONS)


async def test_events_are_sequenced_in_portions(service: AuditService, dsn: str) -> None:
    await service.record([task() for _ in range(25)])

    for expected in ((10, False), (10, False), (5, True), (0, True)):
        assert [expected] == execute(dsn, "SELECT * FROM sequence_task_events(10)")
    assert [(25, 25, 0, 24)] == execute(dsn, POSITIONS)


async def test_one_session_sequences_at_a_time(service: AuditService, dsn: str) -> None:
    await service.record([task()])
    with psycopg.connect(dsn) as busy:
        busy.execute(SEQUENCE, [10])

        assert [(None, None)] == execute(dsn, "SELECT * FROM sequence_task_events(10)")
        assert await service.upkeep.sequence_events() == 0
    assert [(1,)] == execute(dsn, "SELECT count(*) FROM task_events")


@pytest.mark.parametrize(
    "isolation", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE]
)
def test_a_sequencer_with_an_old_snapshot_is_refused(
    dsn: str, isolation: psycopg.IsolationLevel
) -> None:
    with psycopg.connect(dsn) as connection:
        connection.isolation_level = isolation
        with pytest.raises(psycopg.errors.InvalidTransactionState):
            connection.execute(SEQUENCE, [10])


def test_the_partition_of_each_month_is_made_when_it_is_needed(dsn: str) -> None:
    """A queue may wait while nobody sequences, or in a dump that is restored much later."""
    months = [datetime(2020, 2, 29, 23, 59, tzinfo=UTC), datetime(2020, 3, 1, tzinfo=UTC)]
    execute(dsn, "INSERT INTO tasks (task_id, request_text) VALUES (gen_random_uuid(), 'x')")
    with psycopg.connect(dsn) as connection:
        for at in months:
            connection.execute(
                "INSERT INTO task_event_queue (at, kind, task_id, created_at, status,"
                " services_touched, salt, content) SELECT %s, 'imported', task_id, created_at,"
                " status, services_touched, gen_random_uuid(), '' FROM tasks",
                [at],
            )
    [(relations,)] = execute(dsn, "SELECT count(*) FROM pg_inherits")
    sequence = ("SET timezone = 'Pacific/Auckland'", "SELECT * FROM sequence_task_events(10)")

    # A reader whose statement was planned before would miss what moves in the same transaction.
    assert [(0, False)] == execute(dsn, *sequence)
    assert [(3, True)] == execute(dsn, *sequence)
    made = execute(dsn, "SELECT tableoid::regclass::text, at FROM task_events ORDER BY at LIMIT 2")
    assert [("task_events_202002", months[0]), ("task_events_202003", months[1])] == made
    assert execute(dsn, "SELECT count(*) FROM pg_inherits") > [(relations,)]


async def test_the_service_sequences_in_the_background(service: AuditService, dsn: str) -> None:
    await service.record([task() for _ in range(3)])
    async with AuditService.open(as_role(dsn, SERVING)):
        await until(lambda: execute(dsn, QUEUED) == [(0,)])

    assert [(3, 3, 0, 2)] == execute(dsn, POSITIONS)
