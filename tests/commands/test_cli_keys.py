"""The commands `audit keys`, and when `audit serve` wants keys."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.commandline import audit
from tests.conftest import execute, task
from tests.processes import serving

CREATE = ("keys", "create", "--name")
PROJECT = "5eed0000-0000-4000-8000-000000000003"


def test_a_key_is_made_listed_and_revoked(dsn: str) -> None:
    """The key alone goes to the standard output: a script can take it."""
    code, made, stderr = audit(*CREATE, "deploy-bot", "--scope", "record", AUDIT_DSN=dsn)
    assert code == 0
    assert re.fullmatch(r"taskaudit_[\w-]{43}\n", made)
    assert re.search(
        r"created deploy-bot: it may record, and expires on \d{4}-\d\d-\d\d .* UTC", stderr
    )
    more = ("--scope", "read", "--scope", "record", "--expires", "never", "--project-id", PROJECT)
    assert audit(*CREATE, "ours", *more, AUDIT_DSN=dsn)[0] == 0

    code, revoked, _ = audit("keys", "revoke", "deploy-bot", AUDIT_DSN=dsn)
    assert code == 0
    assert revoked.startswith("deploy-bot was revoked at ")
    assert audit("keys", "revoke", "deploy-bot", AUDIT_DSN=dsn)[1] == revoked

    _, listed, _ = audit("keys", "list", AUDIT_DSN=dsn)
    _, first, second = listed.splitlines()
    assert re.fullmatch(r"deploy-bot +record +all +\S+ +revoked \S+", first.strip())
    assert re.fullmatch(rf"ours +read record +{PROJECT} +\S+ +valid", second.strip())
    assert made.strip() not in listed


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("a b", "--scope", "read"), "'a b' is not a valid name"),
        (("x", "--scope", "write"), "'write' is not one of"),
        (("x",), "--scope"),
        (("x", "--scope", "read", "--expires", "0d"), "1d to 3650d"),
        (("x", "--scope", "read", "--expires", "99999999999d"), "1d to 3650d"),
        (("x", "--scope", "read", "--expires", "soon"), "must be days such as 90d"),
        (("x", "--scope", "read", "--expires", "2020-01-01T00:00:00Z"), "already passed"),
        (("x", "--scope", "read", "--project-id", "ours"), "--project-id"),
    ],
)
def test_an_invalid_key_option_is_refused(dsn: str, arguments: tuple[str, ...], part: str) -> None:
    code, printed, message = audit(*CREATE, *arguments, AUDIT_DSN=dsn)

    assert (code, printed) == (2, "")
    assert part in message
    assert execute(dsn, "SELECT count(*) FROM access_keys") == [(0,)]


def test_an_unknown_key_is_not_revoked(dsn: str) -> None:
    assert audit("keys", "revoke", "who", AUDIT_DSN=dsn)[::2] == (
        2,
        "audit: Invalid value: there is no key 'who'\n",
    )


def test_without_keys_the_service_only_uses_loopback_addresses(dsn: str) -> None:
    code, _, stderr = audit("serve", "--host", "0.0.0.0", "--port", "0", AUDIT_DSN=dsn)

    assert code == 78
    assert "anyone who can reach 0.0.0.0 could read and record" in stderr
    assert "--insecure" in stderr
    with serving("--host", "0.0.0.0", "--insecure", AUDIT_DSN=dsn) as (_, url, _):
        assert urllib.request.urlopen(f"{url}/api/v1/audit/query", timeout=20).status == 200


def test_with_a_key_the_service_uses_any_address_and_requires_the_key(
    dsn: str, tmp_path: Path
) -> None:
    key = audit(*CREATE, "one", "--scope", "record", AUDIT_DSN=dsn)[1].strip()
    file = tmp_path / "tasks.ndjson"
    file.write_text(json.dumps(task()))

    with serving("--host", "0.0.0.0", "--workers", "2", AUDIT_DSN=dsn) as (_, url, _):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{url}/api/v1/audit/query", timeout=20)
        code, _, stderr = audit("record", "--url", url, str(file))
        assert code == 65
        assert "an API key is required" in stderr
        assert audit("record", "--url", url, str(file), AUDIT_KEY=key)[0] == 0
        assert audit("record", "--url", url, "--key", key, str(file))[1].startswith("recorded 0")


@pytest.mark.parametrize(
    "variables",
    [
        {"AUDIT_JWT_ISSUER": "https://id.example.com"},
        {
            "AUDIT_JWT_ISSUER": "https://id.example.com",
            "AUDIT_JWT_AUDIENCE": "audit",
            "AUDIT_JWT_JWKS": "http://id.example.com/keys",
        },
    ],
)
def test_an_issuer_needs_an_audience_and_keys_from_https_or_a_file(
    variables: dict[str, str],
) -> None:
    code, _, stderr = audit("serve", **variables)

    assert code == 2
    assert "jwt-issuer" in stderr or "jwt-jwks" in stderr
