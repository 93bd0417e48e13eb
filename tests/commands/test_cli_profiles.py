"""Profiles, `audit login` and `audit whoami`: which service is read, with whose key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit.commands.page_url import list_url
from tests.certificates import make_certificates
from tests.commandline import audit, fails_with, lines, on_terminal
from tests.commands.conftest import AnsweringServer
from tests.conftest import task
from tests.processes import get, serving

NO_PROXY = {"NO_PROXY": "*"}


@pytest.fixture
def key(dsn: str) -> str:
    make = ("keys", "create", "--name", "reader", "--scope", "read", "--expires", "9d")
    return audit(*make, AUDIT_DSN=dsn)[1].strip()


@pytest.fixture
def protected(dsn: str, key: str) -> Iterator[str]:
    """The URL of a service that requires a key."""
    with serving("--workers", "1", AUDIT_DSN=dsn) as (_, url, _):
        yield url


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The folder of the profiles."""
    folder = tmp_path / "task-audit"
    folder.mkdir()
    return folder


def run(config: Path, *arguments: str, **variables: str) -> tuple[int | None, str, str]:
    return audit(*arguments, XDG_CONFIG_HOME=str(config.parent), **NO_PROXY, **variables)


def write(path: Path, text: str, mode: int = 0o600) -> None:
    path.write_text(text)
    path.chmod(mode)


# --- login ----------------------------------------------------------------------------------------


def test_login_stores_a_key_that_only_its_owner_may_read(
    tmp_path: Path, protected: str, key: str
) -> None:
    folder = tmp_path / "new" / "task-audit"
    code, out, note = run(folder, "login", "--url", protected, given=f"{key}\n")

    assert (0, "") == (code, out)
    assert f"profile default: reader (read) at {protected}" in note
    assert key not in note
    stored = folder / "keys/default"
    assert f"{key}\n" == stored.read_text()
    modes = [path.stat().st_mode & 0o777 for path in (folder, stored.parent, stored)]
    assert [0o700, 0o700, 0o600] == modes
    assert (0, "") == run(folder, "query")[::2]
    assert key not in (folder / "config.toml").read_text()


def test_login_adds_profiles_and_keeps_the_file(config: Path, protected: str, key: str) -> None:
    before = '# mine\ndefault = "a"\n[profile.a]\nurl = "http://127.0.0.1:1"\n'
    write(config / "config.toml", before, 0o644)

    named = ("login", "--url", protected, "--profile", "b")
    code, _, note = run(config, *named, given=key)
    again = run(config, *named, given=key)[0]
    text = (config / "config.toml").read_text()

    assert (0, 0) == (code, again)
    assert "use it with --profile b; the default profile is a" in note
    assert text == f'{before}\n[profile.b]\nurl = "{protected}"\nkey_file = "keys/b"\n'
    assert 0 == run(config, "query", "--profile", "b")[0]
    assert 0 == run(config, "query", AUDIT_PROFILE="b")[0]
    assert 69 == run(config, "query")[0]


def test_login_follows_the_link_of_a_file(
    tmp_path: Path, config: Path, protected: str, key: str
) -> None:
    stored = tmp_path / "dotfiles.toml"
    write(stored, "# mine\n", 0o644)
    (config / "config.toml").symlink_to(stored)

    assert 0 == run(config, "login", "--url", protected, given=key)[0]
    assert (config / "config.toml").is_symlink()
    assert "[profile.default]" in stored.read_text()


def test_login_stores_nothing_if_the_key_is_wrong(config: Path, protected: str) -> None:
    refused = run(config, "login", "--url", protected, given="taskaudit_wrong\n")
    nowhere = run(config, "login", "--url", "http://127.0.0.1:1", given="taskaudit_x\n")

    assert fails_with(refused, 77, "key")
    assert fails_with(nowhere, 69, "does not answer")
    assert fails_with(run(config, "login", "--url", protected, given="\n"), 2, "no API key")
    assert fails_with(run(config, "login", "--url", protected, given="a b\n"), 2, "single API key")
    assert [] == list(config.iterdir())


@pytest.mark.parametrize(
    ("profile", "part"),
    [
        ('url = "http://127.0.0.1:2"', "is for http://127.0.0.1:2; choose another name"),
        ('url = "{url}"', 'give it key_file = "keys/a"'),
        ('url = "{url}"\nkey_command = ["true"]', "has key_command"),
    ],
    ids=["other-url", "no-key", "key-command"],
)
def test_login_leaves_what_it_did_not_make(
    config: Path, protected: str, key: str, profile: str, part: str
) -> None:
    text = f"[profile.a]\n{profile.format(url=protected)}\n"
    write(config / "config.toml", text)

    result = run(config, "login", "--url", protected, "--profile", "a", given=key)
    assert fails_with(result, 78, part)
    assert [text] == [path.read_text() for path in config.iterdir()]


# --- whoami and profiles --------------------------------------------------------------------------


