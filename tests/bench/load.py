"""The data set: made once, kept below a folder, brought up to the day before each run.

One PostgreSQL server holds a database for each size, and one more for the peer. A database is as
the service's own writers would leave it: its rows came by COPY through every index and trigger.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from rich.progress import Progress

from audit.history import demo
from audit.history.service import AuditService
from audit.postgres import embedded, migrate
from audit.postgres.pool import open_pool
from audit.resources import folder
from audit.settings import Settings
from tests.bench.shapes import Services

#: As one would set up a server of this size; a commit is durable.
SERVER = {
    "shared_buffers": "1GB",
    "effective_cache_size": "8GB",
    "maintenance_work_mem": "512MB",
    "work_mem": "16MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "max_connections": "300",
}
DAYS = 365
COLUMNS = (
    "task_id", "project_id", "request_text", "created_by", "status", "created_at", "approved_at",
    "completed_at", "services_touched", "outcome", "estimated_resources", "actual_resources",
    "external_ai_used", "error_message", "suggestions",
)  # fmt: skip
COPY_IN = f"COPY tasks ({', '.join(COLUMNS)}) FROM STDIN"
_JSON = frozenset(COLUMNS[9:13]) | {"suggestions"}
_CHUNK = 50_000
_SESSIONS = 2
#: Raised when this file makes other data than before.
_VERSION = 1
_PEER = Path(__file__).parent / "peers"
#: In the first days of the history, every tenth task is of the retired service.
_RETIRED_DAYS = 5
_RETIRED_EVERY = 10


@contextlib.contextmanager
def server(data_dir: Path) -> Iterator[str]:
    """Run the server; yield the DSN of its own database."""
    with embedded.running(data_dir, options=SERVER) as dsn:
        yield dsn


def of_database(dsn: str, name: str) -> str:
    """Return the DSN of another database of a server."""
    return dsn.replace(f"/{embedded.DATABASE}?", f"/{name}?")


def prepare(dsn: str, tasks: int, progress: Progress) -> str:
    """Return the DSN of the database that holds so many tasks, made if it is not there.

    For each whole day since it was made, a day of tasks is added, so that a question about the
    last week always finds one.
    """
    name = f"tasks_{tasks}"
    address = of_database(dsn, name)
    note = _known(dsn, name)
    if note is None:
        until = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        note = {"made_at": datetime.now(UTC).isoformat(), "until": until.isoformat()}
        _make(dsn, name)
        migrate.apply(address)
        _add(address, _with_retired(history(tasks, DAYS, until)), tasks, progress)
        _note(dsn, name, note)
    until = datetime.fromisoformat(note["until"])
    days = (datetime.now(UTC) - until).days
    if days > 0:
        # Cut short from here on, it is made anew the next time.
        _note(dsn, name, None)
        until += timedelta(days=days)
        more = max(tasks * days // DAYS, 1)
        _add(address, history(more, days, until, seed=days), more, progress)
        _note(dsn, name, {**note, "until": until.isoformat()})
    return address


def prepare_peer(dsn: str, tasks: int) -> str:
    """Return the DSN of the peer's database, which holds the tasks of the service's."""
    name = f"peer_{tasks}"
    address = of_database(dsn, name)
    note = _known(dsn, f"tasks_{tasks}") or {}
    copied_from = {"made_at": note["made_at"]}
    if _known(dsn, name) != copied_from:
        _make(dsn, name)
        with psycopg.connect(address) as target:
            target.execute((_PEER / "schema.sql").read_bytes())
    with (
        psycopg.connect(of_database(dsn, f"tasks_{tasks}")) as source,
        psycopg.connect(address) as target,
    ):
        newest = target.execute("SELECT COALESCE(max(created_at), '2000-01-01') FROM tasks")
        out = f"COPY (SELECT {', '.join(COLUMNS)} FROM tasks WHERE created_at > %s) TO STDOUT"
        with (
            source.cursor().copy(out, newest.fetchone()) as rows,
            target.cursor().copy(COPY_IN) as into,
        ):
            for data in rows:
                into.write(data)
        target.execute((_PEER / "indexes.sql").read_bytes())
    _tidy(address)
    _note(dsn, name, copied_from)
    return address


@contextlib.contextmanager
def scratch(dsn: str, tasks: int) -> Iterator[str]:
    """Copy a database, to write into; drop the copy at the end."""
    name = f"scratch_{tasks}"
    _make(dsn, name, template=f"tasks_{tasks}")
    try:
        yield of_database(dsn, name)
    finally:
        _execute(dsn, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def history(tasks: int, days: int, until: datetime, seed: int = 1) -> Iterator[dict[str, Any]]:
    """Yield a made-up history; those of different ends or seeds share no id."""
    return demo.generate(tasks, days=days, until=until, seed=seed)


def new_tasks(count: int) -> Iterator[dict[str, Any]]:
    """Yield made-up tasks of the last day: no two calls give the same ids."""
    until = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    return history(count, 1, until, seed=time.time_ns())


def copy_line(task: dict[str, Any]) -> str:
    """Return a task as a line of COPY's text format."""
    fields = (_copy_field(task.get(name), is_json=name in _JSON) for name in COLUMNS)
    return "\t".join(fields) + "\n"


