"""Fixtures of the tests of the history."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import _database as database

#: Gives the counts another constant: how many tasks a bucket holds before it is split. With the 500
#: of the migration, a test would need thousands of tasks to see buckets that are split.
SPLIT_ABOVE = (
    "CREATE OR REPLACE FUNCTION most_in_whole_bucket() RETURNS bigint"
    " LANGUAGE sql IMMUTABLE RETURN {}"
)


@pytest.fixture
def fresh(postgres: str, template: str) -> Iterator[str]:
    """A database of its own, with partitions around now only."""
    yield from database(postgres, template)
