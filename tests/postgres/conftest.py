"""Fixtures for tests of servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.replicas import Replicas, replicated


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    with replicated(tmp_path_factory.mktemp("replicas")) as pair:
        yield pair
