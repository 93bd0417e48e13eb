"""Fixtures of the tests of the history."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import _database as database


@pytest.fixture
def fresh(postgres: str, template: str) -> Iterator[str]:
    """A database of its own, with partitions around now only."""
    yield from database(postgres, template)
