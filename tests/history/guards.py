"""What the database refuses: SQLSTATEs, and helpers that see them."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg
import psycopg.errors

from tests.conftest import execute

TERMINAL, STEP_BACK, FIXED, REMOVAL, NOT_THE_CLOCK = "TA001", "TA002", "TA003", "TA004", "TA005"
PARTITION = "TA006"
CHECK, NOT_NULL, UNIQUE, ENUM = "23514", "23502", "23505", "22P02"


def refusal(dsn: str, statement: str, *values: Any) -> str | None:
    """The SQLSTATE that the database refuses with; nothing stays of what it takes."""
    with psycopg.connect(dsn) as connection:
        try:
            connection.execute(statement, values or None)
        except psycopg.Error as refused:
            return refused.sqlstate
        finally:
            connection.rollback()
    return None


def partition_of(dsn: str, task_id: str) -> str:
    [(name,)] = execute(
        dsn, f"SELECT tableoid::regclass::text FROM tasks WHERE task_id = '{task_id}'"
    )
    return str(name)


def insert(dsn: str, **row: Any) -> str:
    row = {"task_id": str(uuid.uuid4()), "request_text": "By SQL", **row}
    with psycopg.connect(dsn) as connection:
        connection.execute(
            f"INSERT INTO tasks ({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))})",
            [*row.values()],
        )
    return str(row["task_id"])
