"""The digests of the log do not depend on the version of PostgreSQL or the settings of a session.

`.ci/run` runs this file on PostgreSQL 15, 16, 17 and 18. The expected values may not change:
somebody who keeps a digest must be able to check it with every later version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

SALT = "5a17ed00-0000-4000-8000-000000000001"
PLAIN: dict[str, Any] = {
    "task_id": "0190f0a4-7e2c-7bd0-9f6e-3c1f5a2b4d60",
    "request_text": "Deploy payments release 7",
    "status": "pending",
    "created_at": "2026-03-01T12:00:00Z",
    "recorded_at": "2026-03-01T12:00:00.5Z",
    "services_touched": [],
}
CONTROL = "".join(map(chr, range(1, 32)))
TEXT = f'{CONTROL}\x7f\x85\xa0\u2028\u2029\ufeff\ufffd\U0001f600 "a" \\ </b> \xe9 e\u0301'
#: Not made by Python, whose numbers are others.
NUMBERS = (
    '{"digits": 12345678901234567890123, "small": 1E-7, "scale": 1.10, "zero": -0.0, "large": 1e30,'
    ' "long": 0.5000000000000000000000001, "double": 1.7976931348623157e308}'
)
TASKS = {
    "plain": json.dumps(PLAIN),
    "texts": json.dumps({**PLAIN, "request_text": TEXT, "created_by": "e", "error_message": TEXT}),
    "numbers": json.dumps({**PLAIN, "outcome": "NUMBERS", "suggestions": ["NUMBERS", None, []]}),
    "times and names": json.dumps({
        **PLAIN,
        "project_id": "00000000-0000-0000-0000-000000000000",
        "status": "failed",
        "created_at": "2000-01-01T00:00:00Z",
        "approved_at": "2026-03-29T01:59:59.999999+01:00",
        "completed_at": "9999-12-31T23:59:59.999999Z",
        "services_touched": ["a,b", '{"c"}', "NULL", "null", " ", "\\", '"', "\xe9", "\u2028", "'"],
    }),
    "objects": json.dumps({
        **PLAIN,
        "status": "completed",
        "outcome": {"action_type": TEXT, "\u043a": {"b": 1, "a": 2, "aa": None}, "": ""},
        "estimated_resources": {},
        "actual_resources": {"nested": {"list": [True, False, None, "x"]}},
        "external_ai_used": {"b": 1, "a": 1, "B": 1, "longer": 1, "\xe9": 1},
    }),
}  # fmt: skip
DIGESTS = {
    "plain": "53d4699fa96479895ff0568fd616f213f3e1a50bb74544420b8208467fe0aa07",
    "texts": "dabbb56ab0c8a5cecb9ba6001601f4916a72469e95bc29c49892d9b25b6c4a0f",
    "numbers": "6548acbd2c2e50773556de847956cefdab7773d222254e68cefb6bf7ba5f30ee",
    "times and names": "ee3111e94783a53e9b963c5f06980e6e51d280f22160a811b8f904634fbf6bef",
    "objects": "9a1b1f688c21b13a4fc85ca6eeb20da3abd02a082965d04119af52dbaa184340",
}
#: SHA-256 of what an event keeps of the task before, in the order of TASKS, if it becomes this one.
REPLACED = {
    "plain": "aa1012bd2f454ca67d48c5e2596c169505ea1112b34f7dc156a9002aa9b203bb",
    "texts": "5ffa932a5b384df89b9afbc51308a4604c63bb0de3c491f11fbb4193e41bf994",
    "numbers": "6a0fae8079acf9b7b2bea9c3eab243282e7c64cb4d4e8033da5ea54348c93e94",
    "times and names": "52a20cccc049466e99b08bede02a069f501164e5ec252cb8bba52bcbefde8dd2",
    "objects": "1e9ba2358ce64283d856bd01fc0b20d8b09d229a381d5679a349387db3ad803c",
}


@pytest.fixture(params=["default settings", "other settings"])
def session(request: pytest.FixtureRequest, dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn) as connection:
        if request.param == "other settings":
            connection.execute("SET TimeZone = 'Asia/Kathmandu'")
            connection.execute("SET DateStyle = 'SQL, DMY'")
            connection.execute("SET bytea_output = 'escape'")
            connection.execute("SET extra_float_digits = -15")
        yield connection


def with_numbers(task: str) -> str:
    return task.replace('"NUMBERS"', NUMBERS)


def test_the_digest_of_a_task_is_always_the_same(session: psycopg.Connection[Any]) -> None:
    found = {}
    for name, task in TASKS.items():
        document, found[name] = session.execute(
            "SELECT task_document(task), encode(task_content(%s, task_document(task)), 'hex')"
            " FROM jsonb_populate_record(NULL::tasks, %s) AS task",
            [SALT, with_numbers(task)],
        ).fetchone() or ("", "")
        assert hashlib.sha256(f"{SALT}\n{document}".encode()).hexdigest() == found[name]

    assert found == DIGESTS


def test_what_an_event_keeps_of_an_earlier_version_is_always_the_same(
    session: psycopg.Connection[Any],
) -> None:
    tasks = list(TASKS.items())
    found = {}
    for (_, earlier), (name, later) in zip([tasks[-1], *tasks[:-1]], tasks, strict=True):
        (was,) = session.execute(
            "SELECT task_was(earlier, later)::text"
            " FROM jsonb_populate_record(NULL::tasks, %s) AS earlier,"
            " jsonb_populate_record(NULL::tasks, %s) AS later",
            [with_numbers(earlier), with_numbers(later)],
        ).fetchone() or ("",)
        found[name] = hashlib.sha256(was.encode()).hexdigest()

    assert found == REPLACED
