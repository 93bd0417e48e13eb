"""What commands for people do with terminals: colours, hyperlinks, ASCII, the pager."""

from __future__ import annotations

import pytest

from tests.commandline import audit, lines, on_terminal
from tests.conftest import execute, task

RED = "\x1b[1;31m✖ failed\x1b[0m"
PLAIN = "✖ failed"


@pytest.fixture
def failed(dsn: str) -> str:
    one = task(status="failed", request_text="Déployer naïvement", error_message="x" * 300)
    audit("record", "-", given=lines(one), AUDIT_DSN=dsn)
    return dsn


@pytest.mark.parametrize(
    ("options", "variables", "shown"),
    [
        ("", {}, RED),
        ("", {"NO_COLOR": "1"}, PLAIN),
        ("", {"NO_COLOR": ""}, RED),
        ("", {"TERM": "dumb"}, PLAIN),
        ("", {"TERM": "dumb", "FORCE_COLOR": "1"}, RED),
        ("", {"NO_COLOR": "1", "FORCE_COLOR": "1"}, PLAIN),
        ("--color never", {"FORCE_COLOR": "1"}, PLAIN),
        ("--color always", {"NO_COLOR": "1"}, RED),
    ],
    ids=str,
)
def test_colours_on_a_terminal(
    failed: str, options: str, variables: dict[str, str], shown: str
) -> None:
    given = {"TERM": "xterm-256color", **variables}
    code, out = on_terminal(80, "query", *options.split(), AUDIT_DSN=failed, **given)

    assert 0 == code
    assert shown in out
    assert (shown == PLAIN) == ("\x1b" not in out)


def test_colours_in_a_pipe_are_for_tables_only(failed: str) -> None:
    def piped(*options: str, **variables: str) -> str:
        return audit("query", *options, AUDIT_DSN=failed, **variables)[1]

    assert RED in piped("-o", "table")  # the tests set FORCE_COLOR
    assert "\x1b" not in piped("-o", "table", FORCE_COLOR="")
    assert RED in piped("-o", "table", "--color", "always", FORCE_COLOR="")
    assert "\x1b" not in piped("--color", "always")


def test_a_table_is_whole_in_a_pipe(failed: str) -> None:
    out = audit("query", "-o", "table", AUDIT_DSN=failed, COLUMNS="40")[1]

    assert "x" * 300 in out
    assert "…" not in out


def test_ids_link_to_the_page_of_the_task(failed: str, url: str) -> None:
    _, out = on_terminal(80, "query", "--url", url, TERM="xterm", NO_PROXY="*")
    task_id = audit("query", "-o", "ids", AUDIT_DSN=failed)[1].strip()

    assert f"{url}/tasks/{task_id}\x1b\\" in out
    assert f"{task_id}\x1b[0m\x1b]8;;\x1b\\" in out
    assert "\x1b]8" not in on_terminal(80, "query", AUDIT_DSN=failed, TERM="xterm")[1]


def test_a_terminal_without_utf_8_gets_ascii(failed: str) -> None:
    variables = {"PYTHONIOENCODING": "ascii", "NO_COLOR": "1", "AUDIT_DSN": failed}
    _, out = on_terminal(80, "query", **variables)

    assert out.isascii()
    assert "x failed" in out
    assert r"D\xe9ployer na\xefvement" in out
    assert "xxx..." in out


def test_long_tables_go_through_the_pager(dsn: str) -> None:
    execute(
        dsn,
        "INSERT INTO tasks (task_id, request_text) SELECT gen_random_uuid(), 'x'"
        " FROM generate_series(1, 30)",
    )
    pager = {"PAGER": "sed s/^/paged:/", "AUDIT_DSN": dsn, "NO_COLOR": "1"}

    def paged(height: int, *options: str, **variables: str) -> bool:
        given = {**pager, "LINES": str(height), **variables}
        code, out = on_terminal(80, "query", *options, **given)
        assert 0 == code
        assert 30 == out.count("pending")
        marked = out.count("paged:")
        assert marked in {0, len(out.splitlines())}
        return marked > 0

    assert paged(20)
    assert not paged(200)
    assert not paged(20, "--no-pager")
    assert not paged(20, "-o", "tsv")
    assert not paged(20, PAGER="")
    assert not paged(20, PAGER="there-is-no-such-pager")


def test_leaving_the_pager_early_is_no_failure(dsn: str) -> None:
    execute(
        dsn,
        "INSERT INTO tasks (task_id, request_text) SELECT gen_random_uuid(), repeat('x', 1000)"
        " FROM generate_series(1, 3000)",
    )
    code, out = on_terminal(
        80, "query", "--all", LINES="20", PAGER="head -3", AUDIT_DSN=dsn, NO_COLOR="1"
    )

    assert (0, 3) == (code, len(out.splitlines()))
