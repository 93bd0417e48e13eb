"""Which changes may affect a response, and how none is missed between two versions."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from audit.history.changes import Change, ChangeFilter, Changes, Facts
from audit.history.cursor import Cursor
from audit.history.query import AuditQuery, FailuresQuery, TaskQuery, parse_arguments
from audit.postgres.pool import open_pool
from audit.settings import Settings

CLOCK = datetime(2026, 11, 23, 8, tzinfo=UTC)
PROJECT = uuid.UUID(int=1)
INSERT = (
    "INSERT INTO tasks (task_id, request_text)"
    " SELECT gen_random_uuid(), 'by SQL' FROM generate_series(1, %s)"
)
SEQUENCE = "SELECT sequence_task_events(1000)"


def change(created_at: datetime = CLOCK, before: Facts | None = None, **after: Any) -> Change:
    facts = {"status": "failed", "services": frozenset("ab"), "intent": "deploy", **after}
    return Change(
        created_at, str(PROJECT), "ada", Facts(**facts), before, str(uuid.UUID(int=9)), None
    )


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, True),
        ({"status": "failed"}, True),
        ({"status": ["pending", "failed"]}, True),
        ({"status": "pending"}, False),
        ({"service": "a"}, True),
        ({"service": ["a", "b"]}, True),
        ({"service": ["a", "c"]}, False),
        ({"intent": ["rotate", "deploy"]}, True),
        ({"intent": "rotate"}, False),
        ({"created_by": "ada"}, True),
        ({"created_by": "alan"}, False),
        ({"project_id": str(PROJECT).upper()}, True),
        ({"project_id": uuid.UUID(int=2)}, False),
        ({"outcome": {"n": 1}}, True),
        ({"since": CLOCK}, True),
        ({"since": CLOCK + timedelta(microseconds=1)}, False),
        ({"until": CLOCK}, False),
        ({"until": CLOCK + timedelta(microseconds=1)}, True),
        ({"offset": 5, "limit": 1}, True),
        ({"status": "failed", "service": "a", "created_by": "alan"}, False),
    ],
)
def test_a_new_task_affects_what_it_matches(params: dict[str, Any], expected: bool) -> None:
    query = parse_arguments(AuditQuery, params)

    assert expected == ChangeFilter(query, CLOCK).selects(change())


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"status": "pending"}, True),
        ({"status": "failed"}, True),
        ({"status": "rejected"}, False),
        ({"service": "c"}, True),
        ({"service": ["a", "c"]}, False),
        ({"status": "pending", "service": "a"}, False),
        ({"intent": "rotate"}, False),
    ],
)
def test_a_changed_task_affects_what_it_matched_or_matches(
    params: dict[str, Any], expected: bool
) -> None:
    query = parse_arguments(AuditQuery, params)
    before = Facts("pending", frozenset("c"), None)

    assert expected == ChangeFilter(query, CLOCK).selects(change(before=before))


def test_a_task_outside_of_a_moving_window_does_not_affect_it() -> None:
    week = ChangeFilter(parse_arguments(FailuresQuery, {}), CLOCK)

    assert not week.selects(change(CLOCK - timedelta(days=7)))
    assert week.selects(change(CLOCK - timedelta(days=7) + timedelta(microseconds=1)))
    assert week.selects(change(CLOCK + timedelta(hours=1)))


def after_cursor(
    first_total: int | None, clock: datetime | None = None, **params: Any
) -> TaskQuery:
    """Return a query whose cursor is at the second of CLOCK."""
    first = parse_arguments(AuditQuery, params)
    cursor = Cursor(clock, CLOCK, uuid.UUID(int=5), first_total).encode(first.fingerprint)
    return parse_arguments(AuditQuery, {**params, "cursor": cursor})


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (after_cursor(9), False),
        (after_cursor(None, total="none"), False),
        # The page needs a total that the cursor does not have.
        (after_cursor(None), True),
    ],
)
def test_a_task_before_the_page_of_a_cursor_matters_if_it_is_counted(
    query: TaskQuery, expected: bool
) -> None:
    selected = ChangeFilter(query, CLOCK)

    assert expected == selected.selects(change(CLOCK + timedelta(microseconds=1)))
    assert selected.selects(change(CLOCK))
    assert selected.selects(change(CLOCK - timedelta(days=1)))


def test_the_window_of_a_cursor_does_not_move() -> None:
    day_before = CLOCK - timedelta(days=1)
    query = after_cursor(9, clock=day_before, days=1)

    assert ChangeFilter(query, CLOCK).selects(change(CLOCK - timedelta(days=1, hours=1)))


# --- reading --------------------------------------------------------------------------------------

ALL = -1
NOBODY = ChangeFilter(AuditQuery(created_by="nobody"), CLOCK)


class Reader:
    """Reads versions, each with the changes since the one before."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.changes = Changes()

    async def read(self) -> int:
        """Return how many tasks have changed; ALL if everything counts as changed."""
        before = self.changes.number
        async with open_pool(Settings(pool_size=1), self.dsn) as pool, pool.acquire() as connection:
            version = await self.changes.read(connection)
        return ALL if self.changes.affect(NOBODY, before) else version.number - before


