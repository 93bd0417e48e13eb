"""Partitions: their width and edges, their guards, and who may wait while one is made."""

from __future__ import annotations

import asyncio
import itertools
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psycopg
import psycopg.errors
import pytest

from tests.conftest import execute
from tests.history.guards import (
    CHECK,
    NOT_THE_CLOCK,
    PARTITION,
    REMOVAL,
    TERMINAL,
    UNIQUE,
    insert,
    partition_of,
    refusal,
)
from tests.waiting import until


def make(dsn: str, held: str, width: str) -> None:
    execute(dsn, f"SELECT make_task_partition('{held}', '{width}')")


def partitions(dsn: str, year: int) -> list[tuple[str, str, str]]:
    """Names and edges of the partitions of a year, by date."""
    return execute(
        dsn,
        "SET timezone = 'UTC'",
        "SELECT name, since::date::text, until::date::text FROM task_partitions"
        f" WHERE extract(YEAR FROM since) = {year} ORDER BY since",
    )


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        ("month", ("tasks_20100301", "2010-03-01", "2010-04-01")),
        ("week", ("tasks_20100315", "2010-03-15", "2010-03-22")),
        ("day", ("tasks_20100317", "2010-03-17", "2010-03-18")),
    ],
)
def test_a_partition_is_as_wide_as_asked(
    fresh: str, width: str, expected: tuple[str, str, str]
) -> None:
    for held in (
        "2010-03-17T23:59:59.999999Z",
        "2010-03-17T00:00:00Z",
        "2010-03-18T13:00:00+14:00",
    ):
        make(fresh, held, width)

    assert [expected] == partitions(fresh, 2010)


@pytest.mark.parametrize("timezone", ["America/New_York", "Pacific/Kiritimati"])
def test_partition_bounds_are_in_utc_in_any_time_zone(fresh: str, timezone: str) -> None:
    execute(
        fresh.replace("?", f"?options=-ctimezone%3D{timezone.replace('/', '%2F')}&"),
        "SELECT make_task_partition('2010-03-01T00:00:00Z', 'month')",
        "SELECT make_task_partition('2010-02-28T23:59:59Z', 'month')",
    )

    expected = [
        ("tasks_20100201", "2010-02-01", "2010-03-01"),
        ("tasks_20100301", "2010-03-01", "2010-04-01"),
    ]
    assert expected == partitions(fresh, 2010)


def test_partition_bounds_are_half_open(fresh: str) -> None:
    make(fresh, "2010-03-17T00:00:00Z", "day")
    make(fresh, "2010-03-18T00:00:00Z", "day")

    rows = [
        (at, partition_of(fresh, insert(fresh, created_at=at)))
        for at in ("2010-03-17T00:00:00Z", "2010-03-17T23:59:59.999999Z", "2010-03-18T00:00:00Z")
    ]

    assert ["tasks_20100317", "tasks_20100317", "tasks_20100318"] == [name for _, name in rows]


def test_partitions_of_another_width_fill_the_gaps(fresh: str) -> None:
    make(fresh, "2010-03-10T12:00:00Z", "day")
    make(fresh, "2010-03-11T12:00:00Z", "week")
    make(fresh, "2010-03-20T12:00:00Z", "month")
    make(fresh, "2010-03-01T12:00:00Z", "month")
    make(fresh, "2010-04-01T12:00:00Z", "week")

    expected = [
        ("tasks_20100301", "2010-03-01", "2010-03-10"),
        ("tasks_20100310", "2010-03-10", "2010-03-11"),
        ("tasks_20100311", "2010-03-11", "2010-03-15"),
        ("tasks_20100315", "2010-03-15", "2010-04-01"),
        ("tasks_20100401", "2010-04-01", "2010-04-05"),
    ]
    assert expected == partitions(fresh, 2010)