def test_whoami_shows_the_key(config: Path, protected: str, key: str) -> None:
    given = {"AUDIT_URL": protected, "AUDIT_KEY": key}
    code, body, _ = run(config, "whoami", "-o", "json", **given)
    shown = on_terminal(80, "whoami", **given, **NO_PROXY, NO_COLOR="1")[1]

    caller = json.loads(body)
    assert (0, "reader", ["read"]) == (code, caller["name"], caller["scopes"])
    assert (
        run(config, "whoami", "--columns", "name,scopes,via", **given)[1] == "reader\tread\tkey\n"
    )
    assert shown.startswith("reader\n")
    assert protected in shown
    assert key not in shown + body
    assert fails_with(run(config, "whoami", AUDIT_URL=protected), 77, "key")
    assert fails_with(run(config, "whoami", "--dsn", "postgresql://x/y"), 2, "--url")


def test_profiles_are_listed_without_secrets(config: Path) -> None:
    write(
        config / "config.toml",
        'default = "a"\n[profile.a]\nurl = "http://a"\nkey = "secret"\ntz = "Asia/Tokyo"\n'
        '[profile.b]\ndsn = "postgresql://u:secret@h/d"\n',
    )
    code, out, _ = run(config, "profiles", "-o", "json")
    table = run(config, "profiles", "-o", "table", FORCE_COLOR="")[1]

    assert 0 == code
    assert [("a", True, "http://a", "key"), ("b", False, "PostgreSQL h:5432/d", None)] == [
        (one["name"], one["default"], one["place"], one["key"]) for one in json.loads(out)
    ]
    assert "secret" not in out + table
    assert "NAME DEFAULT PLACE KEY TZ".split() == table.splitlines()[0].split()


def test_without_profiles_there_is_an_empty_list(config: Path) -> None:
    assert (0, "[]\n") == run(config, "profiles", "-o", "json")[:2]
    assert "audit login" in run(config, "profiles")[2]


# --- which place ----------------------------------------------------------------------------------


def test_options_come_before_variables_and_those_before_profiles(
    config: Path, dsn: str, url: str
) -> None:
    audit("record", "-", given=lines(task()), AUDIT_DSN=dsn)
    nowhere = "http://127.0.0.1:1"
    write(config / "config.toml", f'default = "a"\n[profile.a]\nurl = "{url}"\n')

    def count(*options: str, **variables: str) -> int:
        code, out, _ = run(config, "query", *options, **variables)
        return len(out.splitlines()) if code == 0 else -1

    assert 1 == count()
    assert -1 == count(AUDIT_URL=nowhere)
    assert 1 == count("--url", url, AUDIT_URL=nowhere)
    assert 1 == count("--dsn", dsn, AUDIT_URL=nowhere, AUDIT_PROFILE="none")
    assert 1 == count("--profile", "a", AUDIT_URL=nowhere)
    assert -1 == count("--profile", "none")


@pytest.mark.parametrize(
    ("options", "variables", "part"),
    [
        ("--url http://h --dsn postgresql://h/d", {}, "--url and --dsn"),
        ("--dsn postgresql://h/d --profile p", {}, "--dsn and --profile"),
        ("", {"AUDIT_URL": "http://h", "AUDIT_DSN": "postgresql://h/d"}, "AUDIT_URL and AUDIT_DSN"),
        ("", {"AUDIT_URL": "ftp://h"}, "AUDIT_URL: must look like"),
        ("--url ftp://h", {}, "--url"),
        ("", {"AUDIT_URL": "http://h", "AUDIT_KEY": "a b"}, "AUDIT_KEY"),
        ("--dsn nonsense", {}, "dsn"),
    ],
    ids=str,
)
def test_places_that_are_not_clear_end_with_2(
    options: str, variables: dict[str, str], part: str
) -> None:
    assert fails_with(audit("query", *options.split(), **variables), 2, part)


def test_the_key_of_a_profile_is_sent_to_its_own_url_only(config: Path) -> None:
    with AnsweringServer() as server:
        write(
            config / "config.toml",
            f'default = "a"\n[profile.a]\nurl = "{server.url}"\nkey = "secret"\n',
        )
        run(config, "whoami", "-o", "json")
        run(config, "whoami", "-o", "json", AUDIT_KEY="other")
        run(config, "whoami", "-o", "json", "--url", server.url)
        run(config, "whoami", "-o", "json", AUDIT_URL=server.url)

    assert ["Bearer secret", "Bearer other", None, None] == server.keys


