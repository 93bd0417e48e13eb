"""The roles of the database, and what the database refuses to them."""

from __future__ import annotations

import uuid

import psycopg

OWNER, SERVING, READING = "audit_owner", "audit_service", "audit_reader"
SUPERUSER = "audit"
ROLES = (OWNER, SERVING, READING)

DENIED, WRONG = "42501", "22023"
TERMINAL, FIXED, REMOVAL, NOT_THE_CLOCK, PARTITION, LONE = (
    "TA001", "TA003", "TA004", "TA005", "TA006", "TA007",
)  # fmt: skip
OPEN_ID, DONE_ID = (str(uuid.UUID(int=n, version=4)) for n in (1, 2))


def refusal(dsn: str, statement: str) -> str | None:
    """Return the SQLSTATE with which the database refuses a statement, and roll it back."""
    with psycopg.connect(dsn) as connection:
        try:
            connection.execute(statement)
        except psycopg.Error as refused:
            return refused.sqlstate
        finally:
            connection.rollback()
    return None
