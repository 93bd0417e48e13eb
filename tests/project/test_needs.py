"""A test that lacks a program is skipped by name, and fails where no skip is allowed."""

from __future__ import annotations

import pytest

from tests.needs import PACKAGES, needs, needs_installed


def test_a_program_that_exists_is_returned() -> None:
    assert needs("sh").name == "sh"


def test_a_missing_program_skips_the_test_and_names_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AUDIT_TEST_NO_SKIPS", raising=False)
    monkeypatch.setitem(PACKAGES, "no-such-program", "some-package")

    with pytest.raises(pytest.skip.Exception, match=r"no no-such-program: .* some-package"):
        needs("no-such-program")


def test_a_missing_program_fails_where_no_skip_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIT_TEST_NO_SKIPS", "1")

    with pytest.raises(pytest.fail.Exception, match="no no-such-program"):
        needs("no-such-program")


@pytest.mark.parametrize(
    ("found", "no_skips", "skips"), [(True, "", False), (False, "", True), (False, "1", False)]
)
def test_what_make_installs_is_skipped_or_fails_likewise(
    monkeypatch: pytest.MonkeyPatch, found: bool, no_skips: str, skips: bool
) -> None:
    monkeypatch.setenv("AUDIT_TEST_NO_SKIPS", no_skips)

    marker = needs_installed("Locust", ".venv/installed-bench", found=found)

    assert (skips,) == marker.args