def test_several_sessions_can_create_partitions_at_once(fresh: str) -> None:
    together = threading.Barrier(8)

    def make_some(number: int) -> None:
        together.wait()
        for day in (3, 40, 70):
            held = datetime(2010, 1, 1, tzinfo=UTC) + timedelta(days=day + number)
            make(fresh, held.isoformat(), ("month", "week", "day")[number % 3])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make_some, range(8)))

    edges = [(since, until) for _, since, until in partitions(fresh, 2010)]
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(edges))
    for day in (3, 10, 40, 47, 70, 77):
        insert(fresh, created_at=datetime(2010, 1, 1, tzinfo=UTC) + timedelta(days=day))


def test_a_new_partition_is_guarded_from_the_start(fresh: str) -> None:
    make(fresh, "2010-03-17T00:00:00Z", "month")
    task_id = insert(fresh, created_at="2010-03-17T00:00:00Z", status="failed")
    new = "tasks_20100301"

    expected = {
        "UPDATE tasks SET error_message = 'x'": TERMINAL,
        f"UPDATE {new} SET error_message = 'x'": PARTITION,
        f"DELETE FROM {new}": REMOVAL,
        f"TRUNCATE {new}": REMOVAL,
        f"INSERT INTO {new} (request_text) VALUES ('x')": PARTITION,
        "INSERT INTO tasks (task_id, request_text, created_at, recorded_at)"
        " VALUES (gen_random_uuid(), 'x', '2010-03-17', '2010-03-17')": NOT_THE_CLOCK,
        "INSERT INTO tasks (task_id, request_text, created_at)"
        " VALUES (gen_random_uuid(), '', '2010-03-17')": CHECK,
        "INSERT INTO tasks (task_id, request_text, created_at)"
        f" VALUES ('{task_id}', 'x', '2010-03-17')": UNIQUE,
    }

    assert expected == {statement: refusal(fresh, statement) for statement in expected}


def test_a_new_partition_has_the_indexes_of_the_others(fresh: str) -> None:
    make(fresh, "2010-03-17T00:00:00Z", "month")

    [(missing,)] = execute(
        fresh,
        "SELECT count(*) FROM pg_index AS parent WHERE parent.indrelid = 'tasks'::regclass"
        " AND NOT EXISTS (SELECT FROM pg_inherits JOIN pg_index AS child"
        " ON child.indexrelid = inhrelid WHERE inhparent = parent.indexrelid"
        " AND child.indrelid = 'tasks_20100301'::regclass AND child.indisvalid)",
    )

    assert missing == 0


def test_the_creation_of_a_partition_blocks_no_reader_or_writer(fresh: str) -> None:
    old = insert(fresh)
    with psycopg.connect(fresh) as making:
        making.execute("SELECT make_task_partition('2010-03-17', 'month')")

        execute(
            fresh,
            "SET lock_timeout = '100ms'",
            f"INSERT INTO tasks (task_id, request_text) VALUES ('{uuid.uuid4()}', 'meanwhile')",
            f"UPDATE tasks SET status = 'approved' WHERE task_id = '{old}'",
            "SELECT count(*) FROM tasks",
        )


def test_readers_and_writers_do_not_block_the_creation_of_a_partition(fresh: str) -> None:
    with psycopg.connect(fresh) as using:
        using.execute("INSERT INTO tasks (task_id, request_text) VALUES (gen_random_uuid(), 'x')")
        using.execute("SELECT count(*) FROM tasks")

        execute(
            fresh, "SET lock_timeout = '100ms'", "SELECT make_task_partition('2010-03-17', 'day')"
        )


async def test_two_requests_that_need_the_same_partition_wait_for_each_other(fresh: str) -> None:
    made = "SELECT make_task_partition('2010-03-17', 'month')"
    with psycopg.connect(fresh) as first:
        first.execute(made)
        second = asyncio.create_task(asyncio.to_thread(execute, fresh, made))
        await until(lambda: execute(fresh, "SELECT 1 FROM pg_locks WHERE NOT granted"))
        assert not second.done()

    await second

    assert len(partitions(fresh, 2010)) == 1