def _copy_field(value: Any, *, is_json: bool) -> str:
    if value is None:
        return r"\N"
    if is_json:
        value = json.dumps(value)
    elif isinstance(value, list):
        value = "{" + ",".join(f'"{name}"' for name in value) + "}"
    return str(value).replace("\\", r"\\").replace("\t", r"\t").replace("\n", r"\n")


def _with_retired(tasks: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    first: datetime | None = None
    for number, task in enumerate(tasks):
        if first is None:
            first = datetime.fromisoformat(task["created_at"])
        if number % _RETIRED_EVERY == 0:
            at = datetime.fromisoformat(task["created_at"])
            if at < first + timedelta(days=_RETIRED_DAYS):
                task["services_touched"] = [Services().retired]
        yield task


def _add(dsn: str, tasks: Iterable[dict[str, Any]], total: int, progress: Progress) -> None:
    """Write tasks with some sessions at once, while the next ones are made up."""
    bar = progress.add_task(f"loading {total:,} tasks", total=total)
    remaining = iter(tasks)
    under_way: deque[Future[None]] = deque()
    with ThreadPoolExecutor(_SESSIONS) as sessions:
        while chunk := list(itertools.islice(remaining, _CHUNK)):
            _make_partitions(dsn, chunk[0]["created_at"], chunk[-1]["created_at"])
            text = "".join(map(copy_line, chunk))
            under_way.append(sessions.submit(_copy, dsn, text))
            if len(under_way) > _SESSIONS:
                under_way.popleft().result()
            progress.advance(bar, len(chunk))
        for one in under_way:
            one.result()
    _fold(dsn)
    _tidy(dsn)


def _make_partitions(dsn: str, first: str, last: str) -> None:
    _execute(
        dsn,
        "SELECT make_task_partition(held, 'month') FROM generate_series("
        "%s::timestamptz, %s::timestamptz + interval '1 day', interval '1 day') AS held",
        [first, last],
    )


def _copy(dsn: str, text: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("SET synchronous_commit = off")
        with connection.cursor().copy(COPY_IN) as copy:
            copy.write(text)
    _fold(dsn)


def _fold(dsn: str) -> None:
    """Bring the counts up to date, as a running service does every second."""
    settings = Settings(pool_size=1, statement_timeout_seconds=3600)

    async def fold() -> None:
        async with open_pool(settings, dsn) as pool:
            while await AuditService(pool).upkeep.fold_counts():
                pass

    asyncio.run(fold())


def _tidy(dsn: str) -> None:
    """Leave to no autovacuum what would happen at any moment of the measurements."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE, FREEZE)")
        connection.execute("CHECKPOINT")


def _version() -> str:
    """What a database depends on: other migrations or another generator make another one."""
    digest = hashlib.sha256(str(_VERSION).encode())
    for file in sorted(folder("migrations").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".sql"):
            digest.update(file.read_bytes())
    for path in (Path(demo.__file__), *sorted(_PEER.glob("*.sql"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _known(dsn: str, name: str) -> dict[str, str] | None:
    """Return what was noted of a database when it was complete; None where it has to be made."""
    found = _execute(
        dsn,
        "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s",
        [name],
    )
    noted = json.loads(found[0][0]) if found and found[0][0] else {}
    note: dict[str, str] = noted.get("note", {})
    return note if noted.get("version") == _version() else None


def _note(dsn: str, name: str, note: dict[str, str] | None) -> None:
    text = None if note is None else json.dumps({"version": _version(), "note": note})
    _execute(dsn, sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), text))


def _make(dsn: str, name: str, template: str = "template1") -> None:
    """Make a database, instead of what an earlier run may have left unfinished."""
    it = sql.Identifier(name)
    _execute(dsn, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(it))
    make = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
    _execute(dsn, make.format(it, sql.Identifier(template)))


def _execute(
    dsn: str, statement: str | sql.Composed, arguments: list[Any] | None = None
) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement, arguments)
        return cursor.fetchall() if cursor.description else []