# --- the files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mode", "part"),
    [
        ("[profile.a", 0o600, "Expected"),
        ("[profile.a]\nurll = 1\n", 0o600, "profile.a.urll"),
        ("[profile.a]\n", 0o600, "needs either url or dsn"),
        ('[profile.a]\nurl = "x"\n', 0o600, "url of profile 'a' must look like"),
        ('[profile."../a"]\nurl = "http://h"\n', 0o600, "letters, digits"),
        ('[profile.a]\nurl = "http://h"\nkey = "k"\n', 0o644, "run chmod 600"),
        ('[profile.a]\ndsn = "postgresql://h/d"\n', 0o640, "run chmod 600"),
        ('[profile.a]\nurl = "http://h"\nkey_file = "none"\n', 0o600, "No such file"),
        ('[profile.a]\nurl = "http://h"\nkey_file = "open"\n', 0o600, "run chmod 600"),
        ('[profile.a]\nurl = "http://h"\nkey_command = ["false"]\n', 0o600, "ended with 1"),
        ('[profile.a]\nurl = "http://h"\nkey_command = ["none-such"]\n', 0o600, "No such file"),
        (
            '[profile.a]\nurl = "http://h"\nkey = "k"\nkey_file = "open"\n',
            0o600,
            "one of key, key_file and key_command",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "[" not in value else "",
)
def test_files_that_cannot_be_used_end_with_78(
    config: Path, text: str, mode: int, part: str
) -> None:
    write(config / "config.toml", text, mode)
    write(config / "open", "key", 0o644)

    assert fails_with(run(config, "whoami", "--profile", "a"), 78, part)


@pytest.mark.parametrize("source", ["key", "key_file", "key_command"])
def test_a_key_comes_from_the_profile(config: Path, protected: str, key: str, source: str) -> None:
    values = {"key": f'"{key}"', "key_file": '"mine"', "key_command": f'["echo", "{key}"]'}
    write(
        config / "config.toml", f'[profile.a]\nurl = "{protected}"\n{source} = {values[source]}\n'
    )
    write(config / "mine", f"{key}\n")

    assert 0 == run(config, "query", "--profile", "a")[0]


def test_a_profile_has_a_time_zone(config: Path, dsn: str) -> None:
    audit("record", "-", given=lines(task()), AUDIT_DSN=dsn)
    write(config / "config.toml", f'[profile.a]\ndsn = "{dsn}"\ntz = "Asia/Tokyo"\n')

    def heading(*options: str) -> str:
        return run(config, "query", "-o", "table", "--profile", "a", *options)[1].splitlines()[0]

    assert "CREATED (UTC+9)" in heading()
    assert "CREATED (UTC)" in heading("--tz", "UTC")


def test_a_profile_trusts_the_certificates_of_its_file(config: Path) -> None:
    make_certificates(config)
    with AnsweringServer(certificates=config) as server:
        url = server.url
        write(
            config / "config.toml",
            f'[profile.a]\nurl = "{url}"\nca_file = "ca.crt"\n[profile.b]\nurl = "{url}"\n',
        )
        trusted = run(config, "whoami", "--profile", "a", "-o", "json")
        untrusted = run(config, "whoami", "--profile", "b")

    assert (0, '{"scopes":[]}\n', [None]) == (trusted[0], trusted[1], server.keys)
    assert fails_with(untrusted, 69, "certificate")


# --- the page -------------------------------------------------------------------------------------


def test_open_prints_the_address_of_the_page(config: Path, url: str) -> None:
    def opened(*arguments: str) -> str:
        code, out, _ = run(config, "open", *arguments, AUDIT_URL=url)
        assert 0 == code
        return out.strip().removeprefix(url)

    task_id = "7d9f1c9e-0c3f-4d0e-9a63-6b6f0b7c2d11"
    assert "/" == opened()
    assert f"/tasks/{task_id}" == opened(task_id)
    shown = opened("--service", "a b&c", "--status", "failed", "--last", "24h", "--tz", "UTC")
    assert "/tasks?status=failed&service=a+b%26c&last=24h&tz=UTC" == shown
    assert 2 == run(config, "open", task_id, "--last", "24h", AUDIT_URL=url)[0]
    assert fails_with(run(config, "open", "--dsn", "postgresql://h/d"), 2, "--url")
    listed = get(f"{url}/api/v1/audit/query{shown.removeprefix('/tasks').partition('&tz')[0]}")
    assert (200, 0) == (listed[0], listed[1]["total"])


def test_open_starts_the_browser_of_the_user(config: Path, url: str, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    write(tmp_path / "browser", f"#!/bin/sh\necho $1 > {seen}\n", 0o700)
    browser = {"BROWSER": f"{tmp_path}/browser", "AUDIT_URL": url}

    assert (0, f"{url}/\n") == on_terminal(80, "open", **browser)
    assert f"{url}/\n" == seen.read_text()
    seen.unlink()
    run(config, "open", **browser)
    on_terminal(80, "open", "--no-browser", **browser)
    assert not seen.exists()


def test_link_beside_statistics_shows_their_zone_and_bars() -> None:
    link = list_url("http://h/", "query", {"last": "7d"}, tz="Asia/Kathmandu", interval="1d")

    assert "http://h/tasks?last=7d&tz=Asia%2FKathmandu&interval=1d" == link
    assert "http://h/tasks?status=failed&last=7d" == list_url("http://h", "failures", {})