def write(connection: psycopg.Connection[Any], tasks: int = 1) -> None:
    connection.execute(INSERT, (tasks,))


@pytest.fixture
def reader(dsn: str) -> Reader:
    return Reader(dsn)


async def test_each_change_is_read_once_before_or_after_it_gets_its_position(
    reader: Reader, dsn: str
) -> None:
    first = await reader.read()
    with psycopg.connect(dsn, autocommit=True) as connection:
        write(connection, 3)
        queued = await reader.read()
        connection.execute(SEQUENCE)
        moved = await reader.read()
        write(connection, 2)
        connection.execute(SEQUENCE)
        write(connection)
        both = await reader.read()
        nothing = await reader.read()
        connection.execute("UPDATE tasks SET error_message = 'late'")
        changed = await reader.read()

    assert (ALL, 3, 0, 3, 0, 6) == (first, queued, moved, both, nothing, changed)


async def test_a_change_that_commits_after_later_ones_is_read(reader: Reader, dsn: str) -> None:
    with psycopg.connect(dsn) as early, psycopg.connect(dsn, autocommit=True) as late:
        write(late)
        await reader.read()
        write(early, 2)
        write(late)
        later = await reader.read()
        late.execute(SEQUENCE)
        early.commit()
        earlier = await reader.read()
        write(late)
        late.execute(SEQUENCE)
        last = await reader.read()

    assert (1, 2, 1) == (later, earlier, last)


async def test_a_change_that_rolls_back_leaves_nothing(reader: Reader, dsn: str) -> None:
    await reader.read()
    with psycopg.connect(dsn) as connection:
        write(connection, 5)
        connection.rollback()
        write(connection)
        connection.commit()
        assert 1 == await reader.read()


async def test_everything_counts_as_changed_after_a_change_that_cannot_be_read(
    reader: Reader, dsn: str
) -> None:
    """A first version does not know which events are still to be committed."""
    with psycopg.connect(dsn) as early, psycopg.connect(dsn, autocommit=True) as late:
        write(early)
        write(late)
        await reader.read()
        early.commit()
        missed = await reader.read()
        write(late)
        known = await reader.read()

    assert (ALL, 1) == (missed, known)


@pytest.mark.parametrize("is_sequenced", [False, True])
async def test_everything_counts_as_changed_after_more_changes_than_are_read(
    reader: Reader, dsn: str, *, is_sequenced: bool
) -> None:
    await reader.read()
    with psycopg.connect(dsn, autocommit=True) as connection:
        write(connection, 1001)
        if is_sequenced:
            connection.execute("SELECT sequence_task_events(20000)")
        many = await reader.read()
        write(connection, 1000)
        few = await reader.read()

    assert (ALL, 1000) == (many, few)


async def test_everything_counts_as_changed_while_the_queue_is_very_long(
    reader: Reader, dsn: str
) -> None:
    await reader.read()
    with psycopg.connect(dsn, autocommit=True) as connection:
        write(connection, 11_000)
        numbers = [await reader.read()]
        write(connection)
        numbers.append(await reader.read())
        connection.execute("SELECT sequence_task_events(9000)")
        numbers.append(await reader.read())
        numbers.append(await reader.read())
        write(connection)
        numbers.append(await reader.read())

    # A look counts 10,001 events of the queue. The third one finds the others, which may be new.
    assert [ALL, ALL, 1000, 0, 1] == numbers


async def test_a_response_that_was_not_asked_for_during_many_changes_counts_as_affected(
    reader: Reader, dsn: str
) -> None:
    await reader.read()
    long_ago = reader.changes.number
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(5):
            assert not reader.changes.affect(NOBODY, long_ago)
            write(connection, 900)
            assert 900 == await reader.read()

    assert reader.changes.affect(NOBODY, long_ago)
