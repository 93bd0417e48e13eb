"""The limit: the service's own statements, sent by pgbench with nothing around them."""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
from asyncpg.connection import LoggedQuery

from audit.history.query import AuditQuery, FailuresQuery, TaskQuery, parse_query
from audit.history.service import AuditService
from audit.postgres import embedded
from audit.postgres.pool import open_pool
from audit.settings import Settings
from tests.bench.shapes import Shape

_COMMENT = re.compile(r"--[^\n]*")
_PARAMETER = re.compile(r"\$(\d+)")
#: The colon of a slice such as `[1:least(…)]`, where pgbench would read a variable.
_SLICE = re.compile(r"(?<!:):(?=[a-z_])")
_TPS = re.compile(r"^tps = ([\d.]+)", re.MULTILINE)
_PROGRESS = re.compile(r"^progress: [\d.]+ s, ([\d.]+) tps", re.MULTILINE)
_PATIENCE_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Script:
    """What pgbench is to send for one question, in a session set up like the service's."""

    text: str
    values: dict[str, str]
    session: dict[str, str]


def query_of(shape: Shape, limit: int, cursor: str | None) -> TaskQuery:
    """Return the question as the service's handlers would judge it."""
    params = {**shape.params(), "limit": [str(limit)]}
    if cursor is not None:
        params["cursor"] = [cursor]
    elif shape.skipped:
        params["offset"] = [str(shape.skipped)]
    return parse_query(FailuresQuery if shape.route == "failures" else AuditQuery, params)


async def script_for(dsn: str, query: TaskQuery) -> Script:
    """Return what the service sends to answer a question, overheard while it does."""
    settings = Settings(pool_size=1, statement_timeout_seconds=_PATIENCE_SECONDS)
    async with open_pool(settings, dsn) as pool:
        service = AuditService(pool)
        clock = datetime.now(UTC).replace(microsecond=0)
        # What is asked only once is over with: by the driver, and where the page lies.
        await service.reading.list_tasks(query, clock=clock)
        heard: list[LoggedQuery] = []
        async with pool.acquire() as connection:
            connection.add_query_logger(heard.append)
            rows = await connection.fetch(
                "SELECT name, setting FROM pg_settings WHERE source IN ('client', 'session')"
            )
        await asyncio.sleep(0)
        heard.clear()
        await service.reading.list_tasks(query, clock=clock)
        await asyncio.sleep(0)
        async with pool.acquire() as connection:
            texts, values = [], {}
            for number, sent in enumerate([*heard]):
                types = (await connection.prepare(sent.query)).get_parameters()
                text, given = _filled(sent.query, sent.args, types, f"v{number}_")
                texts.append(text)
                values.update(given)
    return Script("\n".join(texts), values, {row["name"]: row["setting"] for row in rows})


def _filled(
    statement: str, arguments: Sequence[Any], types: Sequence[asyncpg.Type], prefix: str
) -> tuple[str, dict[str, str]]:
    """Return a statement with pgbench's variables for its parameters, and their values.

    pgbench numbers every use of a variable anew, so each has its type. It can send neither NULL nor
    an empty text, so those stand in the statement; as one argument at least stays a parameter,
    PostgreSQL plans it for the values each time, as for the service.
    """
    given = {
        f"{prefix}{position}": text
        for position, argument in enumerate(arguments, 1)
        if argument is not None and (text := _as_text(argument))
    }

    def value(found: re.Match[str]) -> str:
        position = int(found[1])
        name = f"{prefix}{position}"
        literal = "NULL" if arguments[position - 1] is None else "''"
        return f"({f':{name}' if name in given else literal}::{types[position - 1].name})"

    bare = _SLICE.sub(": ", _COMMENT.sub("", statement)).strip().rstrip(";")
    return _PARAMETER.sub(value, bare) + ";", given


def _as_element(member: Any) -> str:
    """Return an element of an array as PostgreSQL reads it."""
    if member is None:
        return "NULL"
    text = _as_text(member).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _as_text(argument: Any) -> str:
    """Return an argument as PostgreSQL reads it."""
    match argument:
        case list() | tuple():
            return "{" + ",".join(map(_as_element, argument)) + "}"
        case datetime():
            return argument.isoformat()
        case bytes():
            return f"\\x{argument.hex()}"
        case _:
            return str(argument)


def per_second(dsn: str, script: Script, connections: int, seconds: float) -> float:
    """Return how often a second PostgreSQL answers, asked by so many connections at once.

    The first second is left out: there, sessions that are new learn the schema. The service's have
    long done so.
    """
    target = psycopg.conninfo.conninfo_to_dict(dsn)
    escaped = ((name, value.replace(" ", r"\ ")) for name, value in script.session.items())
    environment = {
        **os.environ,
        "PGHOST": str(target["host"]),
        "PGUSER": str(target["user"]),
        "PGDATABASE": str(target["dbname"]),
        "PGOPTIONS": " ".join(f"-c {name}={value}" for name, value in escaped),
    }
    length = ["-T", f"{1 + seconds:.0f}", "-P", "1", "-c", str(connections)]
    if seconds < 1:
        # pgbench knows whole seconds only: this just shows that it works.
        length = ["-t", "2", "-c", "1"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.sql"
        file.write_text(script.text)
        command = [str(embedded.binaries() / "pgbench"), "-n", "-M", "prepared", *length]
        for name, text in script.values.items():
            command += ["-D", f"{name}={text}"]
        command += ["-f", str(file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = _TPS.search(done.stdout)
    if done.returncode or not found:
        raise RuntimeError(f"pgbench failed: {done.stderr}")
    settled = [float(tps) for tps in _PROGRESS.findall(done.stderr)[1:]]
    return statistics.mean(settled) if any(settled) else float(found[1])
